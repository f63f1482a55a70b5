"""Training of the prior: from the prompt to the embedding of a picture that it could mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...edges import EmbeddingSpace
from ..grammar import training_scenes
from . import recipe
from .karlo_decoder import POOL, TextTable, embedded_pool
from .karlo_sr import signal_and_noise
from .loop import Draw, Plan, some_of, train

PLAN = Plan("prior", steps=3000, batch=128, rate=1e-3, ema=0.995)
OLD_PLAN = Plan("prior_2_1", steps=600, batch=128, rate=8e-4, ema=0.99, warmup=50)
_DROP_TEXT = 0.1
_AT_ONCE = 64


def short_forward(
    prior: nn.Module,
    noisy: torch.Tensor,
    steps: torch.Tensor,
    pooled: torch.Tensor,
    hidden: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """The prior on L < 77 text tokens, with the positions that the full length would have.

    Masked padding has exactly no effect, so leaving it out changes nothing but the time.
    """
    length, extra = hidden.shape[1], prior.config.additional_embeddings
    places = torch.cat([torch.arange(length), torch.arange(extra) + prior.config.num_embeddings])
    causal = prior.causal_attention_mask
    shorter = {
        "positional_embedding": prior.positional_embedding[:, places],
        "causal_attention_mask": causal[:, places][:, :, places],
    }
    call = {"proj_embedding": pooled, "encoder_hidden_states": hidden, "attention_mask": mask}
    out = torch.func.functional_call(prior, shorter, (noisy, steps), call)
    return out.predicted_image_embedding


def prior_loss(
    prior: nn.Module,
    table: TextTable,
    known: torch.Tensor,
    rows: torch.Tensor,
    draw: Draw,
    batch: int,
    device: torch.device | str,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared error of the predicted embedding. ``known`` is normalised, ``[N, 64]``."""
    chosen = torch.from_numpy(draw.numpy.integers(known.shape[0], size=batch)).to(device)
    wanted = known[chosen]
    said = rows[chosen] + 1
    dropped = torch.rand(batch, generator=draw.torch).to(device) < _DROP_TEXT
    said = torch.where(dropped, torch.zeros_like(said), said)
    steps = draw.timesteps(batch)
    signal, noise_part = (x.view(-1, 1) for x in signal_and_noise(steps, device))
    noisy = signal * wanted + noise_part * draw.randn(*wanted.shape).to(device)
    found = short_forward(
        prior, noisy, steps.to(device), table.pooled[said], table.hidden[said], table.mask[said]
    )
    return F.mse_loss(found, wanted), {}


def train_prior(
    text_encoder: nn.Module,
    image_encoder: nn.Module,
    tokenizer: Any,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
    begin: nn.Module | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights, by folder name, with the embeddings' mean and std among them.

    Args:
        begin: another prior of this space, to begin as: Kandinsky 2.1's begins as Karlo's.
    """
    plan = (PLAN if begin is None else OLD_PLAN).limited(steps)
    torch.manual_seed(plan.seed)
    prior = recipe.prior(image_encoder.config.projection_dim).to(device)
    nn.init.normal_(prior.positional_embedding, std=0.02)
    nn.init.normal_(prior.prd_embedding, std=0.02)
    if begin is not None:
        prior.load_state_dict(begin.state_dict())
    table = TextTable(text_encoder, tokenizer, device)
    pool = embedded_pool(image_encoder, some_of(POOL, steps), device)
    mean, std = pool.spread
    # Statistics, not weights: kept from the optimiser.
    prior.clip_mean.data, prior.clip_std.data = mean, std
    prior.clip_mean.requires_grad_(False)
    prior.clip_std.requires_grad_(False)
    normal = (pool.embeds - mean) / std
    weights = train(
        plan,
        prior,
        lambda draw: prior_loss(prior, table, normal, pool.rows, draw, plan.batch, device),
        folder / f"{plan.stage}.pt",
        stop_after=stop_after,
    )
    return {"prior": weights}


@torch.no_grad()
def said_by(
    prior: nn.Module,
    text_encoder: nn.Module,
    tokenizer: Any,
    space: EmbeddingSpace,
    device: torch.device | str,
    times: int = 8,
) -> torch.Tensor:
    """What a finished prior of Kandinsky makes of every training prompt, so many times.

    Sampled as published: 25 steps, guidance 4. ``[scenes, times, D]``, unnormalised.
    """
    from ...edges import TextEncoding
    from ...loaders.clip import tokenize
    from ...samplers.clip import encode_text
    from ...samplers.parts.noise import Noise
    from ...samplers.parts.sampling import Sampling
    from ...samplers.parts.schedule import UnCLIPSchedule
    from ...samplers.prior import sample_prior

    place = {"device": torch.device(device), "dtype": torch.float32}
    schedule = UnCLIPSchedule.from_config(recipe.WIDER_PRIOR_SCHEDULER)

    def encode(prompts: list[str]) -> TextEncoding:
        ids, mask, _ = tokenize(tokenizer, prompts)
        return encode_text(text_encoder, ids, mask, space, **place)

    said, empty, scenes = [], encode([""]), training_scenes()
    for start in range(0, len(scenes), _AT_ONCE):
        text = encode([scene.prompt for scene in scenes[start : start + _AT_ONCE]])
        noise = Noise.seeded(start * times, len(text.pooled) * times)
        sampling = Sampling(noise, **place, num_inference_steps=25)
        embeds = sample_prior(prior, schedule, text, empty, sampling)
        said.append(embeds.unflatten(0, (-1, times)))
    return torch.cat(said)
