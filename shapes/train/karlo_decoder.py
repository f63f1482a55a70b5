"""Training of the decoder: 16 pixel pictures from an image embedding and the prompt's tokens."""

from __future__ import annotations

import dataclasses
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..grammar import Scene, training_scenes
from ..pictures import training_batch
from . import recipe
from .karlo_sr import picture_weight, signal_and_noise, wandering
from .loop import Draw, Plan, draw_for, some_of, train

POOL = 20480
PLAN = Plan("decoder", steps=6000, batch=32, rate=1.5e-3, ema=0.997)
# A second course under guidance. The published scale of 8 suits pictures that a prompt leaves
# open; these it settles, and 8 times the difference makes caricatures: squares with horns. So the
# conditional branch learns to be right at 4, and the published 8 is then a push of 2.
GUIDED = Plan("decoder_guided", steps=7000, batch=32, rate=1e-3, ema=0.995, warmup=50)
_GUIDANCE = 4.0
# The parts of a batch that go without: both (what guidance subtracts), prompt, embedding.
_DROP_BOTH, _DROP_TEXT, _DROP_IMAGE = 0.10, 0.15, 0.10
_MISLED = 0.25
_VARIANCE_WEIGHT = 0.05


class TextTable:
    """Every training prompt as the text tower sees it, computed once; row 0 is the empty prompt.

    Attributes:
        hidden: ``[N, L, 64]``; pooled: ``[N, 64]``; mask: bool ``[N, L]``, where L is the longest
            prompt's token count: what follows is masked anyway, and leaving it out saves most of
            the work.
    """

    @torch.no_grad()
    def __init__(self, text_encoder: nn.Module, tokenizer: Any, device: torch.device | str):
        self.scenes: list[Scene] = training_scenes()
        prompts = ["", *(scene.prompt for scene in self.scenes)]
        tokens = tokenizer(prompts, padding="longest", return_tensors="pt").to(device)
        out = text_encoder(tokens.input_ids)
        self.hidden, self.pooled = out.last_hidden_state, out.text_embeds
        self.mask = tokens.attention_mask.bool()


