"""KOALA's stages against diffusers' StableDiffusionXLPipeline, on the same weights and seeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prior_art.edges import SDXLText
from prior_art.loaders import koala
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import find_source
from prior_art.networks.koala import prepare_sdxl
from prior_art.networks.koala_vae import LatentKL
from prior_art.samplers.koala import (
    LATENT_SCALE,
    EulerSchedule,
    encode_text_pair,
    sample_koala,
)
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling

from ..tiny import koala_pipeline, tiny_koala

pytestmark = pytest.mark.slow

SEED, CLOSE = 1234, 1e-4
PROMPT, NEGATIVE = "the red cat", "worst quality, low quality"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_koala(tmp_path_factory.mktemp("models"))


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED + i) for i in range(count)]


def encoded(folder: Path, name: str, prompts: list[str]) -> SDXLText:
    pair = koala.load_text_encoders(find_source(name, "koala_text", [folder]))
    ids = [tokenize(t, prompts, cleaned=False)[0] for t in (pair.tokenizer, pair.second_tokenizer)]
    return encode_text_pair(pair.first, pair.second, *ids)


def sampled(folder: Path, name: str, count: int, **options: Any) -> torch.Tensor:
    wanted = options.pop("wanted", koala.ANY_KOALA)
    schedule = options.pop("schedule", None)
    unet = koala.load_unet(find_source(name, "koala_unet", [folder]), wanted=wanted)
    steps = options.pop("num_inference_steps", 25)
    return sample_koala(
        partial(prepare_sdxl, unet.network),
        schedule or unet.schedule,
        options.pop("text", None) or encoded(folder, name, [PROMPT] * count),
        options.pop("negative", None),
        options.pop("size"),
        Sampling(Noise(streams(count)), torch.device("cpu"), torch.float32, steps),
        **options,
    )


def published(folder: Path, name: str, count: int, **options: Any) -> torch.Tensor:
    """The pipeline's latents; as large as sigmas are, they are compared at their scale."""
    return koala_pipeline(folder / name)(
        [PROMPT] * count, generator=streams(count), output_type="latent", **options
    ).images


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=CLOSE)


def test_both_encoders_states_and_the_pooled_embedding(folder):
    pipe = koala_pipeline(folder / "koala-1b")
    prompts = [PROMPT, "a cat " * 60]
    hidden, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompts, negative_prompt=[NEGATIVE, ""], do_classifier_free_guidance=True
    )
    text, away = (encoded(folder, "koala-1b", p) for p in (prompts, [NEGATIVE, ""]))
    close(text.hidden, hidden)
    close(text.pooled, pooled)
    close(away.hidden, negative)
    close(away.pooled, negative_pooled)


@pytest.mark.parametrize("name", ["koala-1b", "koala-700m"])
def test_the_cards_defaults_with_its_negative_prompt(folder, name):
    theirs = published(
        folder,
        name,
        2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=25,
        guidance_scale=7.5,
        height=64,
        width=96,
    )
    away = encoded(folder, name, [NEGATIVE])
    ours = sampled(folder, name, 2, negative=away, size=(8, 12))
    close(ours * LATENT_SCALE, theirs)


def test_a_picture_whose_side_halves_to_an_odd_number(folder):
    options = {"num_inference_steps": 4, "guidance_scale": 7.5, "height": 72, "width": 88}
    theirs = published(folder, "koala-700m", 1, negative_prompt=NEGATIVE, **options)
    away = encoded(folder, "koala-700m", [NEGATIVE])
    ours = sampled(folder, "koala-700m", 1, negative=away, size=(9, 11), num_inference_steps=4)
    close(ours * LATENT_SCALE, theirs)


def test_no_negative_prompt_is_zeros(folder):
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 64, "width": 64}
    theirs = published(folder, "koala-1b", 1, **options)
    ours = sampled(folder, "koala-1b", 1, size=(8, 8), num_inference_steps=4, guidance_scale=5.0)
    close(ours * LATENT_SCALE, theirs)


