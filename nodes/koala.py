"""KOALA: prompts for SDXL's two text encoders, the published sampler, and which variant it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..edges import EdgeError, conditioning_to_sdxl, sdxl_to_conditioning
from ..host import host, io
from ..loaders.koala import BYTES_PER_PLACE
from ..samplers.koala import FACTOR, SPACINGS, sample_koala
from ..samplers.parts.noise import generators
from .pictures import latent_preview
from .widgets import sampling_inputs

LARGEST = 4096
NEGATIVE = "worst quality, low quality, illustration, low resolution"
AS_PUBLISHED = "as published"


class KoalaTextEncode(io.ComfyNode):
    """A prompt for SDXL's U-Nets: both encoders' hidden states, pooled embedding, sizes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str, default: int, tooltip: str) -> Any:
            return io.Int.Input(name, default=default, min=0, max=16384, tooltip=tooltip)

        seen = "{} of the training picture that this one should resemble, in pixels; the size that"
        seen += " you sample is the published choice."
        target = "{} of the picture that is made, in pixels; 0 is the one above."
        crop = "How far the training picture was cropped at the {}, in pixels; 0 centres things."
        return io.Schema(
            node_id="PriorArtKoalaTextEncode",
            display_name="Text Encode (KOALA)",
            category="PriorArt/encode",
            description="Encodes a prompt with both of SDXL's text encoders, exactly as the"
            " published pipeline does, and notes the sizes that the U-Net is told. Brackets are no"
            " weights here; native CLIP Text Encode (SDXL) has those.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Load KOALA, or any SDXL text encoder pair."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. More than 77 tokens are cut, with a warning. The model"
                    f' card\'s negative prompt is "{NEGATIVE}".',
                ),
                side("width", 1024, seen.format("Width")),
                side("height", 1024, seen.format("Height")),
                side("crop_w", 0, crop.format("left")),
                side("crop_h", 0, crop.format("top")),
                side("target_width", 0, target.format("Width")),
                side("target_height", 0, target.format("Height")),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="For KOALA Sample or a native sampler."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        text: str,
        width: int,
        height: int,
        crop_w: int,
        crop_h: int,
        target_width: int,
        target_height: int,
    ) -> io.NodeOutput:
        encoded = host.encode_sdxl(clip, text)
        target = target_height or height, target_width or width
        ids = torch.tensor([[height, width, crop_h, crop_w, *target]])
        conditioning = sdxl_to_conditioning(replace(encoded, time_ids=ids))
        return io.NodeOutput(host.offload(conditioning))


class KoalaSample(io.ComfyNode):
    """KOALA's published sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sides = [
            io.Int.Input(
                name,
                default=1024,
                min=FACTOR,
                max=LARGEST,
                step=FACTOR,
                tooltip="In pixels, a multiple of 8; KOALA was published with 1024.",
            )
            for name in ("width", "height")
        ]
        return io.Schema(
            node_id="PriorArtKoalaSample",
            display_name="KOALA Sample",
            category="PriorArt/sample",
            description="Samples latents with a KOALA (or any SDXL U-Net) exactly as the published"
            " pipeline does: Euler, 25 steps, guidance 7.5, noise of image i from seed + i.",
            inputs=[
                io.Model.Input("model", tooltip="From Load KOALA, or any SDXL model."),
                io.Conditioning.Input("positive", tooltip="From Text Encode (KOALA)."),
                *sides,
                *sampling_inputs(steps=25, cfg=7.5, least=1),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Pictures for each prompt."
                ),
                io.Combo.Input(
                    "timestep_spacing",
                    options=[AS_PUBLISHED, *SPACINGS],
                    default=AS_PUBLISHED,
                    tooltip="How the steps lie in the training schedule. The koala-lightning"
                    " models are sampled with trailing, 10 steps and guidance 3.5.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to steer away from; unwired it is zeros, as published where no"
                    " negative prompt is given.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        batch_size: int,
        timestep_spacing: str,
        negative: list | None = None,
    ) -> io.NodeOutput:
        if width % FACTOR or height % FACTOR or min(width, height) < FACTOR:
            raise EdgeError(
                f"{width}×{height} is no size for KOALA: 'width' and 'height' must be multiples of"
                f" {FACTOR}; take {max(1, width // FACTOR) * FACTOR}×"
                f"{max(1, height // FACTOR) * FACTOR}"
            )
        if batch_size < 1:
            raise EdgeError(f"'batch_size' is {batch_size}; ask for at least one picture")
        facts = host.koala_facts(model)
        schedule = facts.schedule
        if timestep_spacing != AS_PUBLISHED:
            schedule = replace(schedule, spacing=timestep_spacing)
        text = conditioning_to_sdxl(positive, facts.widths, "positive")
        away = None
        if negative is not None:
            away = conditioning_to_sdxl(negative, facts.widths, "negative")
        count = batch_size * len(text.hidden)
        size = height // FACTOR, width // FACTOR
        prepare, device, dtype = host.use_koala(model, size[0] * size[1] * count * BYTES_PER_PLACE)
        progress = host.progress(steps)
        latents = sample_koala(
            prepare,
            schedule,
            text,
            away,
            size=size,
            num_inference_steps=steps,
            guidance_scale=cfg,
            generators=generators(seed, count),
            device=device,
            dtype=dtype,
            callback=lambda step, total, x0: progress(step, latent_preview(x0, facts.colours)),
        )
        return io.NodeOutput({"samples": host.offload(latents)})


class KoalaInfo(io.ComfyNode):
    """Which U-Net a MODEL holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKoalaInfo",
            display_name="Model Info (KOALA)",
            category="PriorArt/load",
            description="Shows which variant was loaded: parameters, transformer blocks, mid block,"
            " size of the weights and the memory that sampling needs.",
            inputs=[io.Model.Input("model", tooltip="From Load KOALA, or any SDXL model.")],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The same model."),
                io.String.Output(display_name="info", tooltip="For Preview Any."),
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(model, describe(host.koala_facts(model).variant))


def describe(variant: Any) -> str:
    """A :class:`~prior_art.loaders.koala.Variant` in words, one fact a line."""
    gib = 2**30
    return "\n".join(
        (
            variant.name,
            f"parameters: {variant.parameters / 1e6:,.1f}M",
            f"transformer blocks: {list(variant.transformer_blocks)}",
            f"mid block: {'yes' if variant.mid_block else 'no'}",
            f"weights: {variant.size / gib:.2f} GiB in {str(variant.dtype).split('.')[-1]}",
            f"memory at 1024×1024, about: {variant.memory() / gib:.1f} GiB",
        )
    )
