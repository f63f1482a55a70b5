"""A CLIP's text and vision model, to rank pictures by a prompt.

Out of any folder of transformers' ``CLIPModel`` (openai/clip-vit-base-patch32 as published with
minDALL-E, or another), OpenAI's own ``ViT-B-32.pt``, or an unCLIP system's source, whose text
and image encoder are one CLIP. Preparing pictures and comparing is ``samplers/rerank.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..edges import SPACES, EmbeddingSpace, reason_of
from . import clip, unclip
from .files.catalogue import Published, Source, Stage, System
from .files.checkpoint import (
    AGAIN,
    CheckpointError,
    check_inside,
    load_strict,
    read_component,
    read_json,
)
from .files.configs import check_config, sizes_of
from .files.libraries import require

SYSTEMS = (
    System(
        name="clip",
        title="CLIP",
        stages={
            "reranker": Stage(
                "encoder",
                ("", "CLIPModel"),
                full=True,
                instead=frozenset({"text_encoder", "image_encoder"}),
            )
        },
        checkpoints=(
            (re.compile(r"ViT-B-(16|32)\.(pt|pth|safetensors)"), frozenset({"reranker"})),
        ),
        embedded=(("shapes-clip", "clip"),),
        spaces=(
            EmbeddingSpace(
                "openai-vit-b-32", 512, "OpenAI CLIP ViT-B/32 (minDALL-E's reranker)", 768
            ),
        ),
        published={
            f"clip-vit-b-{patch}": Published(
                f"clip-vit-base-patch{patch}", {f"openai/clip-vit-base-patch{patch}": ("",)}
            )
            for patch in (16, 32)
        },
        place="Put the files of openai/clip-vit-base-patch32 into a folder of the model folder",
    ),
)


@dataclass(frozen=True)
class Reranker:
    """A CLIP's text and vision model, and what prepares their inputs.

    Attributes:
        network: a ModuleDict of ``text`` (transformers' ``CLIPTextModelWithProjection``) and
            ``vision`` (``CLIPVisionModelWithProjection``), for ``encode_text`` and
            ``encode_image`` of ``samplers/clip.py``.
        tokenizer: a CLIPTokenizer, for :func:`~.clip.tokenize`.
        size: edge of the pictures that it sees.
        mean, std: per channel, for ``samplers.rerank.preprocess``.
        space: the embedding space of both.
        name: where it came from, for messages.
    """

    network: nn.ModuleDict
    tokenizer: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    space: EmbeddingSpace
    name: str


def load_reranker(source: Source, dtype: torch.dtype = torch.float32) -> Reranker:
    """Load both models, the tokenizer and the picture preparation.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``reranker``.
        dtype: storage dtype. Half precision makes close scores equal.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: transformers cannot be imported.
    """
    if source.system == "clip" and source.path.is_dir():
        return _load_folder(source, dtype)
    # An unCLIP system's or a file of OpenAI's; both hold the text and the vision model apart.
    text = unclip.load_text_encoder(source, dtype)
    image = unclip.load_image_encoder(source, dtype)
    network = nn.ModuleDict({"text": text.network, "vision": image.network})
    prepare: Any = image.preprocess  # a loaded one is clip.Preprocess
    return Reranker(
        network.eval(),
        text.tokenizer,
        prepare.size,
        prepare.mean,
        prepare.std,
        text.space,
        str(source.path),
    )


# -- a folder of transformers' CLIPModel ---------------------------------------------------------

MODELS = {
    "text": ("CLIPTextModelWithProjection", "CLIPTextConfig", "text_model.", "text_projection."),
    "vision": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        "vision_model.",
        "visual_projection.",
    ),
}
"""Model to its class, its config's class, and the two prefixes of its keys."""


def _load_folder(source: Source, dtype: torch.dtype) -> Reranker:
    folder, folders = source.path, source.folders
    check_inside(folder / "config.json", folders)
    config = read_json(folder / "config.json")
    tensors, name = read_component(folder, dtype, folders)
    known = (*(prefix for row in MODELS.values() for prefix in row[2:]), "logit_scale")
    if unknown := [key for key in tensors if not key.startswith(known)]:
        raise CheckpointError(
            f"'{name}' is no CLIPModel: it holds unknown {', '.join(unknown[:4])}. Choose a CLIP"
            " such as openai/clip-vit-base-patch32"
        )
    network = nn.ModuleDict({kind: _model(kind, config, tensors, name) for kind in MODELS})
    network.to(dtype).eval().requires_grad_(False)
    preparation = folder / "preprocessor_config.json"
    if preparation.is_file():
        check_inside(preparation, folders)
    prepare = clip.preprocess_from_config(
        read_json(preparation) if preparation.is_file() else {},
        network["vision"].config.image_size,
        str(preparation),
    )
    tokenizer = clip.load_tokenizer(folder, folders)
    clip.check_tokenizer(tokenizer, network["text"], str(folder))
    return Reranker(
        network,
        tokenizer,
        prepare.size,
        prepare.mean,
        prepare.std,
        _space(network["text"].config.projection_dim),
        name,
    )


def _model(
    kind: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], name: str
) -> nn.Module:
    class_name, config_name, prefix, projection = MODELS[kind]
    model_class, config_class = require("transformers", class_name, config_name)
    own = config.get(f"{kind}_config")
    # Where the projection's width is said once, it is said outside.
    own = dict(own) if isinstance(own, dict) else {}
    own["projection_dim"] = config.get("projection_dim", own.get("projection_dim", 512))
    check_config(config_name, own, name, len(tensors))
    try:
        with torch.device("meta"):
            network = model_class(config_class.from_dict(sizes_of(config_name, own)))
    except Exception as error:
        raise CheckpointError(
            f"the config.json of '{name}' describes no CLIP that can be built"
            f" ({reason_of(error)}). {AGAIN}"
        ) from error
    wanted = network.state_dict()
    state = {}
    for key, tensor in tensors.items():
        # Files of older versions hold position ids, which are computed.
        if key.startswith((prefix, projection)) and not key.endswith(".position_ids"):
            # In some versions a model's keys lack the prefix.
            state[key if key in wanted else key.removeprefix(prefix)] = tensor
    load_strict(network, state, name)
    return network


def _space(dim: int) -> EmbeddingSpace:
    for space in SPACES.values():
        if space.dim == dim and not space.name.startswith("shapes"):
            return space
    return EmbeddingSpace(f"custom-{dim}d", dim, f"a {dim}-dimensional CLIP")
