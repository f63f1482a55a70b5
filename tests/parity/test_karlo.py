"""Karlo's stages and their chain against diffusers' pipelines, on the same weights and seeds.

At t = 999 the published schedule divides by 5e-5 before it clamps: a pixel that lands between the
clamps carries rounding errors 20,000-fold, and random networks do not forget them as trained ones
do. Which pixels these are is up to a processor's kernels. So networks compute in fp64 on both
sides, around samplers in fp32: what is left is the algorithm. The embedded family's trained weights
are compared in fp32, in tests/nodes/test_templates.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_map

from prior_art.loaders.clip import tokenize
from prior_art.samplers.parts.noise import Noise, generators

from ..samplers.stages import Stages
from ..tiny import DIM, LOW, pipeline, variation_pipeline

pytestmark = pytest.mark.slow

PROMPTS = [
    "a red cat!",
    "",
    "the bird and the cat, a photo of a very long story " * 5,
    "\u00e9 \u65e5\u672c \U0001f408",
]
PRIOR_STEPS, DECODER_STEPS, UPSCALER_STEPS = 5, 6, 4
FP64 = 1e-6
SEED = 1234


@pytest.fixture(scope="module")
def pipe(stages: Stages) -> Any:
    return pipeline(stages.folder)


@pytest.fixture(scope="module")
def stages64(stages: Stages) -> Stages:
    return stages.double()


@pytest.fixture(scope="module")
def pipe64(stages: Stages) -> Any:
    return computing_in_double(pipeline(stages.folder))


@pytest.fixture(scope="module")
def variation64(stages: Stages) -> Any:
    return computing_in_double(variation_pipeline(stages.folder))


# -- the published pipelines ------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """What a pipeline made on its way: embeddings, pictures in -1..1, pictures in 0..1."""

    embeds: torch.Tensor | None
    small: torch.Tensor
    image: torch.Tensor


def published(pipe: Any, count: int, negative: str | None = None, **options: Any) -> Published:
    """Run a pipeline with generators seeded from SEED and keep what its stages hand on."""
    if hasattr(pipe, "prior"):
        options["prior_num_inference_steps"] = PRIOR_STEPS
    with _recorded(pipe) as kept, _unconditional(pipe, negative):
        image = pipe(
            decoder_num_inference_steps=DECODER_STEPS,
            super_res_num_inference_steps=UPSCALER_STEPS,
            generator=[torch.Generator().manual_seed(SEED + i) for i in range(count)],
            output_type="np",
            **options,
        ).images
    return Published(kept.get("embeds"), kept["small"], torch.from_numpy(image))


def computing_in_double(pipe: Any) -> Any:
    """Let every network of a pipeline compute in fp64 and answer in fp32."""

    def up(module: Any, args: tuple, options: dict) -> tuple[tuple, dict]:
        return tree_map(_cast(torch.float64), (args, options))

    def down(module: Any, args: tuple, out: Any) -> Any:
        return tree_map(_cast(torch.float32), out)

    for network in pipe.components.values():
        if isinstance(network, torch.nn.Module):
            network.double().register_forward_pre_hook(up, with_kwargs=True)
            network.register_forward_hook(down)
    if hasattr(pipe, "prior"):
        for statistic in (pipe.prior.clip_mean, pipe.prior.clip_std):
            statistic.data = statistic.data.float()
    return pipe


def _cast(dtype: torch.dtype) -> Any:
    return lambda x: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


@contextmanager
def _recorded(pipe: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the last result of the prior and of the decoder's scheduler."""
    kept: dict[str, torch.Tensor] = {}
    step = pipe.decoder_scheduler.step

    def watched_step(*args: Any, **options: Any) -> Any:
        result = step(*args, **options)
        kept["small"] = result.prev_sample.clamp(-1, 1)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.decoder_scheduler, "step", watched_step)
        if hasattr(pipe, "prior"):
            post = pipe.prior.post_process_latents

            def watched_post(latents: torch.Tensor) -> torch.Tensor:
                kept["embeds"] = post(latents)
                return kept["embeds"]

            patch.setattr(pipe.prior, "post_process_latents", watched_post)
        yield kept


