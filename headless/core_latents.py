"""ComfyUI's nodes for latents that the headless runner has: the host's names and meaning."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..host.embedded import io as io
from ..host.embedded.rows import composite, fitted, resized
from ..host.room import check_main_memory
from .workflow import WorkflowError

LARGEST = 16384
CELL = 8
"""Pixels of a latent's place, whatever the system: as the host counts them here."""

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]


def _schema(node_id: str, inputs: list) -> io.Schema:
    return io.Schema(node_id, category="latent", inputs=inputs, outputs=[io.Latent.Output()])


def _places(*names: str) -> list:
    return [io.Int.Input(name, default=0, min=0, max=LARGEST, step=CELL) for name in names]


def _refuse_misfit(node: str, first: torch.Tensor, second: torch.Tensor) -> None:
    """Refuse what the host fails on.

    Raises:
        WorkflowError: other channels, or batches of which neither is one.
    """
    if first.shape[1] != second.shape[1] or len({len(first), len(second)} - {1}) > 1:
        raise WorkflowError(
            f"'{node}' got latents of {tuple(first.shape)} and {tuple(second.shape)}, which do not"
            " go together; wire latents of one system, and equally many of them or one"
        )


class EmptyLatentImage(io.ComfyNode):
    """Zeros of a latent diffusion model's size."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 512, "min": 16, "max": LARGEST, "step": CELL}
        return _schema(
            "EmptyLatentImage",
            [
                io.Int.Input("width", **side),
                io.Int.Input("height", **side),
                io.Int.Input("batch_size", default=1, min=1, max=4096),
            ],
        )

    @classmethod
    def execute(cls, width: int, height: int, batch_size: int) -> io.NodeOutput:
        shape = (batch_size, 4, height // CELL, width // CELL)
        check_main_memory(
            math.prod(shape),
            f"{batch_size} latents for {width}x{height}",
            "lower 'batch_size', 'width' or 'height'",
        )
        return io.NodeOutput({"samples": torch.zeros(shape)})


class SetLatentNoiseMask(io.ComfyNode):
    """A latent with the region to be repainted."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("SetLatentNoiseMask", [io.Latent.Input("samples"), io.Mask.Input("mask")])

    @classmethod
    def execute(cls, samples: dict, mask: torch.Tensor) -> io.NodeOutput:
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        return io.NodeOutput({**samples, "noise_mask": mask})


class LatentBlend(io.ComfyNode):
    """Two latents as one, by shares."""

    EQUAL = "to 1e-5"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "LatentBlend",
            [
                io.Latent.Input("samples1"),
                io.Latent.Input("samples2"),
                io.Float.Input("blend_factor", default=0.5, min=0, max=1, step=0.01),
            ],
        )

    @classmethod
    def execute(cls, samples1: dict, samples2: dict, blend_factor: float) -> io.NodeOutput:
        first, second = samples1["samples"], samples2["samples"]
        _refuse_misfit("LatentBlend", first, second)
        if first.shape[2:] != second.shape[2:]:
            second = resized(second, first.shape[2], first.shape[3], "bicubic", "center")
        blended = first * blend_factor + second * (1 - blend_factor)
        return io.NodeOutput({**samples1, "samples": blended})


