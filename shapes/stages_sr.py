"""Training of the two upscaling networks (16 to 64 pixels). They need no CLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F

from . import recipe
from .grammar import training_scenes
from .loop import Draw, Plan, train
from .pictures import training_batch

FIRST = Plan("sr_first", steps=3000, batch=6, rate=2e-3)
LAST = Plan("sr_last", steps=300, batch=6, rate=1e-3, ema=0.99, warmup=20)
# The published seven steps end with 166 and 0; the last network only ever sees step 0.
_BEFORE_LAST = 166
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


def first_loss(network: torch.nn.Module, draw: Draw, batch: int, device: torch.device | str):
    """Noise prediction at any step."""
    pictures = pictures_of(draw, batch, device)
    steps = draw.timesteps(batch)
    signal, noise_part = signal_and_noise(steps, device)
    noise = draw.randn(*pictures.shape).to(device)
    noise = noise + wandering(pictures, signal, noise_part, draw)
    noisy = signal * pictures + noise_part * noise
    seen = torch.cat([noisy, _condition(pictures, draw)], 1)
    error = (network(seen, steps.to(device)).sample - noise).pow(2)
    return (picture_weight(signal, noise_part) * error).mean(), {"mse": error.mean().item()}


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def last_loss(
    network: torch.nn.Module,
    first: torch.nn.Module,
    draw: Draw,
    batch: int,
    device: torch.device | str,
):
    """The finished picture and its edges, from what the first network hands over at step 0."""
    pictures = pictures_of(draw, batch, device)
    condition = _condition(pictures, draw)
    steps = torch.full((batch,), _BEFORE_LAST)
    signal, noise_part = signal_and_noise(steps, device)
    noisy = signal * pictures + noise_part * draw.randn(*pictures.shape).to(device)
    zero = torch.zeros_like(steps)
    signal0, noise0 = signal_and_noise(zero, device)
    with torch.no_grad():
        noise = first(torch.cat([noisy, condition], 1), steps.to(device)).sample
        guess = ((noisy - noise_part * noise) / signal).clamp(-1, 1)
        # The mean of the step from 166 to 0; its variance is of the order of 1e-5.
        handed = signal0 * guess + noise0 * draw.randn(*pictures.shape).to(device)
    predicted = network(torch.cat([handed, condition], 1), zero.to(device)).sample
    finished = (handed - noise0 * predicted) / signal0
    plain = F.l1_loss(finished, pictures)
    edge = sum(F.l1_loss(a, b) for a, b in zip(_edges(finished), _edges(pictures), strict=True))
    return plain + edge, {"l1": plain.item(), "before": F.l1_loss(guess, pictures).item()}


def train_sr(
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """Both networks' averaged weights, by folder name."""
    plan = FIRST if steps is None else dataclasses.replace(FIRST, steps=steps)
    torch.manual_seed(plan.seed)
    first = recipe.super_res().to(device)
    weights = train(
        plan,
        first,
        lambda draw: first_loss(first, draw, plan.batch, device),
        folder / "sr_first.pt",
        stop_after=stop_after,
    )
    first.load_state_dict(weights)
    first.requires_grad_(False)
    plan = LAST if steps is None else dataclasses.replace(LAST, steps=max(1, steps // 5))
    last = recipe.super_res().to(device)
    last.load_state_dict(weights)
    finished = train(
        plan,
        last,
        lambda draw: last_loss(last, first, draw, plan.batch, device),
        folder / "sr_last.pt",
        stop_after=stop_after,
    )
    return {"super_res_first": weights, "super_res_last": finished}
