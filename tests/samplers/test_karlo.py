"""What every sampler promises, whatever the network: rows, seeds, callbacks, errors, dtypes.

Where two ways to one result are compared networks compute in fp64: Karlo's first step multiplies a
processor's rounding by 20,000 (see tests/parity/test_karlo.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prior_art.edges import EdgeError
from prior_art.networks import prior as cached
from prior_art.samplers import prior as prior_sampler
from prior_art.samplers.parts.noise import Noise, generators

from ..tiny import DIM, HIGH, LOW
from .stages import Stages

Runner = Callable[..., torch.Tensor]
EXACT = 1e-6  # of states within +-1 or so that are kept in fp32
NAMES = ["prior", "decoder", "upscaler"]


@pytest.fixture(scope="module")
def stages64(stages: Stages) -> Stages:
    return stages.double()


@pytest.fixture(params=NAMES)
def run(request: pytest.FixtureRequest, stages64: Stages) -> Runner:
    """One stage on fixed inputs: ``run(seed, count, **options)``."""
    (inputs,) = generators(99, 1)
    embeds = torch.randn(1, DIM, generator=inputs)
    image = torch.rand(1, 3, LOW, LOW, generator=inputs) * 2 - 1

    def call(seed: int = 7, count: int = 1, offset: int = 0, **options: object) -> torch.Tensor:
        streams = options.pop("generators", None) or generators(seed, count, offset)
        options = {"steps": 3, **options}
        if request.param == "upscaler":
            pictures = image.expand(len(streams), -1, -1, -1)
            return stages64.upscaler(pictures, generators=streams, **options)
        words = options.pop("text", stages64.text("a red cat")), stages64.text("")
        if request.param == "prior":
            return stages64.prior(*words, generators=streams, **options)
        return stages64.decoder(embeds, *words, generators=streams, **options)

    return call


def test_an_image_of_a_batch_can_be_made_alone(run: Runner) -> None:
    batch = run(seed=7, count=3)
    for i in range(3):
        torch.testing.assert_close(batch[i : i + 1], run(seed=7 + i), atol=EXACT, rtol=0)
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_deterministic(run: Runner) -> None:
    assert torch.equal(run(seed=3, count=2), run(seed=3, count=2))


def test_callback_counts_and_sees_x0(run: Runner) -> None:
    seen = []
    result = run(steps=4, callback=lambda *args: seen.append(args))
    assert [(step, total) for step, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(x0.shape == result.shape and x0.dtype == torch.float32 for _, _, x0 in seen)


def test_a_callback_stops_the_run(run: Runner) -> None:
    calls = []

    def stop(step: int, total: int, x0: torch.Tensor) -> None:
        calls.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(steps=4, callback=stop)
    assert calls == [1]


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_refuses_steps(run: Runner, steps: int) -> None:
    with pytest.raises(EdgeError, match="'num_inference_steps' is"):
        run(steps=steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_near_and_returns_fp32(
    stages: Stages, name: str, dtype: torch.dtype
) -> None:
    loaded = getattr(stages, f"loaded_{name}")
    half = copy.copy(stages)
    setattr(
        half, f"loaded_{name}", replace(loaded, network=copy.deepcopy(loaded.network).to(dtype))
    )
    results = []
    for some, kind in ((stages, torch.float32), (half, dtype)):
        options = {"steps": 3, "generators": generators(0, 1), "dtype": kind}
        words = stages.text("a cat"), stages.text("")
        inputs = {
            "prior": words,
            "decoder": (torch.ones(1, DIM), *words),
            "upscaler": (torch.zeros(1, 3, LOW, LOW),),
        }[name]
        results.append(getattr(some, name)(*inputs, **options))
    assert results[1].dtype == torch.float32
    difference = (results[0] - results[1]).abs().mean()
    # Eight bits, guided and multiplied by 20,000 at first: how near is up to a processor's kernels.
    assert 0 < difference < 0.25 * results[0].std()


class CastLinear(nn.Linear):
    """As a host's leaves: weights in one dtype, computing in the dtype of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), _to(self.bias, x))


class CastConv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), _to(self.bias, x))


class CastGroupNorm(nn.GroupNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, self.num_groups, _to(self.weight, x), _to(self.bias, x), self.eps)


class CastLayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = _to(self.weight, x), _to(self.bias, x)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def _to(parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def _swapped(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).half()
    leaves = {
        leaf.__base__: leaf for leaf in (CastLinear, CastConv2d, CastGroupNorm, CastLayerNorm)
    }
    for module in network.modules():
        module.__class__ = leaves.get(type(module), type(module))
    return network


@pytest.mark.parametrize("name", NAMES)
def test_a_host_may_swap_the_leaves(stages: Stages, name: str) -> None:
    """fp16 storage under casting leaves equals the same rounded weights in fp64."""
    loaded = getattr(stages, f"loaded_{name}")
    words = stages.text("a cat", "the red dog"), stages.text("")
    inputs = {
        "prior": words,
        "decoder": (torch.ones(1, DIM), *words),
        "upscaler": (torch.zeros(2, 3, LOW, LOW),),
    }[name]
    results = []
    for network in (copy.deepcopy(loaded.network).half().double(), _swapped(loaded.network)):
        changed = copy.copy(stages)
        setattr(changed, f"loaded_{name}", replace(loaded, network=network))
        changed.dtype = torch.float64
        results.append(getattr(changed, name)(*inputs, steps=3, generators=generators(0, 2)))
    torch.testing.assert_close(results[1], results[0], atol=EXACT, rtol=0)


# -- conditioning ----------------------------------------------------------------------------


def test_rows_are_prompt_major(stages64: Stages) -> None:
    both, empty = stages64.text("a red cat", "the dog"), stages64.text("")
    batch = stages64.prior(both, empty, steps=3, generators=generators(0, 4))
    pictures = stages64.decoder(batch, both, empty, steps=3, generators=generators(0, 4))
    for i, prompt in enumerate(["a red cat", "a red cat", "the dog", "the dog"]):
        words = stages64.text(prompt)
        one = stages64.prior(words, empty, steps=3, generators=generators(i, 1))
        torch.testing.assert_close(batch[i : i + 1], one, atol=EXACT, rtol=0)
        picture = stages64.decoder(one, words, empty, steps=3, generators=generators(i, 1))
        torch.testing.assert_close(pictures[i : i + 1], picture, atol=EXACT, rtol=0)


def test_more_negative_than_positive_prompts(stages64: Stages) -> None:
    one, two = stages64.text("a red cat"), stages64.text("the dog", "")
    batch = stages64.prior(one, two, steps=3, generators=generators(0, 4))
    alone = stages64.prior(one, stages64.text(""), steps=3, generators=generators(2, 2))
    torch.testing.assert_close(batch[2:], alone, atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_refuses_rows_that_do_not_divide(stages: Stages, name: str) -> None:
    two, empty = stages.text("a cat", "the dog"), stages.text("")
    inputs = () if name == "prior" else (torch.zeros(1, DIM),)
    with pytest.raises(EdgeError, match="'text' has 2 rows"):
        getattr(stages, name)(*inputs, two, empty, steps=3, generators=generators(0, 3))
    with pytest.raises(EdgeError, match="'negative' has 2 rows"):
        getattr(stages, name)(*inputs, empty, two, steps=3, generators=generators(0, 3))


def test_refuses_another_number_of_pictures(stages: Stages) -> None:
    with pytest.raises(EdgeError, match="'image' has 2 pictures, but the noise is of 1"):
        stages.upscaler(torch.zeros(2, 3, LOW, LOW), steps=3, generators=generators(0, 1))


def test_refuses_prompts_of_another_length(stages: Stages) -> None:
    text = stages.text("a cat")
    long = replace(
        text, hidden=text.hidden.repeat(1, 2, 1), mask=text.mask.repeat(1, 2), pooled=text.pooled
    )
    with pytest.raises(EdgeError, match=r"'text' has 154 tokens.*reads 77"):
        stages.prior(long, text, steps=3, generators=generators(0, 1))


@pytest.mark.parametrize("name", ["prior", "decoder"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_no_unconditional_pass_without_guidance(
    stages: Stages, name: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative prompt is not looked at, and the network sees the conditional rows only."""
    inputs = () if name == "prior" else (torch.zeros(1, DIM),)
    rows = []
    network = getattr(stages, f"loaded_{name}").network
    leaf = network.proj_in if name == "prior" else network.unet.conv_in
    handle = leaf.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    try:
        getattr(stages, name)(
            *inputs,
            stages.text("a cat"),
            None,
            steps=3,
            guidance_scale=scale,
            generators=generators(0, 1),
        )
    finally:
        handle.remove()
    assert rows == [1, 1, 1]


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_refuses_nan_inputs(stages: Stages, name: str) -> None:
    text = stages.text("a cat")
    broken = replace(text, pooled=text.pooled * float("nan"))
    inputs = () if name == "prior" else (torch.zeros(1, DIM),)
    with pytest.raises(EdgeError, match=f"the {name} computed NaN"):
        getattr(stages, name)(*inputs, broken, text, steps=3, generators=generators(0, 1))


def test_upscaler_refuses_nan(stages: Stages) -> None:
    with pytest.raises(EdgeError, match="the upscaler computed NaN"):
        image = torch.full((1, 3, LOW, LOW), float("nan"))
        stages.upscaler(image, steps=3, generators=generators(0, 1))


def test_inputs_stay_untouched(stages: Stages) -> None:
    text, empty = stages.text("a cat"), stages.text("")
    image = torch.ones(1, 3, LOW, LOW) * 0.5
    kept = [t.clone() for t in (text.hidden, text.pooled, text.mask, image)]
    embeds = stages.prior(text, empty, steps=3, generators=generators(0, 1))
    before = embeds.clone()
    stages.decoder(embeds, text, empty, steps=3, generators=generators(0, 1))
    stages.upscaler(image, steps=3, generators=generators(0, 1))
    for now, then in zip((text.hidden, text.pooled, text.mask, image), kept, strict=True):
        assert torch.equal(now, then)
    assert torch.equal(embeds, before)


# -- numbers and networks --------------------------------------------------------------------


def test_numbers_drawn(stages: Stages) -> None:
    """What the noise counts is what was drawn: the start, and after all steps but the last."""
    text, empty = stages.text("a cat"), stages.text("")
    noise = Noise.seeded(0, 2)
    embeds = stages.prior(text, empty, steps=4, noise=noise)
    drawn = noise.drawn
    assert drawn == 4 * DIM
    assert torch.equal(_next(noise.generators), _next(generators(0, 2, drawn)))
    noise = Noise.seeded(0, 2, drawn)
    small = stages.decoder(embeds, text, empty, steps=5, noise=noise)
    assert noise.drawn == 5 * 3 * LOW * LOW
    drawn += noise.drawn
    assert torch.equal(_next(noise.generators), _next(generators(0, 2, drawn)))
    large = stages.upscaler(small, steps=3, noise=noise)
    assert large.shape == (2, 3, HIGH, HIGH) and large.abs().max() <= 1


def _next(streams: list[torch.Generator]) -> torch.Tensor:
    return torch.stack([s.clone_state().get_state() for s in streams])


def test_cached_prior_equals_the_whole_network(stages64: Stages) -> None:
    network = stages64.loaded_prior.network
    text = stages64.text("", "a red cat", "x " * 100)
    hidden, pooled = text.hidden.double(), text.pooled.double()
    steps = [999, 500, 0]
    constants = cached.prepare(network, hidden, pooled, text.mask, steps)
    predict = cached.Run(network, constants, 4)
    (stream,) = generators(0, 1)
    for i, t in enumerate(steps):
        x = torch.randn(3, 4, DIM, generator=stream).double()
        wanted = network(
            x.flatten(0, 1),
            timestep=t,
            proj_embedding=pooled.repeat_interleave(4, 0),
            encoder_hidden_states=hidden.repeat_interleave(4, 0),
            attention_mask=text.mask.repeat_interleave(4, 0),
        ).predicted_image_embedding
        found = predict(x, i).flatten(0, 1)
        assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_padding_is_left_out(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short prompts cost what their tokens cost, not 77 each."""
    lengths = []
    original = cached.prepare

    def watched(*args: object) -> cached.Constants:
        constants = original(*args)
        lengths.append(constants.past.shape[-2])
        return constants

    monkeypatch.setattr(prior_sampler.cached, "prepare", watched)
    text = stages.text("a red cat")
    stages.prior(text, stages.text(""), steps=2, generators=generators(0, 1))
    assert lengths == [int(text.mask.sum()) + 1]