@contextmanager
def _unconditional(pipe: Any, negative: str | None) -> Iterator[None]:
    """Let the pipeline, which has no negative prompt, use one for its empty text."""
    if negative is None:
        yield
        return
    tokenizer = pipe.tokenizer

    class Tokenizer:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: Any, **options: Any) -> Any:
            if isinstance(texts, list) and set(texts) == {""}:
                texts = [negative] * len(texts)
            return tokenizer(texts, **options)

    pipe.tokenizer = Tokenizer()
    try:
        yield
    finally:
        pipe.tokenizer = tokenizer


# -- the pack's chain -------------------------------------------------------------------------


def chain(
    stages: Stages,
    prompts: list[str],
    each: int,
    negative: str = "",
    prior_guidance: float = 4.0,
    decoder_guidance: float = 8.0,
) -> Published:
    """The three stages wired as nodes are: equal seeds, noise offsets from stage to stage."""
    text, empty = stages.text(*prompts), stages.text(negative)
    count = len(prompts) * each
    noise = Noise.seeded(SEED, count)
    embeds = stages.prior(
        text, empty, steps=PRIOR_STEPS, guidance_scale=prior_guidance, noise=noise
    )
    small, image = pictures(stages, embeds, text, empty, count, decoder_guidance, noise.drawn)
    return Published(embeds, small, image)


