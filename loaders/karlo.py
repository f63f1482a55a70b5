"""Karlo's stages out of a source: hub folders (whole or partial) and original checkpoints.

Sources: kakaobrain/karlo-v1-alpha and -image-variations (hub layout), kakaobrain/karlo (original).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..edges import SPACES, EmbeddingSpace
from ..networks.unclip import TextProjection, UnCLIPDecoder, UnCLIPUpscaler
from ..samplers.schedule import UnCLIPSchedule
from . import clip, karlo_original
from .checkpoint import AGAIN, CheckpointError, check_inside, read_json, read_state_dict
from .clip import Preprocess
from .hub import build, build_diffusers, build_transformers, expect, fill, part, read_hub
from .sources import SYSTEMS, Source

__all__ = [
    "ImageEncoder",
    "LoadedDecoder",
    "LoadedPrior",
    "LoadedUpscaler",
    "TextEncoder",
    "load_decoder",
    "load_image_encoder",
    "load_prior",
    "load_text_encoder",
    "load_upscaler",
]


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text tower (transformers' CLIPTextModelWithProjection) and its tokenizer."""

    network: nn.Module
    tokenizer: Any
    space: EmbeddingSpace


@dataclass(frozen=True)
class ImageEncoder:
    """A CLIP image tower (CLIPVisionModelWithProjection) and what prepares its pictures."""

    network: nn.Module
    preprocess: Preprocess | Callable[[torch.Tensor], torch.Tensor]
    space: EmbeddingSpace


@dataclass(frozen=True)
class LoadedPrior:
    """A diffusers PriorTransformer and the schedule it was published with."""

    network: nn.Module
    schedule: UnCLIPSchedule
    space: EmbeddingSpace


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


def load_text_encoder(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = karlo_original.HEAD_DIM
) -> TextEncoder:
    """Load the text tower and its tokenizer.

    Args:
        source: from :func:`~.sources.find_source`.
        dtype: storage dtype.
        head_dim: width of an attention head; only original checkpoints need it.

    Raises:
        CheckpointError: a file is missing, damaged or foreign, or an original checkpoint finds no
            tokenizer; the message names file and cure.
        LibraryError: transformers cannot be imported.
    """
    if source.kind == "checkpoint":
        state = _read_openai_clip(source)
        config, tensors = clip.openai_text(state, str(source.path), head_dim)
        name = str(source.path)
        found = clip.find_tokenizer(source.path, config["vocab_size"], source.folders)
        # The original pads with 0 without making "!" a token of its own, as the hub's files do.
        tokenizer = clip.load_tokenizer(found, source.folders, pad_token="<|endoftext|>")
    else:
        config, tensors, name = read_hub(source, "text_encoder", dtype)
        config = config.get("text_config", config)
        tokenizer = clip.load_tokenizer(part(source, "tokenizer"), source.folders)
    network = build_transformers("CLIPTextModelWithProjection", "CLIPTextConfig", config, name)
    fill(network, tensors, dtype, name, "text_model.")
    return TextEncoder(network, tokenizer, _space(source, network.config.projection_dim))


def load_image_encoder(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = karlo_original.HEAD_DIM
) -> ImageEncoder:
    """Load the image tower and its picture preparation.

    A hub folder's ``feature_extractor`` decides the preparation; without one it is CLIP's own.
    The original squashes pictures to a square where the hub's crops: each as published.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: transformers cannot be imported.
    """
    if source.kind == "checkpoint":
        state = _read_openai_clip(source)
        config, tensors = clip.openai_vision(state, str(source.path), head_dim)
        name = str(source.path)
        preparation: dict[str, Any] | None = None
    else:
        config, tensors, name = read_hub(source, "image_encoder", dtype)
        config = config.get("vision_config", config)
        file = source.path / "feature_extractor" / "preprocessor_config.json"
        if file.is_file():
            check_inside(file, source.folders)
        preparation = read_json(file) if file.is_file() else {}
    network = build_transformers("CLIPVisionModelWithProjection", "CLIPVisionConfig", config, name)
    fill(network, tensors, dtype, name, "vision_model.")
    size = network.config.image_size
    if preparation is None:
        preprocess = Preprocess(size, size, squash=True)
    else:
        preprocess = clip.preprocess_from_config(preparation, size)
    return ImageEncoder(network, preprocess, _space(source, network.config.projection_dim))


