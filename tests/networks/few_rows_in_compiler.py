"""The kernels of few_rows, compiled for GPUs that are not here. `test_few_rows.py` runs this file.

What a launch passes on decides what is compiled, so it is the launch that is asked.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prior_art.networks import few_rows_kernels as kernels

from .offline_triton import Compiled

SHARED = 99 * 1024
"""Bytes of a program's shared memory that every card since 2020 has."""


def tokens(count: int, width: int, heads: int, vocab: int, dtype: torch.dtype) -> None:
    """What one token of ``count`` candidates asks for."""

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    x, row, weight = new(count, width), new(width), new(width, width)
    cache, slot = new(count, heads, 320, width // heads), torch.zeros(1, dtype=torch.long)
    shared = new(heads, 64, width // heads) if count > 1 else None
    kernels.norm_linear(x, row, row, 1e-5, [weight] * 3, [row] * 3, False)
    kernels.attend(x, x, x, cache, cache, shared, shared, slot)
    kernels.linear_add(x, weight, row, x)
    tall = new(4 * width)
    kernels.norm_linear(x, row, row, 1e-5, [new(4 * width, width)], [tall], True)
    kernels.linear_add(new(count, 4 * width), new(width, 4 * width), row, x)
    if vocab:
        kernels.norm_linear(x, None, None, 0.0, [new(vocab, width)], [], False)
        logits = torch.empty(count, vocab)
        kernels.choose(logits, logits, 256, 1.0)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("counts", [(1,), (2, 7, 16)], ids=["one row", "some rows"])
def test_each_kernel_is_needed_once(
    capability: int,
    counts: tuple[int, ...],
    capsys: pytest.CaptureFixture,
) -> None:
    """By minDALL-E, whatever the rows; all reads of weights and keys are as wide as can be."""
    compiled = Compiled(capability)
    for count in counts:
        tokens(count, 1536, 24, 16384, torch.bfloat16)
    linears = ["_one_row"] * 5 if counts == (1,) else ["_some_rows"] * 4
    assert compiled.names() == ["_attend", "_choose", *linears]
    for kernel in compiled.made:
        code = kernel.asm["ptx"]
        assert "ld.global.v4" in code or "cp.async.cg" in code
        assert ("mma" in code) == (kernel.name == "_some_rows")
        assert kernel.metadata.shared <= SHARED
    with capsys.disabled():
        what = f"{len(compiled.names())} kernels for {capability}, {counts} rows"
        print(f"\n{what}: {compiled.seconds():.1f} s")


@pytest.mark.parametrize("capability", [80, 90])
def test_many_rows_compile(capability: int) -> None:
    """Their queries, keys and values, with shared memory that every card has."""
    compiled = Compiled(capability)
    row, weight = torch.empty(1536).bfloat16(), torch.empty(1536, 1536).bfloat16()
    for count in (17, 96, 300):
        x = torch.empty(count, 1536).bfloat16()
        kernels.norm_linear(x, None, None, 0.0, [weight] * 3, [row] * 3, False)
    assert compiled.names() == ["_some_rows"] * 2  # of 32 and of 128
    for kernel in compiled.made:
        assert "mma" in kernel.asm["ptx"] and kernel.metadata.shared <= SHARED


@pytest.mark.parametrize("count", [1, 4])
def test_other_sizes_compile_too(count: int) -> None:
    """The prior's, and odd ones."""
    Compiled(80)
    tokens(count, 2048, 32, 0, torch.float16)
    tokens(count, 75, 5, 77, torch.float16)
