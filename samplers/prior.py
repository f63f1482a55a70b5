"""The unCLIP prior's sampler: diffusion over image embeddings (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ..edges import EdgeError, TextEncoding
from ..networks import prior as cached
from .parts.guidance import guide, is_guided, refuse_nan, spread, spread_text
from .parts.noise import randn
from .parts.schedule import UnCLIPSchedule, predict_x0, previous_sample


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
    start: torch.Tensor | None = None,
    strength: float = 1.0,
    negative_generators: list[torch.Generator] | None = None,
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
        start: image embeddings ``[R, D]`` to begin from, unnormalised; ``strength``: how much of
            the schedule is run on them, 0 (none, they come back) to 1.
        negative_generators: as many again, where the negative prompt's own embeddings are wanted
            too, which some decoders subtract. Guiding it by itself changes nothing, so a
            step runs three rows and not four.
        callback: called with (step from 1, steps, x0 ``[B, D]``) after each step; may raise.

    Returns:
        ``image_embeds`` ``[B, D]``, fp32, unnormalised CLIP space; ``[2B, D]`` where negative ones
        are wanted, those behind.

    Raises:
        EdgeError: steps outside 2..1000, strength outside 0..1, rows that do not divide into B,
            prompts of another length than the network's, negative embeddings wanted without a
            negative prompt or guidance, no finite result.
    """
    steps, add_noise = schedule.noised(num_inference_steps, 1.0 if start is None else strength)
    count = len(generators)
    branches = [("positive", text)]
    if is_guided(guidance_scale, negative) and negative is not None:
        branches.insert(0, ("negative", negative))
    for name, branch in branches:
        spread(branch.mask, count, name)
        length, wanted = branch.hidden.shape[1], cached.text_length(network)
        if length != wanted:
            raise EdgeError(
                f"'{name}' has {length} tokens, but this prior reads {wanted}; encode the prompt"
                " with PriorArt's 'Text Encode'"
            )
    both = negative_generators is not None
    if both and len(branches) < 2:
        raise EdgeError(
            f"'cfg' is {guidance_scale}, which leaves the negative prompt out, so there is no"
            " embedding of it; set 'cfg' above 1, or 'negative_embeds' to 'zero image'"
        )
    streams = [*generators, *(negative_generators or [])]
    dim = text.pooled.shape[-1]
    if start is not None:
        start = spread(start, count, "image_embeds").to(device, torch.float32)
        start = torch.cat([start] * (2 if both else 1))
    if not steps:
        return start
    # A prompt's images share its constant tokens, so only distinct prompts are run.
    prompts = math.lcm(*(len(branch.mask) for _, branch in branches))
    texts = [spread_text(branch, prompts, name) for name, branch in branches]
    prefix = cached.prefill(
        network,
        torch.cat([part.hidden.to(device, dtype) for part in texts]),
        torch.cat([part.pooled.to(device, dtype) for part in texts]),
        torch.cat([part.mask.to(device) for part in texts]),
    )
    times = cached.time_embeddings(network, [step.timestep for step in steps], device, dtype)
    times = cached.prefill_times(network, prefix, times)
    if both:  # the negative prompt's images attend to its tokens once more
        again = [*range(2 * prompts), *range(prompts)]
        prefix = prefix.rows(again)
        times = tuple([part[again] for part in parts] for parts in times)
    mask = cached.step_mask(prefix, count // prompts)
    x = randn((dim,), streams, device)
    if start is not None:
        x = add_noise(start, x)
    for i, step in enumerate(steps):
        rows = [x[:count]] * len(texts) + ([x[count:]] if both else [])
        rows = torch.cat(rows).to(dtype).reshape(-1, count // prompts, dim)
        prediction = cached.step(network, prefix, mask, rows, times, i).float().reshape(-1, dim)
        if len(texts) == 2:
            guided = guide(prediction[:count], prediction[count : 2 * count], guidance_scale)
            prediction = torch.cat([guided, prediction[2 * count :]])
        x0 = predict_x0(schedule, step, x, prediction)
        noise = None if step.last else randn((dim,), streams, device)
        x = previous_sample(step, x, x0, noise)
        if callback is not None:
            callback(i + 1, len(steps), x0[:count])
    return refuse_nan(cached.denormalise(network, x), "prior", dtype)
