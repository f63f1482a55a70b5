"""The kernels of few_rows in Triton's interpreter, on CPU tensors, against float64.

test_few_rows.py runs this file in a process of its own: whether Triton interprets is settled when
it is first imported.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from prior_art.networks import few_rows as plain
from prior_art.networks import few_rows_kernels as kernels

HALVES = (torch.float16, torch.bfloat16)
ROWS = (1, 2, 3, 9, 16)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as its bits, and multiplies matrices of them as such."""
    dot = interpreter.InterpreterBuilder.create_dot

    def numbers(handle):
        if handle.data.dtype != np.uint16:
            return handle
        values = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, interpreter.tl.float32)

    def create_dot(self, a, b, *others):
        return dot(self, numbers(a), numbers(b), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    source = torch.Generator().manual_seed(seed + sum(shape))
    return (scale * torch.randn(shape, generator=source)).to(dtype)


def double(*given: object) -> list:
    return [
        part.double()
        if isinstance(part, Tensor) and part.is_floating_point()
        else double(*part)
        if isinstance(part, list)
        else part
        for part in given
    ]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """As near as the dtype has it; the interpreter cuts off what bf16 has no room for."""
    steps = 1.5 if found.dtype == torch.float16 else 4
    bound = steps * torch.finfo(found.dtype).eps * expected.abs().clamp(min=1)
    assert bool(((found.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("width", "size"), [(48, 80), (77, 33), (300, 17)])
@pytest.mark.parametrize(("layers", "gelu"), [(3, False), (1, True)])
def test_norm_linear(
    dtype: torch.dtype, rows: int, width: int, size: int, layers: int, gelu: bool
) -> None:
    x = random(rows, width, dtype=dtype) + 2 * torch.arange(rows)[:, None].to(dtype)
    gain, shift = 1 + random(width, dtype=dtype, scale=0.3), random(width, dtype=dtype, seed=1)
    weights = [random(size, width, dtype=dtype, seed=i, scale=width**-0.5) for i in range(layers)]
    biases = [random(size, dtype=dtype, seed=i) for i in range(layers)]
    given = (x, gain, shift, 1e-5, weights, biases, gelu)
    found = kernels.norm_linear(*given)
    assert_near(found, plain._norm_linear(*double(*given)))


@pytest.mark.parametrize("rows", [17, 50, 130])
def test_layers_of_more_rows(rows: int) -> None:
    x = random(rows, 77, dtype=torch.float16)
    weights = [random(40, 77, dtype=torch.float16, seed=i, scale=0.1) for i in range(3)]
    biases = [random(40, dtype=torch.float16, seed=i) for i in range(3)]
    given = (x, None, None, 0.0, weights, biases, False)
    assert_near(kernels.norm_linear(*given), plain._norm_linear(*double(*given)))


@pytest.mark.parametrize("rows", ROWS)
def test_rows_far_from_zero(rows: int) -> None:
    """Their moments are as good as half precision lets them be."""
    x = random(rows, 301, dtype=torch.float16) + 30
    gain, shift = torch.ones(301).half(), torch.zeros(301).half()
    weights = [random(20, 301, dtype=torch.float16, scale=0.05)]
    given = (x, gain, shift, 1e-5, weights, [], False)
    assert_near(kernels.norm_linear(*given), plain._norm_linear(*double(*given)))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("width", "size"), [(48, 80), (515, 33)])
def test_linears(dtype: torch.dtype, rows: int, width: int, size: int) -> None:
    x = random(rows, width, dtype=dtype)
    weight = random(size, width, dtype=dtype, scale=width**-0.5)
    bias, add = random(size, dtype=dtype), random(rows, size, dtype=dtype, seed=2)
    given = (x, None, None, 0.0, [weight], [], False)
    assert_near(kernels.norm_linear(*given), plain._norm_linear(*double(*given)))
    found = kernels.linear_add(x, weight, bias, add)
    assert_near(found, plain._linear_add(*double(x, weight, bias, add)))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 20), (3, 8)])
@pytest.mark.parametrize(("common", "slot"), [(0, 0), (0, 130), (1, 1), (64, 64), (67, 130)])
def test_attend(dtype: torch.dtype, rows: int, size: int, common: int, slot: int) -> None:
    """With the token's own keys and values written, and what stands behind them never read."""
    heads, room = 2, 131
    q, k, v = (random(rows, heads * size, dtype=dtype, seed=i, scale=2) for i in range(3))
    keys, values = (random(rows, heads, room, size, dtype=dtype, seed=i) for i in (3, 4))
    shared = [random(heads, common, size, dtype=dtype, seed=i) for i in (5, 6)]
    shared = shared if common else [None, None]
    place = torch.tensor([slot])
    wanted = [keys.double(), values.double()]
    expected = plain._attend(*double(q, k, v), *wanted, *double(*shared), place)
    keys[:, :, slot:], values[:, :, slot:] = torch.nan, torch.nan
    found = kernels.attend(q, k, v, keys, values, *shared, place)
    assert_near(found, expected)
    for own, all_ in zip((keys, values), wanted, strict=True):
        assert torch.equal(own[:, :, : slot + 1].double(), all_[:, :, : slot + 1])
        assert bool(own[:, :, slot + 1 :].isnan().all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("top_k", "temperature"), [(0, 1.0), (1, 1.0), (7, 1.0), (7, 0.25), (299, 1.0), (400, 1.0)]
)
def test_choose(dtype: torch.dtype, top_k: int, temperature: float) -> None:
    """Of half precision's many ties none is lost."""
    logits = random(6, 300, dtype=dtype, scale=3).clamp(-4, 4)
    logits[0] = 0
    logits[1, ::2], logits[1, 1::2] = -0.0, 0.0
    noise = random(6, 300, dtype=torch.float32, seed=1).abs()
    noise[1, 4] = 1e-6
    found = kernels.choose(logits, noise, top_k, temperature)
    assert torch.equal(found, plain._choose(logits, noise, top_k, temperature))


def test_a_code_whatever_the_numbers_are() -> None:
    logits = torch.full((3, 5), torch.nan)
    logits[1], logits[2, 2] = -torch.inf, 1
    chosen = kernels.choose(logits, torch.ones(3, 5), 2, 1.0)
    assert bool(((chosen >= 0) & (chosen < 5)).all())
