"""ComfyUI's nodes for latents that the headless runner has: the host's names and meaning."""

from __future__ import annotations

from typing import Any

import torch

from . import embedded_io as io
from .workflow import WorkflowError

LARGEST = 16384
CELL = 8
"""Pixels of a latent's place, whatever the system: as the host counts them here."""


def _both(samples1: dict, samples2: dict, node: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of two latents.

    Raises:
        WorkflowError: they are of different size; the host would resize the second.
    """
    first, second = samples1["samples"], samples2["samples"]
    if first.shape[1:] != second.shape[1:]:
        raise WorkflowError(
            f"'{node}' got latents of {tuple(first.shape[1:])} and {tuple(second.shape[1:])}; the"
            " headless runner resizes none. Make them of pictures of one size, or run it in ComfyUI"
        )
    return first, second


class LatentBlend(io.ComfyNode):
    """Two latents as one, by shares."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("samples1"),
            io.Latent.Input("samples2"),
            io.Float.Input("blend_factor", default=0.5, min=0, max=1, step=0.01),
        ]
        return io.Schema(
            "LatentBlend", category="_for_testing", inputs=inputs, outputs=[io.Latent.Output()]
        )

    @classmethod
    def execute(cls, samples1: dict, samples2: dict, blend_factor: float) -> io.NodeOutput:
        first, second = _both(samples1, samples2, "LatentBlend")
        blended = first * blend_factor + second * (1 - blend_factor)
        return io.NodeOutput({**samples1, "samples": blended})


class LatentComposite(io.ComfyNode):
    """One latent pasted into another, its inner edges feathered."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        places = [
            io.Int.Input(name, default=0, min=0, max=LARGEST, step=CELL)
            for name in ("x", "y", "feather")
        ]
        inputs = [io.Latent.Input("samples_to"), io.Latent.Input("samples_from"), *places]
        return io.Schema(
            "LatentComposite", category="latent", inputs=inputs, outputs=[io.Latent.Output()]
        )

    @classmethod
    def execute(
        cls, samples_to: dict, samples_from: dict, x: int, y: int, feather: int
    ) -> io.NodeOutput:
        x, y, feather = (number // CELL for number in (x, y, feather))
        out = samples_to["samples"].clone()
        height, width = out.shape[2:]
        patch = samples_from["samples"][:, :, : height - y, : width - x]
        high, wide = patch.shape[2:]
        # Towards edges that lie inside: 1/feather, 2/feather, ... of what is pasted.
        down = _ramp(high, feather, y > 0, y + high < height)
        across = _ramp(wide, feather, x > 0, x + wide < width)
        share = down[:, None] * across
        under = out[:, :, y : y + high, x : x + wide]
        out[:, :, y : y + high, x : x + wide] = patch * share + under * (1 - share)
        return io.NodeOutput({**samples_to, "samples": out})


def _ramp(length: int, feather: int, begins_inside: bool, ends_inside: bool) -> torch.Tensor:
    share = torch.ones(length)
    for step in range(min(feather, length)):
        if begins_inside:
            share[step] *= (step + 1) / feather
        if ends_inside:
            share[length - 1 - step] *= (step + 1) / feather
    return share


class LatentBatch(io.ComfyNode):
    """Two latents, or batches of them, as one batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples1"), io.Latent.Input("samples2")]
        return io.Schema(
            "LatentBatch", category="latent/batch", inputs=inputs, outputs=[io.Latent.Output()]
        )

    @classmethod
    def execute(cls, samples1: dict, samples2: dict) -> io.NodeOutput:
        both = _both(samples1, samples2, "LatentBatch")
        made: dict[str, Any] = {**samples1, "samples": torch.cat(both)}
        return io.NodeOutput(made)
