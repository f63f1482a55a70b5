"""Kandinsky's latent decoders: text to image, image to image, inpainting, depth.

Source: ai-forever/Kandinsky-2; diffusers' ``KandinskyV22Pipeline``, ``-Img2ImgPipeline``,
``-InpaintPipeline`` and ``-ControlnetPipeline``; Imagen (Saharia et al. 2022) for dynamic
thresholding. Latents are a MoVQ's, as they are, an eighth of the picture's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..edges import EdgeError
from ..networks.graphs import by_step
from ..networks.kandinsky import prepare_latent_decoder
from ..networks.unet import Predict
from .kandinsky_schedule import LatentSchedule, ancestral_steps
from .parts.guidance import guide, is_guided, refuse_nan, spread
from .parts.sampling import Sampling, Start
from .parts.schedule import (
    Number,
    Step,
    denoised,
    multistep_noise,
    previous_sample,
    read_step,
    step_table,
)

# The neighbours that a repainted place draws in: left, right, above, below, and one diagonal.
_GROWTH = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


@dataclass(frozen=True)
class Condition:
    """What a decoder is told on one side of its guidance.

    Attributes:
        image_embeds: ``[R, D]``, unnormalised.
        text_hidden: hidden states ``[R, L, W]`` of the prompt; text_pooled: its embedding
            ``[R, D]``. Kandinsky 2.1's read both.
        hint: depth ``[R, 3, H, W]`` in 0..1, 8 times the size of the latents, for a depth decoder.
    """

    image_embeds: torch.Tensor
    text_hidden: torch.Tensor | None = None
    text_pooled: torch.Tensor | None = None
    hint: torch.Tensor | None = None

    def added(self) -> dict[str, torch.Tensor]:
        """``added_cond_kwargs`` of diffusers' U-Net; its ``encoder_hidden_states`` are
        ``text_hidden``."""
        parts = {
            "image_embeds": self.image_embeds,
            "text_embeds": self.text_pooled,
            "hint": self.hint,
        }
        return {name: part for name, part in parts.items() if part is not None}


def join(
    sides: Sequence[tuple[str, Condition]], fit: Callable[[torch.Tensor, str], torch.Tensor]
) -> Condition:
    """The sides of the guidance as one batch, in their order.

    Args:
        sides: with their names; all have the same parts.
        fit: called with a part ``[R, ...]`` and its name, "positive.hint" or the like; makes it of
            as many rows as there are pictures, where and in what the network runs.
    """

    def rows(part: str) -> torch.Tensor | None:
        if getattr(sides[0][1], part) is None:
            return None
        return torch.cat([fit(getattr(side, part), f"{name}.{part}") for name, side in sides])

    return Condition(rows("image_embeds"), rows("text_hidden"), rows("text_pooled"), rows("hint"))


@dataclass(frozen=True)
class Known:
    """What an inpainting decoder leaves alone.

    Attributes:
        latents: of the picture ``[R, 4, h, w]``.
        mask: ``[R, 1, h, w]``, 1 where it stays and 0 where it is painted anew.
        blend: put the picture's own latents back after each step and at the end (Kandinsky 2.2);
            2.1's network is only shown them.
    """

    latents: torch.Tensor
    mask: torch.Tensor
    blend: bool = True

    def spread(self, count: int, device: torch.device) -> Known:
        """The same for ``count`` pictures, fp32."""
        latents = spread(self.latents, count, "known.latents").to(device, torch.float32)
        mask = spread(self.mask, count, "known.mask").to(device, torch.float32)
        return Known(latents, mask, self.blend)

    def put_back(
        self, x: torch.Tensor, noise: torch.Tensor, signal: Number, rest: Number
    ) -> torch.Tensor:
        """``x`` with what is known: so much of it, and so much of the noise."""
        back = signal * self.latents + rest * noise
        return self.mask * back + (1 - self.mask) * x


@dataclass(frozen=True)
class Canvas:
    """What a decoder paints on.

    Attributes:
        size: height and width of the latents.
        start: latents ``[R, 4, h, w]`` to begin from; ``None`` begins at noise.
        known: what an inpainting decoder leaves alone.
    """

    size: tuple[int, int]
    start: Start | None = None
    known: Known | None = None


def latent_size(height: int, width: int, factor: int = 8) -> tuple[int, int]:
    """Height and width of the latents for a picture of so many pixels, rounded up as published
    to whole cells of ``factor`` squared pixels."""
    cell = factor * factor
    return -(-height // cell) * factor, -(-width // cell) * factor


def known_mask(repaint: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
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
    positive: Condition,
    negative: Condition | None,
    canvas: Canvas,
    sampling: Sampling,
    guidance_scale: float = 4.0,
) -> torch.Tensor:
    """Sample latents from image embeddings.

    Guidance acts on the noise prediction; the learned variance is the conditional branch's.

    Args:
        unet: diffusers' ``UNet2DConditionModel`` of 4 input channels, 8 for depth, 9 to inpaint.
        positive: R rows; negative: as many or others, unused at ``guidance_scale`` <= 1.
        sampling: its callback sees x0 ``[B, 4, h, w]``.

    Returns:
        ``[B, 4, h, w]``, fp32.

    Raises:
        EdgeError: steps or strength out of range, rows that do not divide into B, a decoder that
            needs something else than it got, no finite result.
    """
    noise, device, start = sampling.noise, sampling.device, canvas.start
    count = len(noise)
    sides = [("positive", positive)]
    if is_guided(guidance_scale, negative) and negative is not None:
        sides = [("negative", negative), *sides]
    _check(unet, sides, canvas, count)
    shape = (unet.config.out_channels // 2, *canvas.size)
    strength = 1.0 if start is None else start.strength
    steps, add_noise = schedule.noised(sampling.num_inference_steps, strength)
    if not steps and start is not None:
        return spread(start.clean, count, "start").float()
    first = x = noise.normal(shape, device)
    if start is not None:
        x = add_noise(spread(start.clean, count, "start").to(device, torch.float32), first)
    known = None if canvas.known is None else canvas.known.spread(count, device)
    predict = _prepare(unet, sides, [step.timestep for step in steps], sampling)
    kept = () if known is None else (known.latents, known.mask, first)
    blend = known is not None and known.blend
    key = ("latents", schedule, len(sides), count, sampling.dtype, blend)
    noise_in = _guided(predict, len(sides), sampling.dtype)
    if schedule.multistep:
        noise_in = _extrapolated(by_step(predict, key, noise_in), schedule, len(steps))
    take = _denoising(noise_in, schedule, blend)
    if not schedule.multistep:
        take = by_step(predict, key, take)
    table = _numbers(steps, device, guidance_scale)
    for i, step in enumerate(steps):
        drawn = schedule.ancestral and not step.last
        fresh = noise.normal(shape, device) if drawn else torch.zeros_like(x)
        x, x0 = take(i, x, table[i], fresh, *kept)
        sampling.tell(i + 1, len(steps), x0)
    return refuse_nan(x, "decoder", sampling.dtype)


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
        x0 = threshold(schedule, x0)
        if callback is not None:
            callback(i, x0, x)
        scaled = x / (1 + sigmas[i] ** 2) ** 0.5
        scaled = previous_sample(step, scaled, x0, None if step.last else draw(), variance)
        x = scaled * (1 + sigmas[i + 1] ** 2) ** 0.5
    return x


def predict_latent(
    schedule: LatentSchedule,
    step: Step,
    x: torch.Tensor,
    eps: torch.Tensor,
    known: Known | None = None,
) -> torch.Tensor:
    """The clean latent ``[B, ...]`` that the predicted noise implies at ``x``, in its range as
    published; ``known``: see :func:`threshold`."""
    return threshold(schedule, (x - step.sqrt_beta * eps) / step.sqrt_alpha, known)


def threshold(
    schedule: LatentSchedule,
    x0: torch.Tensor,
    known: Known | None = None,
) -> torch.Tensor:
    """Clean latents ``[B, ...]`` in their range: dynamically thresholded, or clamped.

    Args:
        known: latents of the same shape, put in where the schedule says so.
    """
    if schedule.clip_first and schedule.clip_range is not None:
        x0 = x0.clamp(-schedule.clip_range, schedule.clip_range)
    if known is not None and schedule.known_in_x0:
        x0 = x0 * (1 - known.mask) + known.latents * known.mask
    if schedule.thresholding:
        sizes = x0.abs()
        if x0.ndim == 4 and x0.is_contiguous(memory_format=torch.channels_last):
            sizes = sizes.movedim(1, -1)  # in the order in which they lie: any will do
        limit = torch.quantile(sizes.flatten(1), schedule.ratio, dim=1)
        limit = limit.clamp(1, schedule.largest).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-limit, limit) / limit
    if schedule.clip_range is None:
        return x0
    return x0.clamp(-schedule.clip_range, schedule.clip_range)


def _prepare(
    unet: nn.Module,
    sides: Sequence[tuple[str, Condition]],
    timesteps: list[int],
    sampling: Sampling,
) -> Predict:
    """The network, told what both sides are told."""
    count, device, dtype = len(sampling.noise), sampling.device, sampling.dtype
    told = join(sides, lambda part, name: spread(part, count, name).to(device, dtype))
    return prepare_latent_decoder(unet, told.added(), timesteps, told.text_hidden)


def _numbers(steps: list[Step], device: torch.device, guidance_scale: float) -> torch.Tensor:
    """What each step reads by :func:`read_step`. The constants: the guidance scale, and how much
    picture and noise the following step expects, which is all and none at the end."""
    table = step_table(steps, device, guidance_scale)
    following = [(step.sqrt_alpha, step.sqrt_beta) for step in steps[1:]]
    return torch.cat([table, table.new_tensor([*following, (1.0, 0.0)])], dim=1)


Denoise = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""``(place, x, numbers, fresh noise, *kept)``. ``kept`` is nothing, or what is known, its mask and
the noise that ``x`` began with."""


