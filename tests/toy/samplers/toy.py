"""The toy's sampler: straight from the noise to what the network predicts."""

from __future__ import annotations

import torch
from torch import nn

from .parts.sampling import Sampling


@torch.no_grad()
def sample_toy(network: nn.Module, size: int, sampling: Sampling) -> torch.Tensor:
    """Pixels ``[B, 3, size, size]`` in -1..1, fp32."""
    steps = sampling.num_inference_steps
    x = sampling.noise.normal((3, size, size), sampling.device)
    for step in range(steps):
        x0 = network(x.to(sampling.dtype)).float()
        x = x + (x0 - x) / (steps - step)
        sampling.tell(step + 1, steps, x0)
    return x
