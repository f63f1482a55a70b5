"""Training of minDALL-E's miniature VQGAN: 64 pixel pictures as 8x8 of 512 codes.

Two courses: first without the codebook, then with it, begun from what the encoder makes of
pictures. Codes that nothing uses move to where pictures are. No discriminator: the pictures are
flat and their edges have a loss of their own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F

from . import recipe
from .loop import Draw, Plan, draw_for, train
from .stages_sr import edge_loss, pictures_of

SMOOTH = Plan("vqgan_smooth", steps=500, batch=16, rate=6e-4, ema=0.99, warmup=20)
CODED = Plan("vqgan", steps=1500, batch=16, rate=8e-4, ema=0.99, warmup=20)
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
        book = network.quantize.embedding
        rows = found.permute(0, 2, 3, 1)
        entries = book(_nearest(rows.detach().flatten(0, 2), book.weight.detach()))
        entries = entries.view(rows.shape)
        drawn = F.mse_loss(entries, rows.detach()) + _COMMITMENT * F.mse_loss(
            rows, entries.detach()
        )
        found = (rows + (entries - rows).detach()).permute(0, 3, 1, 2)
    made = network.decoder(network.post_quant_conv(found))
    plain = F.mse_loss(made, pictures) + F.l1_loss(made, pictures)
    return plain + edge_loss(made, pictures) + drawn, {"plain": plain.item(), "vq": drawn.item()}


def train_vqgan(
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights."""

    def limited(plan: Plan) -> Plan:
        return plan if steps is None else dataclasses.replace(plan, steps=steps)

    torch.manual_seed(CODED.seed)
    network = recipe.vqgan().to(device)
    weights = train(
        limited(SMOOTH),
        network,
        lambda draw: vqgan_loss(network, draw, SMOOTH.batch, device, coded=False),
        folder / "vqgan_smooth.pt",
        stop_after=stop_after,
    )
    network.load_state_dict(weights)
    begin_codebook(network, draw_for("codebook", CODED.seed, 0), device)
    plan = limited(CODED)

    def coded(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        if draw.step and draw.step % _MOVE_EVERY == 0 and draw.step < _MOVE_UNTIL * plan.steps:
            move_unused(network, _places(network, draw, device), draw)
        return vqgan_loss(network, draw, plan.batch, device, coded=True)

    return train(plan, network, coded, folder / "vqgan.pt", stop_after=stop_after)
