"""Decoder sample: an image embedding and its prompt become a small picture."""

from __future__ import annotations

from typing import Any

from ..edges import EdgeError, Upscaler, check_image, conditioning_to_text, image_embeds_of
from ..host import host, io
from ..loaders import karlo
from ..networks.memory import DECODER_PIXEL, UPSCALER_PIXEL, least_of_unet
from ..samplers.karlo import sample_decoder, upscale
from ..samplers.parts.sampling import Sampling
from .node import Node
from .pictures import from_image, preview, to_image
from .widgets import (
    Bar,
    fingerprint,
    load_stage,
    named,
    noise_offset_input,
    noise_offset_output,
    sampling_inputs,
    seeded,
    source_inputs,
)


class KarloDecoder(Node):
    """Karlo's unCLIP decoder with its published sampler (learned variance, own betas)."""

    ROW_BY_ROW = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKarloDecoder",
            display_name="Karlo Decoder",
            category="PriorArt/Karlo/sample",
            search_aliases=["unclip", "dalle 2", "text to image", "image variation"],
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
        managed, loaded = host.open("decoder", model)
        space = loaded.space
        embeds = image_embeds_of(image_embeds, space, "image_embeds")
        text = conditioning_to_text(positive, space, "positive", space.dim)
        unconditional = conditioning_to_text(negative, space, "negative", space.dim)
        count = max(len(embeds), len(text.pooled)) * batch_size
        places = count * loaded.network.unet.config.sample_size**2
        network, device, dtype = host.use(managed, activations=places * DECODER_PIXEL)
        host.check_room(
            least_of_unet(network, places, dtype), f"{count} pictures", "lower 'batch_size'"
        )
        with named(text="positive"):
            noise = seeded(seed, count, noise_offset)
            sampling = Sampling(noise, device, dtype, steps, Bar(preview))
            pixels = sample_decoder(
                network, loaded.schedule, embeds, text, unconditional, sampling, cfg
            )
        return io.NodeOutput(host.offload(to_image(pixels)), noise_offset + noise.drawn)


class LoadDecoder(Node):
    """Karlo's decoder as a native MODEL in pixel space."""

    SAMPLED_BY = ("Karlo's decoder", "Karlo Decoder")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadDecoder",
            display_name="Load Decoder (unCLIP)",
            category="PriorArt/Karlo/load",
            search_aliases=["karlo", "unclip decoder", "dalle 2"],
            description="Loads Karlo's decoder as a native MODEL whose latent is the 3-channel"
            " picture itself: Karlo Decoder samples it as published, native KSampler runs it too"
            " (text through CONDITIONING, the image embedding through unCLIPConditioning, decode"
            " with the pixel_space VAE).",
            inputs=source_inputs("decoder"),
            outputs=[
                io.Model.Output(display_name="model", tooltip="For Karlo Decoder or KSampler.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("decoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(
            host.wrap("decoder", load_stage(karlo.load_decoder, "decoder", source, dtype))
        )


class LoadUpscaler(Node):
    """Karlo's two super-resolution networks: the steps, and the last step's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadUpscaler",
            display_name="Load Upscaler (Karlo)",
            category="PriorArt/Karlo/load",
            search_aliases=["super resolution", "karlo"],
            description="Loads Karlo's super-resolution: the network of the first steps and the"
            " fine-tuned one that takes the last step.",
            inputs=source_inputs("upscaler"),
            outputs=[
                io.Custom("UNCLIP_UPSCALER").Output(
                    display_name="upscaler", tooltip="For Karlo Upscale."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("upscaler", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(karlo.load_upscaler, "upscaler", source, dtype)
        managed = host.manage(loaded.network)
        return io.NodeOutput(Upscaler(managed, loaded.schedule, loaded.low_size, loaded.high_size))


class KarloUpscale(Node):
    """Karlo's improved super-resolution, the last step by its own network."""

    ROW_BY_ROW = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKarloUpscale",
            display_name="Karlo Upscale",
            category="PriorArt/Karlo/sample",
            search_aliases=["super resolution", "unclip"],
            description="Upscales Karlo's 64px pictures to 256px by diffusion in 7 steps; a"
            " network fine-tuned for detail takes the last one.",
            inputs=[
                io.Custom("UNCLIP_UPSCALER").Input(
                    "upscaler", tooltip="From Load Upscaler (Karlo)."
                ),
                io.Image.Input("image", tooltip="64px pictures, from Karlo Decoder."),
                *sampling_inputs(steps=7, cfg=None),
                noise_offset_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The pictures, 256px.")],
        )

    @classmethod
    def execute(
        cls, upscaler: Upscaler, image: Any, seed: int, steps: int, noise_offset: int = 0
    ) -> io.NodeOutput:
        check_image(image, "image")
        height, width, size = image.shape[1], image.shape[2], upscaler.low_size
        if (height, width) != (size, size):
            raise EdgeError(
                f"'image' is {width}x{height}, but this upscaler was trained on {size}x{size}"
                f" pictures. Wire Karlo Decoder's picture into it, or resize with 'Upscale Image'"
                f" to {size}x{size} first"
            )
        count = len(image)
        places = count * upscaler.high_size**2
        network, device, dtype = host.use(upscaler.managed, activations=places * UPSCALER_PIXEL)
        host.check_room(
            least_of_unet(network, places, dtype),
            f"{count} pictures of {upscaler.high_size}x{upscaler.high_size}",
            "wire fewer pictures into 'image'",
        )
        with named():
            noise = seeded(seed, count, noise_offset)
            sampling = Sampling(noise, device, dtype, steps, Bar(preview))
            pixels = upscale(network, upscaler.schedule, from_image(image), sampling)
        return io.NodeOutput(host.offload(to_image(pixels)))


NODES = [
    LoadDecoder,
    LoadUpscaler,
    KarloDecoder,
    KarloUpscale,
]
