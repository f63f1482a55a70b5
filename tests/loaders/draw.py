"""What these tests share."""

from __future__ import annotations

import torch


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two ways to compute the same in fp32 agree to 1e-5 of the largest value."""
    return bool((found - wanted).abs().max() < 1e-5 * wanted.abs().max())
