"""Karlo's decoder and upscaler out of a source: hub folders and original checkpoints.

Sources: kakaobrain/karlo-v1-alpha and -image-variations (hub layout), kakaobrain/karlo (original).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..edges import EmbeddingSpace
from ..networks.karlo import TextProjection, UnCLIPDecoder, UnCLIPUpscaler
from ..samplers.parts.schedule import UnCLIPSchedule
from . import karlo_keys
from .clip import OPENAI_VIT_L
from .files.catalogue import Published, Source, Stage, System
from .files.checkpoint import CheckpointError, check_inside, read_json, read_state_dict
from .files.configs import check_config
from .files.hub import build, build_diffusers, expect, fill, read_hub
from .guided_diffusion import HEAD_DIM
from .unclip import original_schedule, read_schedule, space_of

_PARTS = (
    "",
    "tokenizer",
    "text_encoder",
    "prior",
    "prior_scheduler",
    "decoder",
    "decoder_scheduler",
    "text_proj",
    "super_res_first",
    "super_res_last",
    "super_res_scheduler",
)

SYSTEMS = (
    System(
        name="karlo",
        title="Karlo",
        stages={
            "text_encoder": Stage("encoder", ("text_encoder", "CLIPTextModelWithProjection")),
            "image_encoder": Stage("encoder", ("image_encoder", "CLIPVisionModelWithProjection")),
            "prior": Stage("prior", ("prior", "PriorTransformer")),
            "decoder": Stage("sampled", ("decoder", "UNet2DConditionModel")),
            "upscaler": Stage("upscaler", ("super_res_first", "UNet2DModel")),
        },
        pipelines=frozenset({"UnCLIPPipeline", "UnCLIPImageVariationPipeline"}),
        checkpoints=(
            OPENAI_VIT_L,
            (re.compile(r"prior-ckpt.*\.(ckpt|safetensors)"), frozenset({"prior"})),
            (re.compile(r"decoder-ckpt.*\.(ckpt|safetensors)"), frozenset({"decoder"})),
            (re.compile(r"improved-sr-ckpt.*\.(ckpt|safetensors)"), frozenset({"upscaler"})),
        ),
        beside=re.compile(r"(prior|decoder|improved-sr)-ckpt.*"),
        label="Karlo",
        readme=karlo_keys.README,
        squashes=True,
        places={"preprocessor": "feature_extractor", "prior_schedule": "prior_scheduler"},
        embedded=(("shapes-karlo", "karlo"),),
        spaces=(
            EmbeddingSpace("openai-vit-l-14", 768, "OpenAI CLIP ViT-L/14", 1024),
            EmbeddingSpace("shapes-vit-l", 64, "the embedded family's CLIP (shapes-karlo)"),
        ),
        speaks={"openai-vit-l-14": "Karlo"},
        published={
            "karlo": Published(
                "karlo-v1-alpha",
                {
                    "kakaobrain/karlo-v1-alpha": _PARTS,
                    "kakaobrain/karlo-v1-alpha-image-variations": (
                        "image_encoder",
                        "feature_extractor",
                    ),
                },
            )
        },
        download="prior-art download karlo",
    ),
)


@dataclass(frozen=True)
class LoadedDecoder:
    """A decoder U-Net with its text projection, and its schedule."""

    network: UnCLIPDecoder
    schedule: UnCLIPSchedule
    space: EmbeddingSpace


@dataclass(frozen=True)
class LoadedUpscaler:
    """The two super-resolution U-Nets, their schedule, and the picture sizes before and after."""

    network: UnCLIPUpscaler
    schedule: UnCLIPSchedule
    low_size: int
    high_size: int


def load_decoder(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = HEAD_DIM
) -> LoadedDecoder:
    """Load the decoder's U-Net and its text projection.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        name = projection_name = str(source.path)
        config, tensors, projection_config, projection = karlo_keys.convert_decoder(
            read_state_dict(source.path), name, head_dim
        )
        schedule = original_schedule(karlo_keys.DECODER_SCHEDULE)
    else:
        config, tensors, name = read_hub(source, "decoder", dtype)
        projection_config, projection, projection_name = read_hub(source, "text_proj", dtype)
        schedule = read_schedule(source, "decoder_scheduler")
    unet = build_diffusers("UNet2DConditionModel", config, name, tensors)
    fill(unet, tensors, dtype, name)
    _check_edge(unet, name)
    text_proj = _build_projection(projection_config, projection_name)
    fill(text_proj, projection, dtype, projection_name)
    dim = text_proj.embedding_proj.in_features
    network = UnCLIPDecoder(unet, text_proj).eval().requires_grad_(False)
    return LoadedDecoder(network, schedule, space_of(source, dim))


def load_upscaler(source: Source, dtype: torch.dtype = torch.float32) -> LoadedUpscaler:
    """Load both super-resolution U-Nets.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        names = [str(source.path)] * 2
        first_config, first, last_config, last = karlo_keys.convert_upscaler(
            read_state_dict(source.path), names[0]
        )
        schedule = original_schedule(karlo_keys.UPSCALER_SCHEDULE)
    else:
        first_config, first, first_name = read_hub(source, "super_res_first", dtype)
        last_config, last, last_name = read_hub(source, "super_res_last", dtype)
        names = [first_name, last_name]
        schedule = read_schedule(source, "super_res_scheduler")
    networks = []
    for config, tensors, name in zip(
        (first_config, last_config), (first, last), names, strict=True
    ):
        networks.append(build_diffusers("UNet2DModel", config, name, tensors))
        fill(networks[-1], tensors, dtype, name)
        _check_edge(networks[-1], name)
    high = _edge(first_config) or 256
    decoder = source.path / "decoder" / "config.json"
    low = _low_size(decoder, source) if decoder.is_file() else None
    network = UnCLIPUpscaler(*networks).eval().requires_grad_(False)
    return LoadedUpscaler(network, schedule, low or high // 4, high)


# -- reading -----------------------------------------------------------------------------------


def _edge(config: dict[str, Any]) -> int | None:
    size = config.get("sample_size")
    return int(size[0] if isinstance(size, list) else size) if size else None


def _check_edge(unet: nn.Module, name: str) -> None:
    """Refuse pictures that are not square, or whose edge a U-Net cannot halve as often as it does.

    Raises:
        CheckpointError: names file, key, value and what fits.
    """
    edge, times = unet.config.sample_size, len(unet.down_blocks) - 1
    if not isinstance(edge, int) or edge % 2**times:
        raise CheckpointError(
            f"the configuration of '{name}' says sample_size {edge}, but it must be one number for"
            f" both sides, a multiple of {2**times}: the network halves it {times} times. Download"
            " or copy it again"
        )


def _low_size(decoder: Path, source: Source) -> int | None:
    check_inside(decoder, source.folders)
    config = read_json(decoder)
    check_config("UNet2DConditionModel", config, str(decoder), None)
    return _edge(config)


def _build_projection(config: dict[str, Any], name: str) -> TextProjection:
    expect(config.get("_class_name", "UnCLIPTextProjModel"), "UnCLIPTextProjModel", name)
    own = {k: v for k, v in config.items() if not k.startswith("_")}
    own.setdefault("clip_embeddings_dim", 768)
    check_config("UnCLIPTextProjModel", own, name, None)
    return build(lambda: TextProjection(**own), name)
