"""Diffusion schedules, respaced, as numbers known before the loop starts.

unCLIP's (cosine betas) for Karlo and every prior, and the one of Kandinsky's latent decoders
(linear betas; DDPM or DDIM).

Source: diffusers' ``UnCLIPScheduler``, ``DDPMScheduler`` and ``DDIMScheduler``; DDPM (Ho et al.
2020) equations 6, 7 and 15; improved DDPM (Nichol & Dhariwal 2021) for the learned variance range;
DDIM (Song et al. 2020) equation 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..edges import EdgeError


@dataclass(frozen=True)
class Step:
    """Everything one denoising step needs, as Python floats: no host sync, no table look-up.

    ``x0 = (x - sqrt_beta * eps) / sqrt_alpha`` (prediction "epsilon") and
    ``mean = x0_weight * x0 + sample_weight * x``. The noise added afterwards has deviation
    ``deviation``, or ``exp(0.5 * (f * max_log + (1 - f) * min_log))`` with the predicted
    ``f = (v + 1) / 2`` where the variance is learned. ``last`` steps add none.
    """

    timestep: int
    last: bool
    sqrt_alpha: float
    sqrt_beta: float
    x0_weight: float
    sample_weight: float
    deviation: float
    min_log: float
    max_log: float


def check_constants(
    config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, Any]], system: str
) -> None:
    """Refuse a scheduler's configuration that says what our schedule does not do.

    Args:
        config: of ``scheduler_config.json``.
        fixed: key to diffusers' default and the one value that is right.
        system: for messages.

    Raises:
        EdgeError: another value; names the key.
    """
    for key, (default, wanted) in fixed.items():
        value = config.get(key, default)
        # null stands for what is switched off
        if value != wanted and not (value is None and wanted is False):
            raise EdgeError(
                f"the scheduler's {key} is {value!r}, which no {system} was published with"
                f" ({wanted!r} was), and pictures would not be its own"
            )


@dataclass(frozen=True)
class UnCLIPSchedule:
    """The published constants of one stage's diffusion.

    Attributes:
        prediction: what the network predicts, "sample" (x0) or "epsilon".
        variance: "fixed_small_log", or "learned_range" where the network's second half of
            channels interpolates between the bounds.
        clip_range: x0 is clamped to ± this; ``None`` leaves it alone.
        double_tables: compute the tables in float64, as the original repositories do; diffusers
            keeps them in float32, which moves the last step by 5e-4.
        num_train_timesteps: length of the training schedule.
    """

    prediction: str = "epsilon"
    variance: str = "fixed_small_log"
    clip_range: float | None = 1.0
    double_tables: bool = False
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        """Raise :class:`EdgeError` for constants that no unCLIP stage was published with."""
        if self.prediction not in ("sample", "epsilon"):
            raise EdgeError(f"the scheduler's prediction_type '{self.prediction}' is not unCLIP's")
        if self.variance not in ("fixed_small_log", "learned_range"):
            raise EdgeError(f"the scheduler's variance_type '{self.variance}' is not unCLIP's")
        if self.clip_range is not None and not 0 < self.clip_range < math.inf:
            raise EdgeError(f"the scheduler's clip_sample_range {self.clip_range} is not positive")
        if not isinstance(self.num_train_timesteps, int) or self.num_train_timesteps < 2:
            raise EdgeError(
                f"the scheduler's num_train_timesteps {self.num_train_timesteps} is no number of"
                " steps from 2 on"
            )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> UnCLIPSchedule:
        """Read a hub folder's ``scheduler_config.json``.

        Raises:
            EdgeError: constants that no unCLIP stage was published with.
        """
        betas = config.get("beta_schedule", "squaredcos_cap_v2")
        if betas != "squaredcos_cap_v2":
            raise EdgeError(f"the scheduler's beta_schedule '{betas}' is not unCLIP's")
        return cls(
            prediction=config.get("prediction_type", "epsilon"),
            variance=config.get("variance_type", "fixed_small_log"),
            clip_range=config.get("clip_sample_range", 1.0)
            if config.get("clip_sample", True)
            else None,
            num_train_timesteps=config.get("num_train_timesteps", 1000),
        )

    def timesteps(self, num_inference_steps: int) -> list[int]:
        """The respaced timesteps, descending, first T-1 and last 0.

        Raises:
            EdgeError: fewer than 2 steps (the published spacing divides by N - 1) or more than
                the training schedule has.
        """
        if not 2 <= num_inference_steps <= self.num_train_timesteps:
            raise EdgeError(
                f"'steps' is {num_inference_steps}; this schedule takes 2 to"
                f" {self.num_train_timesteps} steps"
            )
        ratio = (self.num_train_timesteps - 1) / (num_inference_steps - 1)
        return [round(k * ratio) for k in reversed(range(num_inference_steps))]

    def betas(self) -> torch.Tensor:
        """``[T]`` betas of the squared-cosine schedule, capped at 0.999."""

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        count = self.num_train_timesteps
        values = [
            min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)
        ]
        return torch.tensor(values, dtype=torch.float64 if self.double_tables else torch.float32)

    def steps(self, num_inference_steps: int) -> list[Step]:
        """The coefficients of every step, equal to the published scheduler's bit for bit."""
        timesteps = self.timesteps(num_inference_steps)
        betas = self.betas()
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        steps = []
        for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
            beta = betas[t] if following == t - 1 else None
            steps.append(_step(alphas_cumprod, t, following, beta))
        return steps

    def noised(
        self, num_inference_steps: int, strength: float
    ) -> tuple[list[Step], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """The last ``strength`` of the steps, and what noises a clean sample for the first."""
        steps = part_of(self.steps(num_inference_steps), strength)
        return steps, noising(torch.cumprod(1.0 - self.betas(), dim=0), steps)


FIXED: dict[str, tuple[Any, Any]] = {
    "prediction_type": ("epsilon", "epsilon"),
    "trained_betas": (None, None),
    "rescale_betas_zero_snr": (False, False),
}
"""What :class:`LatentSchedule` takes for granted of DDPMScheduler and DDIMScheduler."""


@dataclass(frozen=True)
class LatentSchedule:
    """The published constants of a Kandinsky decoder's diffusion.

    Attributes:
        sampler: "ddpm", or "ddim" without its noise (eta 0).
        learned_range: the network's second half of channels interpolates between the bounds of
            the variance.
        beta_start, beta_end, beta_schedule: "linear" or "scaled_linear" betas.
        spacing: of the timesteps, "leading", "trailing" or "linspace"; offset: added to "leading".
        clip_range: x0 is clamped to ± this; ``None`` leaves it alone.
        clip_first: clamp so also before thresholding, as the original repository does.
        thresholding: instead, x0 is clamped to ± its quantile ``ratio`` and divided by that, where
            it is between 1 and ``largest`` (Imagen's dynamic thresholding).
        original_start: noise a picture to begin with as Kandinsky 2.1's image to image does, with
            betas of its own and at a step of its own.
        final_one: DDIM ends at alphas_cumprod 1, else at the first of the table.
        num_train_timesteps: length of the training schedule.
    """

    sampler: str = "ddpm"
    learned_range: bool = True
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "linear"
    spacing: str = "leading"
    offset: int = 0
    clip_range: float | None = None
    clip_first: bool = False
    thresholding: bool = True
    ratio: float = 0.995
    largest: float = 2.0
    original_start: bool = False
    final_one: bool = True
    num_train_timesteps: int = 1000

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LatentSchedule:
        """Read a hub folder's ``scheduler_config.json``, of diffusers' DDPM or DDIM.

        Raises:
            EdgeError: another scheduler, or constants that no Kandinsky decoder has.
        """
        name = config.get("_class_name", "DDPMScheduler")
        if name not in ("DDPMScheduler", "DDIMScheduler"):
            raise EdgeError(f"the scheduler is a {name}, but Kandinsky's decoders use DDPM or DDIM")
        check_constants(config, FIXED, "Kandinsky")
        betas = config.get("beta_schedule", "linear")
        spacing = config.get("timestep_spacing", "leading")
        if betas not in ("linear", "scaled_linear"):
            raise EdgeError(f"the scheduler's beta_schedule '{betas}' is not Kandinsky's")
        if spacing not in ("leading", "trailing", "linspace"):
            raise EdgeError(f"the scheduler's timestep_spacing '{spacing}' is not known")
        ddim = name == "DDIMScheduler"
        variance = config.get("variance_type", "fixed_small")
        if not ddim and variance not in ("fixed_small", "fixed_small_log", "learned_range"):
            raise EdgeError(f"the scheduler's variance_type '{variance}' is not Kandinsky's")
        clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None
        return cls(
            sampler="ddim" if ddim else "ddpm",
            learned_range=not ddim and variance == "learned_range",
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=betas,
            spacing=spacing,
            offset=int(config.get("steps_offset", 0)),
            clip_range=clip,
            thresholding=bool(config.get("thresholding", False)),
            ratio=float(config.get("dynamic_thresholding_ratio", 0.995)),
            largest=float(config.get("sample_max_value", 1.0)),
            final_one=bool(config.get("set_alpha_to_one", True)),
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
        )

    def timesteps(self, num_inference_steps: int) -> list[int]:
        """The respaced timesteps, descending.

        Raises:
            EdgeError: fewer steps than 1, or more than the training schedule has.
        """
        total, count = self.num_train_timesteps, num_inference_steps
        if not 1 <= count <= total:
            raise EdgeError(f"'steps' is {count}; this schedule takes 1 to {total} steps")
        if self.spacing == "linspace":
            return [int(t) for t in np.linspace(0, total - 1, count).round()[::-1]]
        if self.spacing == "trailing":
            return [int(t) - 1 for t in np.round(np.arange(total, 0, -total / count))]
        return [t * (total // count) + self.offset for t in reversed(range(count))]

    def alphas_cumprod(self) -> torch.Tensor:
        """``[T]`` in fp32, as published."""
        total = self.num_train_timesteps
        if self.beta_schedule == "scaled_linear":
            ends = self.beta_start**0.5, self.beta_end**0.5
            betas = torch.linspace(*ends, total, dtype=torch.float32) ** 2
        else:
            betas = torch.linspace(self.beta_start, self.beta_end, total, dtype=torch.float32)
        return torch.cumprod(1.0 - betas, dim=0)

    def steps(self, num_inference_steps: int) -> list[Step]:
        """The coefficients of every step, equal to the published scheduler's bit for bit."""
        timesteps, table = self.timesteps(num_inference_steps), self.alphas_cumprod()
        if self.sampler == "ddpm":
            return [
                _step(table, t, following)
                for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True)
            ]
        stride = self.num_train_timesteps // num_inference_steps
        final = torch.ones(()) if self.final_one else table[0]
        return [_ddim_step(table, t, t - stride, final) for t in timesteps]

    def noised(
        self, num_inference_steps: int, strength: float
    ) -> tuple[list[Step], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """The last ``strength`` of the steps, and what noises a clean sample for the first."""
        steps = part_of(self.steps(num_inference_steps), strength)
        if not self.original_start or not steps:
            return steps, noising(self.alphas_cumprod(), steps)
        betas = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float32)
        place = max(0, int(self.num_train_timesteps * strength) - 2)
        first = [replace(steps[0], timestep=place)]
        return steps, noising(torch.cumprod(1.0 - betas, dim=0), first)


def published_sigmas(schedule: LatentSchedule, steps: int, denoise: float) -> torch.Tensor:
    """Noise over signal at the last ``denoise`` of the published timesteps, and 0; empty at 0.

    Raises:
        EdgeError: steps or denoise out of range.
    """
    check_share(denoise, "denoise")
    chosen, _ = schedule.noised(steps, denoise)
    levels = [step.sqrt_beta / step.sqrt_alpha for step in chosen]
    return torch.tensor([*levels, 0.0] if levels else [])


def ancestral_steps(sigmas: list[float]) -> list[Step]:
    """The same steps for a host's noise levels, descending to 0: each is noise over signal."""
    alphas = 1 / (1 + torch.tensor(sigmas, dtype=torch.float64).square())
    steps = [_step(alphas, i, i + 1) for i in range(len(sigmas) - 1)]
    return [replace(step, last=sigma == 0) for step, sigma in zip(steps, sigmas[1:], strict=True)]


def p_sampler(schedule: LatentSchedule) -> LatentSchedule:
    """The original repository's "p_sampler" with a decoder's betas: ancestral, learned variance,
    x0 clamped to ±2 and then thresholded, timesteps from the last to the first.

    The original takes sample 0's threshold for the whole batch; here each picture has its own, so
    that it does not depend on the others.
    """
    return replace(
        schedule,
        sampler="ddpm",
        learned_range=True,
        spacing="linspace",
        clip_range=2.0,
        clip_first=True,
        thresholding=True,
        ratio=0.995,
        largest=math.inf,
    )


def draws(steps: list[Step]) -> int:
    """How often a sampler over these steps draws noise: for its start, and where a step adds it."""
    return sum(not step.last for step in steps) + bool(steps)


def check_share(share: float, name: str) -> None:
    """Refuse what is no share of the steps.

    Raises:
        EdgeError: ``share`` outside 0..1; ``name`` is the input's.
    """
    if not 0 <= share <= 1:
        raise EdgeError(f"'{name}' is {share}; it goes from 0 (as it was) to 1 (all anew)")


def part_of(steps: list[Step], strength: float) -> list[Step]:
    """The last ``strength`` (0..1) of the steps, rounded down as published; none at 0.

    Raises:
        EdgeError: ``strength`` outside 0..1.
    """
    check_share(strength, "strength")
    return steps[len(steps) - int(len(steps) * strength) :]


def noising(
    alphas_cumprod: torch.Tensor, steps: list[Step]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``add(clean, noise)``, the noisy sample that the first of these steps expects."""
    if not steps:
        return lambda clean, noise: clean
    alpha = alphas_cumprod[steps[0].timestep]
    signal, rest = float(alpha**0.5), float((1 - alpha) ** 0.5)
    return lambda clean, noise: signal * clean + rest * noise


def _step(
    alphas_cumprod: torch.Tensor, t: int, following: int, beta: torch.Tensor | None = None
) -> Step:
    """An ancestral step from ``t`` to ``following`` (-1: to the end). ``beta`` is what the
    schedule itself has between the two, where they are neighbours."""
    alpha_bar = alphas_cumprod[t]
    one = torch.ones((), dtype=alphas_cumprod.dtype)
    alpha_bar_prev = alphas_cumprod[following] if following >= 0 else one
    if beta is None:
        beta = 1 - alpha_bar / alpha_bar_prev
    alpha = 1 - beta
    rest, rest_prev = 1 - alpha_bar, 1 - alpha_bar_prev
    variance = rest_prev / rest * beta
    return Step(
        timestep=t,
        last=t == 0,
        sqrt_alpha=float(alpha_bar**0.5),
        sqrt_beta=float(rest**0.5),
        x0_weight=float((alpha_bar_prev**0.5 * beta) / rest),
        sample_weight=float(alpha**0.5 * rest_prev / rest),
        deviation=float(torch.exp(0.5 * torch.log(variance.clamp(min=1e-20)))),
        min_log=float(variance.clamp(min=1e-20).log()),
        max_log=float(beta.log()),
    )


def _ddim_step(alphas_cumprod: torch.Tensor, t: int, following: int, final: torch.Tensor) -> Step:
    """A step without noise; its weights are x0's and the predicted noise's."""
    alpha_bar = alphas_cumprod[t]
    alpha_bar_prev = alphas_cumprod[following] if following >= 0 else final
    return Step(
        timestep=t,
        last=True,
        sqrt_alpha=float(alpha_bar**0.5),
        sqrt_beta=float((1 - alpha_bar) ** 0.5),
        x0_weight=float(alpha_bar_prev**0.5),
        sample_weight=float((1 - alpha_bar_prev) ** 0.5),
        deviation=0.0,
        min_log=0.0,
        max_log=0.0,
    )


def predict_latent(
    schedule: LatentSchedule, step: Step, x: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """The clean latent ``[B, ...]`` that the predicted noise implies at ``x``, pressed into its
    range as published."""
    return press(schedule, (x - step.sqrt_beta * eps) / step.sqrt_alpha)


def press(schedule: LatentSchedule, x0: torch.Tensor) -> torch.Tensor:
    """Clean latents ``[B, ...]`` in their range: thresholded, or clamped."""
    if schedule.clip_first:
        x0 = x0.clamp(-schedule.clip_range, schedule.clip_range)
    if schedule.thresholding:
        limit = torch.quantile(x0.flatten(1).abs(), schedule.ratio, dim=1)
        limit = limit.clamp(1, schedule.largest).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-limit, limit) / limit
    if schedule.clip_range is None:
        return x0
    return x0.clamp(-schedule.clip_range, schedule.clip_range)


def predict_x0(
    schedule: UnCLIPSchedule, step: Step, x: torch.Tensor, prediction: torch.Tensor
) -> torch.Tensor:
    """The clean sample that ``prediction`` implies at ``x``, clamped as published."""
    if schedule.prediction == "epsilon":
        prediction = (x - step.sqrt_beta * prediction) / step.sqrt_alpha
    if schedule.clip_range is None:
        return prediction
    return prediction.clamp(-schedule.clip_range, schedule.clip_range)


def previous_sample(
    step: Step,
    x: torch.Tensor,
    x0: torch.Tensor,
    noise: torch.Tensor | None,
    predicted_variance: torch.Tensor | None = None,
) -> torch.Tensor:
    """One ancestral step from ``x`` towards ``x0``; ``noise`` is ``None`` at the last step."""
    mean = step.x0_weight * x0 + step.sample_weight * x
    if noise is None:
        return mean
    if predicted_variance is None:
        return mean + step.deviation * noise
    fraction = (predicted_variance + 1) / 2
    log_variance = fraction * step.max_log + (1 - fraction) * step.min_log
    return mean + (0.5 * log_variance).exp() * noise
