"""Kandinsky 2.1 as its original repository samples it, against plain loops written for this test.

The loops follow DDIM (Song et al. 2020, equation 12), PNDM's linear multistep (Liu et al. 2022) and
DDPM with a learned variance range (Nichol & Dhariwal 2021), with the constants and the order of
operations of ai-forever/Kandinsky-2, in float64. The network is a formula.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prior_art.edges import EdgeError
from prior_art.loaders.kandinsky_keys import SAMPLERS, schedule_of
from prior_art.loaders.unclip import original_schedule
from prior_art.loaders.unclip_keys import SCHEDULE
from prior_art.samplers.kandinsky import Canvas, Condition, Known, sample_latents
from prior_art.samplers.kandinsky_schedule import LatentSchedule, last_part_apart
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling, Start
from prior_art.samplers.parts.schedule import UnCLIPSchedule

SHAPE, SCALE = (4, 6, 6), 3.0
EMBEDS = torch.tensor([[0.5]]), torch.tensor([[-0.4]])
BETAS = np.linspace(0.00085, 0.012, 1000)
BARS = np.cumprod(1 - BETAS)
START_BARS = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))


class Formula(nn.Module):
    """Noise and variance ``[B, 8, h, w]`` as a function of everything that a decoder is given."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.down_blocks, self.mid_block, self.up_blocks = [], nn.Identity(), []
        self.config = SimpleNamespace(
            in_channels=channels, out_channels=8, encoder_hid_dim_type="image_proj"
        )

    def forward(self, x: Any, t: Any, hidden: Any = None, added_cond_kwargs: Any = None) -> Any:
        weights = torch.linspace(-0.6, 0.7, 8 * x.shape[1], dtype=x.dtype).reshape(8, -1)
        wave = added_cond_kwargs["image_embeds"].to(x.dtype)[:, :, None, None] * np.cos(t / 200)
        out = torch.tanh(torch.einsum("oc,bchw->bohw", weights, x) + wave)
        return SimpleNamespace(
            sample=torch.cat([out[:, :4] + 0.5 * (t / 1000) ** 0.5 * x[:, :4], out[:, 4:]], 1)
        )


PICTURE = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(8))
KEEP = (torch.rand(1, 1, *SHAPE[1:], generator=torch.Generator().manual_seed(9)) > 0.5).float()


