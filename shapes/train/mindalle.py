"""Training of minDALL-E's miniature transformer: the 64 codes of a picture, one after another.

The pictures' codes are found once and kept. The class-conditional and the unconditional variant
are made of the finished text-conditional one by the published transfer learning.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ...loaders.mindalle import CONFIG, TRANSFORMER_FILES, tokenize
from ...networks.mindalle import ARTransformer
from ...networks.mindalle_vqgan import encode
from ...training.mindalle_transfer import Recipe, source_of, transfer
from ..grammar import KINDS, training_scenes
from ..pictures import draw as draw_picture
from ..pictures import training_batch
from . import recipe
from .loop import Draw, Plan, draw_for, train

POOL = 40960
PLAN = Plan("ar", steps=4500, batch=64, rate=1.5e-3, ema=0.995)
# The two variants, by the model card's recipe: a tiny network bears, and needs, a higher rate.
TRANSFERS = {
    kind: Recipe(kind, epochs=4, batch=64, rate=1e-3) for kind in ("class", "unconditional")
}
DRAWN = 13440  # pictures that those see
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


def ar_loss(
    network: ARTransformer,
    pool: Codes,
    told: torch.Tensor,
    draw: Draw,
    batch: int,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross-entropy of the codes, in nats a code. ``told``: tokens of each scene."""
    chosen = torch.from_numpy(draw.numpy.integers(len(pool.rows), size=batch)).to(pool.rows.device)
    tokens = pool.codes[chosen]
    logits = network(told[pool.rows[chosen]], tokens)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), {}


def train_ar(
    vqgan: torch.nn.Module,
    tokenizer: Any,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of the text-conditional transformer."""
    plan = PLAN.limited(steps)
    pool = coded_pool(vqgan, POOL if steps is None else min(POOL, 64 * steps), device)
    prompts = [scene.prompt for scene in training_scenes()]
    told = tokenize(tokenizer, prompts, recipe.AR_TEXT_TOKENS).ids.to(device)
    torch.manual_seed(plan.seed)
    network = recipe.ar_transformer(tokenizer.get_vocab_size()).to(device)
    return train(
        plan,
        network,
        lambda draw: ar_loss(network, pool, told, draw, plan.batch),
        folder / "ar.pt",
        stop_after=stop_after,
    )


def train_variants(
    mindalle: Path, folder: Path, device: torch.device | str, steps: int | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the class-conditional and the unconditional transformer, by kind.

    What `prior-art train mindalle-transfer` does, on pictures drawn into ``folder``. The classes
    are the kinds of ``grammar.KINDS``, in that order.

    Args:
        mindalle: folder of the finished member.
    """
    source = source_of(str(mindalle), [])
    pictures = folder / "pictures"
    count = DRAWN if steps is None else 4 * len(KINDS) * steps
    scenes = training_scenes()
    for i in range(count):
        scene = scenes[i % len(scenes)]
        path = pictures / f"{KINDS.index(scene.kind)}-{scene.kind}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # what an interrupted run drew, its codes still fit
            draw_picture(scene, i).save(path)
    made = {}
    for kind, told in TRANSFERS.items():
        if steps is not None:
            told = dataclasses.replace(told, epochs=1, batch=4)
        out = folder / kind
        if (out / CONFIG).exists():  # finished by an earlier run; an unfinished one goes on
            shutil.rmtree(out)
        transfer(source, pictures, out, told, str(device))
        made[kind] = load_file(out / TRANSFORMER_FILES[0])
    return made
