"""Kandinsky's latent decoders: text to image, image to image, inpainting, depth.

Source: ai-forever/Kandinsky-2; diffusers' ``KandinskyV22Pipeline``, ``-Img2ImgPipeline``,
``-InpaintPipeline`` and ``-ControlnetPipeline``. Latents are a MoVQ's, as they are, an eighth of
the picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..edges import EdgeError
from ..networks.kandinsky import prepare_latent_decoder
from .parts.guidance import guide, refuse_nan, spread
from .parts.noise import randn
from .parts.schedule import (
    LatentSchedule,
    ancestral_steps,
    denoised,
    multistep_noise,
    predict_latent,
    press,
    previous_sample,
)

# The neighbours that a repainted place draws in: left, right, above, below, and one diagonal.
_GROWTH = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


@dataclass(frozen=True)
class Kept:
    """What an inpainting decoder leaves alone.

    Attributes:
        latents: of the picture ``[R, 4, h, w]``.
        keep: ``[R, 1, h, w]``, 1 where it stays and 0 where it is painted anew.
        blend: put the picture's own latents back after each step and at the end (Kandinsky 2.2);
            2.1's network is only shown them.
    """

    latents: torch.Tensor
    keep: torch.Tensor
    blend: bool = True


def latent_size(height: int, width: int, factor: int = 8) -> tuple[int, int]:
    """Height and width of the latents for a picture of so many pixels, rounded up as published
    to whole cells of ``factor`` squared pixels."""
    cell = factor * factor
    return -(-height // cell) * factor, -(-width // cell) * factor


def keep_mask(repaint: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The decoder's mask ``[B, 1, h, w]`` of a host's ``[B, H, W]``, in which 1 is repainted.

    As published: binary from one half on, nearest to the size of the latents, then what is
    repainted grows by its neighbours left, right, above, below and on one diagonal.
    """
    small = (F.interpolate(repaint[:, None].float(), size, mode="nearest") >= 0.5).float()
    grown = F.conv2d(small, _GROWTH.to(small.device)[None, None], padding=1)
    return (grown == 0).float()


