"""What every sampler is told beside its own arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .noise import Noise

Callback = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """How a sampler runs.

    Attributes:
        noise: of the images that are made, B in all. Prompts and embeddings of R rows go with it
            where R divides B; the images of a row are neighbours.
        device, dtype: where and in what the network runs. The state stays fp32.
        num_inference_steps: of the schedule; a sampler without one does not read it.
        callback: called with (step from 1, steps, x0 ``[B, ...]``) after each step; may raise.
    """

    noise: Noise
    device: torch.device
    dtype: torch.dtype
    num_inference_steps: int = 0
    callback: Callback | None = None

    def tell(self, step: int, total: int, x0: torch.Tensor) -> None:
        """Call the callback, if there is one."""
        if self.callback is not None:
            self.callback(step, total, x0)


@dataclass(frozen=True)
class Start:
    """What is sampled anew instead of noise.

    Attributes:
        clean: ``[R, ...]``, as the sampler makes them.
        strength: how much of the schedule is run on them, 0 (none, they come back) to 1.
    """

    clean: torch.Tensor
    strength: float
