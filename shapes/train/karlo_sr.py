"""Training of the two upscaling networks (16 to 64 pixels). They need no CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...samplers.parts.schedule import UnCLIPSchedule, predict_x0, previous_sample
from ..grammar import training_scenes
from ..pictures import training_batch
from . import recipe
from .loop import Draw, Plan, draw_for, some_of, train

FIRST = Plan("sr_first", steps=3000, batch=6, rate=2e-3)
# A second course with the decoder's own pictures, and the last network's on what the first makes.
MENDING = Plan("sr_mending", steps=3000, batch=8, rate=1e-3, ema=0.99, warmup=20)
LAST = Plan("sr_last", steps=1600, batch=8, rate=1.5e-3, ema=0.99, warmup=20)
PAIRS = 2048
# Step 0 takes the prediction away times 0.006: to mend a pixel it must be in the hundreds, which
# takes a fresh head long to reach. So it is trained as this much less, multiplied at the end.
_HEAD = 64.0
_AT_ONCE = 64
# The most that colours wander in training, as a standard deviation (black to white is 2).
_WANDER = 0.6


def pictures_of(draw: Draw, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Training pictures of random known scenes: ``[count, 3, 64, 64]`` in -1..1."""
    scenes = training_scenes()
    chosen = [scenes[i] for i in draw.numpy.integers(len(scenes), size=count)]
    return torch.from_numpy(training_batch(chosen, draw.numpy)[0]).to(device)


