"""What a MODEL must have for the headless re-telling of ComfyUI's samplers to run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ...networks.graphs import by_step
from ...networks.memory import least_of_unet
from ...networks.unet import Predict
from .memory import check_room

Prompt = tuple[str, list]
"""Which side of the guidance it is on, and one entry of a CONDITIONING."""


@dataclass(frozen=True)
class Prepared:
    """A network with its conditioning held fixed.

    Attributes:
        predict: ``(x [R * B, c, h, w], step index)`` -> noise, and whatever channels follow.
        device, dtype: where and in what it runs.
        beside: further input channels ``[R * B, c', h, w]``, as a rule none.
    """

    predict: Predict
    device: torch.device
    dtype: torch.dtype
    beside: tuple[torch.Tensor, ...] = ()

    def __call__(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """``predict``, recorded where it can be."""
        step = by_step(self.predict, "sampled", lambda place, x: (self.predict(x, place),))
        return step(index, x)[0]


class Sampled(Protocol):
    """A MODEL that native samplers run.

    Attributes:
        scale: what latents are multiplied by before they are noised.
    """

    scale: float

    def sigmas(self) -> torch.Tensor:
        """Noise over signal at every training timestep, ascending, fp32."""
        ...

    def prepare(
        self,
        prompts: list[Prompt],
        start: torch.Tensor,
        mask: torch.Tensor | None,
        times: list[int],
        seed: int,
    ) -> Prepared:
        """The network for these prompts, each of as many rows as there are latents.

        Args:
            prompts: of both sides of the guidance.
            start: latents ``[B, 4, h, w]``, scaled; mask: ``[B, 1, h, w]``, 1 is painted anew.
            times: of each step.
            seed: of the run, for what the host draws beside the latents' noise.

        Raises:
            EdgeError: conditioning of another kind.
        """
        ...


def check_latents(network: nn.Module, start: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse latents ``[B, C, h, w]`` that are too large for a U-Net to be run on them.

    Raises:
        EdgeError: says how much memory that would take.
    """
    count, _, high, wide = start.shape
    check_room(
        least_of_unet(network, count * high * wide, dtype),
        f"{count} latents of {wide}x{high} places",
        "wire fewer or smaller ones into 'latent_image'",
    )
