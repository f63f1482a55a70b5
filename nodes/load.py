"""One loader per stage: pick where the weights come from, get the host's own type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..edges import Prior, Upscaler
from ..host import host, io
from ..loaders import karlo
from ..loaders.sources import find_source, list_sources

CATEGORY = "PriorArt/load"
DTYPES = ["auto", "fp32", "fp16", "bf16"]


def _inputs(stage: str) -> list:
    names = [source.name for source in list_sources(stage, host.model_folders())]
    return [
        io.Combo.Input(
            "source",
            options=names,
            tooltip="Where the weights come from: the embedded family that ships with the pack"
            " (shapes-…), a diffusers folder or an original checkpoint under models/prior_art.",
        ),
        io.Combo.Input(
            "dtype",
            options=DTYPES,
            default="auto",
            tooltip="Number format of the weights. auto asks the host; sampling maths is fp32"
            " whatever is chosen here.",
        ),
    ]


def _fingerprint(stage: str, source: str) -> tuple:
    """Changes when the files behind a source change, so that the host loads them again."""
    path = find_source(source, stage, host.model_folders()).path
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _load(loader: Callable, stage: str, source: str, dtype: str) -> Any:
    found = find_source(source, stage, host.model_folders())
    return loader(found, host.pick_dtype(dtype, stage))


class LoadTextEncoder(io.ComfyNode):
    """The text tower of an unCLIP system as the host's CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadTextEncoder",
            display_name="Load Text Encoder (unCLIP)",
            category=CATEGORY,
            description="Loads the CLIP text tower of Karlo, with its tokenizer. Native CLIP Text"
            " Encode works on it too.",
            inputs=_inputs("text_encoder"),
            outputs=[io.Clip.Output(display_name="clip", tooltip="For Text Encode (unCLIP).")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("text_encoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(karlo.load_text_encoder, "text_encoder", source, dtype)
        return io.NodeOutput(host.wrap_text_encoder(loaded))


class LoadImageEncoder(io.ComfyNode):
    """The image tower of an unCLIP system as the host's CLIP_VISION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadImageEncoder",
            display_name="Load Image Encoder (unCLIP)",
            category=CATEGORY,
            description="Loads the CLIP image tower of Karlo, for image variations. Native CLIP"
            " Vision Encode works on it too.",
            inputs=_inputs("image_encoder"),
            outputs=[
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="For Image Encode (unCLIP)."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("image_encoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(karlo.load_image_encoder, "image_encoder", source, dtype)
        return io.NodeOutput(host.wrap_image_encoder(loaded))


class LoadPrior(io.ComfyNode):
    """The diffusion prior: text embedding in, image embedding out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadPrior",
            display_name="Load Prior (unCLIP)",
            category=CATEGORY,
            description="Loads the unCLIP prior, the network that turns a text embedding into an"
            " image embedding.",
            inputs=_inputs("prior"),
            outputs=[
                io.Custom("UNCLIP_PRIOR").Output(
                    display_name="prior", tooltip="For Prior Sample (unCLIP)."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("prior", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(karlo.load_prior, "prior", source, dtype)
        return io.NodeOutput(Prior(host.manage(loaded.network), loaded.schedule, loaded.space))


class LoadDecoder(io.ComfyNode):
    """Karlo's decoder as a native MODEL in pixel space."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadDecoder",
            display_name="Load Decoder (unCLIP)",
            category=CATEGORY,
            description="Loads Karlo's decoder as a native MODEL whose latent is the 3-channel"
            " picture itself: Karlo Decoder samples it as published, native KSampler runs it too"
            " (text through CONDITIONING, the image embedding through unCLIPConditioning, decode"
            " with the pixel_space VAE).",
            inputs=_inputs("decoder"),
            outputs=[
                io.Model.Output(display_name="model", tooltip="For Karlo Decoder or KSampler.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("decoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(host.wrap_decoder(_load(karlo.load_decoder, "decoder", source, dtype)))


class LoadUpscaler(io.ComfyNode):
    """Karlo's two super-resolution networks: the steps, and the last step's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadUpscaler",
            display_name="Load Upscaler (Karlo)",
            category=CATEGORY,
            description="Loads Karlo's super-resolution: the network of the first steps and the"
            " fine-tuned one that takes the last step.",
            inputs=_inputs("upscaler"),
            outputs=[
                io.Custom("UNCLIP_UPSCALER").Output(
                    display_name="upscaler", tooltip="For Karlo Upscale."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("upscaler", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(karlo.load_upscaler, "upscaler", source, dtype)
        managed = host.manage(loaded.network)
        return io.NodeOutput(Upscaler(managed, loaded.schedule, loaded.low_size, loaded.high_size))
