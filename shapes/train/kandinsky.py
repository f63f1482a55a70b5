"""Training of Kandinsky's latent decoders: 4x8x8 latents from an image embedding alone.

The text-to-image decoder first; the one that inpaints and the one that follows a depth map begin
as it, with further input channels that start at nothing. Kandinsky 2.1's begins as its blocks and
reads the prompt beside the embedding, which is Karlo's CLIP's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...networks.kandinsky_movq import encode
from ...samplers.clip import encode_zero_image
from ..grammar import training_scenes
from ..pictures import oddly_coloured, training_batch
from . import recipe
from .karlo_decoder import chain_of, variance_loss
from .karlo_sr import picture_weight
from .loop import Draw, Plan, draw_for, some_of, train

POOL = 20480
PLAN = Plan("latent", steps=3000, batch=48, rate=1.5e-3, ema=0.997)
# Then under the published guidance, and told by the prior, as it will be; see stages_decoder.
GUIDED = Plan("latent_guided", steps=14600, batch=48, rate=1e-3, ema=0.995, warmup=50)
MODES = {
    "inpaint": Plan("latent_inpaint", steps=3000, batch=48, rate=1e-3, ema=0.995, warmup=50),
    "depth": Plan("latent_depth", steps=2000, batch=32, rate=1e-3, ema=0.995, warmup=50),
}
OLD = Plan("latent_2_1", steps=12000, batch=48, rate=1.2e-3, ema=0.995, warmup=50)
_GUIDANCE = 4.0
_SILENT = 0.2  # of the pictures that 2.1 is shown without their prompt
_DROP = 0.1
_TOLD = 0.8  # of the pictures whose prompt the prior was asked
_WORN = 0.5  # of an embedding's own deviation, at the most
_VARIANCE_WEIGHT = 0.05
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Latents:
    """Training pictures as the finished MoVQ and CLIP see them.

    Attributes:
        latents: ``[N, 4, 8, 8]``; embeds: ``[N, D]``; rows: int64 ``[N]``, the scene of each in
            ``training_scenes()``, or -1 where its colours have no names; masks: uint8
            ``[N, 1, 64, 64]``, the silhouettes.
        said: ``[scenes, n, D]``, what the prior makes of each scene's prompt.
        nothing: ``[1, D]``, the embedding of a picture of zeros, which guidance subtracts.
    """

    latents: torch.Tensor
    embeds: torch.Tensor
    rows: torch.Tensor
    masks: torch.Tensor
    said: torch.Tensor
    nothing: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What Kandinsky 2.1's text tower makes of nothing (row 0) and of every training prompt.

    Attributes:
        hidden: ``[scenes + 1, 77, W]``; pooled: ``[scenes + 1, D]``.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor


@torch.no_grad()
def latent_pool(
    movq: nn.Module,
    image_encoder: nn.Module,
    said: torch.Tensor,
    count: int,
    device: torch.device | str,
) -> Latents:
    """``count`` training pictures; equal counts give equal pools.

    Every second one has colours off the palette: a decoder that has seen a kind in any colours
    paints it in pairs of colours that it never saw together.
    """
    scenes = training_scenes()
    parts: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("latents", 0, start)
        rows = draw.numpy.integers(len(scenes), size=min(_AT_ONCE, count - start))
        pictures, masks = training_batch([scenes[i] for i in rows], draw.numpy)
        pictures[1::2] = oddly_coloured([scenes[i] for i in rows[1::2]], masks[1::2], draw.numpy)
        rows[1::2] = -1
        shown = torch.from_numpy(pictures).to(device)
        silhouettes = torch.from_numpy((masks * 255).round().astype("uint8"))
        embeds = image_encoder(shown).image_embeds
        parts.append((encode(movq, shown), embeds, torch.from_numpy(rows), silhouettes))
    nothing = encode_zero_image(image_encoder, device)
    latents, embeds, rows, masks = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return Latents(latents, embeds, rows, masks, said, nothing)


@lru_cache(maxsize=1)
def _schedule() -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """alphas_cumprod, and the chain of reverse steps."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**recipe.LATENT_SCHEDULER)
    return scheduler.alphas_cumprod.double(), chain_of(scheduler.betas)


def keep_masks(draw: Draw, count: int, side: int) -> torch.Tensor:
    """Masks of what stays ``[count, 1, side, side]``: 0 in a box, anywhere, of any size; in a
    tenth of them everywhere."""
    ends = torch.rand(count, 2, 2, generator=draw.torch)
    # Twice as often near the full width: a shape fills most of a picture.
    first = (ends.amin(2) ** 1.5 * side).floor()
    last = side - ((1 - ends.amax(2)) ** 1.5 * side).floor()
    all_of_it = torch.rand(count, 1, generator=draw.torch) < 0.1
    first, last = first.masked_fill(all_of_it, 0), last.masked_fill(all_of_it, side)
    place = torch.arange(side)
    inside = (place >= first[..., None]) & (place < last[..., None])  # [count, 2, side]
    return 1 - (inside[:, 0, :, None] & inside[:, 1, None, :]).float()[:, None]