def pictures(
    stages: Stages,
    embeds: torch.Tensor,
    text: Any,
    empty: Any,
    count: int,
    guidance: float = 8.0,
    offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    noise = Noise.seeded(SEED, count, offset)
    small = stages.decoder(
        embeds, text, empty, steps=DECODER_STEPS, guidance_scale=guidance, noise=noise
    )
    return small, enlarged(stages, small, count, offset + noise.drawn)


def enlarged(stages: Stages, small: torch.Tensor, count: int, offset: int) -> torch.Tensor:
    streams = generators(SEED, count, offset)
    large = stages.upscaler(small, steps=UPSCALER_STEPS, generators=streams)
    return (large.permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1)


def close(found: Published, wanted: Published) -> None:
    for name in ("embeds", "small", "image"):
        a, b = getattr(found, name), getattr(wanted, name)
        if b is None:
            continue
        assert b.std() > 0.1, "the oracle's result says nothing"
        torch.testing.assert_close(a, b, atol=FP64, rtol=FP64, msg=_named(name))


def _named(name: str) -> Any:
    return lambda message: f"{name}: {message}"


# -- tests ------------------------------------------------------------------------------------


def test_token_ids(stages: Stages, pipe: Any) -> None:
    ids, mask, cut = tokenize(stages.text_encoder.tokenizer, PROMPTS)
    wanted = pipe.tokenizer(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert torch.equal(ids, wanted.input_ids)
    assert torch.equal(mask, wanted.attention_mask.bool())
    assert [bool(text) for text in cut] == [False, False, True, False]


def test_text_encoding(stages: Stages, pipe: Any) -> None:
    text = stages.text(*PROMPTS)
    pooled, hidden, mask = pipe._encode_prompt(PROMPTS, torch.device("cpu"), 1, False)
    torch.testing.assert_close(text.pooled, pooled, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(text.hidden, hidden, atol=1e-6, rtol=1e-6)
    assert torch.equal(text.mask, mask)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_to_image(stages64: Stages, pipe64: Any, prompt: str) -> None:
    close(chain(stages64, [prompt], 1), published(pipe64, 1, prompt=prompt))


def test_batch_of_one_prompt(stages64: Stages, pipe64: Any) -> None:
    wanted = published(pipe64, 3, prompt=PROMPTS[0], num_images_per_prompt=3)
    close(chain(stages64, [PROMPTS[0]], 3), wanted)


def test_batch_of_prompts(stages64: Stages, pipe64: Any) -> None:
    wanted = published(pipe64, 8, prompt=PROMPTS, num_images_per_prompt=2)
    close(chain(stages64, PROMPTS, 2), wanted)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[:3]])
def test_negative_prompt(stages64: Stages, pipe64: Any, prompts: list[str]) -> None:
    negative = "the blurry dog"
    wanted = published(pipe64, len(prompts), negative, prompt=prompts)
    close(chain(stages64, prompts, 1, negative), wanted)
    plain = chain(stages64, prompts, 1)
    assert (plain.image - wanted.image).abs().max() > 0.01


@pytest.mark.parametrize("prior_guidance", [1.0, 2.5])
@pytest.mark.parametrize("decoder_guidance", [1.0, 3.0])
def test_guidance(
    stages64: Stages, pipe64: Any, prior_guidance: float, decoder_guidance: float
) -> None:
    """diffusers guides both stages if either scale is above 1; at 1 that is no guidance."""
    wanted = published(
        pipe64,
        2,
        prompt=PROMPTS[:2],
        prior_guidance_scale=prior_guidance,
        decoder_guidance_scale=decoder_guidance,
    )
    scales = {"prior_guidance": prior_guidance, "decoder_guidance": decoder_guidance}
    close(chain(stages64, PROMPTS[:2], 1, **scales), wanted)


def test_prior_alone(stages64: Stages, pipe64: Any) -> None:
    wanted = published(pipe64, 2, prompt=PROMPTS[0], num_images_per_prompt=2).embeds
    embeds = stages64.prior(
        stages64.text(PROMPTS[0]),
        stages64.text(""),
        steps=PRIOR_STEPS,
        generators=generators(SEED, 2),
    )
    torch.testing.assert_close(embeds, wanted, atol=FP64, rtol=FP64)


def test_decoder_alone(stages64: Stages, variation64: Any) -> None:
    """Fresh generators, embeddings from nowhere."""
    embeds = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    wanted = published(variation64, 2, image_embeddings=embeds).small
    empty = stages64.text("")
    small = stages64.decoder(
        embeds, empty, empty, steps=DECODER_STEPS, generators=generators(SEED, 2)
    )
    torch.testing.assert_close(small, wanted, atol=FP64, rtol=FP64)


def test_upscaler_alone(stages64: Stages, variation64: Any) -> None:
    """On the pipeline's own small pictures, at the offset where its decoder stopped drawing."""
    embeds = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    wanted = published(variation64, 2, image_embeddings=embeds)
    offset = DECODER_STEPS * 3 * LOW * LOW
    image = enlarged(stages64, wanted.small, 2, offset)
    torch.testing.assert_close(image, wanted.image, atol=FP64, rtol=FP64)


@pytest.mark.parametrize("guidance", [8.0, 1.0])
@pytest.mark.parametrize("each", [1, 2])
def test_image_variation(stages64: Stages, variation64: Any, guidance: float, each: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((112, 80), Image.Resampling.BICUBIC)
    wanted = published(
        variation64, each, image=image, num_images_per_prompt=each, decoder_guidance_scale=guidance
    )
    embeds = stages64.image(torch.from_numpy(np.asarray(image) / np.float32(255))[None])
    empty = stages64.text("")
    small, large = pictures(stages64, embeds, empty, empty, each, guidance)
    close(Published(None, small, large), wanted)


@pytest.mark.slow
def test_published_numbers_of_steps(stages64: Stages, pipe64: Any, monkeypatch: Any) -> None:
    for name, steps in (("PRIOR_STEPS", 25), ("DECODER_STEPS", 25), ("UPSCALER_STEPS", 7)):
        monkeypatch.setitem(globals(), name, steps)
    close(chain(stages64, [PROMPTS[0]], 1), published(pipe64, 1, prompt=PROMPTS[0]))


def test_the_prior_in_fp32(stages: Stages, pipe: Any) -> None:
    """As it runs. It predicts x0 itself, so nothing is amplified."""
    wanted = published(pipe, 8, prompt=PROMPTS, num_images_per_prompt=2).embeds
    embeds = stages.prior(
        stages.text(*PROMPTS),
        stages.text(""),
        steps=PRIOR_STEPS,
        generators=generators(SEED, 8),
    )
    assert (embeds - wanted).abs().max() < 1e-5 * wanted.abs().max()