def load_prior(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = karlo_original.HEAD_DIM
) -> LoadedPrior:
    """Load the prior.

    Its x0 clip is the scheduler JSON's (±5) for a hub folder and ±10 for an original checkpoint,
    whose tables are computed in float64 as the original repository does.

    Raises:
        CheckpointError: a file is missing (also ``ViT-L-14_stats.th`` beside an original prior),
            damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        stats = karlo_original.read_stats(source.path, source.folders)
        name = str(source.path)
        state = read_state_dict(source.path)
        config, tensors = karlo_original.convert_prior(state, stats, name, head_dim)
        schedule = _original_schedule("prior")
    else:
        config, tensors, name = read_hub(source, "prior", dtype)
        schedule = _read_schedule(source, "prior_scheduler")
    network = build_diffusers("PriorTransformer", config, name)
    fill(network, tensors, dtype, name)
    return LoadedPrior(network, schedule, _space(source, network.config.embedding_dim))


def load_decoder(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = karlo_original.HEAD_DIM
) -> LoadedDecoder:
    """Load the decoder's U-Net and its text projection.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        name = projection_name = str(source.path)
        config, tensors, projection_config, projection = karlo_original.convert_decoder(
            read_state_dict(source.path), name, head_dim
        )
        schedule = _original_schedule("decoder")
    else:
        config, tensors, name = read_hub(source, "decoder", dtype)
        projection_config, projection, projection_name = read_hub(source, "text_proj", dtype)
        schedule = _read_schedule(source, "decoder_scheduler")
    unet = build_diffusers("UNet2DConditionModel", config, name)
    fill(unet, tensors, dtype, name)
    text_proj = _build_projection(projection_config, projection_name)
    fill(text_proj, projection, dtype, projection_name)
    dim = text_proj.embedding_proj.in_features
    network = UnCLIPDecoder(unet, text_proj).eval().requires_grad_(False)
    return LoadedDecoder(network, schedule, _space(source, dim))


def load_upscaler(source: Source, dtype: torch.dtype = torch.float32) -> LoadedUpscaler:
    """Load both super-resolution U-Nets.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        names = [str(source.path)] * 2
        first_config, first, last_config, last = karlo_original.convert_upscaler(
            read_state_dict(source.path), names[0]
        )
        schedule = _original_schedule("upscaler")
    else:
        first_config, first, first_name = read_hub(source, "super_res_first", dtype)
        last_config, last, last_name = read_hub(source, "super_res_last", dtype)
        names = [first_name, last_name]
        schedule = _read_schedule(source, "super_res_scheduler")
    networks = []
    for config, tensors, name in zip(
        (first_config, last_config), (first, last), names, strict=True
    ):
        networks.append(build_diffusers("UNet2DModel", config, name))
        fill(networks[-1], tensors, dtype, name)
    high = _edge(first_config) or 256
    decoder = source.path / "decoder" / "config.json"
    low = _edge(read_json(decoder)) if decoder.is_file() else None
    network = UnCLIPUpscaler(*networks).eval().requires_grad_(False)
    return LoadedUpscaler(network, schedule, low or high // 4, high)


# -- reading -----------------------------------------------------------------------------------


def _read_openai_clip(source: Source) -> dict[str, torch.Tensor]:
    state = read_state_dict(source.path)
    if not clip.is_openai_clip(state):
        shown = ", ".join(list(state)[:4])
        raise CheckpointError(
            f"'{source.path}' is not in OpenAI's CLIP layout: it holds {shown}, ... Use the"
            " ViT-L-14.pt that kakaobrain/karlo's README links to, or"
            f" `{SYSTEMS['karlo'].download}`"
        )
    return state


def _read_schedule(source: Source, component: str) -> UnCLIPSchedule:
    file = part(source, component) / "scheduler_config.json"
    check_inside(file, source.folders)
    config = read_json(file)
    name = config.get("_class_name", "UnCLIPScheduler")
    if name != "UnCLIPScheduler":
        raise CheckpointError(f"'{file}' is a {name}; Karlo's stages need an UnCLIPScheduler")
    try:
        return UnCLIPSchedule.from_config(config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"'{file}': {error}. {AGAIN}") from error


def _original_schedule(stage: str) -> UnCLIPSchedule:
    config = karlo_original.SCHEDULES[stage]
    return replace(UnCLIPSchedule.from_config(config), double_tables=True)


def _space(source: Source, dim: int) -> EmbeddingSpace:
    """The embedding space that a network of this width speaks.

    The width names the published CLIPs; only the embedded family is known by its source.
    """
    if source.kind == "embedded" and SPACES["shapes-vit-l"].dim == dim:
        return SPACES["shapes-vit-l"]
    for space in SPACES.values():
        if space.dim == dim and not space.name.startswith("shapes"):
            return space
    return EmbeddingSpace(f"custom-{dim}d", dim, f"a {dim}-dimensional CLIP")


def _edge(config: dict[str, Any]) -> int | None:
    size = config.get("sample_size")
    return int(size[0] if isinstance(size, list) else size) if size else None


def _build_projection(config: dict[str, Any], name: str) -> TextProjection:
    expect(config.get("_class_name", "UnCLIPTextProjModel"), "UnCLIPTextProjModel", name)
    own = {k: v for k, v in config.items() if not k.startswith("_")}
    own.setdefault("clip_embeddings_dim", 768)
    return build(lambda: TextProjection(**own), name)
