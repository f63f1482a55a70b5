"""guided-diffusion's U-Net, numbered input and output blocks, as diffusers' ``UNet2DModel`` and
``UNet2DConditionModel``, and what reads an original checkpoint key by key.

The layout is that of openai/guided-diffusion (``guided_diffusion/unet.py``), whose qkv rows are
interleaved per head. Sizes are read off the shapes, so a small checkpoint of the same layout loads
too. The maps are the tables in capitals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .files.checkpoint import CheckpointError

State = Mapping[str, torch.Tensor]
Tensors = dict[str, torch.Tensor]

HEAD_DIM = 64
"""Width of an attention head in every published network; shapes cannot tell it."""

UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
RESNET_OPTIONAL = {"skip_connection": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}


@dataclass
class Taker:
    """Takes keys out of a checkpoint one by one, and knows at the end what nobody asked for."""

    state: State
    name: str
    what: str
    readme: str

    def __post_init__(self) -> None:
        self.left = dict(self.state)

    def has(self, key: str) -> bool:
        """Whether nobody took the key yet."""
        return key in self.left

    def take(self, key: str) -> torch.Tensor:
        """The tensor of a key, once.

        Raises:
            CheckpointError: the checkpoint lacks it.
        """
        if key not in self.left:
            raise self.foreign([key], "lacks")
        return self.left.pop(key)

    def peek(self, key: str) -> torch.Tensor:
        """A tensor whose shape is wanted, whether it was taken already or not."""
        if key not in self.state:
            raise self.foreign([key], "lacks")
        return self.state[key]

    def pairs(self, old: str, new: str, table: Mapping[str, str]) -> Tensors:
        """Weights and biases of ``old`` under ``new``, each layer by the table's name for it."""
        return {
            f"{new}{right}.{leaf}": self.take(f"{old}{left}.{leaf}")
            for left, right in table.items()
            for leaf in ("weight", "bias")
        }

    def finish(self) -> None:
        """Refuse what nobody asked for.

        Raises:
            CheckpointError: names some of the keys that are left.
        """
        if self.left:
            raise self.foreign(list(self.left), "holds unknown")

    def foreign(self, keys: list[str], verb: str) -> CheckpointError:
        """The error that says which keys the file ``verb`` ("lacks", "holds unknown")."""
        shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        return CheckpointError(
            f"'{self.name}' is no original {self.what} checkpoint: it {verb} {shown}."
            f" Choose the file that {self.readme} links to, or use a folder of the hub"
            " (`prior-art download`)"
        )


def strip(state: State, prefix: str, name: str, what: str, readme: str) -> Taker:
    """The keys of a checkpoint that all begin with ``prefix``, without it.

    Raises:
        CheckpointError: some begin otherwise.
    """
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    taker = Taker(own, name, what, readme)
    others = [key for key in state if not key.startswith(prefix)]
    if others:
        raise taker.foreign(others, "holds unknown")
    return taker


def unlace(rows: torch.Tensor, parts: int, head_dim: int) -> list[torch.Tensor]:
    """Undo the interleaving per head: ``[heads, parts, head_dim]`` rows to ``parts`` tensors."""
    if rows.ndim == 3:  # a Conv1d of kernel size 1
        rows = rows[:, :, 0]
    laced = rows.reshape(-1, parts, head_dim, *rows.shape[1:])
    return [laced[:, part].reshape(-1, *rows.shape[1:]) for part in range(parts)]


