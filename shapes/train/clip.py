"""Training of the family's CLIP: contrastive, with attributes to lean on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..grammar import COLOURS, KINDS, SIZES, Scene, held_out, training_scenes
from ..pictures import training_batch
from . import recipe
from .loop import Draw, Plan, train

PLAN = Plan("clip", steps=1500, batch=64, rate=1e-3, ema=0.99, warmup=50)
_CELLS = 4  # a patch is asked for its silhouette in 4 x 4 cells
# The contrast is softened so that embeddings keep their spread; see clip_loss.
_SCALE = 20.0


class ClipTrainee(nn.Module):
    """Both towers, and linear heads that read each attribute off either embedding.

    The heads are thrown away. They lay the attributes out in straight lines, which priors like.
    Another asks every patch which part of it belongs to the shape: without that dense lesson so
    small a vision transformer knows the colours within a minute and the kinds not within ten.
    """

    def __init__(self, tokenizer: Any, width: int = recipe.SPACE_WIDTH):
        super().__init__()
        self.text = recipe.text_encoder(tokenizer, width)
        self.image = recipe.image_encoder(width)
        classes = (len(COLOURS), len(KINDS), len(COLOURS), len(SIZES))
        self.heads = nn.ModuleList([nn.Linear(width, n) for n in classes])
        self.patches = nn.Linear(recipe.VISION["hidden_size"], _CELLS * _CELLS)


def labels_of(scenes: list[Scene]) -> torch.Tensor:
    """Colour, kind, background and size as numbers: int64 ``[4, B]``; -100 for an open size."""
    colours, kinds, sizes = list(COLOURS), list(KINDS), list(SIZES)
    return torch.tensor(
        [
            [colours.index(s.colour) for s in scenes],
            [kinds.index(s.kind) for s in scenes],
            [colours.index(s.background) for s in scenes],
            [sizes.index(s.size) if s.size else -100 for s in scenes],
        ]
    )


def _neighbour(scene: Scene, draw: Draw) -> Scene:
    """A known scene that differs from this one in one attribute: the hardest to tell apart."""
    hidden = held_out()
    while True:
        field = ("colour", "kind", "background", "size")[draw.numpy.integers(4)]
        values = list({"kind": KINDS, "size": SIZES}.get(field, COLOURS))
        other = dataclasses.replace(scene, **{field: values[draw.numpy.integers(len(values))]})
        if other.colour != other.background and other.combination not in hidden:
            return other


def contrast(
    texts: torch.Tensor, images: torch.Tensor, said: list[Scene], shown: list[Scene]
) -> torch.Tensor:
    """Softened contrastive loss of ``[B, D]`` embeddings, both ways.

    A prompt fits every picture of its words, not only its own.
    """
    a, b = labels_of(said).to(texts.device), labels_of(shown).to(texts.device)
    fits = (a[:3, :, None] == b[:3, None, :]).all(0)
    fits &= (a[3, :, None] == b[3, None, :]) | (a[3, :, None] < 0)
    fits = fits.float()
    logits = _SCALE * F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    loss = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True))
    return loss + F.cross_entropy(logits.T, fits.T / fits.T.sum(1, keepdim=True))


def clip_loss(
    trainee: ClipTrainee, tokenizer: Any, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """Soft contrastive loss over compatible pairs, plus the attribute heads."""
    sized = [scene for scene in training_scenes() if scene.size]
    shown = [sized[i] for i in draw.numpy.integers(len(sized), size=batch // 2)]
    shown += [_neighbour(scene, draw) for scene in shown]
    said = [
        scene if draw.numpy.random() < 0.75 else dataclasses.replace(scene, size=None)
        for scene in shown
    ]
    pictures, masks = (torch.from_numpy(x).to(device) for x in training_batch(shown, draw.numpy))
    ids = tokenizer([s.prompt for s in said], padding="longest", return_tensors="pt").input_ids
    texts = trainee.text(ids.to(device)).text_embeds
    seen = trainee.image(pictures)
    images = seen.image_embeds
    cells = recipe.VISION["patch_size"] // _CELLS
    inside = F.unfold(F.avg_pool2d(masks, cells), _CELLS, stride=_CELLS).transpose(1, 2)
    dense = F.binary_cross_entropy_with_logits(
        trainee.patches(seen.last_hidden_state[:, 1:]), inside
    )

    contrasted = contrast(texts, images, said, shown)
    a, b = labels_of(said).to(device), labels_of(shown).to(device)
    attributes = images.new_zeros(())
    right = []
    for head, says, shows in zip(trainee.heads, a, b, strict=True):
        read = head(images)
        attributes = attributes + F.cross_entropy(read, shows) + F.cross_entropy(head(texts), says)
        right.append((read.argmax(1) == shows).float().mean())
    figures = {
        "kind": right[1].item(), "seen": torch.stack(right).mean().item(), "dense": dense.item()
    }  # fmt: skip
    # Lengths carry nothing; keeping them near one spares the prior a wide range.
    lengths = (images.norm(dim=-1) - 8).pow(2).mean() + (texts.norm(dim=-1) - 8).pow(2).mean()
    return 0.5 * contrasted + attributes + 4 * dense + 0.002 * lengths, figures


def train_clip(
    tokenizer: Any,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
    width: int = recipe.SPACE_WIDTH,
) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of both towers, by folder name; ``width`` is the joint space's."""
    plan = PLAN.limited(steps)
    torch.manual_seed(plan.seed)
    trainee = ClipTrainee(tokenizer, width).to(device)
    weights = train(
        plan,
        trainee,
        lambda draw: clip_loss(trainee, tokenizer, draw, plan.batch, device),
        folder / "clip.pt",
        stop_after=stop_after,
    )
    return towers_of(weights)


def towers_of(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """A trainee's weights as those of both towers, by folder name."""
    return {
        name: {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
        for name, part in (("text_encoder", "text."), ("image_encoder", "image."))
    }