class LatentComposite(io.ComfyNode):
    """One latent pasted into another, its inner edges feathered."""

    EQUAL = "to 1e-6"
    REFUSED = "what ComfyUI fails on: pasting beyond the edge in part"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples_to"), io.Latent.Input("samples_from")]
        return _schema("LatentComposite", inputs + _places("x", "y", "feather"))

    @classmethod
    def execute(
        cls, samples_to: dict, samples_from: dict, x: int, y: int, feather: int
    ) -> io.NodeOutput:
        x, y, feather = (number // CELL for number in (x, y, feather))
        out, patch = samples_to["samples"].clone(), samples_from["samples"]
        height, width = out.shape[2:]
        place = (..., slice(y, y + patch.shape[2]), slice(x, x + patch.shape[3]))
        # Beyond the edge these counts are negative, and leave out rows at the patch's end.
        inside = (..., slice(height - y), slice(width - x))
        patch = patch[inside]
        try:
            if feather:
                high, wide = patch.shape[2:]
                down = _ramp(high, feather, y > 0, y + high < height)
                share = down[:, None] * _ramp(wide, feather, x > 0, x + wide < width)
                place = (..., slice(y, y + high), slice(x, x + wide))
                patch = patch[inside] * share + out[place] * (1 - share)
            out[place] = patch
        except RuntimeError as error:
            raise WorkflowError(
                f"'samples_from' of {tuple(samples_from['samples'].shape)} at x {x * CELL}, y"
                f" {y * CELL} cannot be pasted into 'samples_to' of {tuple(out.shape)}; ComfyUI"
                " fails on it too. Paste inside it, with one row or as many"
            ) from error
        return io.NodeOutput({**samples_to, "samples": out})


def _ramp(length: int, feather: int, begins_inside: bool, ends_inside: bool) -> torch.Tensor:
    """1/feather, 2/feather, ... from edges that lie inside; a feather longer than the patch goes
    over it again from the other end, as the host's does."""
    share = torch.ones(length)
    for step in range(feather):
        if begins_inside:
            share[step : step + 1] *= 1 / feather * (step + 1)
        if ends_inside:
            share[length - 1 - step : length - step] *= 1 / feather * (step + 1)
    return share


class LatentCompositeMasked(io.ComfyNode):
    """One latent pasted into another where a mask says."""

    EQUAL = "to 1e-5"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("destination"), io.Latent.Input("source"), *_places("x", "y")]
        inputs += [
            io.Boolean.Input("resize_source", default=False),
            io.Mask.Input("mask", optional=True),
        ]
        return _schema("LatentCompositeMasked", inputs)

    @classmethod
    def execute(
        cls,
        destination: dict,
        source: dict,
        x: int,
        y: int,
        resize_source: bool,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        ground, patch = destination["samples"], source["samples"]
        if ground.shape[1] != patch.shape[1]:
            _refuse_misfit("LatentCompositeMasked", ground, patch)
        made = composite(ground, patch, x // CELL, y // CELL, resize_source, mask)
        return io.NodeOutput({**destination, "samples": made})


class LatentBatch(io.ComfyNode):
    """Two latents, or batches of them, as one batch; the second is cropped and resized. Each row
    keeps its number, by which noise is drawn: two single latents get the same."""

    EQUAL = "to 1e-5"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("LatentBatch", [io.Latent.Input("samples1"), io.Latent.Input("samples2")])

    @classmethod
    def execute(cls, samples1: dict, samples2: dict) -> io.NodeOutput:
        first, second = samples1["samples"], samples2["samples"]
        _refuse_misfit("LatentBatch", first[:1], second[:1])
        if first.shape[2:] != second.shape[2:]:
            second = resized(second, first.shape[2], first.shape[3], "bilinear", "center")
        numbers = [
            number
            for latent in (samples1, samples2)
            for number in latent.get("batch_index", range(len(latent["samples"])))
        ]
        made: dict[str, Any] = {**samples1, "samples": torch.cat((first, second))}
        return io.NodeOutput({**made, "batch_index": numbers})


class LatentFromBatch(io.ComfyNode):
    """Some latents of a batch, with their masks and numbers."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "LatentFromBatch",
            [
                io.Latent.Input("samples"),
                io.Int.Input("batch_index", default=0, min=-LARGEST, max=LARGEST),
                io.Int.Input("length", default=1, min=1, max=64),
            ],
        )

    @classmethod
    def execute(cls, samples: dict, batch_index: int, length: int) -> io.NodeOutput:
        rows = samples["samples"]
        first = batch_index + len(rows) if batch_index < 0 else batch_index
        first = max(0, min(len(rows) - 1, first))
        part = slice(first, min(len(rows), first + length))
        made = {**samples, "samples": rows[part]}
        mask = samples.get("noise_mask")
        if mask is not None and len(mask) > 1:
            made["noise_mask"] = fitted(mask, max(len(mask), len(rows)))[part]
        made["batch_index"] = list(samples.get("batch_index", range(len(rows))))[part]
        return io.NodeOutput(made)


class RepeatLatentBatch(io.ComfyNode):
    """A batch of latents several times over, each copy with numbers of its own."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        amount = io.Int.Input("amount", default=1, min=1, max=64)
        return _schema("RepeatLatentBatch", [io.Latent.Input("samples"), amount])

    @classmethod
    def execute(cls, samples: dict, amount: int) -> io.NodeOutput:
        check_main_memory(
            amount * samples["samples"].numel(),
            f"{amount} times a batch of {len(samples['samples'])} latents",
            "lower 'amount'",
        )
        made = {**samples, "samples": torch.cat([samples["samples"]] * amount)}
        mask, numbers = samples.get("noise_mask"), samples.get("batch_index")
        if mask is not None and len(mask) > 1:
            made["noise_mask"] = torch.cat([mask] * amount)
        if numbers is not None:
            span = max(numbers) - min(numbers) + 1
            made["batch_index"] = [n + i * span for i in range(amount) for n in numbers]
        return io.NodeOutput(made)


class LatentBatchSeedBehavior(io.ComfyNode):
    """Whether each latent of a batch gets noise of its own, or all the first one's."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        behavior = io.Combo.Input("seed_behavior", options=["random", "fixed"], default="fixed")
        return _schema("LatentBatchSeedBehavior", [io.Latent.Input("samples"), behavior])

    @classmethod
    def execute(cls, samples: dict, seed_behavior: str) -> io.NodeOutput:
        made = {key: value for key, value in samples.items() if key != "batch_index"}
        if seed_behavior == "fixed":
            first = samples.get("batch_index", [0])[0]
            made["batch_index"] = [first] * len(samples["samples"])
        return io.NodeOutput(made)


class LatentUpscale(io.ComfyNode):
    """Latents in another size, given in pixels; 0 keeps the proportions."""

    EQUAL = "to 1e-4"

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 512, "min": 0, "max": LARGEST, "step": CELL}
        return _schema(
            "LatentUpscale",
            [
                io.Latent.Input("samples"),
                io.Combo.Input("upscale_method", options=METHODS),
                io.Int.Input("width", **side),
                io.Int.Input("height", **side),
                io.Combo.Input("crop", options=["disabled", "center"]),
            ],
        )

    @classmethod
    def execute(
        cls, samples: dict, upscale_method: str, width: int, height: int, crop: str
    ) -> io.NodeOutput:
        if not width and not height:
            return io.NodeOutput(samples)
        rows = samples["samples"]
        high, wide = rows.shape[2:]
        if not width:
            height = max(64, height)
            width = round(wide * height / high)
        elif not height:
            width = max(64, width)
            height = round(high * width / wide)
        size = (max(64, height) // CELL, max(64, width) // CELL)
        return io.NodeOutput(
            {**samples, "samples": resized(rows, size[0], size[1], upscale_method, crop)}
        )


class LatentUpscaleBy(io.ComfyNode):
    """Latents so many times as large."""

    EQUAL = "to 1e-4"
    REFUSED = "a factor that leaves no place"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "LatentUpscaleBy",
            [
                io.Latent.Input("samples"),
                io.Combo.Input("upscale_method", options=METHODS),
                io.Float.Input("scale_by", default=1.5, min=0.01, max=8.0, step=0.01),
            ],
        )

    @classmethod
    def execute(cls, samples: dict, upscale_method: str, scale_by: float) -> io.NodeOutput:
        rows = samples["samples"]
        size = [round(side * scale_by) for side in rows.shape[2:]]
        if not all(size):
            raise WorkflowError(
                f"'scale_by' is {scale_by}, which leaves nothing of a latent of"
                f" {rows.shape[3]}x{rows.shape[2]} places; take more"
            )
        return io.NodeOutput(
            {**samples, "samples": resized(rows, size[0], size[1], upscale_method)}
        )


class VAEEncodeForInpaint(io.ComfyNode):
    """A picture's latent with grey where the mask is, and the mask grown by some pixels."""

    EQUAL = "to 1e-4"
    REFUSED = "other counts of masks than one or one a picture, on which ComfyUI fails"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "VAEEncodeForInpaint",
            [
                io.Image.Input("pixels"),
                io.Vae.Input("vae"),
                io.Mask.Input("mask"),
                io.Int.Input("grow_mask_by", default=6, min=0, max=64, step=1),
            ],
        )

    @classmethod
    def execute(
        cls, pixels: torch.Tensor, vae: Any, mask: torch.Tensor, grow_mask_by: int
    ) -> io.NodeOutput:
        size, factor = pixels.shape[1:3], vae.factor
        high, wide = (side - side % factor for side in size)
        top, left = (side % factor // 2 for side in size)
        masks = mask.numel() // (mask.shape[-2] * mask.shape[-1])
        if masks not in (1, len(pixels)):
            raise WorkflowError(
                f"'mask' holds {masks} masks for {len(pixels)} pictures, on which ComfyUI fails;"
                " wire one, or one for each picture"
            )
        mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size, mode="bilinear").round()
        mask = mask[:, :, top : top + high, left : left + wide]
        pixels = pixels[:, top : top + high, left : left + wide, :3]
        grown = mask
        if grow_mask_by:
            kernel = torch.ones(1, 1, grow_mask_by, grow_mask_by)
            grown = F.conv2d(mask, kernel, padding=grow_mask_by // 2).clamp(0, 1)
        pixels = (pixels - 0.5) * (1 - mask).movedim(1, -1) + 0.5
        grown = grown[:, :, :high, :wide].round()
        return io.NodeOutput({"samples": vae.encode(pixels), "noise_mask": grown})


LATENT_NODES = [
    EmptyLatentImage,
    SetLatentNoiseMask,
    LatentBlend,
    LatentComposite,
    LatentCompositeMasked,
    LatentBatch,
    LatentFromBatch,
    RepeatLatentBatch,
    LatentBatchSeedBehavior,
    LatentUpscale,
    LatentUpscaleBy,
    VAEEncodeForInpaint,
]