def convert_unet(keys: Taker, head_dim: int) -> tuple[dict[str, Any], Tensors]:
    """A guided-diffusion U-Net whose up and down sampling are residual blocks."""
    blocks = _count(keys, "output_blocks")
    # In the output blocks a level ends with an extra residual block that doubles the picture; the
    # first one of those tells how many blocks a level has.
    per_level = next((i + 1 for i in range(blocks) if _up_index(keys, i)), blocks)
    if per_level < 2 or blocks % per_level:
        raise keys.foreign(["output_blocks of equal levels"], "lacks")
    layers, levels = per_level - 1, blocks // per_level

    tensors = keys.pairs("", "", UNET)
    channels, attentions = [], []
    cross = None
    scale_shift = False
    for level in range(levels):
        start = 1 + level * per_level
        channels.append(keys.peek(f"input_blocks.{start}.0.out_layers.3.weight").shape[0])
        attentions.append(keys.has(f"input_blocks.{start}.1.qkv.weight"))
        time = keys.peek(f"input_blocks.{start}.0.emb_layers.1.weight")
        scale_shift = time.shape[0] == 2 * channels[-1]
        for layer in range(layers):
            old, new = f"input_blocks.{start + layer}", f"down_blocks.{level}"
            tensors |= _resnet(keys, f"{old}.0.", f"{new}.resnets.{layer}.")
            if attentions[-1]:
                part = _attention(keys, f"{old}.1.", f"{new}.attentions.{layer}.", head_dim)
                tensors |= part
        if level < levels - 1:
            old = f"input_blocks.{start + layers}.0."
            tensors |= _resnet(keys, old, f"down_blocks.{level}.downsamplers.0.")
    tensors |= _up_blocks(keys, attentions, per_level, head_dim)
    middle = keys.has("middle_block.1.qkv.weight")
    tensors |= _mid_block(keys, middle, head_dim)

    if middle or any(attentions):
        probe = next(k for k in tensors if k.endswith(".add_k_proj.weight"))
        cross = tensors[probe].shape[1]
        for width, has in zip(channels, attentions, strict=True):
            if has:
                check_heads(width, head_dim, keys.name)
    kinds = ("Resnet{0}sampleBlock2D", "SimpleCrossAttn{0}Block2D")
    down = [kinds[has].format("Down") for has in attentions]
    up = [kinds[has].format("Up") for has in reversed(attentions)]
    config: dict[str, Any] = {
        "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": down,
        "up_block_types": up,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
    }
    if cross is not None:
        config |= {
            "cross_attention_dim": cross,
            "attention_head_dim": head_dim,
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        }
    return config, tensors


def _up_blocks(keys: Taker, attentions: list[bool], per_level: int, head_dim: int) -> Tensors:
    """The output blocks; ``attentions``: which levels have them, from the picture inwards."""
    tensors: Tensors = {}
    levels = len(attentions)
    for i in range(levels * per_level):
        level, layer = divmod(i, per_level)
        attends, new = attentions[levels - 1 - level], f"up_blocks.{level}"
        tensors |= _resnet(keys, f"output_blocks.{i}.0.", f"{new}.resnets.{layer}.")
        if attends:
            old = f"output_blocks.{i}.1."
            tensors |= _attention(keys, old, f"{new}.attentions.{layer}.", head_dim)
        if layer == per_level - 1 and level < levels - 1:
            tensors |= _resnet(keys, f"output_blocks.{i}.{1 + attends}.", f"{new}.upsamplers.0.")
    return tensors


def _mid_block(keys: Taker, attends: bool, head_dim: int) -> Tensors:
    tensors = _resnet(keys, "middle_block.0.", "mid_block.resnets.0.")
    if attends:
        tensors |= _attention(keys, "middle_block.1.", "mid_block.attentions.0.", head_dim)
    return tensors | _resnet(keys, f"middle_block.{1 + attends}.", "mid_block.resnets.1.")


def _count(keys: Taker, blocks: str) -> int:
    count = 0
    while keys.has(f"{blocks}.{count}.0.in_layers.0.weight"):
        count += 1
    if count == 0:
        raise keys.foreign([f"{blocks}.0.0.in_layers.0.weight"], "lacks")
    return count


def _up_index(keys: Taker, block: int) -> int:
    """Where the residual block that doubles the picture sits in an output block; 0 if nowhere."""
    for place in (1, 2):
        if keys.has(f"output_blocks.{block}.{place}.in_layers.0.weight"):
            return place
    return 0


def _resnet(keys: Taker, old: str, new: str) -> Tensors:
    tensors = keys.pairs(old, new, RESNET)
    for left, right in RESNET_OPTIONAL.items():
        if keys.has(f"{old}{left}.weight"):
            tensors |= keys.pairs(old, new, {left: right})
    return tensors


def _attention(keys: Taker, old: str, new: str, head_dim: int) -> Tensors:
    tensors = keys.pairs(old, new, ATTENTION)
    tensors[f"{new}to_out.0.weight"] = tensors[f"{new}to_out.0.weight"][:, :, 0]
    for leaf in ("weight", "bias"):
        own = unlace(keys.take(f"{old}qkv.{leaf}"), 3, head_dim)
        context = unlace(keys.take(f"{old}encoder_kv.{leaf}"), 2, head_dim)
        tensors |= {f"{new}to_{q}.{leaf}": rows for q, rows in zip("qkv", own, strict=True)}
        tensors |= {
            f"{new}add_{k}_proj.{leaf}": rows for k, rows in zip("kv", context, strict=True)
        }
    return tensors


def check_heads(width: int, head_dim: int, name: str) -> None:
    """Refuse a width that attention heads do not divide.

    Raises:
        CheckpointError: names the file.
    """
    if width % head_dim:
        raise CheckpointError(
            f"'{name}' has {width} channels, which {head_dim}-wide attention heads do not divide."
            " It is no published checkpoint"
        )
