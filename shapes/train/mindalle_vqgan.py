"""Training of minDALL-E's miniature VQGAN: 64 pixel pictures as 8x8 of 512 codes.

Three courses: first without the codebook, then with it, begun from what the encoder makes of
pictures. Codes that nothing uses move to where pictures are. Then the codes stand and the decoder
alone learns to draw sharply. No discriminator: the pictures are flat and their edges have a loss of
their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..grammar import training_scenes
from ..pictures import coloured, training_batch
from . import recipe
from .karlo_sr import edge_loss, pictures_of
from .loop import Draw, Plan, draw_for, train

SMOOTH = Plan("vqgan_smooth", steps=500, batch=16, rate=6e-4, ema=0.99, warmup=20)
CODED = Plan("vqgan", steps=1500, batch=16, rate=8e-4, ema=0.99, warmup=20)
SHARP = Plan("vqgan_sharp", steps=3400, batch=16, rate=8e-4, ema=0.99, warmup=20)
_COMMITMENT = 0.25  # as published (taming-transformers)
_SEEN = 128  # pictures that decide which codes are in use: 8192 places
_MOVE_EVERY = 100
_MOVE_UNTIL = 0.7  # of the course; afterwards codes keep their places


@torch.no_grad()
def _places(network: torch.nn.Module, draw: Draw, device: torch.device | str) -> torch.Tensor:
    """What the encoder makes of some pictures, before the codebook: ``[N, 32]``."""
    parts = [
        network.quant_conv(network.encoder(pictures_of(draw, 32, device)))
        for _ in range(_SEEN // 32)
    ]
    return torch.cat(parts).permute(0, 2, 3, 1).flatten(0, 2)


def _nearest(places: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """The codebook row next to each place."""
    return (book.square().sum(1) - 2 * places @ book.T).argmin(1)


@torch.no_grad()
def begin_codebook(network: torch.nn.Module, draw: Draw, device: torch.device | str) -> None:
    """k-means over the encoder's places."""
    places, book = _places(network, draw, device), network.quantize.embedding.weight
    book.copy_(places[torch.randperm(len(places), generator=draw.torch)[: len(book)].to(device)])
    for _ in range(10):
        move_unused(network, places, draw)
        code = _nearest(places, book)
        sums = torch.zeros_like(book).index_add_(0, code, places)
        count = code.bincount(minlength=len(book))[:, None]
        book.copy_(torch.where(count > 0, sums / count.clamp(min=1), book))


@torch.no_grad()
def move_unused(network: torch.nn.Module, places: torch.Tensor, draw: Draw) -> int:
    """Puts codes that no place is nearest to on places; how many there were."""
    book = network.quantize.embedding.weight
    unused = (_nearest(places, book).bincount(minlength=len(book)) == 0).nonzero()[:, 0]
    chosen = torch.randperm(len(places), generator=draw.torch)[: len(unused)]
    book[unused] = places[chosen.to(places.device)]
    return len(unused)


def vqgan_loss(
    network: torch.nn.Module,
    draw: Draw,
    batch: int,
    device: torch.device | str,
    coded: bool,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The picture and its edges again and, where ``coded``, codes and encoder drawn together."""
    pictures = pictures_of(draw, batch, device)
    found = network.quant_conv(network.encoder(pictures))
    drawn = torch.zeros((), device=found.device)
    if coded:
        entries = _entries(network, found)
        drawn = F.mse_loss(entries, found.detach()) + _COMMITMENT * F.mse_loss(
            found, entries.detach()
        )
        found = found + (entries - found).detach()
    made = network.decoder(network.post_quant_conv(found))
    plain = F.mse_loss(made, pictures) + F.l1_loss(made, pictures)
    return plain + edge_loss(made, pictures) + drawn, {"plain": plain.item(), "vq": drawn.item()}


def _entries(network: torch.nn.Module, found: torch.Tensor) -> torch.Tensor:
    """The codebook's rows next to what the encoder found: ``[B, 32, 8, 8]`` both."""
    book, rows = network.quantize.embedding, found.detach().permute(0, 2, 3, 1)
    nearest = _nearest(rows.flatten(0, 2), book.weight.detach())
    return book(nearest).view(rows.shape).permute(0, 3, 1, 2)


def sharp_loss(
    network: torch.nn.Module, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """The decoder's picture against the one in the palette's very colours.

    Which shade a picture had no code tells; without that noise what is left to learn are outlines.
    Triangles come four times as often as the others: their tips are the hardest to draw.
    """
    scenes = training_scenes()
    often = np.array([4.0 if scene.kind == "triangle" else 1.0 for scene in scenes])
    chosen = draw.numpy.choice(len(scenes), size=batch, p=often / often.sum())
    shown = [scenes[i] for i in chosen]
    pictures, masks = training_batch(shown, draw.numpy)
    wanted = torch.from_numpy(coloured(shown, masks)).to(device)
    with torch.no_grad():
        found = network.quant_conv(network.encoder(torch.from_numpy(pictures).to(device)))
        entries = _entries(network, found)
    made = network.decoder(network.post_quant_conv(entries))
    plain = F.mse_loss(made, wanted) + F.l1_loss(made, wanted)
    return plain + 2 * edge_loss(made, wanted), {"plain": plain.item()}


def train_vqgan(
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights."""

    torch.manual_seed(CODED.seed)
    network = recipe.vqgan().to(device)
    weights = train(
        SMOOTH.limited(steps),
        network,
        lambda draw: vqgan_loss(network, draw, SMOOTH.batch, device, coded=False),
        folder / "vqgan_smooth.pt",
        stop_after=stop_after,
    )
    network.load_state_dict(weights)
    begin_codebook(network, draw_for("codebook", CODED.seed, 0), device)
    plan = CODED.limited(steps)

    def coded(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        if draw.step and draw.step % _MOVE_EVERY == 0 and draw.step < _MOVE_UNTIL * plan.steps:
            move_unused(network, _places(network, draw, device), draw)
        return vqgan_loss(network, draw, plan.batch, device, coded=True)

    network.load_state_dict(train(plan, network, coded, folder / "vqgan.pt", stop_after=stop_after))
    draw_on(
        network,
        SHARP.limited(steps),
        lambda draw: sharp_loss(network, draw, SHARP.batch, device),
        folder / "vqgan_sharp.pt",
        stop_after,
    )
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def draw_on(
    network: torch.nn.Module,
    plan: Plan,
    loss_of: Callable[[Draw], tuple[torch.Tensor, dict[str, float]]],
    state_path: Path,
    stop_after: int | None,
) -> None:
    """A course for the half that draws pictures; what it draws from stands."""
    drawing = torch.nn.ModuleDict(
        {name: network.get_submodule(name) for name in ("post_quant_conv", "decoder")}
    )
    drawing.load_state_dict(train(plan, drawing, loss_of, state_path, stop_after=stop_after))
