"""The toy's network: a disc on a ground, whose two colours are its weights."""

from __future__ import annotations

import torch
from torch import nn


class ToyDecoder(nn.Module):
    """Predicts the picture without noise.

    Attributes:
        grain: how much of the noise it takes for a part of the picture, 0..1.
    """

    def __init__(self, grain: float) -> None:
        super().__init__()
        self.grain = grain
        self.paint = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x0 ``[B, 3, h, w]`` in -1..1 of noisy pixels of that shape."""
        down, along = (torch.linspace(-1, 1, side).to(x) for side in x.shape[2:])
        disc = (down[:, None] ** 2 + along**2 < 0.5).to(x)
        return self.paint(disc[..., None]).permute(2, 0, 1) + self.grain * x
