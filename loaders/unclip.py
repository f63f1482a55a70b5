"""CLIP's text and vision models and priors, which unCLIP systems share: hub folders and original
checkpoints. Which repositories those are, the systems' records say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..edges import SPACES, EmbeddingSpace
from ..samplers.parts.schedule import UnCLIPSchedule, sums
from . import clip, unclip_keys
from .clip import Preprocess
from .files import catalogue
from .files.catalogue import Source, Stage, System
from .files.checkpoint import AGAIN, CheckpointError, check_inside, read_json, read_state_dict
from .files.configs import nested, read_schedule_config
from .files.hub import build_diffusers, build_transformers, fill, part, read_hub
from .guided_diffusion import HEAD_DIM

SYSTEMS = (
    System(
        name="stable-unclip",
        title="Stable unCLIP",
        stages={
            "image_normalizer": Stage("prior", ("image_normalizer", "StableUnCLIPImageNormalizer"))
        },
        pipelines=frozenset({"StableUnCLIPPipeline", "StableUnCLIPImg2ImgPipeline"}),
        spaces=(
            EmbeddingSpace(
                "laion-vit-h-14", 1024, "OpenCLIP ViT-H/14 (Stable Diffusion 2.1)", 1280
            ),
        ),
        place="Put the folder image_normalizer of stabilityai/stable-diffusion-2-1-unclip-small"
        " into a folder of the model folder",
    ),
)


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text model (transformers' CLIPTextModelWithProjection) and its tokenizer."""

    network: nn.Module
    tokenizer: Any
    space: EmbeddingSpace


@dataclass(frozen=True)
class ImageEncoder:
    """A CLIP vision model (CLIPVisionModelWithProjection) and what prepares its pictures."""

    network: nn.Module
    preprocess: Any
    space: EmbeddingSpace


@dataclass(frozen=True)
class LoadedPrior:
    """A diffusers PriorTransformer and the schedule it was published with."""

    network: nn.Module
    schedule: UnCLIPSchedule
    space: EmbeddingSpace


def load_text_encoder(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = HEAD_DIM
) -> TextEncoder:
    """Load the text model and its tokenizer.

    Args:
        source: from :func:`~.files.catalogue.find_source`.
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
        config = nested(config, "text_config", name)
        found = part(source, "tokenizer")
        tokenizer = clip.load_tokenizer(found, source.folders)
    network = build_transformers(
        "CLIPTextModelWithProjection", "CLIPTextConfig", config, name, tensors
    )
    fill(network, tensors, dtype, name, "text_model.")
    clip.check_tokenizer(tokenizer, network, str(found))
    return TextEncoder(network, tokenizer, space_of(source, network.config.projection_dim))


def load_image_encoder(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = HEAD_DIM
) -> ImageEncoder:
    """Load the vision model and its picture preparation.

    A hub folder's ``feature_extractor`` or ``image_processor`` decides the preparation; without one
    it is CLIP's own. Of an original checkpoint the system's record says whether pictures are
    squashed to a square or cropped: each as published.

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
        config = nested(config, "vision_config", name)
        file = source.folder(_place(source, "preprocessor")) / "preprocessor_config.json"
        if file.is_file():
            check_inside(file, source.folders)
        preparation = read_json(file) if file.is_file() else {}
    network = build_transformers(
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", config, name, tensors
    )
    fill(network, tensors, dtype, name, "vision_model.")
    size = network.config.image_size
    if preparation is None:
        squash = catalogue.SYSTEMS[source.system].squashes
        preprocess = Preprocess(size, size, squash=squash, openai=not squash)
    else:
        preprocess = clip.preprocess_from_config(preparation, size, str(file))
    return ImageEncoder(network, preprocess, space_of(source, network.config.projection_dim))


def load_prior(
    source: Source, dtype: torch.dtype = torch.float32, head_dim: int = HEAD_DIM
) -> LoadedPrior:
    """Load the prior.

    Its x0 clip is the scheduler JSON's (+-5) for a hub folder and +-10 for an original checkpoint,
    whose tables are computed in float64 as the original repository does.

    Raises:
        CheckpointError: a file is missing (also ``ViT-L-14_stats.th`` beside an original prior),
            damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        system = catalogue.SYSTEMS[source.system]
        stats = unclip_keys.read_stats(source.path, source.folders, system)
        name = str(source.path)
        state = read_state_dict(source.path)
        config, tensors = unclip_keys.convert_prior(state, stats, name, system, head_dim)
        schedule = original_schedule(unclip_keys.SCHEDULE)
    else:
        config, tensors, name = read_hub(source, "prior", dtype)
        schedule = read_schedule(source, _place(source, "prior_schedule"))
    network = build_diffusers("PriorTransformer", config, name, tensors)
    fill(network, tensors, dtype, name)
    return LoadedPrior(network, schedule, space_of(source, network.config.embedding_dim))


ZERO_IMAGE = "zero_image_embeds"
"""The embedding of a picture of zeros: its name in a file beside a prior, and that file's."""


