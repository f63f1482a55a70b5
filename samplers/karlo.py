"""unCLIP's picture stages: Karlo's 64px decoder and its super-resolution to 256px.

Source: unCLIP (Ramesh et al. 2022) and Karlo v1-alpha as diffusers' ``UnCLIPPipeline`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..edges import EdgeError, TextEncoding
from ..networks.graphs import by_step, can_record
from ..networks.karlo import (
    UnCLIPDecoder,
    UnCLIPUpscaler,
    prepare_decoder,
    prepare_upscaler,
)
from .parts.guidance import guide, is_guided, refuse_nan, spread, spread_text
from .parts.sampling import Sampling
from .parts.schedule import UnCLIPSchedule, predict_x0, previous_sample, read_step, step_table


@torch.no_grad()
def sample_decoder(
    network: UnCLIPDecoder,
    schedule: UnCLIPSchedule,
    image_embeds: torch.Tensor,
    text: TextEncoding,
    negative: TextEncoding | None,
    sampling: Sampling,
    guidance_scale: float = 8.0,
) -> torch.Tensor:
    """Sample small pictures from image embeddings and their prompts.

    Guidance acts on the noise prediction; the learned variance is the conditional branch's. The
    unconditional branch sees the negative prompt and the decoder's own learned image embedding.

    Args:
        network: U-Net and text projection.
        image_embeds: ``[R, D]``, unnormalised; text: R prompts, as many or others; negative:
            likewise, unused at ``guidance_scale`` <= 1.
        sampling: its callback sees x0 ``[B, 3, S, S]``.

    Returns:
        ``[B, 3, S, S]`` in [-1, 1], fp32.

    Raises:
        EdgeError: steps outside 2..1000, rows that do not divide into B, no finite result.
    """
    steps = schedule.steps(sampling.num_inference_steps)
    noise, device, dtype = sampling.noise, sampling.device, sampling.dtype
    count = len(noise)
    embeds = [spread(image_embeds, count, "image_embeds")]
    texts = [spread_text(text, count, "text")]
    guided = is_guided(guidance_scale, negative)
    if guided and negative is not None:
        embeds.insert(0, network.text_proj.unconditional(count))
        texts.insert(0, spread_text(negative, count, "negative"))
    context, labels = network.text_proj(
        torch.cat([part.to(device, dtype) for part in embeds]),
        torch.cat([part.pooled.to(device, dtype) for part in texts]),
        torch.cat([part.hidden.to(device, dtype) for part in texts]),
    )
    mask = torch.cat([part.mask.to(device) for part in texts])
    mask = F.pad(mask, (network.text_proj.clip_extra_context_tokens, 0), value=True)
    if not can_record(network.unet, device):  # a recording serves prompts of any length
        # Columns that are padding for every row have no influence and need not be attended to.
        used = mask.any(dim=0)
        context, mask = context[:, used], mask[:, used]
    predict = prepare_decoder(
        network.unet, context, labels, mask, [step.timestep for step in steps]
    )
    channels, size = network.unet.config.in_channels, network.unet.config.sample_size

    def denoise(
        place: Any, x: torch.Tensor, numbers: torch.Tensor, fresh: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        step, (scale,) = read_step(numbers)
        out = predict(torch.cat([x] * len(texts)).to(dtype), place).float()
        eps, variance = out[:, :channels], out[-count:, channels:]
        if guided:
            unconditional, conditional = eps.chunk(2)
            eps = guide(unconditional, conditional, scale)
        x0 = predict_x0(schedule, step, x, eps)
        learned = variance if schedule.variance == "learned_range" else None
        return previous_sample(step, x, x0, fresh, learned), x0

    take = by_step(predict, ("decoder", schedule, guided, count, dtype), denoise)
    table = step_table(steps, device, guidance_scale)
    x = noise.normal((channels, size, size), device)
    for i, step in enumerate(steps):
        fresh = torch.zeros_like(x) if step.last else noise.normal((channels, size, size), device)
        x, x0 = take(i, x, table[i], fresh)
        sampling.tell(i + 1, len(steps), x0)
    return refuse_nan(x.clamp(-1, 1), "decoder", dtype)


@torch.no_grad()
def upscale(
    network: UnCLIPUpscaler,
    schedule: UnCLIPSchedule,
    image: torch.Tensor,
    sampling: Sampling,
) -> torch.Tensor:
    """Super-resolution by diffusion; the fine-tuned network takes the last step.

    Args:
        network: the two U-Nets, which see the noisy picture beside the enlarged small one.
        image: ``[B, 3, s, s]`` in [-1, 1].
        sampling: of as many images; its callback sees x0 ``[B, 3, S, S]``.

    Returns:
        ``[B, 3, S, S]`` in [-1, 1], fp32.

    Raises:
        EdgeError: steps outside 2..1000, noise of another number of images, no finite result.
    """
    steps = schedule.steps(sampling.num_inference_steps)
    noise, device, dtype = sampling.noise, sampling.device, sampling.dtype
    if len(noise) != len(image):
        raise EdgeError(f"'image' has {len(image)} pictures, but the noise is of {len(noise)}")
    size = network.first.config.sample_size
    # Antialias as published, although it enlarges: it moves pixels by up to 0.05. On the CPU,
    # because not every device has it.
    large = F.interpolate(
        image.to("cpu", torch.float32),
        size=(size, size),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    ).to(device)
    timesteps = [step.timestep for step in steps]
    take_first = _upscaling(network.first, schedule, timesteps[:-1], sampling)
    take_last = _upscaling(network.last, schedule, timesteps[-1:], sampling)
    table = step_table(steps, device)
    channels = image.shape[1]
    x = noise.normal((channels, size, size), device)
    large = torch.empty_like(x).copy_(large)  # laid out as x, beside which each step puts it
    for i, step in enumerate(steps):
        fresh = torch.zeros_like(x) if step.last else noise.normal((channels, size, size), device)
        take, place = (take_last, 0) if step.last else (take_first, i)
        x, x0 = take(place, x, table[i], fresh, large)
        sampling.tell(i + 1, len(steps), x0)
    return refuse_nan(x.clamp(-1, 1), "upscaler", dtype)


def _upscaling(
    unet: nn.Module, schedule: UnCLIPSchedule, timesteps: list[int], sampling: Sampling
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``(index, x, numbers, fresh, large)`` -> x and x0 after a step of one of the two networks."""
    predict = prepare_upscaler(unet, timesteps, sampling.device, sampling.dtype)

    def denoise(
        place: Any,
        x: torch.Tensor,
        numbers: torch.Tensor,
        fresh: torch.Tensor,
        large: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        step, _ = read_step(numbers)
        eps = predict(torch.cat([x, large], dim=1).to(sampling.dtype), place).float()
        x0 = predict_x0(schedule, step, x, eps)
        return previous_sample(step, x, x0, fresh), x0

    return by_step(predict, ("upscaler", schedule, sampling.dtype), denoise)
