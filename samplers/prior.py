"""The unCLIP prior's sampler: diffusion over image embeddings (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..edges import EdgeError, TextEncoding
from ..networks import prior as cached
from ..networks.graphs import by_step
from .parts.guidance import guide, is_guided, refuse_nan, spread, spread_text
from .parts.sampling import Sampling, Start
from .parts.schedule import (
    Step,
    UnCLIPSchedule,
    predict_x0,
    previous_sample,
    read_step,
    step_table,
)


@torch.no_grad()
def sample_prior(
    network: nn.Module,
    schedule: UnCLIPSchedule,
    text: TextEncoding,
    negative: TextEncoding | None,
    sampling: Sampling,
    guidance_scale: float = 4.0,
    start: Start | None = None,
    with_negative: bool = False,
) -> torch.Tensor:
    """Sample image embeddings for prompts.

    Args:
        network: diffusers' ``PriorTransformer``.
        schedule: its published constants.
        text: R prompts; negative: as many or others, unused at ``guidance_scale`` <= 1.
        sampling: its callback sees x0 ``[B, D]``, unnormalised as the result.
        start: image embeddings ``[R, D]`` to begin from, unnormalised.
        with_negative: sample the negative prompt's own embeddings too, which some decoders
            subtract, from the second half of the noise, which is of 2B images then. Guiding it by
            itself changes nothing, so a step runs three rows and not four.

    Returns:
        ``image_embeds`` ``[B, D]``, fp32, unnormalised CLIP space; ``[2B, D]`` with the negative
        ones, those behind.

    Raises:
        EdgeError: steps outside 2..1000, strength outside 0..1, rows that do not divide into B,
            prompts of another length than the network's, negative embeddings wanted without a
            negative prompt or guidance, no finite result.
    """
    strength = 1.0 if start is None else start.strength
    steps, add_noise = schedule.noised(sampling.num_inference_steps, strength)
    noise, device, dtype = sampling.noise, sampling.device, sampling.dtype
    count = len(noise) // 2 if with_negative else len(noise)
    branches = {"text": text}
    if is_guided(guidance_scale, negative) and negative is not None:
        branches = {"negative": negative, "text": text}
    _check(network, branches, count)
    if with_negative and len(branches) < 2:
        raise EdgeError(
            f"'guidance_scale' is {guidance_scale}, which leaves the negative prompt out, so there"
            " is no embedding of it; set it above 1, or leave 'with_negative' out"
        )
    dim = text.pooled.shape[-1]
    clean = None
    if start is not None:
        clean = spread(start.clean, count, "start").to(device, torch.float32)
        clean = torch.cat([clean] * (2 if with_negative else 1))
    if not steps:
        return clean
    # A prompt's images share its constant tokens, so only distinct prompts are run.
    prompts = math.lcm(*(len(branch.mask) for branch in branches.values()))
    texts = [spread_text(branch, prompts, name) for name, branch in branches.items()]
    predict = _prepare(network, texts, steps, with_negative, sampling)

    def denoise(
        place: Any, x: torch.Tensor, numbers: torch.Tensor, fresh: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        step, (scale,) = read_step(numbers)
        rows = [x[:count]] * len(texts) + ([x[count:]] if with_negative else [])
        seen = torch.cat(rows).to(dtype).reshape(-1, count // prompts, dim)
        prediction = predict(seen, place).float().reshape(-1, dim)
        if len(texts) == 2:
            guided = guide(prediction[:count], prediction[count : 2 * count], scale)
            prediction = torch.cat([guided, prediction[2 * count :]])
        x0 = predict_x0(schedule, step, x, prediction)
        return previous_sample(step, x, x0, fresh), x0

    take = by_step(predict, ("prior", schedule, len(texts), with_negative, dtype), denoise)
    table = step_table(steps, device, guidance_scale)
    x = noise.normal((dim,), device)
    if clean is not None:
        x = add_noise(clean, x)
    for i, step in enumerate(steps):
        fresh = torch.zeros_like(x) if step.last else noise.normal((dim,), device)
        x, x0 = take(i, x, table[i], fresh)
        sampling.tell(i + 1, len(steps), cached.denormalise(network, x0[:count]))
    return refuse_nan(cached.denormalise(network, x), "prior", dtype)


def _check(network: nn.Module, branches: dict[str, TextEncoding], count: int) -> None:
    """Refuse prompts, by the name of the argument, that do not go with network and images.

    Raises:
        EdgeError: rows that do not divide into ``count``, another length than the network's.
    """
    wanted = cached.text_length(network)
    for name, branch in branches.items():
        spread(branch.mask, count, name)
        length = branch.hidden.shape[1]
        if length != wanted:
            raise EdgeError(
                f"'{name}' has {length} tokens, but this prior reads {wanted}: one prompt as its"
                " own text encoder makes it, not several joined"
            )


def _prepare(
    network: nn.Module,
    texts: list[TextEncoding],
    steps: list[Step],
    with_negative: bool,
    sampling: Sampling,
) -> cached.Run:
    """The network with what it makes of its constant tokens, and of the time of every step."""
    device, dtype = sampling.device, sampling.dtype
    constants = cached.prepare(
        network,
        torch.cat([part.hidden.to(device, dtype) for part in texts]),
        torch.cat([part.pooled.to(device, dtype) for part in texts]),
        torch.cat([part.mask.to(device) for part in texts]),
        [step.timestep for step in steps],
    )
    images, prompts = len(sampling.noise), len(texts[0].mask)
    if with_negative:  # the negative prompt's images attend to its tokens once more
        constants = constants.rows([*range(2 * prompts), *range(prompts)])
        images //= 2
    return cached.Run(network, constants, images // prompts)
