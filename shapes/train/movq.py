"""Training of Kandinsky's miniature MoVQ: 64 pixel pictures as 4x8x8 latents, and back.

Its decoders use the latents as they are, without the codebook, so the network is trained without
it, and the codebook is what k-means makes of the finished latents. The published sampler's dynamic
thresholding presses x0 into +-1, so that is where latents are kept; a little noise on them while
training makes the decoder forgive what a sampler leaves.

Encoder and decoder learn together; then the latents stand and the decoder alone learns to draw
sharply; and when the latent decoder has learnt to sample, to mend what that makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...networks.kandinsky_movq import encode
from ..grammar import training_scenes
from ..pictures import training_batch
from . import recipe
from .karlo_sr import Pairs, edge_loss, pictures_of
from .loop import Draw, Plan, draw_for, some_of, train
from .mindalle_vqgan import begin_codebook, draw_on

PLAN = Plan("movq", steps=2600, batch=8, rate=1e-3, ema=0.99, warmup=20)
SHARP = Plan("movq_sharp", steps=3200, batch=8, rate=1.2e-3, ema=0.995, warmup=20)
MENDING = Plan("movq_mending", steps=2900, batch=8, rate=8e-4, ema=0.99, warmup=20)
PAIRS = 2048
_NOISE = 0.05
_DEVIATION = 0.5  # of every channel of the latents


def movq_loss(
    network: torch.nn.Module, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """The picture and its edges again, from latents that fill +-1 and hardly leave it."""
    pictures = pictures_of(draw, batch, device)
    found = network.quant_conv(network.encoder(pictures))
    spread, mean = torch.std_mean(found, dim=(0, 2, 3))
    bounds = (spread - _DEVIATION).square().mean() + mean.square().mean()
    bounds = bounds + F.relu(found.abs() - 1).square().mean() * 10
    noisy = found + _NOISE * draw.randn(*found.shape).to(device)
    made = network.decoder(network.post_quant_conv(noisy), noisy)
    plain = F.mse_loss(made, pictures) + F.l1_loss(made, pictures)
    loss = plain + 2 * edge_loss(made, pictures) + bounds
    return loss, {"plain": plain.item(), "far": found.abs().max().item()}


def sharp_loss(
    network: torch.nn.Module, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """The decoder's picture and its edges, from latents that stand; triangles, whose tips are the
    hardest to draw, come three times as often."""
    scenes = training_scenes()
    often = np.array([3.0 if scene.kind == "triangle" else 1.0 for scene in scenes])
    chosen = draw.numpy.choice(len(scenes), size=batch, p=often / often.sum())
    pictures = torch.from_numpy(training_batch([scenes[i] for i in chosen], draw.numpy)[0])
    pictures = pictures.to(device)
    found = encode(network, pictures)
    noisy = found + _NOISE * draw.randn(*found.shape).to(device)
    made = network.decoder(network.post_quant_conv(noisy), noisy)
    plain = F.mse_loss(made, pictures) + F.l1_loss(made, pictures)
    return plain + 3 * edge_loss(made, pictures), {"plain": plain.item()}


def train_movq(
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights, with a codebook of the latents' centres."""
    plan = PLAN.limited(steps)
    torch.manual_seed(plan.seed)
    network = recipe.movq().to(device)
    network.quantize.requires_grad_(False)
    weights = train(
        plan,
        network,
        lambda draw: movq_loss(network, draw, plan.batch, device),
        folder / "movq.pt",
        stop_after=stop_after,
    )
    network.load_state_dict(weights)
    begin_codebook(network, draw_for("movq codebook", plan.seed, 0), device)
    draw_on(
        network,
        SHARP.limited(steps),
        lambda draw: sharp_loss(network, draw, SHARP.batch, device),
        folder / "movq_sharp.pt",
        stop_after,
    )
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def mending_loss(
    network: torch.nn.Module,
    pairs: Pairs,
    draw: Draw,
    batch: int,
    device: torch.device | str,
) -> tuple[torch.Tensor, dict[str, float]]:
    """True pictures from true latents, and the nearest true picture from sampled ones."""
    true, figures = sharp_loss(network, draw, batch // 2, device)
    chosen = torch.from_numpy(draw.numpy.integers(len(pairs.seen), size=batch - batch // 2))
    latents, pictures = pairs.seen[chosen].to(device), pairs.pictures[chosen].to(device)
    made = network.decoder(network.post_quant_conv(latents), latents)
    plain = F.mse_loss(made, pictures) + F.l1_loss(made, pictures)
    return (true + plain + 3 * edge_loss(made, pictures)) / 2, figures | {"mended": plain.item()}


def mend_movq(
    network: torch.nn.Module,
    pairs: Callable[[int], Pairs],
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of the finished MoVQ, its drawing half taught on."""
    plan = MENDING.limited(steps)
    known = pairs(some_of(PAIRS, steps))
    network.requires_grad_(True)
    draw_on(
        network,
        plan,
        lambda draw: mending_loss(network, known, draw, plan.batch, device),
        folder / "movq_mending.pt",
        stop_after,
    )
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}
