"""The fused kernels, run by Triton's interpreter, against float64. `test_fused.py` runs this file.

The interpreter cuts where a GPU rounds to bf16: hence a whole unit of the last place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prior_art.networks import fused, fused_kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(value: Any) -> Any:
    if isinstance(value, list):
        return [double(each) for each in value]
    return value.double() if isinstance(value, Tensor) else value


def check(kernel: Callable[..., Any], plain: Callable[..., Any], *args: Any, lost: float = 0.0):
    """Both give the same to the last place of the dtype, and to ``lost`` of the largest value."""
    before = [a.clone() for a in args if isinstance(a, Tensor)]
    found, expected = kernel(*args), plain(*double(list(args)))
    if isinstance(found, Tensor):
        found, expected = (found,), (expected,)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == args[0].dtype and ours.shape == exact.shape
        assert ours.stride() == exact.stride()
        if exact.numel():
            bound = torch.finfo(ours.dtype).eps + lost + 1e-6
            assert (ours.double() - exact).abs().max() <= bound * exact.abs().max()
    assert all(map(torch.equal, before, [a for a in args if isinstance(a, Tensor)]))


def check_group_norm(x: Tensor, groups: int, *around: Tensor | None, silu=False, lost=0.0):
    weight, beta = draw(2, x.shape[1], dtype=x.dtype, seed=1) + 0.5
    around = [*around, *[None] * (4 - len(around))]
    check(
        fused_kernels.group_norm, fused._plain_group_norm,
        x, weight, beta, around, groups, 1e-5, silu, lost=lost,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 32, 8, 8), 2),
        ((3, 40, 7, 9), 4),
        ((1, 30, 5, 3), 3),
        ((2, 96, 9, 11), 3),
        ((1, 130, 3, 3), 2),
        ((3, 24, 70), 2),
        ((2, 16, 1, 1), 2),
        ((1, 1300, 2, 2), 1),  # a group wider than a block
    ],
    ids=str,
)
def test_group_norm_of_any_size(shape, groups, dtype):
    check_group_norm(draw(*shape, dtype=dtype), groups)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("there", [*itertools.product([False, True], repeat=4)], ids=str)
def test_group_norm_with_all_that_may_stand_around_it(there, silu):
    around = [
        draw(24, seed=2),
        draw(3, 24, seed=3),
        *draw(3, 48, seed=4).chunk(2, dim=1),  # as a projection's two halves lie
    ]
    given = [each if is_there else None for each, is_there in zip(around, there, strict=True)]
    check_group_norm(draw(3, 24, 5, 5), 3, *given, silu=silu)


def test_one_row_stands_around_all():
    check_group_norm(draw(3, 24, 5, 5), 3, draw(24), draw(1, 24, seed=2), draw(1, 24, seed=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pixels", [429, 384, 65])
def test_pixels_are_cut_into_chunks_of_several_tiles(monkeypatch, pixels, dtype):
    monkeypatch.setattr(fused_kernels, "_PROGRAMS", 3)
    check_group_norm(draw(2, 6, pixels, dtype=dtype), 2, silu=True)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("programs", [3, 512])
def test_nothing_cancels_where_the_mean_is_large(monkeypatch, programs, dtype):
    monkeypatch.setattr(fused_kernels, "_PROGRAMS", programs)
    x = (draw(2, 6, 429) + 1000).to(dtype)
    # A mean of a thousand is itself known to a thousand units of fp32's last place.
    check_group_norm(x, 2, draw(6, dtype=dtype), lost=1000 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize(
    "lay",
    [
        lambda x: x.contiguous(),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 2:, 2:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[1:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, 8:],
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(3, -1, -1, -1),
    ],
    ids=["nchw", "nhwc", "window", "rows", "channels", "turned", "repeated"],
)
def test_whatever_lies_however(lay):
    x, other = lay(draw(3, 16, 4, 4)), lay(draw(3, 16, 4, 4, seed=1))
    rows, channels, high, wide = x.shape
    check_group_norm(x, 2, silu=True)
    check(fused_kernels.add, fused._plain_add, x, other, draw(channels, seed=2))
    weight, beta = draw(2, channels, seed=3)
    cells = draw(rows, 2 * channels, high // 2, wide // 2, seed=4).chunk(2, dim=1)
    check(
        fused_kernels.spatial_norm, fused._plain_spatial_norm,
        x, weight, beta, *cells, None, 2, 1e-6, True,
    )  # fmt: skip
    weight, beta = draw(2, wide, seed=5)
    check(fused_kernels.layer_norm, fused._plain_layer_norm, x, weight, beta, other, None, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("cell", "silu"), [((1, 1), False), ((2, 3), False), ((4, 4), True)], ids=str
)
def test_spatial_norm(cell, silu, dtype):
    rows, channels, high, wide = 2, 36, 3, 5
    x = draw(rows, channels, high * cell[0], wide * cell[1], dtype=dtype)
    scale, shift = draw(2, rows, channels, high, wide, dtype=dtype, seed=1)
    weight, beta, bias = draw(3, channels, dtype=dtype, seed=2)
    check(
        fused_kernels.spatial_norm, fused._plain_spatial_norm,
        x, weight, beta, scale, shift, bias, 3, 1e-6, silu,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 40, 7, 9), (3, 7, 40), (1, 1, 1), (1, 70, 1, 3)], ids=str)
def test_add(shape, dtype):
    x, y = draw(2, *shape, dtype=dtype)
    bias = draw(shape[1] if len(shape) == 4 else shape[2], dtype=dtype, seed=1)
    check(fused_kernels.add, fused._plain_add, x, y, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("there", [*itertools.product([False, True], repeat=2)], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 40), (3, 1, 33), (7, 64)], ids=str)
def test_layer_norm(shape, there, dtype):
    x, delta = draw(2, *shape, dtype=dtype) + 3
    weight, beta, bias = draw(3, shape[-1], dtype=dtype, seed=1)
    # The sum is rounded on its way into the norm, where it may lose a unit of its last place.
    lost = 4 * torch.finfo(dtype).eps if any(there) else 0.0
    check(
        fused_kernels.layer_norm, fused._plain_layer_norm,
        x, weight, beta, delta if there[0] else None, bias if there[1] else None, 1e-5, lost=lost,
    )  # fmt: skip


def test_layer_norm_does_not_cancel_where_the_mean_is_large():
    x, weight, beta = draw(3, 48) + 1000, *draw(2, 48, seed=1)
    check(
        fused_kernels.layer_norm, fused._plain_layer_norm, x, weight, beta, None, None, 1e-5,
        lost=1000 * torch.finfo(torch.float32).eps,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 80, 7, 9), (1, 3, 1, 70), (3, 64, 8, 8)], ids=str)
def test_double(shape, dtype):
    check(fused_kernels.double, fused._plain_double, draw(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 80), (3, 2), (1, 2100)], ids=str)
def test_geglu(shape, dtype):
    check(fused_kernels.geglu, fused._plain_geglu, 3 * draw(*shape, dtype=dtype))
