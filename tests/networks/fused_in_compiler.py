"""The fused kernels, compiled for GPUs that are not here. `test_fused.py` runs this file.

Whatever a launch would compile is compiled to the card's machine code, at published channels.
"""

from __future__ import annotations

import pytest
import torch

from prior_art.networks import fused_kernels

from .offline_triton import Compiled


def norms(channels: list[int], dtype: torch.dtype) -> None:
    """Group norms of a U-Net's sizes, with and without what may stand around them."""
    for index, width in enumerate(channels):
        side = 64 >> index
        x = torch.empty(2, width, side, side, dtype=dtype)
        weight, both = torch.empty(width, dtype=dtype), torch.empty(2, 2 * width, dtype=dtype)
        for around in (
            [None] * 4,
            [weight, both[:, :width], None, None],
            [weight, None, *both.chunk(2, dim=1)],
        ):
            for silu in (False, True):
                fused_kernels.group_norm(x, weight, weight, around, 32, 1e-5, silu)
        fused_kernels.add(x, x, weight)
        fused_kernels.double(x)


def tokens(widths: list[int], dtype: torch.dtype) -> None:
    """What a transformer of SDXL's kind asks for."""
    for width in widths:
        x, weight = torch.empty(2, 5, width, dtype=dtype), torch.empty(width, dtype=dtype)
        fused_kernels.layer_norm(x, weight, weight, x, weight, 1e-5)
        fused_kernels.layer_norm(x, weight, weight, None, None, 1e-5)
        fused_kernels.add(x, x, weight)
        fused_kernels.geglu(torch.empty(2, 5, 8 * width, dtype=dtype))


def cells(channels: list[int], dtype: torch.dtype) -> None:
    """MoVQ's norms."""
    for width in channels:
        x, weight = torch.empty(1, width, 16, 16, dtype=dtype), torch.empty(width, dtype=dtype)
        by = torch.empty(1, width, 4, 4, dtype=dtype)
        for silu in (False, True):
            fused_kernels.spatial_norm(x, weight, weight, by, by, weight, 32, 1e-6, silu)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(75, torch.float16), (80, torch.float16), (90, torch.bfloat16), (90, torch.float32)],
    ids=str,
)
def test_a_network_needs_each_kernel_once(capability, dtype, capsys):
    compiled = Compiled(capability)
    norms([320, 640, 1280, 2560, 384, 1920, 960], dtype)
    unet = ["_add", "_double", "_factors", "_moments", "_scale", "_scale"]
    assert compiled.names() == unet
    tokens([640, 1280], dtype)
    cells([512, 256, 128], dtype)
    everything = [*unet, "_geglu", "_layer_norm", "_layer_norm", "_scale_cells", "_scale_cells"]
    assert compiled.names() == sorted(everything)
    with capsys.disabled():
        print(f"\n{len(everything)} kernels for {capability}, {dtype}: {compiled.seconds():.1f} s")


def test_odd_sizes_compile_too():
    Compiled(90)
    for dtype in (torch.float16, torch.float32):
        x, weight = torch.empty(1, 30, 7, 5, dtype=dtype), torch.empty(30, dtype=dtype)
        fused_kernels.group_norm(x, weight, weight, [weight, None, None, None], 3, 1e-5, True)
        fused_kernels.spatial_norm(x, weight, weight, x, x, None, 3, 1e-5, True)
        fused_kernels.add(x, x, weight)
        fused_kernels.double(x)
        x = torch.empty(1, 1, 30, dtype=dtype)
        fused_kernels.layer_norm(x, weight, weight, x, None, 1e-5)
        fused_kernels.geglu(x)
