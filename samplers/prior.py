"""The unCLIP prior's sampler: diffusion over image embeddings (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ..edges import EdgeError, TextEncoding
from ..networks import prior as cached
from .guidance import guide, is_guided, refuse_nan, spread, spread_text
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
    negative: TextEncoding | None,
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
        text: R prompts; negative: as many or others, unused at ``guidance_scale`` ≤ 1.
        generators: one per image, B in all, a multiple of every R; the images of a prompt are
            neighbours.
        device, dtype: where and in what the network runs. The state stays fp32.
        callback: called with (step from 1, steps, x0 ``[B, D]``) after each step; may raise.

    Returns:
        ``image_embeds`` ``[B, D]``, fp32, unnormalised CLIP space.

    Raises:
        EdgeError: steps outside 2..1000, rows that do not divide into B, prompts of another length
            than the network's, no finite result.
    """
    steps = schedule.steps(num_inference_steps)
    count = len(generators)
    branches = [("positive", text)]
    if is_guided(guidance_scale, negative):
        branches.insert(0, ("negative", negative))
    for name, branch in branches:
        spread(branch.mask, count, name)
        length, wanted = branch.hidden.shape[1], cached.text_length(network)
        if length != wanted:
            raise EdgeError(
                f"'{name}' has {length} tokens, but this prior reads {wanted}; encode the prompt"
                " with PriorArt's 'Text Encode'"
            )
    # A prompt's images share its constant tokens, so only distinct prompts are run.
    prompts = math.lcm(*(len(branch.mask) for _, branch in branches))
    texts = [spread_text(branch, prompts, name) for name, branch in branches]
    prefix = cached.prefill(
        network,
        torch.cat([part.hidden.to(device, dtype) for part in texts]),
        torch.cat([part.pooled.to(device, dtype) for part in texts]),
        torch.cat([part.mask.to(device) for part in texts]),
    )
    mask = cached.step_mask(prefix, count // prompts)
    times = cached.time_embeddings(network, [step.timestep for step in steps], device, dtype)
    times = cached.prefill_times(network, prefix, times)
    dim = text.pooled.shape[-1]
    x = randn((dim,), generators, device)
    for i, step in enumerate(steps):
        rows = x.to(dtype).reshape(prompts, -1, dim)
        prediction = cached.step(
            network, prefix, mask, torch.cat([rows] * len(texts)), times, i
        ).float()
        if len(texts) == 2:
            prediction = guide(*prediction.chunk(2), guidance_scale)
        x0 = predict_x0(schedule, step, x, prediction.reshape(count, dim))
        noise = None if step.last else randn((dim,), generators, device)
        x = previous_sample(step, x, x0, noise)
        if callback is not None:
            callback(i + 1, len(steps), x0)
    return refuse_nan(cached.denormalise(network, x), "prior", dtype)