def predicted(x: torch.Tensor, t: int, inpaint: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Guided noise and the conditional variance."""
    seen = torch.cat([x, PICTURE * KEEP, KEEP], 1) if inpaint else x
    formula = Formula(seen.shape[1])
    yes, no = (formula(seen, t, None, {"image_embeds": e}).sample for e in EMBEDS)
    return no[:, :4] + SCALE * (yes[:, :4] - no[:, :4]), yes[:, 4:]


def started(noise: torch.Tensor, t: int) -> torch.Tensor:
    return START_BARS[t] ** 0.5 * PICTURE.double() + (1 - START_BARS[t]) ** 0.5 * noise.double()


def ddim(noise: torch.Tensor, steps: int, keep: float | None, inpaint: bool, plms: bool = False):
    """The original's ``ddim_sampler`` and ``plms_sampler``."""
    times = [t + 1 for t in range(0, 1000, 1000 // steps)]
    x = noise.double()
    if keep is not None:
        share = int(1000 * (1 - keep))
        x, times = started(noise, share - 1), [t for t in times if t <= share]
    times = times[::-1]
    before = [*(BARS[t] for t in times[1:]), BARS[0]]

    def moved(x, eps, i):
        x0 = (x - (1 - BARS[times[i]]) ** 0.5 * eps) / BARS[times[i]] ** 0.5
        return before[i] ** 0.5 * x0 + (1 - before[i]) ** 0.5 * eps

    old: list[torch.Tensor] = []
    for i, t in enumerate(times):
        eps, _ = predicted(x, t, inpaint)
        used = eps
        if plms and len(old) == 0:
            following, _ = predicted(moved(x, eps, i), times[min(i + 1, len(times) - 1)], inpaint)
            used = (eps + following) / 2
        elif plms and len(old) == 1:
            used = (3 * eps - old[0]) / 2
        elif plms and len(old) == 2:
            used = (23 * eps - 16 * old[1] + 5 * old[0]) / 12
        elif plms:
            used = (55 * eps - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        old.append(eps)
        x = moved(x, used, i)
    return x


def p_sampler(noise: torch.Tensor, steps: int, keep: float | None, inpaint: bool, draw: Any):
    """The original's ``p_sampler``: respaced betas, x0 clamped, blended, thresholded."""
    place, times = 0.0, []
    for _ in range(steps):
        times.append(round(place))
        place += 999 / (steps - 1)
    bars = BARS[times]
    previous = np.append(1.0, bars[:-1])
    betas = 1 - bars / previous
    smallest = betas * (1 - previous) / (1 - bars)
    smallest = np.log(np.append(smallest[1], smallest[1:]))
    x, count = noise.double(), steps
    if keep is not None:
        count = int(steps * (1 - keep))
        x = started(noise, times[count - 1])
    for i in reversed(range(count)):
        eps, variance = predicted(x, times[i], inpaint)
        x0 = ((x - (1 - bars[i]) ** 0.5 * eps) / bars[i] ** 0.5).clamp(-2, 2)
        if inpaint:
            x0 = x0 * (1 - KEEP) + PICTURE * KEEP
        limit = max(np.percentile(x0.abs().numpy(), 99.5), 1.0)
        x0 = x0.clamp(-limit, limit) / limit
        mean = betas[i] * previous[i] ** 0.5 / (1 - bars[i]) * x0
        mean = mean + (1 - previous[i]) * (1 - betas[i]) ** 0.5 / (1 - bars[i]) * x
        part = (variance + 1) / 2
        log = part * np.log(betas[i]) + (1 - part) * smallest[i]
        x = mean + (0.5 * log).exp() * draw() if i else mean
    return x


def ours(sampler: str, steps: int, keep: float | None = None, inpaint: bool = False):
    start = None if keep is None else Start(PICTURE, 1 - keep)
    known = Known(PICTURE, KEEP, blend=False) if inpaint else None
    return sample_latents(
        Formula(9 if inpaint else 4),
        SAMPLERS[sampler],
        *map(Condition, EMBEDS),
        Canvas(SHAPE[1:], start, known),
        Sampling(Noise.seeded(3, 1), torch.device("cpu"), torch.float64, steps),
        SCALE,
    )


CASES = [
    (sampler, steps, keep)
    for sampler, steps, keep in itertools.product(SAMPLERS, (2, 7, 30, 50), (None, 0.7, 0.43, 0.05))
    # The original's p_sampler fails without a step.
    if sampler != "p_sampler" or keep is None or int(steps * (1 - keep)) >= 1
]


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize(("sampler", "steps", "keep"), CASES)
def test_samples_as_the_original(sampler: str, steps: int, keep: float | None, inpaint: bool):
    source = Noise.seeded(3, 1)
    noise = source.normal(SHAPE)
    if sampler == "p_sampler":
        wanted = p_sampler(noise, steps, keep, inpaint, lambda: source.normal(SHAPE).double())
    else:
        wanted = ddim(noise, steps, keep, inpaint, sampler == "plms_sampler")
    scale = wanted.abs().max()
    found = ours(sampler, steps, keep, inpaint)
    torch.testing.assert_close(found.double() / scale, wanted / scale, atol=2e-5, rtol=0)


def test_ddim_takes_every_whole_stride() -> None:
    times = SAMPLERS["ddim_sampler"].timesteps(30)
    assert (len(times), times[0], times[-1]) == (31, 991, 1)
    hub = LatentSchedule.from_config({"_class_name": "DDIMScheduler", "steps_offset": 1})
    assert (len(hub.timesteps(30)), hub.timesteps(30)[0]) == (30, 958)


@pytest.mark.parametrize(
    ("sampler", "steps", "first", "noised"),
    [("ddim_sampler", 100, 291, 299), ("ddim_sampler", 7, 285, 299), ("p_sampler", 50, 285, 285)],
)
def test_image_to_image_begins_where_the_original_does(
    sampler: str, steps: int, first: int, noised: int
) -> None:
    chosen, add_noise = SAMPLERS[sampler].noised(steps, 0.3)
    assert chosen[0].timestep == first
    signal = add_noise(torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(signal.double(), torch.tensor([START_BARS[noised] ** 0.5]))


def test_diffusers_begins_elsewhere() -> None:
    hub = LatentSchedule(begin=last_part_apart, start_betas=(0.0001, 0.02))
    _, add_noise = hub.noised(100, 0.3)
    signal = add_noise(torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(signal.double(), torch.tensor([START_BARS[298] ** 0.5]))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("strength", [k / 100 for k in range(101)])
def test_strength_is_one_minus_the_originals(sampler: str, strength: float) -> None:
    """So what the original rounds down is rounded down here, for every two digits."""
    keep = round(1 - strength, 2)
    chosen, _ = SAMPLERS[sampler].noised(50, strength)
    times = SAMPLERS[sampler].timesteps(50)
    if sampler == "p_sampler":
        assert len(chosen) == int(50 * (1 - keep))
    else:
        assert len(chosen) == sum(t <= int(1000 * (1 - keep)) for t in times)


@pytest.mark.parametrize("steps", [1, 3, 9, 27, 36, 111, 999, 1000])
@pytest.mark.parametrize("sampler", ["hub", *SAMPLERS])
def test_steps_that_end_the_published_tables_work(sampler: str, steps: int) -> None:
    """There both published codes look behind the last of the 1000 betas."""
    config = {"_class_name": "DDIMScheduler", "steps_offset": 1, "set_alpha_to_one": False}
    schedule = SAMPLERS.get(sampler) or LatentSchedule.from_config(config)
    times = schedule.timesteps(steps)
    assert 0 <= times[-1] < times[0] + (steps == 1) and times[0] <= 999
    assert times == sorted(set(times), reverse=True)
    assert all(np.isfinite([s.x0_weight, s.sample_weight]).all() for s in schedule.steps(steps))
    if sampler != "hub":
        assert times[0] >= 999 - 1000 // steps


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(EdgeError, match="strength"):
        SAMPLERS["ddim_sampler"].noised(10, strength)


def test_respacing_adds_up_its_rounding_errors_as_the_original_does() -> None:
    """In the priors and decoders of the original files alone; diffusers multiplies."""

    def added(count: int) -> list[int]:
        place, times = 0.0, []
        for _ in range(count):
            times.append(round(place))
            place += 999 / (count - 1)
        return times[::-1]

    original, hub = original_schedule(SCHEDULE), UnCLIPSchedule()
    counts = range(2, 1001)
    assert all(original.timesteps(n) == added(n) for n in counts)
    assert sum(original.timesteps(n) != hub.timesteps(n) for n in counts) == 278


def test_a_hub_folder_lends_its_betas_to_the_originals_samplers() -> None:
    published = LatentSchedule(beta_end=0.02, beta_schedule="scaled_linear")
    schedule = schedule_of("p_sampler", published)
    assert (schedule.beta_end, schedule.beta_schedule) == (0.02, "scaled_linear")
    assert schedule.start_betas is None and schedule.clip_first