def stored_zero_image(source: Source) -> torch.Tensor | None:
    """The image encoder's embedding ``[1, D]`` of a picture of zeros (after preparation), fp32.

    It is a constant of the published model, in ``zero_image_embeds.safetensors`` beside the prior;
    ``None`` where that is not there.

    Raises:
        CheckpointError: the file is damaged or foreign.
    """
    file = source.path / f"{ZERO_IMAGE}.safetensors"
    if not file.is_file():
        return None
    check_inside(file, source.folders)
    tensors = read_state_dict(file)
    if set(tensors) != {ZERO_IMAGE} or tensors[ZERO_IMAGE].ndim != 2:
        raise CheckpointError(f"'{file}' is none of PriorArt's; delete it, it is not needed")
    return tensors[ZERO_IMAGE].float()


@dataclass(frozen=True)
class ImageNormalizer:
    """Mean and deviation ``[1, D]``, fp32, by which Stable unCLIP normalises image embeddings while
    it noises them."""

    mean: torch.Tensor
    std: torch.Tensor


def load_image_normalizer(source: Source) -> ImageNormalizer:
    """Load those statistics.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
    """
    _, tensors, name = read_hub(source, "image_normalizer", torch.float32)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    width = shapes.get("mean", (0, 0))[-1]
    if shapes != {"mean": (1, width), "std": (1, width)} or bool((tensors["std"] <= 0).any()):
        raise CheckpointError(
            f"'{name}' holds {shapes}, but an image normalizer of Stable unCLIP has 'mean' and a"
            f" positive 'std' of one row. {AGAIN}"
        )
    return ImageNormalizer(tensors["mean"], tensors["std"])


# -- reading -----------------------------------------------------------------------------------


def _place(source: Source, what: str) -> str:
    """The folder in which a system's hub layout keeps something beside the networks."""
    return catalogue.SYSTEMS[source.system].places[what]


def _read_openai_clip(source: Source) -> dict[str, torch.Tensor]:
    state = read_state_dict(source.path)
    if not clip.is_openai_clip(state):
        shown, system = ", ".join(list(state)[:4]), catalogue.SYSTEMS[source.system]
        linked = f", which {system.readme} links to" if system.readme else ""
        raise CheckpointError(
            f"'{source.path}' is not in OpenAI's CLIP layout: it holds {shown}, ... Use"
            f" OpenAI's own file{linked}. {system.cure}"
        )
    return state


def read_schedule(source: Source, component: str) -> UnCLIPSchedule:
    """The schedule in a hub folder's component.

    Raises:
        CheckpointError: there is none, it is damaged, or another system's.
    """
    file = part(source, component) / "scheduler_config.json"
    check_inside(file, source.folders)
    config = read_schedule_config(file)
    name = config.get("_class_name", "UnCLIPScheduler")
    if name != "UnCLIPScheduler":
        raise CheckpointError(f"'{file}' is a {name}; this stage needs an UnCLIPScheduler")
    try:
        return UnCLIPSchedule.from_config(config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"'{file}': {error}. {AGAIN}") from error


def original_schedule(config: dict[str, Any]) -> UnCLIPSchedule:
    """An original repository's schedule, its tables and its respacing in float64.

    Args:
        config: its constants, as diffusers' UnCLIPScheduler would write them.
    """
    return replace(UnCLIPSchedule.from_config(config), double_tables=True, spacing=sums)


def space_of(source: Source, dim: int) -> EmbeddingSpace:
    """The embedding space that a network of this width speaks.

    The width names the published CLIPs; only the embedded family is known by its source.
    """
    for space in SPACES.values():
        if space.dim == dim and space.name.startswith("shapes") == (source.kind == "embedded"):
            return space
    return EmbeddingSpace(f"custom-{dim}d", dim, f"a {dim}-dimensional CLIP")
