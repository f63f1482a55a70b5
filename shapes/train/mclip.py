"""Training of Kandinsky 2.1's text tower: prompts into Karlo's CLIP's space, as mCLIP learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..grammar import training_scenes
from . import recipe
from .kandinsky import Prompts
from .loop import Draw, Plan, train

PLAN = Plan("mclip", steps=1500, batch=64, rate=2e-3, ema=0.99, warmup=50)
_AT_ONCE = 128


def tokens_of(tokenizer: Any, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Ids and mask ``[scenes + 1, 77]`` of nothing and of every training prompt."""
    prompts = ["", *(scene.prompt for scene in training_scenes())]
    tokens = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").to(device)
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


def train_mclip(
    tokenizer: Any,
    wanted: torch.Tensor,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of a tower that gives each prompt the embedding it is to have.

    Args:
        wanted: CLIP's text embeddings ``[scenes + 1, D]``, of nothing first.
    """
    plan = PLAN.limited(steps)
    torch.manual_seed(plan.seed)
    tower = recipe.mclip(tokenizer).to(device)
    tokens = tokens_of(tokenizer, device)
    # Masked padding has no effect on a prompt's embedding: left out, it costs nothing.
    longest = int(tokens["attention_mask"].sum(1).max())

    def loss_of(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.from_numpy(draw.numpy.integers(len(wanted), size=plan.batch))
        rows[0] = 0
        some = {name: ids[rows, :longest] for name, ids in tokens.items()}
        return F.mse_loss(tower(**some).text_embeds, wanted[rows]), {}

    return train(plan, tower, loss_of, folder / f"{plan.stage}.pt", stop_after=stop_after)


@torch.no_grad()
def prompts_by(tower: nn.Module, tokenizer: Any, device: torch.device | str) -> Prompts:
    """What the finished tower makes of nothing and of every training prompt, padding and all."""
    tokens, parts = tokens_of(tokenizer, device), []
    for start in range(0, len(tokens["input_ids"]), _AT_ONCE):
        some = {name: ids[start : start + _AT_ONCE] for name, ids in tokens.items()}
        out = tower(**some)
        parts.append((out.last_hidden_state, out.text_embeds))
    return Prompts(*(torch.cat(kind) for kind in zip(*parts, strict=True)))
