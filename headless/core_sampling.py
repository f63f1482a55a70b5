"""ComfyUI's samplers for the headless runner.

The samplers and schedules of :data:`SAMPLERS` and :data:`SCHEDULERS`, and a system's own; the
numbers are the host's (``comfy/samplers.py``, ``comfy/model_sampling.py``, ``comfy/k_diffusion``).
Rows of prompts, masks and maps are repeated in turn or cut to as many as there are latents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..host.embedded import io as io
from ..host.embedded.door import (
    offload,
    progress,
    stop_if_asked,
)
from ..host.embedded.rows import fitted
from ..host.embedded.sampling import Prepared, Prompt
from ..samplers.parts.guidance import guide
from .workflow import WorkflowError

SCHEDULERS = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]
SEED = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}
MOST_STEPS = 1_000_000
"""Of a whole schedule: 'steps' at most, with a 'denoise' of 0.01."""
STEPS = {"default": 20, "min": 1, "max": 10000}
CFG = {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""``(x [B, 4, h, w], sigma) -> x0``, after guidance."""

Draw = Callable[[], torch.Tensor]
"""Noise like x."""

Report = Callable[[int, torch.Tensor], None]
"""Called with (steps done, x0) after each step."""


# -- samplers ------------------------------------------------------------------------------------


