"""Low-rank adaptation: a frozen layer plus a narrow one beside it that is trained.

Source: LoRA (Hu et al. 2021). The factor alpha / rank is 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.mindalle import ARTransformer


class LowRank(nn.Module):
    """``linear(x) + up(down(x))``; ``up`` begins at zero, so it begins as ``linear``.

    Attributes:
        down: ``[rank, in]``; up: ``[out, rank]``.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        bound = 1 / math.sqrt(linear.in_features)
        down = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The frozen layer with the narrow one added into its weight, in place."""
        self.linear.weight += self.up @ self.down
        return self.linear


def add_lora(network: ARTransformer, rank: int, generator: torch.Generator) -> None:
    """Freezes the network and puts :class:`LowRank` in place of every linear layer of its blocks.

    Args:
        rank: at least 1.
        generator: of the CPU; equal ones give equal beginnings.
    """
    network.requires_grad_(False)
    for block in network.blocks:
        for name in ("query", "key", "value", "proj"):
            setattr(block.attn, name, LowRank(getattr(block.attn, name), rank, generator))
        for place in (0, 2):
            block.mlp[place] = LowRank(block.mlp[place], rank, generator)


def merge_lora(network: ARTransformer) -> None:
    """Makes the network plain again: the keys, sizes and (but for rounding) logits are as before.

    A network without LoRA stays as it is.
    """
    for block in network.blocks:
        for parent in (block.attn, block.mlp):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, LowRank):
                    setattr(parent, name, layer.merged())