def test_no_guidance(folder):
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 64, "width": 64}
    theirs = published(folder, "koala-1b", 1, **options)
    ours = sampled(folder, "koala-1b", 1, size=(8, 8), num_inference_steps=4, guidance_scale=1.0)
    close(ours * LATENT_SCALE, theirs)


def test_sizes_and_crop_reach_the_network(folder):
    theirs = published(
        folder,
        "koala-1b",
        1,
        num_inference_steps=4,
        guidance_scale=1.0,
        height=64,
        width=64,
        original_size=(512, 640),
        crops_coords_top_left=(16, 48),
        target_size=(1024, 768),
    )
    text = encoded(folder, "koala-1b", [PROMPT])
    ids = torch.tensor([[512, 640, 16, 48, 1024, 768]])
    told = SDXLText(text.hidden, text.pooled, ids)
    options = {"size": (8, 8), "num_inference_steps": 4, "guidance_scale": 1.0}
    close(sampled(folder, "koala-1b", 1, text=told, **options) * LATENT_SCALE, theirs)
    untold = sampled(folder, "koala-1b", 1, **options)
    assert (untold * LATENT_SCALE - theirs).abs().max() > 100 * CLOSE


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_lightning_models_spacing(folder, spacing):
    from diffusers import EulerDiscreteScheduler

    pipe = koala_pipeline(folder / "koala-700m")
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing=spacing
    )
    theirs = pipe(
        PROMPT,
        num_inference_steps=10,
        guidance_scale=3.5,
        height=64,
        width=64,
        generator=streams(1),
        output_type="latent",
    ).images
    ours = sampled(
        folder,
        "koala-700m",
        1,
        schedule=EulerSchedule(spacing=spacing),
        size=(8, 8),
        num_inference_steps=10,
        guidance_scale=3.5,
    )
    close(ours * LATENT_SCALE, theirs)


def test_sdxls_own_unet(folder):
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 64, "width": 64}
    theirs = published(folder, "sdxl", 1, **options)
    ours = sampled(
        folder,
        "sdxl",
        1,
        wanted=koala.ANY_SDXL,
        size=(8, 8),
        num_inference_steps=4,
        guidance_scale=5.0,
    )
    close(ours * LATENT_SCALE, theirs)


def test_the_whole_chain_as_pictures(folder):
    options = {"num_inference_steps": 6, "guidance_scale": 7.5, "height": 64, "width": 64}
    theirs = koala_pipeline(folder / "koala-700m")(
        PROMPT, negative_prompt=NEGATIVE, generator=streams(1), output_type="pt", **options
    ).images
    away = encoded(folder, "koala-700m", [NEGATIVE])
    latent = sampled(folder, "koala-700m", 1, negative=away, size=(8, 8), num_inference_steps=6)
    vae = koala.load_vae(find_source("koala-700m", "koala_vae", [folder]))
    ours = (LatentKL(vae.network).decode(latent) / 2 + 0.5).clamp(0, 1)
    close(ours, theirs)
    assert ours.std() > 0.05


def test_the_vaes_encoding_is_its_distributions_mode(folder):
    vae = koala.load_vae(find_source("koala-1b", "koala_vae", [folder])).network
    pictures = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs = vae.encode(pictures).latent_dist.mode()
    close(LatentKL(vae).encode(pictures), theirs)


def test_a_batch_is_its_pictures_one_by_one(folder):
    text = encoded(folder, "koala-700m", [PROMPT])
    both = sampled(folder, "koala-700m", 2, text=text, size=(8, 8), num_inference_steps=4)
    unet = koala.load_unet(find_source("koala-700m", "koala_unet", [folder]))
    second = sample_koala(
        partial(prepare_sdxl, unet.network),
        unet.schedule,
        text,
        None,
        (8, 8),
        Sampling(Noise(streams(2)[1:]), torch.device("cpu"), torch.float32, 4),
    )
    close(both[1:] * LATENT_SCALE, second * LATENT_SCALE)
