from __future__ import annotations

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.samplers.parts.guidance import guide, is_guided, refuse_nan, spread


def test_guide() -> None:
    u, c = torch.tensor([1.0]), torch.tensor([3.0])
    assert guide(u, c, 4).item() == 9
    assert guide(u, c, 1).item() == 3


def test_spread_keeps_copies_together() -> None:
    rows = torch.tensor([[1], [2]])
    assert spread(rows, 4, "x").flatten().tolist() == [1, 1, 2, 2]
    assert spread(rows, 2, "x") is rows


@pytest.mark.parametrize("count", [1, 3])
def test_spread_refuses_what_does_not_divide(count: int) -> None:
    with pytest.raises(EdgeError, match=f"'positive' has 2 rows.*{count} images"):
        spread(torch.zeros(2, 1), count, "positive")


def test_spread_refuses_no_rows() -> None:
    with pytest.raises(EdgeError, match="has 0 rows"):
        spread(torch.zeros(0, 1), 2, "positive")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_refuses_a_scale_that_is_no_number(scale: float) -> None:
    with pytest.raises(EdgeError, match=r"'guidance_scale' is .*finite"):
        is_guided(scale, None)


def test_guidance_needs_a_negative_prompt() -> None:
    assert not is_guided(1.0, None)
    with pytest.raises(EdgeError, match=r"'guidance_scale' is 1\.5, which needs a negative prompt"):
        is_guided(1.5, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_nan(value: float) -> None:
    with pytest.raises(EdgeError, match=r"decoder computed NaN .* in float16.*fp32 or bf16"):
        refuse_nan(torch.tensor([0, value]), "decoder", torch.float16)
