"""KOALA: prompts for SDXL's two text encoders, the published sampler, and which variant it is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..edges import EdgeError, conditioning_to_sdxl, sdxl_to_conditioning
from ..host import host, io
from ..loaders import koala
from ..loaders.files.catalogue import find_source, list_sources
from ..loaders.files.checkpoint import CheckpointError
from ..networks.memory import SDXL_PLACE, least_of_unet
from ..samplers.koala import FACTOR, LATENT_SCALE, SPACINGS, sample_koala
from ..samplers.parts.sampling import Sampling
from .node import Node
from .pictures import latent_preview, rgb_factors
from .widgets import (
    Bar,
    fingerprint,
    load_stage,
    named,
    sampling_inputs,
    seeded,
    source_inputs,
)

LARGEST = 4096
NEGATIVE = "worst quality, low quality, illustration, low resolution"
AS_PUBLISHED = "as published"


class KoalaTextEncode(Node):
    """A prompt for SDXL's U-Nets: both encoders' hidden states, pooled embedding, sizes."""

    ROW_BY_ROW = True

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
            category="PriorArt/KOALA/encode",
            search_aliases=["clip text encode", "prompt", "sdxl"],
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
        _, pair = host.open("koala_text", clip)
        encoded = pair.encode(text)
        target = target_height or height, target_width or width
        ids = torch.tensor([[height, width, crop_h, crop_w, *target]])
        conditioning = sdxl_to_conditioning(replace(encoded, time_ids=ids))
        return io.NodeOutput(host.offload(conditioning))


class KoalaSample(Node):
    """KOALA's published sampler."""

    ROW_BY_ROW = True

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
            category="PriorArt/KOALA/sample",
            search_aliases=["sdxl distilled", "sdxl", "ksampler", "koala lightning"],
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
        if width % FACTOR or height % FACTOR:
            raise EdgeError(
                f"{width}x{height} is no size for KOALA: 'width' and 'height' must be multiples of"
                f" {FACTOR}; take {width // FACTOR * FACTOR}x{height // FACTOR * FACTOR}"
            )
        managed, facts = host.open("koala_unet", model)
        schedule = facts.schedule
        if timestep_spacing != AS_PUBLISHED:
            schedule = replace(schedule, spacing=timestep_spacing)
        text = conditioning_to_sdxl(positive, facts.widths, "positive")
        away = None
        if negative is not None:
            away = conditioning_to_sdxl(negative, facts.widths, "negative")
        count = batch_size * len(text.hidden)
        size = height // FACTOR, width // FACTOR
        places = size[0] * size[1] * count
        network, device, dtype = host.use(managed, activations=places * SDXL_PLACE)
        host.check_room(
            least_of_unet(network, places, dtype),
            f"{count} pictures of {width}x{height}",
            "lower 'batch_size', 'width' or 'height'",
        )
        bar = Bar(lambda x0: latent_preview(x0, facts.latent_rgb_factors))
        with named(text="positive"):
            sampling = Sampling(seeded(seed, count), device, dtype, steps, bar)
            predict = partial(facts.prepare, network)
            latents = sample_koala(predict, schedule, text, away, size, sampling, cfg)
        return io.NodeOutput({"samples": host.offload(latents)})


INFO = "PRIOR_ART_INFO"
"""What the node's table in the editor is called."""


class KoalaInfo(Node):
    """Which U-Net a MODEL holds."""

    ROW_BY_ROW = True  # there are no rows in what it looks at

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKoalaInfo",
            display_name="Model Info (KOALA)",
            category="PriorArt/KOALA/load",
            search_aliases=["parameters", "vram", "sdxl"],
            description="Shows which variant was loaded: parameters, transformer blocks, mid block,"
            " size of the weights and the memory that sampling needs.",
            inputs=[io.Model.Input("model", tooltip="From Load KOALA, or any SDXL model.")],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The same model."),
                io.String.Output(display_name="info", tooltip="For Preview Any."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        said = describe(host.open("koala_unet", model)[1].variant)
        return io.NodeOutput(model, said, ui={INFO: [said]})


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
            f"memory at 1024x1024, about: {variant.memory() / gib:.1f} GiB",
        )
    )


OWN = "from the source"


