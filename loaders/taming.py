"""taming-transformers' VQGAN as diffusers' ``VQModel``.

The original layout, read in CompVis/taming-transformers (``taming/modules/diffusionmodules``) and
what others made of it: numbered levels of residual blocks, attention of 1x1 convolutions,
``decoder.up`` numbered from the picture inwards where diffusers numbers in the order of execution.
Sizes are read off the shapes, so a small network of the same layout loads too; keys that are
diffusers' already pass through unchanged.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch

from .files.checkpoint import AGAIN, CheckpointError

GROUPS = 32
"""Groups of every GroupNorm in the published network; shapes cannot tell them."""

BLOCK = {"nin_shortcut": "conv_shortcut"}
ATTENTION = {
    "norm": "group_norm",
    **{f"norm.{part}": f"spatial_norm.{part}" for part in ("norm_layer", "conv_y", "conv_b")},
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def convert_vqgan(
    state: Mapping[str, torch.Tensor], name: str, groups: int = GROUPS, cure: str = AGAIN
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and keys of diffusers' ``VQModel``.

    Keys that belong to no VQGAN keep their names, so that strict loading names them.

    Args:
        state: every parameter, in taming's or in diffusers' layout.
        name: the file, and cure: which one to use instead, both for messages.
        groups: of every GroupNorm.

    Raises:
        CheckpointError: a key that tells a size is missing.
    """
    levels = 1 + max(
        (int(m[1]) for k in state if (m := re.match(r"decoder\.up\.(\d+)\.", k))), default=0
    )
    tensors = {}
    for key, tensor in state.items():
        renamed = _rename(key, levels)
        # An attention's 1x1 convolution is a Linear there.
        squeeze = ".attentions." in renamed and tensor.ndim == 4 and "norm" not in renamed
        tensors[renamed] = tensor[:, :, 0, 0] if squeeze else tensor

    def size(key: str, dimension: int, dimensions: int = 4) -> int:
        if key not in tensors or tensors[key].ndim != dimensions:
            raise CheckpointError(
                f"'{name}' is no VQGAN: it lacks {key}, or that has another number of dimensions."
                f" {cure}"
            )
        return tensors[key].shape[dimension]

    def attends(block: str) -> bool:
        return f"{block}.attentions.0.to_q.weight" in tensors

    widths: list[int] = []
    while (key := f"encoder.down_blocks.{len(widths)}.resnets.0.conv1.weight") in tensors:
        widths.append(size(key, 0))
    if not widths:
        shown = ", ".join(list(state)[:4])
        raise CheckpointError(f"'{name}' is no VQGAN: it holds {shown}, ... {cure}")
    count = len(widths)
    down = [attends(f"encoder.down_blocks.{i}") for i in range(count)]
    up = [attends(f"decoder.up_blocks.{i}") for i in range(count)]
    config = {
        "in_channels": size("encoder.conv_in.weight", 1),
        "out_channels": size("decoder.conv_out.weight", 0),
        "down_block_types": [f"{'Attn' if a else ''}DownEncoderBlock2D" for a in down],
        "up_block_types": [f"{'Attn' if a else ''}UpDecoderBlock2D" for a in up],
        "block_out_channels": widths,
        "layers_per_block": _count(tensors, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "latent_channels": size("encoder.conv_out.weight", 0),
        "vq_embed_dim": size("quantize.embedding.weight", 1, 2),
        "num_vq_embeddings": size("quantize.embedding.weight", 0, 2),
        "norm_num_groups": groups,
        "lookup_from_codebook": True,
    }
    return config, tensors


def _count(state: Mapping[str, Any], key: str) -> int:
    """How many of the numbered keys there are, from 0."""
    return next(i for i in itertools.count() if key.format(i) not in state)


def _rename(key: str, levels: int) -> str:
    """One original key as diffusers spells it."""
    if match := re.fullmatch(r"(encoder|decoder)\.norm_out\.(.+)", key):
        return f"{match[1]}.conv_norm_out.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.block_([12])\.(.+)", key):
        return f"{match[1]}.mid_block.resnets.{int(match[2]) - 1}.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(.+)", key):
        return f"{match[1]}.mid_block.attentions.0.{_leaf(match[2], ATTENTION)}"
    match = re.fullmatch(
        r"(encoder\.down|decoder\.up)\.(\d+)\.(?:(block|attn)\.(\d+)|(downsample|upsample))\.(.+)",
        key,
    )
    if match is None:
        return key
    side, level = match[1], int(match[2])
    block = f"{side}_blocks.{level if side == 'encoder.down' else levels - 1 - level}"
    if match[3] == "block":
        return f"{block}.resnets.{match[4]}.{_leaf(match[6], BLOCK)}"
    if match[3] == "attn":
        return f"{block}.attentions.{match[4]}.{_leaf(match[6], ATTENTION)}"
    return f"{block}.{match[5]}rs.0.{match[6]}"


def _leaf(key: str, table: Mapping[str, str]) -> str:
    module, dot, leaf = key.rpartition(".")
    return f"{table.get(module, module)}{dot}{leaf}"
