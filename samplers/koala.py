"""KOALA's and SDXL's sampler: Euler over latents, told by two text encoders and the sizes.

Sources: SDXL (Podell et al. 2023, arXiv 2307.01952: both encoders' penultimate states, the size
and crop conditioning), KOALA (Lee et al. 2023, arXiv 2312.04005), Euler's method in sigmas (Karras
et al. 2022), and the numbers of diffusers' ``StableDiffusionXLPipeline``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..edges import EdgeError, SDXLText
from ..networks.graphs import by_step
from .parts.guidance import guide, is_guided, refuse_nan, spread
from .parts.sampling import Sampling
from .parts.schedule import check_constants, linear_alphas_cumprod

LATENT_SCALE = 0.13025
"""What SDXL's U-Nets multiply the VAE's latents by, so that they vary by about one."""

CHANNELS = 4
"""Of a latent."""

FACTOR = 8
"""Pixels of a latent's place."""

SPACINGS = ("leading", "trailing", "linspace")

Prepare = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Sequence[float]],
    Callable[[torch.Tensor, int], torch.Tensor],
]
"""``(hidden [R, L, W], pooled [R, D], time_ids [R, 6], timesteps) -> predict(x, step index)``, as
``networks.koala.prepare_sdxl``."""


FIXED: dict[str, tuple[Any, Any]] = {
    "prediction_type": ("epsilon", "epsilon"),
    "beta_schedule": ("linear", "scaled_linear"),
    "trained_betas": (None, None),
    "interpolation_type": ("linear", "linear"),
    "use_karras_sigmas": (False, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
    "rescale_betas_zero_snr": (False, False),
    "final_sigmas_type": ("zero", "zero"),
}
"""What :class:`EulerSchedule` takes for granted, for ``check_constants``. EulerDiscreteScheduler
has three keys more, which change nothing beside these: timestep_type, sigma_min, sigma_max."""


@dataclass(frozen=True)
class EulerSchedule:
    """The published constants of a KOALA's diffusion.

    Attributes:
        beta_start, beta_end: ends of the betas, whose square roots are evenly spaced.
        spacing: of the timesteps, one of :data:`SPACINGS`; the lightning models are sampled with
            "trailing". offset: added to "leading".
        num_train_timesteps: length of the training schedule.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    spacing: str = "leading"
    offset: int = 1
    num_train_timesteps: int = 1000

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EulerSchedule:
        """Read a hub folder's ``scheduler_config.json``.

        Raises:
            EdgeError: constants that no KOALA has.
        """
        name = config.get("_class_name", "EulerDiscreteScheduler")
        if not name.startswith("EulerDiscrete"):
            raise EdgeError(f"the scheduler is a {name}, but KOALA's is an EulerDiscreteScheduler")
        check_constants(config, FIXED, "KOALA")
        spacing = config.get("timestep_spacing", "linspace")
        if spacing not in SPACINGS:
            raise EdgeError(f"the scheduler's timestep_spacing '{spacing}' is not known")
        return cls(
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            spacing=spacing,
            offset=int(config.get("steps_offset", 0)),
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
        )

    def sigmas(self) -> np.ndarray:
        """Noise over signal at every training timestep, float32, ascending."""
        products = linear_alphas_cumprod(
            self.beta_start, self.beta_end, self.num_train_timesteps, scaled=True
        )
        return (((1 - products) / products) ** 0.5).numpy()

    def steps(self, num_inference_steps: int) -> tuple[list[float], list[float]]:
        """The timesteps, descending, and their sigmas with a 0 behind.

        Raises:
            EdgeError: as many steps as this schedule does not have.
        """
        total, count = self.num_train_timesteps, num_inference_steps
        if not 1 <= count <= total:
            raise EdgeError(f"'num_inference_steps' is {count}; this sampler takes 1 to {total}")
        times: np.ndarray
        if self.spacing == "leading":
            times = np.arange(count)[::-1] * (total // count) + self.offset
        elif self.spacing == "trailing":
            times = np.arange(total, 0, -total / count).round() - 1
        else:
            times = np.linspace(0, total - 1, count)[::-1]
        times = times.astype(np.float32)
        sigmas = np.interp(times, np.arange(total), self.sigmas()).astype(np.float32)
        return times.tolist(), [*sigmas.tolist(), 0.0]


@torch.no_grad()
def encode_text_pair(
    first: nn.Module, second: nn.Module, ids: torch.Tensor, second_ids: torch.Tensor
) -> SDXLText:
    """Encode prompts as SDXL does: without an attention mask, the last layer and norm left out.

    Args:
        first: transformers' ``CLIPTextModel``; second: ``CLIPTextModelWithProjection``.
        ids, second_ids: ``[B, 77]`` long, of each one's own tokenizer.
    """
    one = first(input_ids=ids, output_hidden_states=True)
    two = second(input_ids=second_ids, output_hidden_states=True)
    hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
    return SDXLText(hidden.float(), two.text_embeds.float())


@torch.no_grad()
def sample_koala(
    prepare: Prepare,
    schedule: EulerSchedule,
    text: SDXLText,
    negative: SDXLText | None,
    size: tuple[int, int],
    sampling: Sampling,
    guidance_scale: float = 7.5,
) -> torch.Tensor:
    """Sample latents from a prompt.

    Args:
        prepare: the U-Net; see :data:`Prepare`.
        text: R rows; negative: as many or others; ``None`` is the published negative where no
            prompt was given, zeros. Unused at ``guidance_scale`` <= 1.
        size: height and width of the latents.
        sampling: its callback sees x0 ``[B, 4, h, w]``.

    Returns:
        Latents as the VAE makes them ``[B, 4, h, w]``, fp32: divided by :data:`LATENT_SCALE`.

    Raises:
        EdgeError: steps or guidance out of range, rows that do not divide into B, no finite result.
    """
    device, dtype, count = sampling.device, sampling.dtype, len(sampling.noise)
    negative = _nothing(text) if negative is None else negative
    guided = is_guided(guidance_scale, negative)
    texts = [negative, text] if guided else [text]
    times, sigmas = schedule.steps(sampling.num_inference_steps)
    sides = _sides(texts, size, count)
    runs = [
        prepare(one.to(device, dtype), two.to(device, dtype), three.to(device), times)
        for one, two, three in sides
    ]
    # Published for "leading": the start is scaled as if signal were beside the noise.
    first = math.sqrt(sigmas[0] ** 2 + 1) if schedule.spacing == "leading" else sigmas[0]
    x = sampling.noise.normal((CHANNELS, *size), device) * first

    def denoise(
        place: Any, x: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sigma, change, size, scale = numbers.unbind()
        seen = torch.cat([x / size] * (len(texts) // len(runs))).to(dtype)
        eps = torch.cat([predict(seen, place).float() for predict in runs])
        if guided:
            unconditional, conditional = eps.chunk(2)
            eps = guide(unconditional, conditional, scale)
        return x + eps * change, (x - sigma * eps) / LATENT_SCALE

    table = _numbers(sigmas, guidance_scale).to(device)
    take = denoise if len(runs) > 1 else by_step(runs[0], ("koala", guided, dtype), denoise)
    for i in range(len(times)):
        x, x0 = take(i, x, table[i])
        sampling.tell(i + 1, len(times), x0)
    return refuse_nan(x, "U-Net", dtype) / LATENT_SCALE


def _sides(
    texts: list[SDXLText], size: tuple[int, int], count: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What the U-Net is told, hidden states, pooled embeddings and sizes: of all texts in one
    batch, or of each, where ComfyUI's chunks of 77 tokens made them of several lengths."""
    own = torch.tensor([[FACTOR * size[0], FACTOR * size[1], 0, 0] + [FACTOR * s for s in size]])
    sides = []
    for name, text in zip(("negative", "text")[-len(texts) :], texts, strict=True):
        parts = text.hidden, text.pooled, own if text.time_ids is None else text.time_ids
        hidden, pooled, sizes = (spread(part, count, name) for part in parts)
        sides.append((hidden, pooled, sizes))
    if len({hidden.shape[1] for hidden, _, _ in sides}) > 1:
        return sides
    hidden, pooled, sizes = (torch.cat(parts) for parts in zip(*sides, strict=True))
    return [(hidden, pooled, sizes)]


def _numbers(sigmas: list[float], guidance_scale: float) -> torch.Tensor:
    """Of each step, in a row: its sigma, by how much that changes, the size of what is at it, and
    the guidance scale."""
    rows = [
        [sigma, following - sigma, (sigma**2 + 1) ** 0.5, guidance_scale]
        for sigma, following in itertools.pairwise(sigmas)
    ]
    return torch.tensor(rows, dtype=torch.float32)


def _nothing(text: SDXLText) -> SDXLText:
    """The published negative where no prompt was given."""
    return SDXLText(torch.zeros_like(text.hidden), torch.zeros_like(text.pooled), text.time_ids)
