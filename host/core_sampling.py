"""ComfyUI's KSampler and SamplerCustom for the headless runner: Kandinsky's decoders and KOALA.

Only the sampler "euler" with the schedules "normal" and "simple", and Kandinsky's own; the numbers
are the host's (``comfy/samplers.py``, ``comfy/model_sampling.py``, ``comfy/k_diffusion``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..edges import (
    check_pooled,
    conditioning_to_embeds,
    conditioning_to_sdxl,
    sizes_beside,
    text_beside,
)
from ..networks.unet import prepare_latent_decoder
from ..samplers.guidance import guide
from ..samplers.koala import LATENT_SCALE
from ..samplers.latent import keep_mask, mode_of, sample_from_sigmas
from ..samplers.noise import generators, randn
from ..samplers.schedule import UnCLIPSchedule
from . import embedded_io as io
from .embedded import (
    KoalaModel,
    koala_facts,
    latent_sampler,
    offload,
    open_latent_decoder,
    progress,
    use,
    use_koala,
)
from .workflow import WorkflowError

SAMPLERS, SCHEDULERS = ["euler"], ["normal", "simple"]
SEED = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}


class KSampler(io.ComfyNode):
    """A decoder sampled by name of sampler and schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            "KSampler",
            category="sampling",
            inputs=[
                io.Model.Input("model"),
                io.Int.Input("seed", **SEED),
                io.Int.Input("steps", default=20, min=1, max=10000),
                io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1),
                io.Combo.Input("sampler_name", options=SAMPLERS),
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
        levels = noise_levels(model)
        count = steps if denoise > 0.9999 else int(steps / denoise)
        sigmas = schedule(levels, scheduler, count)[-(steps + 1) :]
        samples = sample(model, seed, cfg, positive, negative, sampler_name, sigmas, latent_image)
        return io.NodeOutput({**latent_image, "samples": samples})


class SamplerCustom(io.ComfyNode):
    """A decoder sampled by a SAMPLER over SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            "SamplerCustom",
            category="sampling/custom_sampling",
            inputs=[
                io.Model.Input("model"),
                io.Boolean.Input("add_noise", default=True),
                io.Int.Input("noise_seed", **SEED),
                io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Sampler.Input("sampler"),
                io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"),
            ],
            outputs=[io.Latent.Output(display_name="output"), io.Latent.Output()],
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
        sampler: str,
        sigmas: torch.Tensor,
        latent_image: dict,
    ) -> io.NodeOutput:
        if not add_noise:
            raise WorkflowError("the headless SamplerCustom always adds noise; run it in ComfyUI")
        samples = sample(
            model, noise_seed, cfg, positive, negative, sampler, sigmas.tolist(), latent_image
        )
        out = {**latent_image, "samples": samples}
        return io.NodeOutput(out, out)


def noise_levels(model: Any) -> torch.Tensor:
    """Noise over signal at every training timestep, ascending."""
    if isinstance(model, KoalaModel):
        return torch.from_numpy(koala_facts(model).schedule.levels())
    alphas = open_latent_decoder(model)[1].schedule.alphas_cumprod().double()
    return ((1 - alphas) / alphas).sqrt().float()


def schedule(levels: torch.Tensor, name: str, steps: int) -> list[float]:
    """The host's noise levels for so many steps, and 0."""
    if name == "simple":
        stride = len(levels) / steps
        chosen = [float(levels[-(1 + int(i * stride))]) for i in range(steps)]
    else:
        places = torch.linspace(len(levels) - 1, 0, steps)
        low, high = places.floor().long(), places.ceil().long()
        logs = levels.log()
        chosen = torch.lerp(logs[low], logs[high], places.frac()).exp().tolist()
    return [*chosen, 0.0]


@dataclass(frozen=True)
class Prepared:
    """A network with its conditioning held fixed.

    Attributes:
        predict: ``(x [R * B, c, h, w], step index)`` → noise, and whatever channels follow.
        device, dtype: where and in what it runs.
        beside: further input channels ``[R * B, c', h, w]``, as a rule none.
    """

    predict: Callable[[torch.Tensor, int], torch.Tensor]
    device: torch.device
    dtype: torch.dtype
    beside: tuple[torch.Tensor, ...] = ()


