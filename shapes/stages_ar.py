"""Training of minDALL-E's miniature transformer: the 64 codes of a picture, one after another.

The pictures' codes are found once and kept. The class-conditional and the unconditional variant
begin from the finished text-conditional one, as the published ones do.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..loaders.mindalle import tokenize
from ..networks.mindalle import ARTransformer
from ..networks.vqgan import encode
from . import recipe
from .grammar import KINDS, training_scenes
from .loop import Draw, Plan, draw_for, train
from .pictures import training_batch

POOL = 20480
PLAN = Plan("ar", steps=2000, batch=64, rate=1.5e-3, ema=0.995)
# The two variants: from the finished transformer, all of it tuned.
TRANSFER = Plan("ar_transfer", steps=300, batch=64, rate=5e-4, ema=0.99, warmup=20)
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Codes:
    """Pictures as the finished VQGAN sees them.

    Attributes:
        codes: ``[N, 64]``, 0..511, raster; rows: int64 ``[N]``, the scene of each in
            ``training_scenes()``.
    """

    codes: torch.Tensor
    rows: torch.Tensor


@torch.no_grad()
def coded_pool(vqgan: torch.nn.Module, count: int, device: torch.device | str) -> Codes:
    """``count`` training pictures as codes; equal counts give equal pools."""
    scenes = training_scenes()
    codes, rows = [], []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("codes", 0, start)
        chosen = draw.numpy.integers(len(scenes), size=min(_AT_ONCE, count - start))
        pictures, _ = training_batch([scenes[i] for i in chosen], draw.numpy)
        codes.append(encode(vqgan, torch.from_numpy(pictures).to(device)).flatten(1))
        rows.append(torch.from_numpy(chosen).to(device))
    return Codes(torch.cat(codes), torch.cat(rows))


def contexts(kind: str, tokenizer: Any = None) -> torch.Tensor | None:
    """What the transformer is told of each training scene: ``[N, 16]`` tokens, ``[N, 1]`` classes.

    Classes are the kinds of ``grammar.KINDS``; the unconditional model is told nothing.
    """
    scenes = training_scenes()
    if kind == "text":
        return tokenize(tokenizer, [s.prompt for s in scenes], recipe.AR_TEXT_TOKENS).ids
    if kind == "class":
        return torch.tensor([[KINDS.index(scene.kind)] for scene in scenes])
    return None


def ar_loss(
    network: ARTransformer,
    pool: Codes,
    told: torch.Tensor | None,
    draw: Draw,
    batch: int,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross-entropy of the codes, in nats a code."""
    chosen = torch.from_numpy(draw.numpy.integers(len(pool.rows), size=batch)).to(pool.rows.device)
    tokens = pool.codes[chosen]
    context = None if told is None else told[pool.rows[chosen]]
    logits = network(context, tokens)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), {}


def train_ar(
    vqgan: torch.nn.Module,
    tokenizer: Any,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of the three transformers: text, class, unconditional."""

    def limited(plan: Plan) -> Plan:
        return plan if steps is None else dataclasses.replace(plan, steps=steps)

    pool = coded_pool(vqgan, POOL if steps is None else min(POOL, 64 * steps), device)
    made: dict[str, dict[str, torch.Tensor]] = {}
    for kind in ("text", "class", "unconditional"):
        plan = limited(PLAN if kind == "text" else TRANSFER)
        torch.manual_seed(plan.seed)
        network = recipe.ar_transformer(
            text_vocab=tokenizer.get_vocab_size() if kind == "text" else None,
            classes=len(KINDS) if kind == "class" else None,
        ).to(device)
        if kind != "text":
            # As published: the head has another name there, so it starts anew.
            network.load_state_dict(_shared(made["text"]), strict=False)
        told = contexts(kind, tokenizer)
        told = None if told is None else told.to(device)
        made[kind] = train(
            plan,
            network,
            lambda draw, network=network, told=told, plan=plan: ar_loss(
                network, pool, told, draw, plan.batch
            ),
            folder / f"ar_{kind}.pt",
            stop_after=stop_after,
        )
    return made


def _shared(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the variants have in common with the text-conditional transformer."""
    begun = ("tok_emb_img.", "pos_emb_img.", "blocks.", "ln_f.")
    return {key: value for key, value in weights.items() if key.startswith(begun)}
