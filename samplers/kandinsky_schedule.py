"""The diffusion of Kandinsky's latent decoders, respaced: linear betas; DDPM, DDIM or PLMS.

Source: diffusers' ``DDPMScheduler`` and ``DDIMScheduler``; the respacing of guided-diffusion and
the DDIM sampler of latent-diffusion, which ai-forever/Kandinsky-2 runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..edges import EdgeError
from .parts.schedule import (
    SPACINGS,
    Spacing,
    Step,
    ancestral_step,
    check_constants,
    check_strength,
    ddim_step,
    leading,
    linear_alphas_cumprod,
    noising,
)

Begin = Callable[[list[int], int, float], tuple[int, int]]


def whole_strides(total: int, count: int) -> list[int]:
    """Every whole stride of the schedule (CompVis's DDIM): more than ``count`` where that does not
    divide it."""
    return list(range(0, total, total // count))


def last_part(times: list[int], total: int, strength: float) -> tuple[int, int]:
    """The last ``strength`` of the steps, the picture noised for the first of them."""
    first = len(times) - int(len(times) * strength)
    return first, times[min(first, len(times) - 1)]


def last_part_apart(times: list[int], total: int, strength: float) -> tuple[int, int]:
    """The same steps, but the picture noised for a timestep of its own (diffusers' Kandinsky 2.1,
    after the original's)."""
    return last_part(times, total, strength)[0], max(0, int(total * strength) - 2)


def last_sums(times: list[int], total: int, strength: float) -> tuple[int, int]:
    """:func:`last_part` with the original's "strength", which says how much is kept; what both
    round down differs in a digit."""
    first = len(times) - _share(len(times), strength)
    return first, times[min(first, len(times) - 1)]


def up_to_share(times: list[int], total: int, strength: float) -> tuple[int, int]:
    """The original's DDIM: timesteps up to that share of the whole schedule, the picture noised for
    the one below it, whatever the steps are."""
    share = _share(total, strength)
    first = sum(t > share for t in times) if share else len(times)
    return first, max(0, share - 1)


def _share(count: int, strength: float) -> int:
    # The original multiplies by 1 - what is kept, and 1 - 0.43 is not the number 0.57.
    return int(count * (1 - round(1 - strength, 9)))


FIXED: dict[str, tuple[Any, Any]] = {
    "prediction_type": ("epsilon", "epsilon"),
    "trained_betas": (None, None),
    "rescale_betas_zero_snr": (False, False),
}
"""What :class:`LatentSchedule` takes for granted of DDPMScheduler and DDIMScheduler."""


@dataclass(frozen=True)
class LatentSchedule:
    """The published constants of a Kandinsky decoder's diffusion.

    diffusers and the original repository differ in them, so the loader fills them in: see
    :meth:`from_config`, and ``kandinsky_original.SAMPLERS``.

    Attributes:
        ancestral: DDPM, with noise in every step but the last; else DDIM without (eta 0).
        multistep: DDIM's steps with the noise extrapolated from earlier ones (PLMS).
        learned_range: the network's second half of channels interpolates between the bounds of
            the variance.
        beta_start, beta_end, beta_schedule: "linear" or "scaled_linear" betas.
        double_tables: compute them in float64, as the original repository does.
        spacing: the timesteps that so many steps take of so many, ascending; ``offset`` is added
            where they leave room for it.
        strided: DDIM steps back by a whole stride, wherever that leads, as diffusers does; else to
            the next timestep.
        clip_range: x0 is clamped to +- this; ``None`` leaves it alone.
        clip_first: clamp so also before thresholding, as the original repository does.
        thresholding: instead, x0 is clamped to +- its quantile ``ratio`` and divided by that, where
            it is between 1 and ``largest`` (Imagen's dynamic thresholding).
        known_in_x0: inpainting puts what is known into x0, before thresholding.
        begin: of descending timesteps, the length of the training schedule and a strength in 0..1,
            the place of the first step to run and the timestep that a picture is noised for.
        start_betas: the ends of the linear betas that noise a picture to begin with, where they
            are not the schedule's own (Kandinsky 2.1).
        final_one: DDIM ends at alphas_cumprod 1, else at the first of the table.
        num_train_timesteps: length of the training schedule.
    """

    ancestral: bool = True
    multistep: bool = False
    learned_range: bool = True
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "linear"
    double_tables: bool = False
    spacing: Spacing = leading
    offset: int = 0
    strided: bool = True
    clip_range: float | None = None
    clip_first: bool = False
    thresholding: bool = True
    ratio: float = 0.995
    largest: float = 2.0
    known_in_x0: bool = False
    begin: Begin = last_part
    start_betas: tuple[float, float] | None = None
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
        if spacing not in SPACINGS:
            raise EdgeError(f"the scheduler's timestep_spacing '{spacing}' is not known")
        ddim = name == "DDIMScheduler"
        variance = config.get("variance_type", "fixed_small")
        if not ddim and variance not in ("fixed_small", "fixed_small_log", "learned_range"):
            raise EdgeError(f"the scheduler's variance_type '{variance}' is not Kandinsky's")
        clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None
        return cls(
            ancestral=not ddim,
            learned_range=not ddim and variance == "learned_range",
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=betas,
            spacing=SPACINGS[spacing],
            # The library adds it to this spacing only.
            offset=int(config.get("steps_offset", 0)) if spacing == "leading" else 0,
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
            raise EdgeError(
                f"'num_inference_steps' is {count}; this schedule takes 1 to {total} steps"
            )
        chosen = [t + self.offset for t in self.spacing(total, count)]
        # Where both published codes would look behind the end of their tables and fail (1000
        # steps of diffusers; 3, 9, 27, 36, 1000 and others of the original), the end is taken.
        return sorted({min(t, total - 1) for t in chosen}, reverse=True)

    def alphas_cumprod(self) -> torch.Tensor:
        """``[T]``, in the published precision."""
        return self._products(self.beta_start, self.beta_end, self.beta_schedule == "scaled_linear")

    def _products(self, first: float, last: float, scaled: bool = False) -> torch.Tensor:
        dtype = torch.float64 if self.double_tables else torch.float32
        return linear_alphas_cumprod(first, last, self.num_train_timesteps, scaled, dtype)

    def sigmas(self) -> torch.Tensor:
        """Noise over signal ``[T]`` at every training timestep, in float64."""
        products = self.alphas_cumprod().double()
        return ((1 - products) / products).sqrt()

    def steps(self, num_inference_steps: int) -> list[Step]:
        """The coefficients of every step, equal to the published scheduler's bit for bit."""
        timesteps, table = self.timesteps(num_inference_steps), self.alphas_cumprod()
        following = [*timesteps[1:], -1]
        if self.ancestral:
            return [
                ancestral_step(table, t, after)
                for t, after in zip(timesteps, following, strict=True)
            ]
        if self.strided:
            stride = self.num_train_timesteps // num_inference_steps
            following = [t - stride for t in timesteps]
        final = torch.ones((), dtype=table.dtype) if self.final_one else table[0]
        return [
            ddim_step(table, t, after, final) for t, after in zip(timesteps, following, strict=True)
        ]

    def noised(
        self, num_inference_steps: int, strength: float
    ) -> tuple[list[Step], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """The last ``strength`` of the steps, and what noises a clean sample for the first.

        Raises:
            EdgeError: steps or strength out of range.
        """
        check_strength(strength)
        steps = self.steps(num_inference_steps)
        times = [step.timestep for step in steps]
        first, place = self.begin(times, self.num_train_timesteps, strength)
        steps = steps[first:]
        if not steps:
            return [], lambda clean, noise: clean
        ends = self.start_betas
        return steps, noising(
            self.alphas_cumprod() if ends is None else self._products(*ends), place
        )


def published_sigmas(
    schedule: LatentSchedule, num_inference_steps: int, strength: float
) -> torch.Tensor:
    """Noise over signal at the last ``strength`` of the published timesteps, and 0; empty at 0.

    Raises:
        EdgeError: steps or strength out of range.
    """
    steps, _ = schedule.noised(num_inference_steps, strength)
    sigmas = [step.sqrt_beta / step.sqrt_alpha for step in steps]
    return torch.tensor([*sigmas, 0.0] if sigmas else [])


def ancestral_steps(sigmas: list[float]) -> list[Step]:
    """The same steps for a host's sigmas, descending to 0: each is noise over signal."""
    alphas = 1 / (1 + torch.tensor(sigmas, dtype=torch.float64).square())
    steps = [ancestral_step(alphas, i, i + 1) for i in range(len(sigmas) - 1)]
    return [replace(step, last=sigma == 0) for step, sigma in zip(steps, sigmas[1:], strict=True)]