def latent_loss(
    unet: nn.Module,
    pool: Latents,
    draw: Draw,
    batch: int,
    device: torch.device | str,
    mode: str = "decoder",
    guidance: float = 1.0,
    prompts: Prompts | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Noise prediction, under this much guidance, and the variance's bound.

    Args:
        prompts: for a decoder that reads them too.
    """
    chosen = torch.from_numpy(draw.numpy.integers(len(pool.rows), size=batch))
    latents, image = pool.latents[chosen].to(device), pool.embeds[chosen].to(device)
    if guidance > 1:
        told = torch.rand(batch, 1, generator=draw.torch) < _TOLD
        told = told & (pool.rows[chosen] >= 0)[:, None]
        which = torch.randint(pool.said.shape[1], (batch,), generator=draw.torch)
        image = torch.where(told, pool.said[pool.rows[chosen], which], image)
        # New combinations have embeddings a little off all that were seen: half are worn so.
        worn = _WORN * torch.rand(batch, 1, generator=draw.torch)
        worn = worn * (torch.rand(batch, 1, generator=draw.torch) < 0.5)
        image = image + worn * draw.randn(*image.shape) * pool.embeds.std(0, keepdim=True)
    dropped = torch.rand(batch, 1, generator=draw.torch) < _DROP
    image = torch.where(dropped, pool.nothing, image)
    said = torch.zeros(batch, dtype=torch.long)
    if prompts is not None:
        silent = torch.rand(batch, generator=draw.torch) < _SILENT
        said = torch.where(silent | dropped[:, 0], said, pool.rows[chosen] + 1)

    steps = draw.timesteps(batch)
    products, chain = _schedule()
    signal = products[steps].sqrt().float().view(-1, 1, 1, 1).to(device)
    noise_part = (1 - products[steps]).sqrt().float().view(-1, 1, 1, 1).to(device)
    noise = draw.randn(*latents.shape).to(device)
    noisy = signal * latents + noise_part * noise
    shown, hint = [noisy], None
    if mode == "inpaint":
        keep = keep_masks(draw, batch, latents.shape[-1]).to(device)
        shown += [latents * keep, keep]
    elif mode == "depth":
        hint = (pool.masks[chosen].float() / 255).expand(-1, 3, -1, -1).to(device)

    def predict(embeds: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        conditions = {"image_embeds": embeds} | ({} if hint is None else {"hint": hint})
        hidden = None
        if prompts is not None:
            hidden = prompts.hidden[said]
            conditions["text_embeds"] = prompts.pooled[said]
        x = torch.cat(shown, dim=1)
        out = unet(x, steps.to(device), hidden, added_cond_kwargs=conditions).sample
        return out.chunk(2, dim=1)

    predicted, variance = predict(image, said)
    if guidance > 1:
        with torch.no_grad():
            base = predict(pool.nothing.expand(batch, -1), torch.zeros_like(said))[0]
        guided = base + guidance * (predicted - base)
        predicted = torch.where(dropped[..., None, None], predicted, guided)
    error = (picture_weight(signal, noise_part) * (predicted - noise).pow(2)).mean()
    guess = ((noisy - noise_part * predicted.detach()) / signal).clamp(-1, 1)
    bound = variance_loss(variance, guess, latents, steps, chain)
    return error + _VARIANCE_WEIGHT * bound, {"error": error.item(), "vb": bound.item()}


def train_latent_decoder(
    pool: Callable[[int], Latents],
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of the text-to-image decoder."""
    plan = PLAN.limited(steps)
    torch.manual_seed(plan.seed)
    unet = recipe.latent_decoder().to(device)
    known = pool(some_of(POOL, steps))
    weights = train(
        plan,
        unet,
        lambda draw: latent_loss(unet, known, draw, plan.batch, device),
        folder / "latent.pt",
        stop_after=stop_after,
    )
    unet.load_state_dict(weights)
    guided = GUIDED.limited(steps)
    return train(
        guided,
        unet,
        lambda draw: latent_loss(unet, known, draw, guided.batch, device, guidance=_GUIDANCE),
        folder / "latent_guided.pt",
        stop_after=stop_after,
    )


def train_latent_mode(
    mode: str,
    decoder: nn.Module,
    pool: Callable[[int], Latents],
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of the decoder taught to inpaint or to follow depth."""
    plan = MODES[mode].limited(steps)
    torch.manual_seed(plan.seed)
    unet = recipe.latent_decoder(mode).to(device)
    begin_as(unet, decoder)
    known = pool(some_of(POOL, steps))
    return train(
        plan,
        unet,
        lambda draw: latent_loss(unet, known, draw, plan.batch, device, mode, _GUIDANCE),
        folder / f"latent_{mode}.pt",
        stop_after=stop_after,
    )


def train_old_decoder(
    decoder: nn.Module,
    prompts: Prompts,
    pool: Callable[[int], Latents],
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of Kandinsky 2.1's decoder, which begins as the blocks of 2.2's."""
    plan = OLD.limited(steps)
    torch.manual_seed(plan.seed)
    unet = recipe.old_decoder().to(device)
    mine = unet.state_dict()
    shared = {k: v for k, v in decoder.state_dict().items() if mine.get(k, v[:0]).shape == v.shape}
    unet.load_state_dict(shared, strict=False)
    known = pool(some_of(POOL, steps))
    return train(
        plan,
        unet,
        lambda draw: latent_loss(
            unet, known, draw, plan.batch, device, guidance=_GUIDANCE, prompts=prompts
        ),
        folder / f"{plan.stage}.pt",
        stop_after=stop_after,
    )


@torch.no_grad()
def begin_as(unet: nn.Module, decoder: nn.Module) -> None:
    """Gives ``unet`` the decoder's weights; further input channels begin at zero."""
    mine = dict(unet.named_parameters())
    for name, tensor in decoder.named_parameters():
        if name == "conv_in.weight":
            more = mine[name].shape[1] - tensor.shape[1]
            tensor = F.pad(tensor, (0, 0, 0, 0, 0, more))
        mine[name].copy_(tensor)