@torch.no_grad()
def sample_latents(
    unet: nn.Module,
    schedule: LatentSchedule,
    image_embeds: torch.Tensor,
    negative_embeds: torch.Tensor | None,
    *,
    size: tuple[int, int],
    num_inference_steps: int = 100,
    guidance_scale: float = 4.0,
    generators: list[torch.Generator],
    device: torch.device,
    dtype: torch.dtype,
    start: torch.Tensor | None = None,
    strength: float = 1.0,
    kept: Kept | None = None,
    hint: torch.Tensor | None = None,
    text: tuple[torch.Tensor, torch.Tensor] | None = None,
    negative_text: tuple[torch.Tensor, torch.Tensor] | None = None,
    callback: Callable[[int, int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample latents from image embeddings.

    Guidance acts on the noise prediction; the learned variance is the conditional branch's.

    Args:
        unet: diffusers' ``UNet2DConditionModel`` of 4 input channels, 8 for depth, 9 to inpaint.
        image_embeds: ``[R, D]``, unnormalised; negative_embeds: as many or others, unused at
            ``guidance_scale`` ≤ 1.
        size: height and width of the latents.
        generators: one per picture, B in all, a multiple of every R; the copies of a row are
            neighbours.
        device, dtype: where and in what the network runs. The state stays fp32.
        start: latents ``[R, 4, h, w]`` to begin from; ``strength``: how much of the schedule is
            run on them, 0 (none, they come back) to 1.
        kept: what an inpainting decoder leaves alone.
        hint: depth ``[R, 3, H, W]`` in 0..1, 8 times the size of the latents.
        text: hidden states ``[R, L, W]`` and text embedding ``[R, D]`` of Kandinsky 2.1;
            negative_text: the same for guidance.
        callback: called with (step from 1, steps, x0 ``[B, 4, h, w]``) after each step; may raise.

    Returns:
        ``[B, 4, h, w]``, fp32.

    Raises:
        EdgeError: steps or strength out of range, rows that do not divide into B, a decoder that
            needs something else than it got, no finite result.
    """
    count, guided = len(generators), guidance_scale > 1
    if not math.isfinite(guidance_scale):
        raise EdgeError(f"'cfg' is {guidance_scale}; guidance needs a finite number")
    _check_mode(unet, kept, hint)
    reads_text = unet.config.encoder_hid_dim_type == "text_image_proj"
    if reads_text and (text is None or (guided and negative_text is None)):
        raise EdgeError(
            "'model' is a decoder of Kandinsky 2.1, which reads the prompt too; encode prompt and"
            " negative prompt with its mCLIP and wire them into 'positive' and 'negative'"
        )
    if text is not None and not reads_text:
        raise EdgeError(
            "'model' is a decoder of Kandinsky 2.2, which reads no prompt; take 'positive' and"
            " 'negative' out, or load Kandinsky 2.1's decoder"
        )
    embeds = [spread(image_embeds, count, "image_embeds")]
    texts = [] if text is None else [text]
    if guided:
        if negative_embeds is None:
            raise EdgeError(
                f"'cfg' is {guidance_scale}, which needs 'negative_image_embeds'; wire the prior's,"
                " or set 'cfg' to 1"
            )
        embeds.insert(0, spread(negative_embeds, count, "negative_image_embeds"))
        if negative_text is not None:
            texts.insert(0, negative_text)
    rows = len(embeds)
    conditions = {"image_embeds": torch.cat(embeds).to(device, dtype)}
    if hint is not None:
        hints = spread(hint, count, "depth").to(device, dtype)
        conditions["hint"] = torch.cat([hints] * rows)
    hidden = None
    if text is not None:
        named = list(zip(("negative", "positive")[-rows:], texts, strict=True))
        hidden = torch.cat([spread(part[0], count, name).to(device, dtype) for name, part in named])
        pooled = torch.cat([spread(part[1], count, name).to(device, dtype) for name, part in named])
        conditions["text_embeds"] = pooled

    shape = (unet.config.out_channels // 2, *size)
    steps, add_noise = schedule.noised(num_inference_steps, 1.0 if start is None else strength)
    if not steps:
        return spread(start, count, "image").float()
    first = randn(shape, generators, device)
    x = first
    if start is not None:
        x = add_noise(spread(start, count, "image").to(device, torch.float32), first)
    beside, known = [], None
    if kept is not None:
        clean = spread(kept.latents, count, "image").to(device, torch.float32)
        keep = spread(kept.keep, count, "mask").to(device, torch.float32)
        beside, known = [torch.cat([clean * keep] * rows), torch.cat([keep] * rows)], (clean, keep)
    predict = prepare_latent_decoder(unet, conditions, [s.timestep for s in steps], hidden)

    def noise_in(x: torch.Tensor, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The guided noise prediction at step ``i``'s timestep, and the conditional variance."""
        seen = torch.cat([torch.cat([x] * rows), *beside], dim=1)
        out = predict(seen.to(dtype), i).float()
        eps, variance = out[:, : shape[0]], out[-count:, shape[0] :]
        if guided:
            unconditional, conditional = eps.chunk(2)
            eps = guide(unconditional, conditional, guidance_scale)
        return eps, variance

    past: list[torch.Tensor] = []
    for i, step in enumerate(steps):
        eps, variance = noise_in(x, i)
        if schedule.multistep:
            if i == 0:
                # There is nothing to extrapolate from, so it looks a step ahead once.
                ahead = denoised(step, predict_latent(schedule, step, x, eps, known), eps)
                after, _ = noise_in(ahead, min(1, len(steps) - 1))
            past = [eps, *past[:3]]
            eps = (eps + after) / 2 if i == 0 else multistep_noise(past)
        x0 = predict_latent(schedule, step, x, eps, known)
        if schedule.ancestral:
            noise = None if step.last else randn(shape, generators, device)
            x = previous_sample(step, x, x0, noise, variance if schedule.learned_range else None)
        else:
            x = denoised(step, x0, eps)
        if kept is not None and kept.blend:
            # Noised as far as the next step expects, and at the end not at all.
            back = clean
            if i + 1 < len(steps):
                back = steps[i + 1].sqrt_alpha * clean + steps[i + 1].sqrt_beta * first
            x = keep * back + (1 - keep) * x
        if callback is not None:
            callback(i + 1, len(steps), x0)
    return refuse_nan(x, "decoder", dtype)


@torch.no_grad()
def sample_from_sigmas(
    denoise: Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]],
    schedule: LatentSchedule,
    x: torch.Tensor,
    sigmas: list[float],
    draw: Callable[[], torch.Tensor],
    callback: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """The published ancestral sampler for a host that keeps signal at 1 and lets noise grow.

    Args:
        denoise: ``(x [B, 4, h, w], sigma) -> (x0, learned variance)``, after guidance; without a
            variance the smaller bound is used.
        schedule: for the range of x0.
        x: at ``sigmas[0]``; sigmas: descending, as a rule to 0.
        draw: noise like ``x``.
        callback: called with (step from 0, x0, x) in each step; may raise.

    Returns:
        ``[B, 4, h, w]`` at ``sigmas[-1]``.
    """
    for i, step in enumerate(ancestral_steps(sigmas)):
        x0, variance = denoise(x, sigmas[i])
        x0 = press(schedule, x0)
        if callback is not None:
            callback(i, x0, x)
        scaled = x / (1 + sigmas[i] ** 2) ** 0.5
        scaled = previous_sample(step, scaled, x0, None if step.last else draw(), variance)
        x = scaled * (1 + sigmas[i + 1] ** 2) ** 0.5
    return x


def _check_mode(unet: nn.Module, kept: Kept | None, hint: torch.Tensor | None) -> None:
    """Refuse a decoder of another mode than the inputs.

    Raises:
        EdgeError: names both.
    """
    mode = mode_of(unet)
    wanted = "inpainting" if kept is not None else "depth" if hint is not None else "text-to-image"
    if mode != wanted:
        raise EdgeError(
            f"'model' is a {mode} decoder, but this node needs one for {wanted}; load"
            f" {_FOLDERS[wanted]} with 'Load Decoder (Kandinsky)'"
        )


_FOLDERS = {
    "text-to-image": "kandinsky-2-2-decoder",
    "inpainting": "kandinsky-2-2-decoder-inpaint",
    "depth": "kandinsky-2-2-controlnet-depth",
}


def mode_of(unet: nn.Module) -> str:
    """What a decoder is for, told by its input channels."""
    channels = unet.config.in_channels - unet.config.out_channels // 2
    return {0: "text-to-image", 4: "depth", 5: "inpainting"}.get(
        channels, f"{unet.config.in_channels}-channel"
    )


def check_places(unet: nn.Module, size: tuple[int, int]) -> None:
    """Refuse latents whose height or width a decoder cannot halve evenly as often as it does.

    Raises:
        EdgeError: says which sizes fit.
    """
    halved = 2 ** (len(unet.config.down_block_types) - 1)
    if size[0] % halved or size[1] % halved:
        height, width = 8 * size[0], 8 * size[1]
        fits = [8 * halved * -(-side // (8 * halved)) for side in (width, height)]
        raise EdgeError(
            f"'latent_image' is of {width}×{height} pixels, but this decoder's sides must be"
            f" multiples of {8 * halved}; make it of {fits[0]}×{fits[1]}, as the Kandinsky nodes do"
        )
