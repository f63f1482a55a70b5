"""Kandinsky 2.1's decoder and mCLIP against diffusers' pipelines, on the same weights and seeds.

Its DDIM clamps nothing, so random networks let latents grow to some hundreds, and rounding with
them: networks compute in fp64 on both sides, around samplers in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.loaders import kandinsky
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import find_source
from prior_art.networks.kandinsky_movq import encode
from prior_art.samplers.clip import encode_text
from prior_art.samplers.kandinsky import (
    Canvas,
    Condition,
    Known,
    known_mask,
    sample_latents,
)
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling, Start

from ..tiny import kandinsky_21_pipeline, tiny_kandinsky_21
from .test_kandinsky import SEED, STEPS, close, embeds, picture, pixels, region, streams
from .test_karlo import computing_in_double

pytestmark = pytest.mark.slow

PROMPT, NEGATIVE = "a red cat", "bad dog"
PLACE = {"device": torch.device("cpu"), "dtype": torch.float64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kandinsky_21(tmp_path_factory.mktemp("models"))


def pipeline(folder: Path, mode: str, class_name: str = "") -> Any:
    pipe = computing_in_double(kandinsky_21_pipeline(folder, mode, class_name))
    pipe.movq.float()  # its encode and decode pass by what answers in fp32
    return pipe


def published(pipe: Any, **options: Any) -> torch.Tensor:
    """The latents that a pipeline ends with; it only hands out pictures."""
    kept: list[torch.Tensor] = []
    decode = pipe.movq.decode
    pipe.movq.decode = lambda latents, **more: (kept.append(latents), decode(latents, **more))[1]
    pipe(PROMPT, **options)
    return kept[0]


def near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest."""
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)


def encoded(folder: Path, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    tower = kandinsky.load_mclip(find_source("decoder", "mclip", [folder]))
    ids, mask, _ = tokenize(tower.tokenizer, [prompt])
    text = encode_text(tower.network.double(), ids, mask, tower.space, **PLACE)
    return text.hidden, text.pooled


def latents(folder: Path, mode: str, count: int = 1, **options: Any) -> torch.Tensor:
    loaded = kandinsky.load_latent_decoder(find_source(mode, "latent_decoder", [folder]))
    canvas = Canvas((8, 8), options.pop("start", None), options.pop("known", None))
    steps = options.pop("num_inference_steps", STEPS)
    return sample_latents(
        loaded.network.double(),
        loaded.schedule,
        Condition(embeds(1), *encoded(folder, PROMPT)),
        Condition(embeds(1, 9), *encoded(folder, NEGATIVE)),
        canvas,
        Sampling(Noise.seeded(SEED, count), **PLACE, num_inference_steps=steps),
        **options,
    )


def coded(folder: Path, image: Any) -> torch.Tensor:
    movq = kandinsky.load_movq(find_source("decoder", "movq", [folder])).network
    return encode(movq, pixels(image))


def inputs(count: int = 1) -> dict[str, Any]:
    return {
        "image_embeds": embeds(1),
        "negative_image_embeds": embeds(1, 9),
        "negative_prompt": NEGATIVE,
        "generator": streams(count),
        "output_type": "pt",
    }


def test_mclip(folder: Path) -> None:
    pipe = pipeline(folder, "decoder")
    pooled, hidden, _ = pipe._encode_prompt(PROMPT, torch.device("cpu"), 1, False)
    ours = encoded(folder, PROMPT)
    close(ours[0], hidden)
    close(ours[1], pooled)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_text_to_image(folder: Path, guidance: float) -> None:
    pipe = pipeline(folder, "decoder")
    wanted = published(
        pipe,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        **inputs(),
    )
    near(latents(folder, "decoder", guidance_scale=guidance), wanted)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(folder: Path, strength: float) -> None:
    """A square: at other sizes diffusers 0.42.1 swaps width and height, and then refuses."""
    pipe = pipeline(folder, "decoder", "KandinskyImg2ImgPipeline")
    image = picture(64, 64)
    wanted = published(
        pipe,
        image=image,
        strength=strength,
        guidance_scale=4.0,
        height=64,
        width=64,
        num_inference_steps=10,
        **inputs(),
    )
    made = latents(
        folder,
        "decoder",
        start=Start(coded(folder, image), strength),
        num_inference_steps=10,
    )
    near(made, wanted)


def test_inpainting(folder: Path) -> None:
    pipe = pipeline(folder, "inpaint")
    image, mask = picture(64, 64), region(64, 64)
    wanted = published(
        pipe,
        image=image,
        mask_image=mask.copy(),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        **inputs(),
    )
    stays = known_mask(torch.from_numpy(mask)[None], (8, 8))
    known = Known(coded(folder, image), stays, blend=False)
    near(latents(folder, "inpaint", known=known), wanted)


def test_a_batch_is_each_alone(folder: Path) -> None:
    both = latents(folder, "decoder", 2)
    assert not np.allclose(both[0], both[1])
    close(both[:1], latents(folder, "decoder"))


def test_it_says_that_it_reads_the_prompt_too(folder: Path) -> None:
    loaded = kandinsky.load_latent_decoder(find_source("decoder", "latent_decoder", [folder]))
    loaded.network.double()
    with pytest.raises(EdgeError, match=r"reads the prompt too.*mCLIP"):
        sample_latents(
            loaded.network,
            loaded.schedule,
            Condition(embeds(1)),
            Condition(embeds(1, 9)),
            Canvas((8, 8)),
            Sampling(Noise.seeded(0, 1), **PLACE, num_inference_steps=2),
        )
