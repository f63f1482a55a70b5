"""The toy's sampler: straight from the noise to what the network predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .parts.noise import randn


@torch.no_grad()
def sample_toy(
    network: nn.Module,
    size: int,
    steps: int,
    generators: list[torch.Generator],
    device: torch.device,
    dtype: torch.dtype,
    callback: Callable[[int, torch.Tensor], None],
) -> torch.Tensor:
    """Pixels ``[B, 3, size, size]`` in -1..1, one for each generator, fp32.

    Args:
        callback: told of each step: how many are done, and x0 ``[B, 3, size, size]``.
    """
    x = randn((3, size, size), generators, device)
    for step in range(steps):
        x0 = network(x.to(dtype)).float()
        x = x + (x0 - x) / (steps - step)
        callback(step + 1, x0)
    return x
