"""Training of the reranker: Karlo's CLIP taught on to tell clean outlines from spoilt ones.

Karlo's CLIP knows which colours and kind a picture shows, but hardly whether its outline is clean,
and that is what the candidates of one prompt differ in. Here silhouettes are warped, bitten, grown
and rounded off, and the CLIP learns to put pictures of one prompt in the order of how well they
overlap the nearest true silhouette. No picture of minDALL-E is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from ..grammar import KINDS, SIZES, Scene, training_scenes
from ..pictures import SIDE, coloured, silhouette_pool, training_batch
from . import layout
from .clip import ClipTrainee, contrast, towers_of
from .loop import Draw, Plan, train
from .words import read_tokenizer

PLAN = Plan("reranker", steps=1600, batch=12, rate=5e-4, ema=0.99, warmup=30, save_every=100)
_COMPARED = 8  # pictures of a prompt
_TRUE = 32  # true pictures in one step, for CLIP's own contrast
_SHARPNESS = 30.0  # of the choice between two pictures
_CLEAN = 0.2  # the part of the pictures that nothing is done to
_WARP, _ROUNDING, _LUMP = 4.0, 3.0, 4.5  # the most that is done, in pixels
_FAR = 0.08  # difference of overlaps from which a pair counts in full


def blurred(masks: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of ``[B, 64, 64]``, wrapping round, by ``[B]`` pixels each."""
    across, down = torch.fft.rfftfreq(SIDE), torch.fft.fftfreq(SIDE)
    squared = down[:, None].square() + across[None].square()
    kernel = torch.exp(-2 * math.pi**2 * deviation.square()[:, None, None] * squared)
    return torch.fft.irfft2(torch.fft.rfft2(masks) * kernel, s=(SIDE, SIDE))


def spoilt(masks: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Silhouettes ``[B, 64, 64]``, 0..1: warped, with bites and lumps, rounded off, each so far."""
    count = len(masks)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw.torch)

    touched = random(count) >= _CLEAN
    strength = random(count)
    warp = strength * random(count) * _WARP * touched
    field = torch.randn(count, 2, 8, 8, generator=draw.torch)
    field = F.interpolate(field, size=SIDE, mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, SIDE, SIDE], align_corners=False)
    grid = grid + field * (warp * 2 / SIDE)[:, None, None, None]
    masks = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]

    place = torch.arange(float(SIDE))
    for _ in range(2):
        # Somewhere along the outline, which a blur leaves half bright.
        outline = torch.exp(
            -(((blurred(masks, torch.full((count,), 2.0)) - 0.5).abs() / 0.15) ** 2)
        )
        at = torch.multinomial(outline.flatten(1), 1, generator=draw.torch)[:, 0]
        radius = 1.5 + strength * random(count) * _LUMP
        away = (place[None, :, None] - (at // SIDE)[:, None, None]) ** 2
        away = away + (place[None, None, :] - (at % SIDE)[:, None, None]) ** 2
        disc = (away < radius.square()[:, None, None]).float()
        done = ((random(count) < 0.5) & touched)[:, None, None]
        grown = (random(count) < 0.5)[:, None, None]
        other = torch.where(grown, torch.maximum(masks, disc), torch.minimum(masks, 1 - disc))
        masks = torch.where(done, other, masks)

    rounding = 0.3 + strength * random(count) * _ROUNDING * touched
    steep = 12 * rounding.clamp(min=1)[:, None, None]  # equally sharp whatever the blur was
    masks = torch.sigmoid((blurred(masks, rounding) - 0.5) * steep)
    return blurred(masks, 0.3 + 0.5 * random(count)).clamp(0, 1)


@lru_cache(maxsize=1)
def _true_silhouettes() -> torch.Tensor:
    """``[kinds, N, 4096]``, 0 or 1."""
    return (torch.from_numpy(silhouette_pool()) > 127).float().flatten(1, 2).flatten(2)


def overlap(masks: torch.Tensor, kind: str) -> torch.Tensor:
    """Intersection over union of each of ``[B, 64, 64]`` with the nearest true silhouette."""
    true = _true_silhouettes()[KINDS.index(kind)]
    seen = (masks.flatten(1) > 0.5).float()
    both = seen @ true.T
    return (both / (seen.sum(1, keepdim=True) + true.sum(1) - both)).amax(1)


def _lesson(scenes: list[Scene], draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Spoilt pictures ``[B, 8, 3, 64, 64]`` of each scene and their overlaps ``[B, 8]``."""
    pool, sizes = silhouette_pool(), list(SIZES)
    masks = []
    for scene in scenes:
        for _ in range(_COMPARED):
            size = sizes.index(scene.size) if scene.size else draw.numpy.integers(len(sizes))
            one = pool[KINDS.index(scene.kind), size, draw.numpy.integers(pool.shape[2])]
            masks.append(torch.from_numpy(one).float() / 255)
    drawn = spoilt(torch.stack(masks), draw)
    each = [scene for scene in scenes for _ in range(_COMPARED)]
    pictures = torch.from_numpy(coloured(each, drawn[:, None].numpy(), draw.numpy))
    drawn = drawn.unflatten(0, (len(scenes), _COMPARED))
    overlaps = [overlap(some, scene.kind) for some, scene in zip(drawn, scenes, strict=True)]
    return pictures.unflatten(0, (len(scenes), _COMPARED)), torch.stack(overlaps)


def reranker_loss(
    trainee: ClipTrainee, tokenizer: object, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """The order of each prompt's pictures, and CLIP's contrast over true ones."""
    known = training_scenes()
    said = [known[i] for i in draw.numpy.integers(len(known), size=batch)]
    shown, overlaps = (part.to(device) for part in _lesson(said, draw))
    true = [known[i] for i in draw.numpy.integers(len(known), size=_TRUE)]
    drawn = torch.from_numpy(training_batch(true, draw.numpy)[0]).to(device)

    prompts = [scene.prompt for scene in (*said, *true)]
    ids = tokenizer(prompts, padding="longest", return_tensors="pt").input_ids
    texts = trainee.text(ids.to(device)).text_embeds
    images = trainee.image(torch.cat([shown.flatten(0, 1), drawn])).image_embeds
    compared = images[:-_TRUE].unflatten(0, (batch, _COMPARED))
    near = F.cosine_similarity(texts[:batch, None], compared, dim=-1)
    lead = near[:, :, None] - near[:, None, :]
    weight = (overlaps[:, :, None] - overlaps[:, None, :]).clamp(0, _FAR)
    choice = (weight * F.softplus(-_SHARPNESS * lead)).sum() / weight.sum()
    right = ((lead > 0) * weight).sum() / weight.sum()
    loss = choice + 0.25 * contrast(texts[batch:], images[-_TRUE:], true, true)
    return loss, {"choice": choice.item(), "right": right.item()}


def train_reranker(
    karlo: Path,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of both towers, by Karlo's folder names.

    Args:
        karlo: folder of that member, whose CLIP this one begins from.
    """
    plan = PLAN.limited(steps)
    tokenizer = read_tokenizer(karlo / "tokenizer")
    trainee = ClipTrainee(tokenizer).to(device)
    for tower, name in ((trainee.text, "text_encoder"), (trainee.image, "image_encoder")):
        tower.load_state_dict(layout.read_network(karlo, name).state_dict())
    weights = train(
        plan,
        trainee,
        lambda draw: reranker_loss(trainee, tokenizer, draw, plan.batch, device),
        folder / "reranker.pt",
        stop_after=stop_after,
    )
    return towers_of(weights)