def signal_and_noise(
    steps: torch.Tensor, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(alpha) and sqrt(1 - alpha) of int64 ``[B]`` timesteps: two ``[B, 1, 1, 1]``."""
    from diffusers import UnCLIPScheduler

    alphas = UnCLIPScheduler().alphas_cumprod.double()[steps.cpu()]
    shape = (-1, 1, 1, 1)
    return (
        alphas.sqrt().float().view(shape).to(device),
        (1 - alphas).sqrt().float().view(shape).to(device),
    )


def picture_weight(signal: torch.Tensor, noise_part: torch.Tensor) -> torch.Tensor:
    """How much an error of the noise counts, 1..30, for each step's two parts.

    Plain colours are settled at noisy steps, where a small slip of the noise is a large one of the
    picture. Unweighted, few-step sampling comes out grey.
    """
    return (noise_part / signal).pow(2).clamp(1, 30)


def wandering(
    pictures: torch.Tensor, signal: torch.Tensor, noise_part: torch.Tensor, draw: Draw
) -> torch.Tensor:
    """Slow noise to add to the fast, as sampling gathers it: shifted colours, contrast, clouds.

    A network that has only met true states believes the colours that it sees, and so keeps every
    slip of the first steps: at step 999 there is nothing to see and the guess is a clamped flash
    of colours. With this it learns to believe what it is told, and draws them back at every step.
    """
    count, device = len(pictures), pictures.device
    clouds = F.interpolate(draw.randn(count, 3, 4, 4), size=pictures.shape[-1], mode="bilinear")
    slow = draw.randn(count, 3, 1, 1) + 0.5 * clouds
    contrast = draw.randn(count, 3, 1, 1).to(device)
    some = _WANDER * torch.rand(count, 1, 1, 1, generator=draw.torch).to(device)
    return some * (slow.to(device) + contrast * pictures) * (signal / noise_part).clamp(max=1)


def _worn(small: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Half of the 16 pixel pictures blurred and noisy, as a decoder's output may be."""
    count = small.shape[0]
    some = (torch.rand(count, 1, 1, 1, generator=draw.torch) < 0.5).float()
    blur = F.avg_pool2d(F.pad(small.cpu(), (1, 1, 1, 1), mode="replicate"), 3, 1)
    strength = 0.4 * some * torch.rand(count, 1, 1, 1, generator=draw.torch)
    noise = 0.1 * some * torch.rand(count, 1, 1, 1, generator=draw.torch)
    worn = torch.lerp(small.cpu(), blur, strength) + noise * draw.randn(*small.shape)
    return worn.clamp(-1, 1).to(small.device)


def enlarge(small: torch.Tensor) -> torch.Tensor:
    """The upscaler's condition: ``[B, 3, 16, 16]`` clamped, bicubic to ``[B, 3, 64, 64]``."""
    side = (recipe.FINAL_SIDE, recipe.FINAL_SIDE)
    return F.interpolate(small.clamp(-1, 1), size=side, mode="bicubic", antialias=True)


def _condition(pictures: torch.Tensor, draw: Draw) -> torch.Tensor:
    return enlarge(_worn(F.avg_pool2d(pictures, 4), draw))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """True pictures ``[N, 3, 64, 64]`` in -1..1, and what networks see of them ``[N, C, h, w]``."""

    pictures: torch.Tensor
    seen: torch.Tensor

    def some(self, draw: Draw, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` pairs; half of them mirrored, as every kind is its own mirror image."""
        chosen = torch.from_numpy(draw.numpy.integers(len(self.seen), size=count))
        mirrored = torch.rand(count, 1, 1, 1, generator=draw.torch) < 0.5
        pictures, seen = (part[chosen.to(part.device)] for part in (self.pictures, self.seen))
        mirrored = mirrored.to(seen.device)
        return (
            torch.where(mirrored, pictures.flip(-1), pictures),
            torch.where(mirrored, seen.flip(-1), seen),
        )


def first_loss(
    network: torch.nn.Module,
    draw: Draw,
    batch: int,
    device: torch.device | str,
    pairs: Pairs | None = None,
):
    """Noise prediction at any step; with ``pairs``, half of it mends a decoder's pictures."""
    remade = 0 if pairs is None else batch // 2
    pictures = pictures_of(draw, batch - remade, device)
    condition = _condition(pictures, draw)
    if pairs is not None:
        wanted, small = pairs.some(draw, remade)
        pictures = torch.cat([pictures, wanted])
        condition = torch.cat([condition, enlarge(small)])
    steps = draw.timesteps(batch)
    signal, noise_part = signal_and_noise(steps, device)
    noise = draw.randn(*pictures.shape).to(device)
    noise = noise + wandering(pictures, signal, noise_part, draw)
    noisy = signal * pictures + noise_part * noise
    seen = torch.cat([noisy, condition], 1)
    error = (network(seen, steps.to(device)).sample - noise).pow(2)
    return (picture_weight(signal, noise_part) * error).mean(), {"mse": error.mean().item()}


@torch.no_grad()
def handed_over(first: torch.nn.Module, pairs: Pairs, device: torch.device | str) -> Pairs:
    """What the last network sees after the published six of seven steps, for each small picture."""
    schedule = UnCLIPSchedule()
    parts = []
    for start in range(0, len(pairs.seen), _AT_ONCE):
        draw = draw_for("handed", 0, start)
        condition = enlarge(pairs.seen[start : start + _AT_ONCE])
        x = draw.randn(*condition.shape).to(device)
        for step in schedule.steps(7)[:-1]:
            at = torch.full((len(x),), step.timestep, device=device)
            noise = first(torch.cat([x, condition], 1), at).sample
            x0 = predict_x0(schedule, step, x, noise)
            x = previous_sample(step, x, x0, draw.randn(*x.shape).to(device))
        parts.append(torch.cat([x, condition], 1))
    return Pairs(pairs.pictures, torch.cat(parts))


def edge_loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the differences between neighbouring pixels, across and down."""
    return F.l1_loss(made.diff(dim=-1), wanted.diff(dim=-1)) + F.l1_loss(
        made.diff(dim=-2), wanted.diff(dim=-2)
    )


def last_loss(network: torch.nn.Module, handed: Pairs, draw: Draw, batch: int):
    """The finished picture and its edges, from what the first network hands over at step 0."""
    pictures, seen = handed.some(draw, batch)
    zero = torch.zeros(batch, dtype=torch.long)
    signal, noise_part = signal_and_noise(zero, seen.device)
    predicted = _HEAD * network(seen, zero.to(seen.device)).sample
    finished = (seen[:, :3] - noise_part * predicted) / signal
    plain = F.l1_loss(finished, pictures)
    return plain + edge_loss(finished, pictures), {"l1": plain.item()}


def train_sr(
    pairs_of: Callable[[int], Pairs],
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """Both networks' averaged weights, by folder name.

    ``pairs_of`` gives so many pairs with the finished decoder's small pictures.
    """

    torch.manual_seed(FIRST.seed)
    first = recipe.super_res().to(device)
    weights = train(
        FIRST.limited(steps),
        first,
        lambda draw: first_loss(first, draw, FIRST.batch, device),
        folder / "sr_first.pt",
        stop_after=stop_after,
    )
    first.load_state_dict(weights)
    pairs = pairs_of(some_of(PAIRS, steps))
    weights = train(
        MENDING.limited(steps),
        first,
        lambda draw: first_loss(first, draw, MENDING.batch, device, pairs),
        folder / "sr_mending.pt",
        stop_after=stop_after,
    )
    first.load_state_dict(weights)
    first.requires_grad_(False)
    handed = handed_over(first, pairs, device)
    last = recipe.super_res().to(device)
    last.load_state_dict(weights)
    nn.init.zeros_(last.conv_out.weight)  # to begin with what the first network hands over
    nn.init.zeros_(last.conv_out.bias)
    finished = train(
        LAST.limited(steps),
        last,
        lambda draw: last_loss(last, handed, draw, LAST.batch),
        folder / "sr_last.pt",
        stop_after=stop_after,
    )
    finished |= {key: _HEAD * finished[key] for key in ("conv_out.weight", "conv_out.bias")}
    return {"super_res_first": weights, "super_res_last": finished}