def _guided(predict: Predict, sides: int, dtype: torch.dtype) -> Denoise:
    """What finds the guided noise and the conditional branch's variance."""

    def noise_in(
        place: Any, x: torch.Tensor, numbers: torch.Tensor, *kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.cat([x] * sides)
        if kept:
            latents, mask, _ = kept
            beside = [torch.cat([part] * sides) for part in (latents * mask, mask)]
            seen = torch.cat([seen, *beside], dim=1)
        out = predict(seen.to(dtype), place).float()
        channels = out.shape[1] // 2
        eps, variance = out[:, :channels], out[-len(x) :, channels:]
        if sides == 2:
            _, (scale, *_) = read_step(numbers)
            unconditional, conditional = eps.chunk(2)
            eps = guide(unconditional, conditional, scale)
        return eps, variance

    return noise_in


def _extrapolated(noise_in: Denoise, schedule: LatentSchedule, total: int) -> Denoise:
    """The same, extrapolated from the noise of earlier steps of ``total`` (PLMS)."""
    past: list[torch.Tensor] = []

    def extrapolate(
        index: int, x: torch.Tensor, numbers: torch.Tensor, *kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        eps, variance = noise_in(index, x, numbers, *kept)
        past[:] = [eps, *past[:3]]
        if len(past) > 1:
            return multistep_noise(past), variance
        # There is nothing to extrapolate from, so it looks a step ahead once.
        step, _ = read_step(numbers)
        known = Known(kept[0], kept[1]) if kept else None
        ahead = denoised(step, predict_latent(schedule, step, x, eps, known), eps)
        after, _ = noise_in(min(1, total - 1), ahead, numbers, *kept)
        return (eps + after) / 2, variance

    return extrapolate


def _denoising(noise_in: Denoise, schedule: LatentSchedule, blend: bool) -> Denoise:
    """A step: x at the next one, and x0."""

    def denoise(
        place: Any,
        x: torch.Tensor,
        numbers: torch.Tensor,
        fresh: torch.Tensor,
        *kept: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        step, (_, signal, rest) = read_step(numbers)
        known = Known(kept[0], kept[1], blend) if kept else None
        eps, variance = noise_in(place, x, numbers, *kept)
        x0 = predict_latent(schedule, step, x, eps, known)
        if schedule.ancestral:
            x = previous_sample(step, x, x0, fresh, variance if schedule.learned_range else None)
        else:
            x = denoised(step, x0, eps)
        if known is not None and blend:
            x = known.put_back(x, kept[2], signal, rest)
        return x, x0

    return denoise


def _check(
    unet: nn.Module, sides: Sequence[tuple[str, Condition]], canvas: Canvas, count: int
) -> None:
    """Refuse a decoder that reads something else, and rows that do not divide into ``count``.

    Raises:
        EdgeError: says what it reads.
    """
    mode, reads_text = mode_of(unet), unet.config.encoder_hid_dim_type == "text_image_proj"
    for name, side in sides:
        spread(side.image_embeds, count, f"{name}.image_embeds")
        wanted = mode_for(canvas.known is not None, side.hint is not None)
        if mode != wanted:
            raise EdgeError(
                f"'unet' is a decoder for {mode}, but '{name}' and 'canvas' for {wanted}"
            )
        if reads_text and (side.text_hidden is None or side.text_pooled is None):
            raise EdgeError(
                f"'{name}' has no text, but 'unet' is a decoder of Kandinsky 2.1, which reads the"
                " prompt too, as its mCLIP encodes it"
            )
        if not reads_text and side.text_hidden is not None:
            raise EdgeError(
                f"'{name}' has a text, but 'unet' is a decoder of Kandinsky 2.2, which reads none"
            )


def mode_for(inpaint: bool, depth: bool) -> str:
    """What a decoder must be for, see :func:`mode_of`."""
    return "inpainting" if inpaint else "depth" if depth else "text-to-image"


def mode_of(unet: nn.Module) -> str:
    """What a decoder is for, told by its input channels."""
    channels = unet.config.in_channels - unet.config.out_channels // 2
    return {0: "text-to-image", 4: "depth", 5: "inpainting"}.get(
        channels, f"{unet.config.in_channels}-channel"
    )


def check_places(unet: nn.Module, size: tuple[int, int], name: str = "size") -> None:
    """Refuse latents whose height or width a decoder cannot halve evenly as often as it does.

    Args:
        name: of what has this size, for messages.

    Raises:
        EdgeError: says which sizes fit.
    """
    halved = 2 ** (len(unet.config.down_block_types) - 1)
    if size[0] % halved or size[1] % halved:
        height, width = 8 * size[0], 8 * size[1]
        fits = [8 * halved * -(-side // (8 * halved)) for side in (width, height)]
        raise EdgeError(
            f"'{name}' is of {width}x{height} pixels, but this decoder's sides must be multiples of"
            f" {8 * halved}; make it of {fits[0]}x{fits[1]}"
        )
