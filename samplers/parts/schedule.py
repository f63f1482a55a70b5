"""Diffusion schedules, respaced, as numbers known before the loop starts.

A step's coefficients, the spacings of timesteps, and unCLIP's schedule (cosine betas).

Source: diffusers' ``UnCLIPScheduler``; the respacing of guided-diffusion; DDPM (Ho et al. 2020)
equations 6, 7 and 15; improved DDPM (Nichol & Dhariwal 2021) for the cosine betas and the learned
variance range; DDIM (Song et al. 2020) equation 12; PNDM (Liu et al. 2022) equation 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from ...edges import EdgeError

Number: TypeAlias = "float | torch.Tensor"
"""A float, or a tensor of one on the device that computes."""


@dataclass(frozen=True)
class Step:
    """Everything one denoising step needs, as Python floats, or as :func:`read_step` gives them.

    ``x0 = (x - sqrt_beta * eps) / sqrt_alpha`` (prediction "epsilon") and
    ``mean = x0_weight * x0 + sample_weight * x``. The noise added afterwards has deviation
    ``deviation``, or ``exp(0.5 * (f * max_log + (1 - f) * min_log))`` with the predicted
    ``f = (v + 1) / 2`` where the variance is learned. ``last`` steps add none.
    """

    timestep: int
    last: bool
    sqrt_alpha: Number
    sqrt_beta: Number
    x0_weight: Number
    sample_weight: Number
    deviation: Number
    min_log: Number
    max_log: Number


_NUMBERS = (
    "sqrt_alpha", "sqrt_beta", "x0_weight", "sample_weight", "deviation", "min_log", "max_log",
)  # fmt: skip


def step_table(steps: Sequence[Step], device: torch.device, *constants: float) -> torch.Tensor:
    """The numbers of every step ``[N, 7 + constants]``, fp32, for a step that is recorded.

    Args:
        constants: what each step is told beside, such as the guidance scale.
    """
    rows = [[float(getattr(step, name)) for name in _NUMBERS] + list(constants) for step in steps]
    return torch.tensor(rows, dtype=torch.float32).to(device)


def read_step(row: torch.Tensor) -> tuple[Step, list[torch.Tensor]]:
    """A row of :func:`step_table`: the step, whose timestep and whether it is the last it does not
    tell, and the constants."""
    numbers = row.unbind()
    return Step(-1, False, *numbers[: len(_NUMBERS)]), list(numbers[len(_NUMBERS) :])


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


Spacing = Callable[[int, int], list[int]]


def multiples(total: int, count: int) -> list[int]:
    """First to last timestep in even parts, each rounded by itself (diffusers' unCLIP)."""
    ratio = (total - 1) / (count - 1)
    return [round(k * ratio) for k in range(count)]


def sums(total: int, count: int) -> list[int]:
    """First to last timestep in even parts, one added to the other: guided-diffusion's respacing.
    Its rounding errors add up too, so 278 of the counts to 1000 hold another timestep than
    :func:`multiples`."""
    stride = (total - 1) / (count - 1) if count > 1 else 1
    chosen, place = [], 0.0
    for _ in range(count):
        chosen.append(round(place))
        place += stride
    return chosen


def linspace(total: int, count: int) -> list[int]:
    """First to last timestep in even parts (diffusers' "linspace")."""
    return [int(t) for t in np.linspace(0, total - 1, count).round()]


def leading(total: int, count: int) -> list[int]:
    """So many whole strides from the first timestep on (diffusers' "leading")."""
    return [t * (total // count) for t in range(count)]


def trailing(total: int, count: int) -> list[int]:
    """Even parts down from the last timestep (diffusers' "trailing")."""
    return [int(t) - 1 for t in np.round(np.arange(total, 0, -total / count))][::-1]


SPACINGS: dict[str, Spacing] = {"leading": leading, "trailing": trailing, "linspace": linspace}
"""diffusers' names."""


def linear_alphas_cumprod(
    first: float, last: float, total: int, scaled: bool, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``[total]`` of betas from ``first`` to ``last``, which are evenly spaced, or, ``scaled``,
    whose square roots are (diffusers' "scaled_linear")."""
    if scaled:
        betas = torch.linspace(first**0.5, last**0.5, total, dtype=dtype) ** 2
    else:
        betas = torch.linspace(first, last, total, dtype=dtype)
    return torch.cumprod(1 - betas, dim=0)


@dataclass(frozen=True)
class UnCLIPSchedule:
    """The published constants of one stage's diffusion.

    Attributes:
        prediction: what the network predicts, "sample" (x0) or "epsilon".
        variance: "fixed_small_log", or "learned_range" where the network's second half of
            channels interpolates between the bounds.
        clip_range: x0 is clamped to +- this; ``None`` leaves it alone.
        double_tables: compute the tables in float64, as the original repositories do; diffusers
            keeps them in float32, which moves the last step by 5e-4.
        spacing: the timesteps that so many steps take of so many, ascending.
        num_train_timesteps: length of the training schedule.
    """

    prediction: str = "epsilon"
    variance: str = "fixed_small_log"
    clip_range: float | None = 1.0
    double_tables: bool = False
    spacing: Spacing = multiples
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
                f"'num_inference_steps' is {num_inference_steps}; this schedule takes 2 to"
                f" {self.num_train_timesteps} steps"
            )
        return self.spacing(self.num_train_timesteps, num_inference_steps)[::-1]

    def betas(self) -> torch.Tensor:
        """``[T]`` betas of the squared-cosine schedule, capped at 0.999."""

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        count = self.num_train_timesteps
        values = [
            min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)
        ]
        return torch.tensor(values, dtype=torch.float64 if self.double_tables else torch.float32)

    def sigmas(self) -> torch.Tensor:
        """Noise over signal ``[T]`` at every training timestep, in float64."""
        products = torch.cumprod(1 - replace(self, double_tables=True).betas(), dim=0)
        return ((1 - products) / products).sqrt()

    def steps(self, num_inference_steps: int) -> list[Step]:
        """The coefficients of every step, equal to the published scheduler's bit for bit."""
        timesteps = self.timesteps(num_inference_steps)
        betas = self.betas()
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        steps = []
        for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
            beta = betas[t] if following == t - 1 else None
            steps.append(ancestral_step(alphas_cumprod, t, following, beta))
        return steps

    def noised(
        self, num_inference_steps: int, strength: float
    ) -> tuple[list[Step], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """The last ``strength`` of the steps, and what noises a clean sample for the first."""
        steps = part_of(self.steps(num_inference_steps), strength)
        if not steps:
            return [], lambda clean, noise: clean
        table = torch.cumprod(1.0 - self.betas(), dim=0)
        return steps, noising(table, steps[0].timestep)


def check_strength(strength: float) -> None:
    """Refuse what is no share of the steps.

    Raises:
        EdgeError: ``strength`` outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise EdgeError(f"'strength' is {strength}; it goes from 0 (as it was) to 1 (all anew)")


def part_of(steps: list[Step], strength: float) -> list[Step]:
    """The last ``strength`` (0..1) of the steps, rounded down as published; none at 0.

    Raises:
        EdgeError: ``strength`` outside 0..1.
    """
    check_strength(strength)
    return steps[len(steps) - int(len(steps) * strength) :]


def noising(
    alphas_cumprod: torch.Tensor, timestep: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``add(clean, noise)``, the noisy sample at this timestep."""
    alpha = alphas_cumprod[timestep]
    signal, rest = float(alpha**0.5), float((1 - alpha) ** 0.5)
    return lambda clean, noise: signal * clean + rest * noise


def ancestral_step(
    alphas_cumprod: torch.Tensor, t: int, following: int, beta: torch.Tensor | None = None
) -> Step:
    """A DDPM step from ``t`` to ``following`` (-1: to the end). ``beta`` is what the
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


def ddim_step(alphas_cumprod: torch.Tensor, t: int, following: int, final: torch.Tensor) -> Step:
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
    """One ancestral step from ``x`` towards ``x0``; ``noise`` is ``None``, or zeros, at the last
    step."""
    mean = step.x0_weight * x0 + step.sample_weight * x
    if noise is None:
        return mean
    if predicted_variance is None:
        return mean + step.deviation * noise
    fraction = (predicted_variance + 1) / 2
    log_variance = fraction * step.max_log + (1 - fraction) * step.min_log
    return mean + (0.5 * log_variance).exp() * noise


def denoised(step: Step, x0: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """One DDIM step: noise goes back onto ``x0``, as much as the next step expects."""
    return step.x0_weight * x0 + step.sample_weight * eps


def multistep_noise(past: list[torch.Tensor]) -> torch.Tensor:
    """The noise of a linear multistep (Adams-Bashforth) of order 2 to 4.

    Args:
        past: two predictions or more, the latest first; the fourth is the oldest that counts.
    """
    weights = _ADAMS_BASHFORTH[min(len(past), 4)]
    return sum(weight * eps for weight, eps in zip(weights, past, strict=False))


_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
