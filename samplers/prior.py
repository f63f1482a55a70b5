"""The unCLIP prior's sampler: diffusion over image embeddings (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..edges import TextEncoding
from ..networks import prior as cached
from .guidance import guide, spread
from .noise import randn
from .schedule import UnCLIPSchedule, predict_x0, previous_sample


def numbers_drawn(dim: int, num_inference_steps: int) -> int:
    """Random numbers per image that :func:`sample_prior` draws: the start and all steps but one."""
    return dim * num_inference_steps


@torch.no_grad()
def sample_prior(
    network: nn.Module,
    schedule: UnCLIPSchedule,
    text: TextEncoding,
    negative: TextEncoding,
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 4.0,
    generators: list[torch.Generator],
    device: torch.device,
    dtype: torch.dtype,
    callback: Callable[[int, int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample image embeddings for prompts.

    Args:
        network: diffusers' ``PriorTransformer``.
        schedule: its published constants.
        text: P prompts; negative: 1 or P prompts, unused at ``guidance_scale`` ≤ 1.
        generators: one per image, B in all, a multiple of P; prompt-major.
        device, dtype: where and in what the network runs. The state stays fp32.
        callback: called with (step from 1, steps, x0 ``[B, D]``) after each step; may raise.

    Returns:
        ``image_embeds`` ``[B, D]``, fp32, unnormalised CLIP space.

    Raises:
        EdgeError: steps outside 2..1000, rows that do not divide.
    """
    steps = schedule.steps(num_inference_steps)
    count, prompts = len(generators), len(text.pooled)
    spread(text.pooled, count, "positive")
    guided = guidance_scale > 1
    texts = [text]
    if guided:
        rows = (spread(part, prompts, "negative") for part in _parts(negative))
        texts = [TextEncoding(*rows, negative.space), text]
    prefix = cached.prefill(
        network,
        torch.cat([part.hidden for part in texts]).to(device, dtype),
        torch.cat([part.pooled for part in texts]).to(device, dtype),
        torch.cat([part.mask for part in texts]).to(device),
    )
    mask = cached.step_mask(prefix, count // prompts)
    times = cached.time_embeddings(network, [step.timestep for step in steps], device, dtype)
    dim = text.pooled.shape[-1]
    x = randn((dim,), generators).to(device)
    for i, step in enumerate(steps):
        rows = x.to(dtype).reshape(prompts, -1, dim)
        prediction = cached.step(
            network, prefix, mask, torch.cat([rows] * len(texts)), times[i]
        ).float()
        if guided:
            prediction = guide(*prediction.chunk(2), guidance_scale)
        x0 = predict_x0(schedule, step, x, prediction.reshape(count, dim))
        noise = None if step.last else randn((dim,), generators).to(device)
        x = previous_sample(step, x, x0, noise)
        if callback is not None:
            callback(i + 1, len(steps), x0)
    return cached.denormalise(network, x)


def _parts(text: TextEncoding) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return text.hidden, text.pooled, text.mask