def euler(
    denoise: Denoise, x: torch.Tensor, sigmas: list[float], draw: Draw, report: Report
) -> torch.Tensor:
    """Euler's method (Karras et al. 2022, algorithm 2, without churn)."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i + 1, x0)
        x = x + (x - x0) / sigma * (following - sigma)
    return x


def euler_ancestral(
    denoise: Denoise, x: torch.Tensor, sigmas: list[float], draw: Draw, report: Report
) -> torch.Tensor:
    """Euler's method to below the next level, and noise back up to it."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i + 1, x0)
        spread = following**2 * (sigma**2 - following**2) / sigma**2
        up = min(following, max(0.0, spread) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = x0 if down == 0 else x + (x - x0) / sigma * (down - sigma) + draw() * up
    return x


def heun(
    denoise: Denoise, x: torch.Tensor, sigmas: list[float], draw: Draw, report: Report
) -> torch.Tensor:
    """Heun's method (Karras et al. 2022, algorithm 2, without churn)."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i + 1, x0)
        slope = (x - x0) / sigma
        there = x + slope * (following - sigma)
        if following > 0:
            end = (there - denoise(there, following)) / following
            there = x + (slope + end) / 2 * (following - sigma)
        x = there
    return x


def dpmpp_2m(
    denoise: Denoise, x: torch.Tensor, sigmas: list[float], draw: Draw, report: Report
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095)."""
    before = None
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0 = aim = denoise(x, sigma)
        report(i + 1, x0)
        if before is not None and following > 0:
            share = math.log(sigma / following) / math.log(sigmas[i - 1] / sigma) / 2
            aim = x0 + share * (x0 - before)
        x = following / sigma * x + (1 - following / sigma) * aim
        before = x0
    return x


def ddpm(
    denoise: Denoise, x: torch.Tensor, sigmas: list[float], draw: Draw, report: Report
) -> torch.Tensor:
    """Ancestral sampling (Ho et al. 2020) with the smaller variance."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i + 1, x0)
        product, product_next = 1 / (sigma**2 + 1), 1 / (following**2 + 1)
        alpha = product / product_next
        eps = (x - x0) / sigma
        x = (x * product**0.5 - (1 - alpha) / (1 - product) ** 0.5 * eps) / alpha**0.5
        if following > 0:
            x = x + ((1 - alpha) * (1 - product_next) / (1 - product)) ** 0.5 * draw()
            x = x * (1 + following**2) ** 0.5
    return x


def lcm(
    denoise: Denoise, x: torch.Tensor, sigmas: list[float], draw: Draw, report: Report
) -> torch.Tensor:
    """Latent consistency (Luo et al. 2023): to the picture, and noise back up to the next level."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x = denoise(x, sigma)
        report(i + 1, x)
        if following > 0:
            x = x + draw() * following
    return x


SAMPLERS: dict[str, Callable[..., torch.Tensor]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ddpm": ddpm,
    "lcm": lcm,
    "ddim": euler,  # around a mask with other noise
}


# -- schedules -----------------------------------------------------------------------------------


def noise_levels(model: Any) -> torch.Tensor:
    """Noise over signal at every training timestep, ascending, fp32.

    Raises:
        WorkflowError: a MODEL that native samplers run in ComfyUI only.
    """
    if not hasattr(model, "sigmas"):
        raise WorkflowError(refusal(model.kind, model.own_node))
    return model.sigmas()


def schedule(levels: torch.Tensor, name: str, steps: int) -> list[float]:
    """The host's sigmas for so many steps, and 0: one of :data:`SCHEDULERS`.

    Raises:
        WorkflowError: a schedule without so few steps.
    """
    low, high = float(levels[0]), float(levels[-1])
    if name == "simple":
        stride = len(levels) / steps
        chosen = [float(levels[-(1 + int(i * stride))]) for i in range(steps)]
    elif name == "ddim_uniform":
        chosen = levels[1 :: max(len(levels) // steps, 1)].flip(0).tolist()
    elif name == "karras":
        ramp = torch.linspace(0, 1, steps)
        ends = high ** (1 / 7), low ** (1 / 7)
        chosen = ((ends[0] + ramp * (ends[1] - ends[0])) ** 7).tolist()
    elif name == "exponential":
        chosen = torch.linspace(math.log(high), math.log(low), steps).exp().tolist()
    elif name == "kl_optimal":
        if steps == 1:
            raise WorkflowError(
                "'scheduler' is 'kl_optimal' with one step, of which ComfyUI makes no picture; take"
                " two or more"
            )
        ramp = torch.arange(steps, dtype=torch.float32) / (steps - 1)
        chosen = (ramp * math.atan(low) + (1 - ramp) * math.atan(high)).tan().tolist()
    elif name == "linear_quadratic":
        chosen = [(1 - share) * high for share in _linear_quadratic(steps)]
    else:
        count = steps + (name == "sgm_uniform")
        places = torch.linspace(len(levels) - 1, 0, count)[:steps]
        below, above = places.floor().long(), places.ceil().long()
        logs = levels.log()
        chosen = torch.lerp(logs[below], logs[above], places.frac()).exp().tolist()
    return [*chosen, 0.0]


def _linear_quadratic(steps: int, threshold: float = 0.025) -> list[float]:
    """How much of the noise is gone at each step: evenly to the threshold for half of the steps,
    then by a parabola that goes on from there."""
    if steps == 1:
        return [0.0]
    even = steps // 2
    rest = steps - even
    over = even - threshold * steps
    square = over / (even * rest**2)
    slope = threshold / even - 2 * over / rest**2
    start = square * even**2
    curve = [square * i**2 + slope * i + start for i in range(even, steps)]
    return [i * threshold / even for i in range(even)] + curve


# -- nodes ---------------------------------------------------------------------------------------


def own_sampler(values: Mapping[str, Any], sources: Mapping[str, str]) -> str | None:
    """Why a native sampler does not run headless, known before anything does.

    Args:
        values: its widgets.
        sources: classes of the nodes that are wired to it, by input.
    """
    from ..nodes import NODES

    wired = sources.get("model")
    found = next((node for node in NODES if node.define_schema().node_id == wired), None)
    kind = getattr(found, "SAMPLED_BY", None)
    return refusal(*kind) if kind is not None else None


def refusal(kind: str, own_node: str) -> str:
    """What a user is told whose MODEL native samplers do not run headless."""
    return (
        f"headless, native samplers do not run {kind}; sample it with '{own_node}', or run this in"
        " ComfyUI"
    )


class KSampler(io.ComfyNode):
    """A decoder sampled by name of sampler and schedule."""

    EQUAL = "to 1e-3 in the latents"
    REFUSED = "MODELs in pixel space"
    only_in_comfyui = staticmethod(own_sampler)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            "KSampler",
            category="sampling",
            inputs=[
                io.Model.Input("model"),
                io.Int.Input("seed", **SEED),
                io.Int.Input("steps", **STEPS),
                io.Float.Input("cfg", **CFG),
                io.Combo.Input("sampler_name", options=list(SAMPLERS)),
                io.Combo.Input("scheduler", options=SCHEDULERS),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: list,
        negative: list,
        latent_image: dict,
        denoise: float,
    ) -> io.NodeOutput:
        if denoise <= 0:
            return io.NodeOutput(latent_image)
        sigmas = _sigmas(model, scheduler, steps, 1.0 if denoise > 0.9999 else denoise)
        made, _ = sample(model, seed, cfg, positive, negative, sampler_name, sigmas, latent_image)
        return io.NodeOutput(made)


class KSamplerAdvanced(io.ComfyNode):
    """Some of a schedule's steps."""

    EQUAL = KSampler.EQUAL
    REFUSED = KSampler.REFUSED
    only_in_comfyui = KSampler.only_in_comfyui

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            "KSamplerAdvanced",
            category="sampling",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("add_noise", options=["enable", "disable"]),
                io.Int.Input("noise_seed", **SEED),
                io.Int.Input("steps", **STEPS),
                io.Float.Input("cfg", **CFG),
                io.Combo.Input("sampler_name", options=list(SAMPLERS)),
                io.Combo.Input("scheduler", options=SCHEDULERS),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Int.Input("start_at_step", default=0, min=0, max=10000),
                io.Int.Input("end_at_step", default=10000, min=0, max=10000),
                io.Combo.Input("return_with_leftover_noise", options=["disable", "enable"]),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: list,
        negative: list,
        latent_image: dict,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
    ) -> io.NodeOutput:
        sigmas = _sigmas(model, scheduler, steps, 1.0)
        if end_at_step < len(sigmas) - 1:
            sigmas = sigmas[: end_at_step + 1]
            if return_with_leftover_noise == "disable":
                sigmas[-1] = 0.0
        if start_at_step >= len(sigmas) - 1:
            return io.NodeOutput(latent_image)
        made, _ = sample(
            model,
            noise_seed,
            cfg,
            positive,
            negative,
            sampler_name,
            sigmas[start_at_step:],
            latent_image,
            noisy=add_noise == "enable",
        )
        return io.NodeOutput(made)


class SamplerCustom(io.ComfyNode):
    """A decoder sampled by a SAMPLER over SIGMAS."""

    EQUAL = KSampler.EQUAL
    REFUSED = KSampler.REFUSED
    only_in_comfyui = KSampler.only_in_comfyui

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            "SamplerCustom",
            category="sampling/custom_sampling",
            inputs=[
                io.Model.Input("model"),
                io.Boolean.Input("add_noise", default=True),
                io.Int.Input("noise_seed", **SEED),
                io.Float.Input("cfg", **CFG),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Sampler.Input("sampler"),
                io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"),
            ],
            outputs=[
                io.Latent.Output(display_name="output"),
                io.Latent.Output(display_name="denoised_output"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        add_noise: bool,
        noise_seed: int,
        cfg: float,
        positive: list,
        negative: list,
        sampler: Any,
        sigmas: torch.Tensor,
        latent_image: dict,
    ) -> io.NodeOutput:
        if not len(sigmas):
            return io.NodeOutput(latent_image, latent_image)
        out, denoised = sample(
            model,
            noise_seed,
            cfg,
            positive,
            negative,
            sampler,
            sigmas.tolist(),
            latent_image,
            noisy=add_noise,
        )
        return io.NodeOutput(out, denoised)


class KSamplerSelect(io.ComfyNode):
    """A sampler by name."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("sampler_name", options=list(SAMPLERS))]
        return io.Schema(
            "KSamplerSelect", category="sampling", inputs=inputs, outputs=[io.Sampler.Output()]
        )

    @classmethod
    def execute(cls, sampler_name: str) -> io.NodeOutput:
        return io.NodeOutput(sampler_name)


class BasicScheduler(io.ComfyNode):
    """A model's sigmas by name of schedule."""

    EQUAL = "to 1e-6 of a level"
    REFUSED = KSampler.REFUSED
    only_in_comfyui = KSampler.only_in_comfyui

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Model.Input("model"),
            io.Combo.Input("scheduler", options=SCHEDULERS),
            io.Int.Input("steps", **STEPS),
            io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
        ]
        return io.Schema(
            "BasicScheduler", category="sampling", inputs=inputs, outputs=[io.Sigmas.Output()]
        )

    @classmethod
    def execute(cls, model: Any, scheduler: str, steps: int, denoise: float) -> io.NodeOutput:
        sigmas = [] if denoise <= 0 else _sigmas(model, scheduler, steps, denoise)
        return io.NodeOutput(torch.tensor(sigmas))


def _sigmas(model: Any, scheduler: str, steps: int, denoise: float) -> list[float]:
    """The last ``steps`` of a schedule that would take the whole noise away.

    Raises:
        WorkflowError: of which there are too many.
    """
    if steps / denoise > MOST_STEPS:
        raise WorkflowError(
            f"'denoise' is {denoise} with {steps} steps: the last of {steps / denoise:.3g}, for"
            " which memory does not suffice. Take a larger 'denoise', or 0 to leave the latent as"
            " it is"
        )
    return schedule(noise_levels(model), scheduler, int(steps / denoise))[-(steps + 1) :]


# -- sampling ------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    model: Any,
    seed: int,
    cfg: float,
    positive: list,
    negative: list,
    sampler: Any,
    sigmas: list[float],
    latent_image: dict,
    *,
    noisy: bool = True,
) -> tuple[dict, dict]:
    """Latents as the host samples them, and what the last step took for the picture.

    Args:
        noisy: begin with noise, drawn by the latents' ``batch_index`` where they have one.

    Raises:
        EdgeError: conditioning of another kind than the model's.
        WorkflowError: a MODEL, a sampler or a LATENT that does not fit.
    """
    levels, scale = noise_levels(model), model.scale
    _check_sampler(sampler, model)
    samples = _channels(latent_image["samples"].float())
    start = samples * scale
    noise = _noise(start, seed, latent_image.get("batch_index"))
    noise = noise if noisy else torch.zeros_like(start)
    prompts = _prompts(positive, negative, cfg)
    times = [int((levels.log() - math.log(s)).abs().argmin()) if s else 0 for s in sigmas]
    mask = _mask_like(latent_image.get("noise_mask"), start)
    network = model.prepare(prompts, start, mask, times, seed)
    start, noise = start.to(network.device), noise.to(network.device)
    around = noise
    if sampler == "ddim":
        around = torch.randn(start.shape, generator=torch.manual_seed(seed + 1))
        around = around.to(network.device)
    if mask is not None:
        mask = mask.to(network.device)
    places = {sigma: i for i, sigma in enumerate(sigmas)}
    sides = [name for name, _ in prompts]
    denoiser = _Denoiser(network, start, around, mask, places, sides, cfg)
    last: dict[str, torch.Tensor] = {}
    update = progress(len(sigmas) - 1)

    def report(step: int, x0: torch.Tensor) -> None:
        last["x0"] = x0
        update(step)

    first = sigmas[0]
    fully = first >= float(levels[-1]) or math.isclose(first, float(levels[-1]), rel_tol=1e-5)
    x = noise * ((1 + first**2) ** 0.5 if fully else first) + start
    if isinstance(sampler, str):
        draw = _drawing(x, seed)
        x = SAMPLERS[sampler](lambda x, sigma: denoiser(x, sigma)[0], x, sigmas, draw, report)
    else:
        x = sampler.sample(model, denoiser, x, sigmas, seed, report)
    made, seen = offload(x / scale), offload(last.get("x0", x) / scale)
    return {**latent_image, "samples": made}, {**latent_image, "samples": seen}


@dataclass(frozen=True)
class _Denoiser:
    """A network under guidance, within a mask.

    Attributes:
        network: with its prompts held fixed.
        start: latents ``[B, C, h, w]``, scaled; around: the noise on them outside of the mask.
        mask: ``[B, 1, h, w]``, 1 is painted anew.
        places: which step each sigma is of.
        sides: of the guidance, that each prompt is on: "negative", then "positive".
        cfg: the guidance scale.
    """

    network: Prepared
    start: torch.Tensor
    around: torch.Tensor
    mask: torch.Tensor | None
    places: Mapping[float, int]
    sides: list[str]
    cfg: float

    def __call__(self, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The picture that is seen, and the learned variance of the last positive prompt."""
        network, sides, mask = self.network, self.sides, self.mask
        if mask is not None:
            x = x * mask + (self.around * sigma + self.start) * (1 - mask)
        scaled = x / (1 + sigma**2) ** 0.5
        seen = torch.cat([torch.cat([scaled] * len(sides)), *network.beside], dim=1)
        out = network(seen.to(network.dtype), self.places[sigma]).float()
        count, channels = self.start.shape[:2]
        parts = [x - sigma * eps for eps in out[:, :channels].chunk(len(sides))]
        split = sides.count("negative")
        x0 = sum(parts[split:]) / len(parts[split:])
        if split:
            x0 = guide(sum(parts[:split]) / split, x0, self.cfg)
        if mask is not None:
            x0 = x0 * mask + self.start * (1 - mask)
        return x0, out[-count:, channels:]


def _check_sampler(sampler: Any, model: Any) -> None:
    """Refuse a sampler that is not here, or a system's own for another model.

    Raises:
        WorkflowError: says which.
    """
    if not isinstance(sampler, str):
        sampler.check(model)
    elif sampler not in SAMPLERS:
        raise WorkflowError(f"the headless runner has no sampler '{sampler}'; run it in ComfyUI")


def _prompts(positive: list, negative: list, cfg: float) -> list[Prompt]:
    """The prompts of both sides, the negative ones first; none of those without guidance.

    Raises:
        WorkflowError: a side without any.
    """
    for name, side in (("positive", positive), ("negative", negative)):
        if not side:
            raise WorkflowError(f"'{name}' got an empty CONDITIONING; wire a prompt into it")
    sides = [("negative", negative)] if not math.isclose(cfg, 1.0) else []
    return [(name, entry) for name, side in [*sides, ("positive", positive)] for entry in side]


def _mask_like(mask: torch.Tensor | None, start: torch.Tensor) -> torch.Tensor | None:
    """A noise mask ``[B, 1, h, w]`` for latents ``[B, C, h, w]``."""
    if mask is None:
        return None
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return fitted(F.interpolate(mask, start.shape[2:], mode="bilinear"), len(start))


def _channels(samples: torch.Tensor) -> torch.Tensor:
    """Latents of four channels; empty ones of another system are made so, as in the host.

    Raises:
        WorkflowError: others that hold something.
    """
    channels = samples.shape[1]
    if channels == 4:
        return samples
    if samples.any():
        raise WorkflowError(
            f"'latent_image' has {channels} channels, but 'model' samples latents of 4; wire"
            " 'Empty Latent Image', or a picture through VAE Encode with the model's own VAE"
        )
    return samples.new_zeros(len(samples), 4, *samples.shape[2:])


def _noise(like: torch.Tensor, seed: int, indices: list[int] | None) -> torch.Tensor:
    """The host's noise: of a whole batch at once, or each latent's by its number."""
    stream = torch.manual_seed(seed)
    if indices is None:
        return torch.randn(like.shape, generator=stream)
    one = (1, *like.shape[1:])
    wanted, rows = set(indices), {}
    for i in range(max(indices) + 1):
        stop_if_asked()
        row = torch.randn(one, generator=stream)
        if i in wanted:
            rows[i] = row
    return torch.cat([rows[i] for i in indices])


def _drawing(x: torch.Tensor, seed: int) -> Draw:
    """The noise that ancestral samplers add, from the device that computes.

    The stream begins with the first draw: the largest seed has no next one on a CPU, which is no
    matter to samplers without noise.
    """
    streams: list[torch.Generator] = []

    def draw() -> torch.Tensor:
        if not streams:
            own = seed + (x.device.type == "cpu")
            streams.append(torch.Generator(x.device).manual_seed(own))
        return torch.randn(x.shape, generator=streams[0], device=x.device)

    return draw


SAMPLING_NODES = [KSampler, KSamplerAdvanced, SamplerCustom, KSamplerSelect, BasicScheduler]
