"""Decoder sample: an image embedding and its prompt become a small picture."""

from __future__ import annotations

from typing import Any

from ..edges import EdgeError, conditioning_to_text, image_embeds_of
from ..host import host, io
from ..samplers.karlo import decoder_numbers_drawn, sample_decoder
from ..samplers.parts.noise import generators
from .pictures import preview, to_image
from .widgets import noise_offset_input, noise_offset_output, sampling_inputs


class KarloDecoder(io.ComfyNode):
    """Karlo's unCLIP decoder with its published sampler (learned variance, own betas)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKarloDecoder",
            display_name="Karlo Decoder",
            category="PriorArt/sample",
            description="Samples 64px pictures from image embeddings with Karlo's decoder, as"
            " published. The embedding may come from the prior, from Image Encode or from native"
            " CLIP Vision Encode (ViT-L/14).",
            inputs=[
                io.Model.Input("model", tooltip="Karlo's decoder, from Load Decoder (unCLIP)."),
                io.ClipVisionOutput.Input(
                    "image_embeds", tooltip="From Prior Sample, Image Encode or CLIP Vision Encode."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt, from Text Encode (unCLIP). An empty prompt for image"
                    " variations.",
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What to steer away from; published with an empty prompt. The"
                    " unconditional image embedding is the decoder's own learned one.",
                ),
                *sampling_inputs(steps=25, cfg=8.0),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Pictures for each image embedding.",
                ),
                noise_offset_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="64px pictures, for Karlo Upscale."),
                noise_offset_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image_embeds: Any,
        positive: list,
        negative: list,
        seed: int,
        steps: int,
        cfg: float,
        batch_size: int,
        noise_offset: int = 0,
    ) -> io.NodeOutput:
        if batch_size < 1:
            raise EdgeError(f"'batch_size' is {batch_size}; ask for at least one picture")
        managed, schedule, space = host.open_decoder(model)
        embeds = image_embeds_of(image_embeds, space, "image_embeds")
        text = conditioning_to_text(positive, space, "positive", space.dim)
        unconditional = conditioning_to_text(negative, space, "negative", space.dim)
        count = max(len(embeds), len(text.pooled)) * batch_size
        network, device, dtype = host.use(managed, memory_required=count * BYTES_PER_PICTURE)
        progress = host.progress(steps)
        pixels = sample_decoder(
            network,
            schedule,
            embeds,
            text,
            unconditional,
            num_inference_steps=steps,
            guidance_scale=cfg,
            generators=generators(seed, count, noise_offset),
            device=device,
            dtype=dtype,
            callback=lambda step, total, x0: progress(step, preview(x0)),
        )
        drawn = decoder_numbers_drawn(network, steps)
        return io.NodeOutput(host.offload(to_image(pixels)), noise_offset + drawn)


# Activations of one guided 64px picture in fp32 at published size, an upper estimate for the
# host's memory management: 2 rows, 320 to 1280 channels, skips kept for the way up.
BYTES_PER_PICTURE = 600 * 2**20