class LoadKoala(Node):
    """KOALA's three parts from one folder, or a U-Net file beside SDXL's encoders and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def other(name: str, stage: str, kind: str, what: str) -> Any:
            names = [source.name for source in list_sources(stage, host.model_folders())]
            return io.Combo.Input(
                name,
                options=[OWN, *names, *host.model_files(kind)],
                default=OWN,
                tooltip=f"Where {what} comes from. A folder brings its own; a U-Net file needs"
                " another folder's or SDXL's own file.",
            )

        return io.Schema(
            node_id="PriorArtLoadKoala",
            display_name="Load KOALA",
            category="PriorArt/KOALA/load",
            search_aliases=["sdxl distilled", "koala 700m", "koala 1b", "koala lightning"],
            description="Loads a KOALA (or SDXL) in the hub's folder layout, or a KOALA U-Net file:"
            " the compressed U-Net, both of SDXL's text encoders and its VAE.",
            inputs=[
                *source_inputs("koala_unet"),
                io.Combo.Input(
                    "variant",
                    options=koala.WANTED,
                    default=koala.ANY_KOALA,
                    tooltip="What must be in the file; anything else is refused by name. any SDXL"
                    " loads SDXL-Base and its like too.",
                ),
                other("clip_l", "koala_text", "text_encoders", "the first text encoder"),
                other("clip_g", "koala_text", "text_encoders", "the second text encoder"),
                other("vae", "koala_vae", "vae", "the VAE"),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KOALA Sample or KSampler."),
                io.Clip.Output(display_name="clip", tooltip="For Text Encode (KOALA)."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode; computed in fp32."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, source: str, clip_l: str, clip_g: str, vae: str, **others: str
    ) -> tuple:
        chosen = [("koala_unet", source), ("koala_text", clip_l), ("koala_text", clip_g)]
        own = [name for kind in ("text_encoders", "vae") for name in host.model_files(kind)]
        return tuple(
            fingerprint(stage, name)
            for stage, name in (*chosen, ("koala_vae", vae))
            # The host's own loaders do not watch their files either.
            if name != OWN and name not in own
        )

    @classmethod
    def execute(
        cls, source: str, dtype: str, variant: str, clip_l: str, clip_g: str, vae: str
    ) -> io.NodeOutput:
        unet = load_stage(koala.load_unet, "koala_unet", source, dtype, wanted=variant)
        clip_l, clip_g, vae = (
            _named(source, chosen, name)
            for name, chosen in (("clip_l", clip_l), ("clip_g", clip_g), ("vae", vae))
        )
        text, (coder, factors) = _text_pair(clip_l, clip_g, dtype), _sdxl_vae(vae, dtype)
        return io.NodeOutput(host.wrap("koala_unet", unet, latent_rgb_factors=factors), text, coder)


def _named(source: str, chosen: str, name: str) -> str:
    """Where a part beside the U-Net comes from.

    Raises:
        CheckpointError: from a source that is a U-Net alone.
    """
    if chosen != OWN:
        return chosen
    if find_source(source, "koala_unet", host.model_folders()).kind == "checkpoint":
        raise CheckpointError(
            f"'{source}' is a U-Net alone; choose where SDXL's text encoders and VAE come from"
            f" ('{name}' is '{OWN}')"
        )
    return source


def _text_pair(clip_l: str, clip_g: str, dtype: str) -> Any:
    """CLIP of two folders' encoders, or of two of the host's files."""
    names = clip_l, clip_g
    own = [name in host.model_files("text_encoders") for name in names]
    if all(own):
        return host.load_files("koala_text", *names)
    if any(own):
        raise CheckpointError(
            f"'clip_l' ('{names[0]}') and 'clip_g' ('{names[1]}') are a folder and a file; choose"
            " both of one kind"
        )
    first = second = load_stage(koala.load_text_encoders, "koala_text", clip_l, dtype)
    if clip_g != clip_l:
        second = load_stage(koala.load_text_encoders, "koala_text", clip_g, dtype)
    return host.wrap(
        "koala_text",
        replace(first, second=second.second, second_tokenizer=second.second_tokenizer),
    )


def _sdxl_vae(name: str, dtype: str) -> tuple[Any, Any]:
    """VAE of a folder or of the host's file, and its ``latent_rgb_factors``."""
    if name in host.model_files("vae"):
        return host.load_files("koala_vae", name), None
    loaded = load_stage(koala.load_vae, "koala_vae", name, dtype)
    coder = host.wrap("koala_vae", loaded)
    folder = find_source(name, "koala_vae", host.model_folders()).folder("vae")
    return coder, rgb_factors(folder, lambda: coder, 1 / LATENT_SCALE)


NODES = [
    LoadKoala,
    KoalaInfo,
    KoalaTextEncode,
    KoalaSample,
]