@torch.no_grad()
def sample(
    model: Any,
    seed: int,
    cfg: float,
    positive: list,
    negative: list,
    sampler: str,
    sigmas: list[float],
    latent_image: dict,
) -> torch.Tensor:
    """Latents as the host samples them.

    Raises:
        EdgeError: conditioning of another kind than the model's.
        WorkflowError: a sampler that only ComfyUI has.
    """
    koala = isinstance(model, KoalaModel)
    if sampler not in (*SAMPLERS, *(() if koala else (latent_sampler(),))):
        raise WorkflowError(f"the headless runner has no sampler '{sampler}'; run it in ComfyUI")
    scale = LATENT_SCALE if koala else 1.0
    start = latent_image["samples"].float() * scale
    noise = torch.randn(start.shape, generator=torch.manual_seed(seed))
    sides = [positive] if math.isclose(cfg, 1.0) else [negative, positive]
    levels = noise_levels(model)
    times = [int((levels.log() - math.log(s)).abs().argmin()) for s in sigmas[:-1]]
    mask = latent_image.get("noise_mask")
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-2:])
    if koala:
        width = koala_facts(model).widths[1]
        sides = [_pooled_by_images(side, width, seed) for side in sides]
    prepare = _koala if koala else _kandinsky
    network = prepare(model, sides, start, mask, times)
    start, noise = start.to(network.device), noise.to(network.device)
    if mask is not None:
        mask = F.interpolate(mask[:, None], start.shape[2:], mode="bilinear").to(network.device)
    places = {sigma: i for i, sigma in enumerate(sigmas)}

    def noised(sigma: float) -> torch.Tensor:
        fully = sigma >= float(levels[-1]) or math.isclose(sigma, float(levels[-1]), rel_tol=1e-5)
        return noise * ((1 + sigma**2) ** 0.5 if fully else sigma) + start

    def denoise(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        if mask is not None:
            x = x * mask + (noise * sigma + start) * (1 - mask)
        scaled = x / (1 + sigma**2) ** 0.5
        both = torch.cat([torch.cat([scaled] * len(sides)), *network.beside], dim=1)
        out = network.predict(both.to(network.dtype), places[sigma]).float()
        channels = start.shape[1]
        eps, variance = out[:, :channels], out[-len(start) :, channels:]
        x0 = torch.cat([x] * len(sides)) - sigma * eps
        x0 = guide(*x0.chunk(2), cfg) if len(sides) == 2 else x0
        if mask is not None:
            x0 = x0 * mask + start * (1 - mask)
        return x0, variance

    update = progress(len(sigmas) - 1)
    x = noised(sigmas[0])
    if sampler in SAMPLERS:
        return offload(euler(denoise, x, sigmas, update) / scale)
    own = open_latent_decoder(model)[1].schedule
    streams = generators(seed + 1, len(start))

    def ranged(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        x0, variance = denoise(x, sigma)
        return x0, variance if own.learned_range else None

    return offload(
        sample_from_sigmas(
            ranged,
            own,
            x,
            sigmas,
            lambda: randn(tuple(start.shape[1:]), streams, network.device),
            lambda i, x0, x: update(i + 1),
        )
    )


def _names(sides: list) -> tuple[str, ...]:
    return ("negative", "positive")[-len(sides) :]


def _pooled_by_images(side: list, width: int, seed: int) -> list:
    """A prompt with unCLIPConditioning's image embedding in the place of its pooled one, noised as
    the host's SDXL does (``comfy/model_base.py``, ``unclip_adm``).

    Raises:
        EdgeError: of another width.
        WorkflowError: more than one, whose sum the host noises again without a seed.
    """
    made, products = [], (1 - UnCLIPSchedule(double_tables=True).betas()).cumprod(0)
    for hidden, extra in side:
        extra = dict(extra)
        carried = extra.pop("unclip_conditioning", [])
        rows = [row for e in carried for row in check_pooled(e["clip_vision_output"], width)]
        if len(rows) > 1:
            raise WorkflowError(
                "the headless runner takes one image embedding a prompt; run it in ComfyUI, or mix"
                " them with 'Mix Image Embeddings'"
            )
        if rows:
            level = round(999 * carried[0]["noise_augmentation"])
            kept = float(products[level])
            noise = torch.randn(1, width, generator=torch.manual_seed(seed - 10))
            pooled = kept**0.5 * rows[0].float()[None] + (1 - kept) ** 0.5 * noise
            extra["pooled_output"] = pooled * carried[0]["strength"]
        made.append([hidden, extra])
    return made


def _koala(
    model: KoalaModel,
    sides: list,
    start: torch.Tensor,
    mask: torch.Tensor | None,
    times: list[int],
) -> Prepared:
    """A U-Net of SDXL's kind; where a prompt names no sizes, they are the host's 768."""
    facts, count = koala_facts(model), len(start)
    prepare, device, dtype = use_koala(model, 0)
    texts = [
        conditioning_to_sdxl(side, facts.widths, name)
        for name, side in zip(_names(sides), sides, strict=True)
    ]
    default = torch.tensor([sizes_beside({})])
    hidden = torch.cat([t.hidden.expand(count, -1, -1) for t in texts]).to(device, dtype)
    pooled = torch.cat([t.pooled.expand(count, -1) for t in texts]).to(device, dtype)
    sizes = [default if t.time_ids is None else t.time_ids for t in texts]
    ids = torch.cat([s.expand(count, -1) for s in sizes]).to(device)
    return Prepared(prepare(hidden, pooled, ids, times), device, dtype)


def _kandinsky(
    model: Any, sides: list, start: torch.Tensor, mask: torch.Tensor | None, times: list[int]
) -> Prepared:
    """A Kandinsky decoder, of whatever mode."""
    managed, loaded = open_latent_decoder(model)
    network, device, dtype = use(managed)
    count, names = len(start), _names(sides)
    rows = [
        conditioning_to_embeds(side, loaded.space, name).expand(count, -1)
        for name, side in zip(names, sides, strict=True)
    ]
    conditions = {"image_embeds": torch.cat(rows).to(device, dtype)}
    depth = sides[-1][0][1].get("depth_hint")
    if depth is not None and mode_of(network) == "depth":
        size = (8 * start.shape[2], 8 * start.shape[3])
        hint = F.interpolate(depth, size, mode="bilinear", antialias=True)
        hint = hint.expand(count, -1, -1, -1)
        conditions["hint"] = torch.cat([hint] * len(sides)).to(device, dtype)
    beside: tuple[torch.Tensor, ...] = ()
    if mode_of(network) == "inpainting":
        seen = torch.zeros_like(start[:, :1])
        if mask is not None:
            seen = keep_mask(mask, start.shape[2:]).expand(count, -1, -1, -1)
        beside = tuple(torch.cat([p.to(device)] * len(sides)) for p in (start * seen, seen))
    hidden = None
    if loaded.text_space is not None:
        texts = [
            text_beside(side[0][1], loaded.text_space, name)
            for name, side in zip(names, sides, strict=True)
        ]
        hidden = torch.cat([t.hidden.expand(count, -1, -1) for t in texts]).to(device, dtype)
        pooled = torch.cat([t.pooled.expand(count, -1) for t in texts])
        conditions["text_embeds"] = pooled.to(device, dtype)
    predict = prepare_latent_decoder(network, conditions, times, hidden)
    return Prepared(predict, device, dtype, beside)


def euler(
    denoise: Callable[[torch.Tensor, float], tuple[torch.Tensor, Any]],
    x: torch.Tensor,
    sigmas: list[float],
    update: Callable[[int], None],
) -> torch.Tensor:
    """Euler's method (Karras et al. 2022, algorithm 2, without churn)."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0, _ = denoise(x, sigma)
        x = x + (x - x0) / sigma * (following - sigma)
        update(i + 1)
    return x