class Decoder(nn.Module):
    """U-Net and text projection, the two that train together."""

    def __init__(self, unet: nn.Module, text_proj: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_proj = unet, text_proj

    def forward(
        self,
        noisy: torch.Tensor,
        steps: torch.Tensor,
        image: torch.Tensor,
        pooled: torch.Tensor,
        hidden: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Noise and variance ``[B, 6, 16, 16]``."""
        context, labels = self.text_proj(image, pooled, hidden)
        mask = F.pad(mask, (self.text_proj.clip_extra_context_tokens, 0), value=True)
        return self.unet(noisy, steps, context, class_labels=labels, attention_mask=mask).sample


@lru_cache(maxsize=1)
def _chain() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from diffusers import UnCLIPScheduler

    return chain_of(UnCLIPScheduler().betas)


def chain_of(betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per step, float64: log of the smallest and largest variance, x0's weight in the mean."""
    betas = betas.double()
    products = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([torch.ones(1, dtype=torch.double), products[:-1]])
    smallest = betas * (1 - before) / (1 - products)
    smallest[0] = smallest[1]
    return (
        smallest.log(),
        betas.log(),
        before.sqrt() * betas / (1 - products),
    )


def variance_loss(
    variance: torch.Tensor,
    guess: torch.Tensor,
    pictures: torch.Tensor,
    steps: torch.Tensor,
    chain: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Mean KL of the reverse step in nats, for its variance only (Nichol and Dhariwal 2021).

    ``guess`` is the predicted picture, without gradient; ``chain`` holds the logs of smallest and
    largest variance and the picture's weight in the mean, by step. Step 0 adds no noise and has no
    say.
    """
    smallest, largest, of_picture = (
        table[steps.cpu()].float().view(-1, 1, 1, 1).to(guess.device) for table in chain
    )
    gap = of_picture * (guess - pictures)
    part = (variance + 1) / 2
    log_variance = part * largest + (1 - part) * smallest
    kl = 0.5 * (
        log_variance - smallest + (smallest - log_variance).exp() - 1
        + gap.pow(2) * (-log_variance).exp()
    )  # fmt: skip
    return (kl * (steps > 0).view(-1, 1, 1, 1).to(kl)).mean()


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pictures that the finished CLIP has seen, kept because looking again costs a third of a step.

    Attributes:
        embeds: ``[N, 64]``; rows: int64 ``[N]``, the scene of each in ``training_scenes()``;
        small: ``[N, 3, 16, 16]`` in -1..1.
    """

    embeds: torch.Tensor
    rows: torch.Tensor
    small: torch.Tensor

    @cached_property
    def spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the embeddings, ``[1, 64]`` each."""
        return self.embeds.mean(0, keepdim=True), self.embeds.std(0, keepdim=True)

    @cached_property
    def _by_colours(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Group of each picture, pictures by group, first place and size of each group."""
        pairs: dict[tuple[str, str], int] = {}
        numbers = [
            pairs.setdefault((scene.colour, scene.background), len(pairs))
            for scene in training_scenes()
        ]
        group = torch.tensor(numbers, device=self.rows.device)[self.rows]
        count = group.bincount(minlength=len(pairs))
        return group, group.argsort(stable=True), count.cumsum(0) - count, count

    def of_same_colours(self, chosen: torch.Tensor, lot: torch.Tensor) -> torch.Tensor:
        """For each chosen picture one of the same two colours, of whatever kind and size.

        ``lot`` is uniform in 0..1, ``[B]``.
        """
        group, order, first, count = self._by_colours
        mine = group[chosen]
        return order[first[mine] + (lot * count[mine]).long().minimum(count[mine] - 1)]


@torch.no_grad()
def embedded_pool(image_encoder: nn.Module, count: int, device: torch.device | str) -> Pool:
    """``count`` training pictures with their embeddings; equal counts give equal pools."""
    scenes = training_scenes()
    parts: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, count, 256):
        draw = draw_for("pool", 0, start)
        rows = draw.numpy.integers(len(scenes), size=min(256, count - start))
        pictures, _ = training_batch([scenes[i] for i in rows], draw.numpy)
        shown = torch.from_numpy(pictures).to(device)
        small = F.avg_pool2d(shown, recipe.FINAL_SIDE // recipe.DECODER_SIDE)
        parts.append((image_encoder(shown).image_embeds, torch.from_numpy(rows).to(device), small))
    return Pool(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def decoder_loss(
    trainee: Decoder,
    table: TextTable,
    pool: Pool,
    draw: Draw,
    batch: int,
    device: torch.device | str,
    guidance: float = 1.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Noise prediction, under this much guidance, and the variance's bound."""
    chosen = torch.from_numpy(draw.numpy.integers(len(pool.rows), size=batch)).to(device)
    image, small, said = pool.embeds[chosen], pool.small[chosen], pool.rows[chosen] + 1
    # Every kind is its own mirror image, and the embedding says nothing of the place.
    mirrored = torch.rand(batch, 1, 1, 1, generator=draw.torch).to(device) < 0.5
    small = torch.where(mirrored, small.flip(-1), small)

    # An embedding may be wrong about the kind, for new combinations above all, when the prompt is
    # not: where both are there the decoder must learn to believe the prompt.
    misled = torch.rand(batch, 2, generator=draw.torch).to(device)
    other = pool.embeds[pool.of_same_colours(chosen, misled[:, 1])]
    misled = misled[:, :1] < _MISLED

    lot = torch.rand(batch, 1, generator=draw.torch).to(device)
    without_text = (lot < _DROP_BOTH + _DROP_TEXT).squeeze(1)
    without_image = (lot < _DROP_BOTH) | (lot > 1 - _DROP_IMAGE)
    image = torch.where(misled & ~without_text[:, None], other, image)

    # A prior under guidance 4 overshoots and is never exact: half of the embeddings are worn so.
    mean, std = pool.spread
    some = (torch.rand(batch, 1, generator=draw.torch) < 0.5).float()
    stretch = 1 + some * (torch.rand(batch, 1, generator=draw.torch) * 0.9 - 0.25)
    blur = some * 0.35 * torch.rand(batch, 1, generator=draw.torch)
    image = mean + stretch.to(device) * (image - mean)
    image = image + (blur * draw.randn(*image.shape)).to(device) * std

    learned = trainee.text_proj.learned_classifier_free_guidance_embeddings
    image = torch.where(without_image, learned.to(image), image)
    said = torch.where(without_text, torch.zeros_like(said), said)

    steps = draw.timesteps(batch)
    signal, noise_part = signal_and_noise(steps, device)
    noise = draw.randn(*small.shape).to(device)
    noise = noise + wandering(small, signal, noise_part, draw)
    noisy = signal * small + noise_part * noise
    out = trainee(
        noisy, steps.to(device), image,
        table.pooled[said], table.hidden[said], table.mask[said],
    )  # fmt: skip
    predicted, variance = out.chunk(2, 1)
    if guidance > 1:
        # The conditional branch is asked to be right after guidance, not before it.
        alone = learned.expand(batch, -1).detach()
        nothing = torch.zeros_like(said)
        with torch.no_grad():
            base = trainee(
                noisy, steps.to(device), alone,
                table.pooled[nothing], table.hidden[nothing], table.mask[nothing],
            ).chunk(2, 1)[0]  # fmt: skip
        unguided = (lot < _DROP_BOTH).view(-1, 1, 1, 1)
        predicted = torch.where(unguided, predicted, base + guidance * (predicted - base))
    error = (picture_weight(signal, noise_part) * (predicted - noise).pow(2)).mean()
    guess = ((noisy - noise_part * predicted.detach()) / signal).clamp(-1, 1)
    bound = variance_loss(variance, guess, small, steps, _chain())
    return error + _VARIANCE_WEIGHT * bound, {"error": error.item(), "vb": bound.item()}


def train_decoder(
    text_encoder: nn.Module,
    image_encoder: nn.Module,
    tokenizer: Any,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of U-Net and text projection, by folder name."""
    plan = PLAN.limited(steps)
    torch.manual_seed(plan.seed)
    trainee = Decoder(recipe.decoder(), recipe.text_projection()).to(device)
    # Text and image embeddings differ in length; a start at zero would never leave it for lack of
    # a signal of its own.
    nn.init.normal_(trainee.text_proj.learned_classifier_free_guidance_embeddings, std=0.5)
    table = TextTable(text_encoder, tokenizer, device)
    pool = embedded_pool(image_encoder, some_of(POOL, steps), device)
    weights = train(
        plan,
        trainee,
        lambda draw: decoder_loss(trainee, table, pool, draw, plan.batch, device),
        folder / "decoder.pt",
        stop_after=stop_after,
    )
    trainee.load_state_dict(weights)
    guided = GUIDED.limited(None if steps is None else max(1, steps // 3))
    weights = train(
        guided,
        trainee,
        lambda draw: decoder_loss(trainee, table, pool, draw, guided.batch, device, _GUIDANCE),
        folder / "decoder_guided.pt",
        stop_after=stop_after,
    )
    return {
        name: {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
        for name, part in (("decoder", "unet."), ("text_proj", "text_proj."))
    }
