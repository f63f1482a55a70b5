"""Every key of the schedulers' configurations that we read is done as diffusers does it, or refused
by its name; none is dropped."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import diffusers
import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.samplers.kandinsky import predict_latent
from prior_art.samplers.kandinsky_schedule import LatentSchedule
from prior_art.samplers.koala import EulerSchedule
from prior_art.samplers.parts.noise import Noise, generators
from prior_art.samplers.parts.schedule import UnCLIPSchedule, predict_x0, previous_sample

STEPS = 7
BETAS = torch.linspace(0.001, 0.01, 1000).tolist()
OTHERS: dict[str, list[Any]] = {
    "num_train_timesteps": [500],
    "beta_start": [0.001],
    "beta_end": [0.03],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"],
    "trained_betas": [BETAS],
    "prediction_type": ["v_prediction", "sample"],
    "interpolation_type": ["log_linear"],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "sigma_min": [0.1],
    "sigma_max": [5.0],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "timestep_type": ["continuous"],
    "steps_offset": [3],
    "rescale_betas_zero_snr": [True],
    "final_sigmas_type": ["sigma_min"],
    "variance_type": [
        *("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        *("learned", "learned_range"),
    ],
    "clip_sample": [False],
    "clip_sample_range": [0.7],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.5],
    "sample_max_value": [1.2],
    "set_alpha_to_one": [False],
}
"""Values beside the published ones. A key that diffusers adds is missing here, and so is red."""

BASE = {
    "EulerDiscreteScheduler": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
    "DDPMScheduler": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "variance_type": "learned_range",
        "clip_sample_range": 2.0,
    },
    "DDIMScheduler": {"beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    "UnCLIPScheduler": {"clip_sample_range": 2.0},
}


def cases() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for kind in BASE:
        for key in list(inspect.signature(getattr(diffusers, kind).__init__).parameters)[1:]:
            found += [(kind, {key: value}) for value in OTHERS[key]]
    beside = ("dynamic_thresholding_ratio", "sample_max_value")
    for kind, key in itertools.product(("DDPMScheduler", "DDIMScheduler"), beside):
        found.append((kind, {"thresholding": True, key: OTHERS[key][0]}))
    return found


def name_of(case: Any) -> str:
    return "-".join(f"{k}={str(v)[:12]}" for k, v in case.items()) if isinstance(case, dict) else ""


@pytest.mark.parametrize(("kind", "change"), cases(), ids=name_of)
def test_a_configuration_is_done_exactly_or_refused(kind: str, change: dict[str, Any]) -> None:
    config = BASE[kind] | change
    schedule = {"EulerDiscreteScheduler": EulerSchedule, "UnCLIPScheduler": UnCLIPSchedule}
    try:
        ours = schedule.get(kind, LatentSchedule).from_config(config | {"_class_name": kind})
    except EdgeError as error:
        assert list(change)[-1] in str(error)
        return
    theirs = getattr(diffusers, kind)(**config)
    theirs.set_timesteps(STEPS)
    if kind == "EulerDiscreteScheduler":
        times, sigmas = ours.steps(STEPS)
        assert times == theirs.timesteps.tolist()
        assert sigmas == theirs.sigmas.tolist()
        return
    assert ours.timesteps(STEPS) == theirs.timesteps.tolist()
    (stream,), (mine,), (other,) = generators(5, 1), generators(6, 1), generators(6, 1)
    x = their_x = torch.randn(1, 4, 4, 4, generator=stream)
    learned = config.get("variance_type") == "learned_range"
    for i, (t, step) in enumerate(zip(theirs.timesteps, ours.steps(STEPS), strict=True)):
        out = torch.randn(1, 8, 4, 4, generator=stream)
        eps, variance = out.chunk(2, dim=1)
        said = out if learned else eps
        if kind == "UnCLIPScheduler":
            following = theirs.timesteps[i + 1] if i + 1 < STEPS else None
            options = {"prev_timestep": following, "generator": other}
            their_x = theirs.step(said, t, their_x, **options).prev_sample
            x0 = predict_x0(ours, step, x, eps)
        else:
            their_x = theirs.step(said, t, their_x, generator=other).prev_sample
            x0 = predict_latent(ours, step, x, eps)
        if kind == "DDIMScheduler":
            x = step.x0_weight * x0 + step.sample_weight * eps
        else:
            noise = None if step.last else Noise([mine]).normal((4, 4, 4))
            x = previous_sample(step, x, x0, noise, variance if learned else None)
        torch.testing.assert_close(x, their_x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDPMScheduler", "DDIMScheduler"])
def test_null_is_off(kind: str) -> None:
    keys = inspect.signature(getattr(diffusers, kind).__init__).parameters
    flags = {k: None for k in keys if k.startswith("use_") or k == "rescale_betas_zero_snr"}
    schedule = EulerSchedule if kind.startswith("Euler") else LatentSchedule
    config = BASE[kind] | {"_class_name": kind}
    assert schedule.from_config(config | flags) == schedule.from_config(config)


def test_an_euler_scheduler_without_betas_has_diffusers_own() -> None:
    with pytest.raises(EdgeError, match=r"beta_schedule is 'linear'.*KOALA"):
        EulerSchedule.from_config({"_class_name": "EulerDiscreteScheduler"})
