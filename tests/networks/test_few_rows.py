"""A transformer's step of few rows: the operations, their kernels, and where they are used."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prior_art.networks import few_rows
from prior_art.networks.few_rows import fits

from .offline_triton import passes

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.slow
def test_kernels_compute_what_float64_does(tmp_path: Path) -> None:
    passes("few_rows_in_interpreter.py", tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_kernels_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    passes("few_rows_in_compiler.py", tmp_path)


def transformer(width: int = 48, dtype: torch.dtype = torch.float16) -> list[nn.Module]:
    layers = [nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)]
    return [layer.to(META, dtype).requires_grad_(False) for layer in layers]


def test_what_the_kernels_take() -> None:
    half = torch.float16
    assert fits(transformer(), META, half)  # as if on a GPU
    assert not fits(transformer(), CPU, half)
    assert not fits(transformer(), META, torch.bfloat16)
    assert not fits(transformer(dtype=torch.float32), META, torch.float32)
    assert not fits(transformer(width=few_rows._WIDEST // 2), META, half)
    assert fits([nn.Linear(8, 8, bias=False, device=META, dtype=half)], META, half)
    patched = transformer()
    patched[1].weight_function = [lambda weight: weight]
    assert not fits(patched, META, half)
    by_column = transformer()
    by_column[1].weight.data = by_column[1].weight.data.t().contiguous().t()
    assert not fits(by_column, META, half)


def operations(count: int, dtype: torch.dtype) -> Iterator[tuple[str, tuple]]:
    """Each operation with arguments of ``count`` rows."""
    source = torch.Generator().manual_seed(count)
    new = functools.partial(torch.randn, generator=source)
    x, gain, shift, add = (new(size).to(dtype) for size in ((count, 24), 24, 24, (count, 36)))
    weights = [new(36, 24).to(dtype) for _ in range(3)]
    biases = [new(36).to(dtype) for _ in range(3)]
    yield "norm_linear", (x, gain, shift, 1e-5, weights, biases, False)
    yield "norm_linear", (x, gain, shift, 1e-5, weights[:1], biases[:1], True)
    yield "norm_linear", (x, None, None, 0.0, weights[:1], [], False)
    yield "linear_add", (x, weights[0], biases[0], add)
    for shared in ([new(3, 5, 8).to(dtype) for _ in range(2)], [None, None]):
        own = [new(count, 3, 9, 8).to(dtype) for _ in range(2)]
        yield "attend", (x, x + 1, x + 2, *own, *shared, torch.tensor([4]))
    yield "choose", (new(count, 50).to(dtype), new(count, 50).abs(), 7, 0.5)


@pytest.mark.parametrize("count", [1, 3])
def test_operations(count: int) -> None:
    """Their declarations hold: what they write to, what their results are like."""
    for name, given in operations(count, torch.float32):
        operation = getattr(torch.ops.prior_art, name).default
        torch.library.opcheck(operation, given)
        elsewhere = [
            part.to(META)
            if isinstance(part, Tensor)
            else [each.to(META) for each in part]
            if isinstance(part, list)
            else part
            for part in given
        ]
        made, like = operation(*given), operation(*elsewhere)
        assert like.shape == made.shape and like.dtype == made.dtype
        assert like.stride() == made.stride() and like.is_meta


def test_more_rows_are_torch_s_own_products() -> None:
    """And give the same."""
    norm, first, second = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
    x = torch.randn(2 * few_rows.ROWS, 8)
    with torch.no_grad():
        for given in (x, x[:4]):
            (y,) = few_rows.norm_linear(norm, [first], given, gelu=True)
            torch.testing.assert_close(y, nn.functional.gelu(first(norm(given))))
            torch.testing.assert_close(few_rows.linear_add(second, y, given), second(y) + given)
            torch.testing.assert_close(few_rows.linear(first.weight, given), given @ first.weight.T)
