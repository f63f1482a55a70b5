"""minDALL-E's VQGAN (``stage1_last.ckpt``) as diffusers' ``VQModel``: taming's layout, read in
kakaobrain/minDALL-E (``dalle/models/stage1``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..edges import reason_of
from .files.checkpoint import AGAIN, CheckpointError, cast, load_strict
from .files.libraries import require
from .taming import GROUPS, convert_vqgan

GRID = 16
"""Edge of the published grid of codes; shapes cannot tell for which pictures a VQGAN was made."""


@dataclass(frozen=True)
class VQGAN:
    """A VQGAN ready to use; its functions are in ``networks/mindalle_vqgan.py``.

    Attributes:
        network: diffusers' ``VQModel``.
        image_size: edge of the pictures that it was made for.
        factor: how many pixels wide a code is.
        codes: number of codebook entries.
        name: where it came from, for messages.
    """

    network: nn.Module
    image_size: int
    factor: int
    codes: int
    name: str

    @property
    def grid(self) -> int:
        """Edge of such a picture in codes."""
        return self.image_size // self.factor

    @property
    def channels(self) -> int:
        """Width of a codebook entry."""
        return self.network.quantize.embedding.embedding_dim


def build_vqgan(
    state: Mapping[str, torch.Tensor],
    name: str,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    groups: int = GROUPS,
) -> VQGAN:
    """The network of a state dict in the original or in diffusers' layout.

    Args:
        state: every parameter; assigned to the network, not copied where ``dtype`` is theirs.
        name: the file, for messages.
        dtype: storage dtype. Half precision changes codes (4% in bf16).
        image_size: edge of the pictures; ``None`` means 16 codes across, as published.
        groups: groups of every GroupNorm.

    Raises:
        CheckpointError: keys missing or left over, or sizes that make no VQGAN.
        LibraryError: diffusers cannot be imported.
    """
    cure = "Use minDALL-E's stage1_last.ckpt"
    config, tensors = convert_vqgan(state, name, groups, cure)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    size = image_size or GRID * factor
    if size % factor:
        raise CheckpointError(
            f"the config beside '{name}' says pictures of {size} pixels, which codes of {factor}"
            f" pixels do not divide. {AGAIN}"
        )
    network_class = require("diffusers", "VQModel")
    try:
        with torch.device("meta"):
            network = network_class(**config, sample_size=size)
    except Exception as error:
        raise CheckpointError(
            f"'{name}' is no VQGAN that can be built ({reason_of(error)}). {AGAIN}"
        ) from error
    load_strict(network, cast(tensors, dtype), name)
    network.eval().requires_grad_(False)
    return VQGAN(network, size, factor, config["num_vq_embeddings"], name)
