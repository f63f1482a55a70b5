"""The schedule against diffusers' UnCLIPScheduler: the same numbers, bit for bit."""

from __future__ import annotations

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.samplers.kandinsky import predict_latent, threshold
from prior_art.samplers.kandinsky_schedule import LatentSchedule
from prior_art.samplers.parts.noise import Noise, generators
from prior_art.samplers.parts.schedule import UnCLIPSchedule, predict_x0, previous_sample

from ...tiny import SCHEDULERS

COUNTS = [2, 7, 25, 50, 999, 1000]


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("count", COUNTS)
def test_equals_the_published_scheduler(kind: str, count: int) -> None:
    from diffusers import UnCLIPScheduler

    theirs = UnCLIPScheduler(**SCHEDULERS[kind])
    theirs.set_timesteps(count)
    ours = UnCLIPSchedule.from_config(SCHEDULERS[kind])
    assert ours.timesteps(count) == theirs.timesteps.tolist()
    learned = ours.variance == "learned_range"
    (stream,), (their_stream,) = generators(1, 1), generators(1, 1)
    (networks,) = generators(2, 1)
    x = their_x = torch.randn(1, 3, 4, 4, generator=networks)
    for i, step in enumerate(ours.steps(count)):
        prediction = torch.randn(1, 6 if learned else 3, 4, 4, generator=networks)
        following = None if i + 1 == count else theirs.timesteps[i + 1]
        wanted = theirs.step(
            prediction, theirs.timesteps[i], their_x, following, generator=their_stream
        )
        x0 = predict_x0(ours, step, x, prediction[:, :3])
        noise = None if step.last else Noise([stream]).normal((3, 4, 4))
        x = previous_sample(step, x, x0, noise, prediction[:, 3:] if learned else None)
        their_x = wanted.prev_sample
        assert torch.equal(x0, wanted.pred_original_sample), step
        assert torch.equal(x, their_x), step
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_latent_schedules_equal_the_published_ones(kind: str, count: int, spacing: str) -> None:
    import diffusers

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config |= {"timestep_spacing": spacing, "clip_sample_range": 1.5}
    theirs = getattr(diffusers, kind)(**config)
    theirs.set_timesteps(count)
    ours = LatentSchedule.from_config(config | {"_class_name": kind})
    assert ours.timesteps(count) == theirs.timesteps.tolist()
    (stream,) = generators(5, 1)
    x = their_x = torch.randn(1, 4, 4, 4, generator=stream)
    (mine,), (other,) = generators(6, 1), generators(6, 1)
    for t, step in zip(theirs.timesteps, ours.steps(count), strict=True):
        eps = torch.randn(1, 4, 4, 4, generator=stream)
        their_x = theirs.step(eps, t, their_x, generator=other).prev_sample
        x0 = predict_latent(ours, step, x, eps)
        if not ours.ancestral:
            x = step.x0_weight * x0 + step.sample_weight * eps
        else:
            x = previous_sample(step, x, x0, None if step.last else Noise([mine]).normal((4, 4, 4)))
        torch.testing.assert_close(x, their_x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.2, 0.6, 3.0])
def test_dynamic_thresholding_is_the_published_one(scale: float) -> None:
    """Below 1 nothing happens, up to the largest value latents are divided, beyond clamped too."""
    from diffusers import DDPMScheduler

    config = {"thresholding": True, "sample_max_value": 2.0, "variance_type": "learned_range"}
    x0 = scale * torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    wanted = DDPMScheduler(**config)._threshold_sample(x0)
    torch.testing.assert_close(threshold(LatentSchedule.from_config(config), x0), wanted)
    assert torch.equal(wanted, x0) == (scale < 0.3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "DDPM or DDIM"),
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos"),
        ({"timestep_spacing": "other"}, "other"),
    ],
)
def test_refuses_foreign_latent_schedules(config: dict, said: str) -> None:
    with pytest.raises(EdgeError, match=said):
        LatentSchedule.from_config(config)


def test_karlo_timesteps() -> None:
    assert UnCLIPSchedule().timesteps(7) == [999, 832, 666, 500, 333, 166, 0]


@pytest.mark.parametrize("count", COUNTS)
def test_only_the_last_step_is_last(count: int) -> None:
    steps = UnCLIPSchedule().steps(count)
    assert [step.last for step in steps] == [False] * (count - 1) + [True]


def test_double_tables_end_on_x0() -> None:
    published, original = (UnCLIPSchedule(double_tables=d).steps(25)[-1] for d in (False, True))
    assert original.x0_weight == pytest.approx(1, abs=1e-10)
    assert published.x0_weight == pytest.approx(1 - 5.3e-4, abs=1e-4)


def test_no_clip() -> None:
    schedule = UnCLIPSchedule.from_config({"prediction_type": "sample", "clip_sample": False})
    assert schedule.clip_range is None
    x0 = predict_x0(schedule, schedule.steps(2)[0], torch.zeros(1), torch.tensor([70.0]))
    assert x0.item() == 70


@pytest.mark.parametrize("count", [-1, 0, 1, 1001])
def test_refuses_steps(count: int) -> None:
    with pytest.raises(EdgeError, match=r"'num_inference_steps' is .* takes 2 to 1000"):
        UnCLIPSchedule().steps(count)


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction"},
        {"variance_type": "fixed_large"},
        {"beta_schedule": "linear"},
        {"clip_sample_range": 0},
        {"clip_sample_range": float("nan")},
        {"num_train_timesteps": 1},
        {"num_train_timesteps": 1e3},
    ],
)
def test_refuses_foreign_constants(config: dict) -> None:
    with pytest.raises(EdgeError, match=next(iter(config))):
        UnCLIPSchedule.from_config(config)
