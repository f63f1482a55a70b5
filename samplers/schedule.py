"""unCLIP's diffusion schedule: cosine betas, respaced, as numbers known before the loop starts.

Source: Karlo's sampler as diffusers' ``UnCLIPScheduler`` publishes it; DDPM (Ho et al. 2020)
equations 6, 7 and 15; improved DDPM (Nichol & Dhariwal 2021) for the learned variance range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
        alphas = 1.0 - betas
        alphas_cumprod = torch.cumprod(alphas, dim=0)
        one = torch.ones((), dtype=betas.dtype)
        steps = []
        for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
            alpha_bar = alphas_cumprod[t]
            alpha_bar_prev = alphas_cumprod[following] if following >= 0 else one
            if following == t - 1:
                beta, alpha = betas[t], alphas[t]
            else:
                beta = 1 - alpha_bar / alpha_bar_prev
                alpha = 1 - beta
            rest, rest_prev = 1 - alpha_bar, 1 - alpha_bar_prev
            variance = rest_prev / rest * beta
            steps.append(
                Step(
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
            )
        return steps


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
