"""Every diffusion stage recorded, by a recorder for the CPU, against the same stage unrecorded.

Each is run again with another prompt, seed, guidance and number of steps: all of that must reach
the recording of the first run, which is not made anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prior_art.edges import SDXLText
from prior_art.loaders import kandinsky, koala
from prior_art.loaders.files.catalogue import find_source
from prior_art.networks import graphs, unet
from prior_art.networks import prior as prior_network
from prior_art.networks.koala import prepare_sdxl
from prior_art.samplers.kandinsky import Canvas, Condition, Known, sample_latents
from prior_art.samplers.kandinsky_schedule import LatentSchedule
from prior_art.samplers.koala import sample_koala
from prior_art.samplers.parts.noise import Noise, generators
from prior_art.samplers.parts.sampling import Sampling, Start

from ..networks.recorder import record_on_cpu
from ..tiny import DIM, LOW, tiny_kandinsky, tiny_koala
from .stages import CPU, Stages

Run = Callable[[int], torch.Tensor]
PROMPTS = ["a red cat", "the bird and the cat"]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def latent_decoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture(scope="module")
def koalas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_koala(tmp_path_factory.mktemp("koala"))


def prior(stages: Stages, with_negative: bool, seed: int) -> torch.Tensor:
    return stages.prior(
        stages.text(PROMPTS[seed]),
        stages.text("worst quality" if seed else ""),
        steps=4 + seed,
        generators=generators(seed, 4 if with_negative else 2),
        guidance_scale=3.0 + seed,
        with_negative=with_negative,
    )


def decoder(stages: Stages, guidance: float, seed: int) -> torch.Tensor:
    return stages.decoder(
        draw(1, DIM, seed=seed),
        stages.text(PROMPTS[seed]),
        stages.text(""),
        steps=4 + seed,
        generators=generators(seed, 2),
        guidance_scale=guidance + seed if guidance > 1 else guidance,
    )


def upscaler(stages: Stages, seed: int) -> torch.Tensor:
    small = draw(2, 3, LOW, LOW, seed=seed).clamp(-1, 1)
    return stages.upscaler(small, steps=4 + seed, generators=generators(seed, 2))


@functools.cache
def loaded_decoder(folder: Path, mode: str) -> kandinsky.LatentDecoder:
    return kandinsky.load_latent_decoder(find_source(mode, "latent_decoder", [folder]))


@functools.cache
def loaded_koala(folder: Path, name: str) -> koala.KoalaUNet:
    return koala.load_unet(find_source(name, "koala_unet", [folder]))


def latents(folder: Path, mode: str, schedule: LatentSchedule | None, seed: int) -> torch.Tensor:
    loaded = loaded_decoder(folder, mode)
    hint = draw(1, 3, 64, 64, seed=seed + 5).abs() if mode == "depth" else None
    known = None
    if mode == "inpaint":
        mask = (draw(1, 1, 8, 8, seed=seed) > 0).float()
        known = Known(draw(1, 4, 8, 8, seed=seed + 3), mask)
    return sample_latents(
        loaded.network,
        schedule or loaded.schedule,
        Condition(draw(1, DIM, seed=seed), hint=hint),
        Condition(draw(1, DIM, seed=seed + 9), hint=hint),
        Canvas((8, 8), Start(draw(1, 4, 8, 8, seed=seed), 0.9) if seed else None, known),
        Sampling(Noise.seeded(seed, 2), CPU, torch.float32, 5 + seed),
        3.0 + seed,
    )


def euler(folder: Path, name: str, seed: int) -> torch.Tensor:
    loaded = loaded_koala(folder, name)
    config = loaded.network.config
    width = loaded.network.add_embedding.linear_1.in_features - 6 * config.addition_time_embed_dim

    def prompt(seed: int) -> SDXLText:
        hidden = draw(1, 77, config.cross_attention_dim, seed=seed)
        return SDXLText(hidden, draw(1, width, seed=seed), None)

    return sample_koala(
        partial(prepare_sdxl, loaded.network),
        loaded.schedule,
        prompt(seed),
        None if seed else prompt(7),
        (8, 8),
        Sampling(Noise.seeded(seed, 2), CPU, torch.float32, 4 + seed),
        5.0 + seed,
    )


PLMS = LatentSchedule(ancestral=False, multistep=True, learned_range=False)
DDIM = LatentSchedule(ancestral=False, learned_range=False)
CASES = {
    "prior": (prior, "stages", [False], 1),
    "prior with the negative's embeddings": (prior, "stages", [True], 1),
    "decoder": (decoder, "stages", [4.0], 1),
    "decoder without guidance": (decoder, "stages", [1.0], 1),
    "upscaler": (upscaler, "stages", [], 2),
    "latents": (latents, "latent_decoders", ["decoder", None], 1),
    "latents by DDIM": (latents, "latent_decoders", ["decoder", DDIM], 1),
    "latents by PLMS": (latents, "latent_decoders", ["decoder", PLMS], 1),
    "inpainting": (latents, "latent_decoders", ["inpaint", None], 1),
    "depth": (latents, "latent_decoders", ["depth", None], 1),
    "KOALA-700M": (euler, "koalas", ["koala-700m"], 1),
    "KOALA-1B": (euler, "koalas", ["koala-1b"], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_recorded(
    case: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, fixture, options, networks = CASES[case]
    given = request.getfixturevalue(fixture)
    plain = [work(given, *options, seed) for seed in (0, 1)]
    with monkeypatch.context() as patch:
        recorders, once = record_on_cpu(patch), []

        def prepared(*told: Any) -> Any:
            before = len(recorders)
            made = graphs.prepared(*told)
            once.extend(recorders[before:])
            return made

        for module in (prior_network, unet):
            patch.setattr(module, "prepared", prepared)
        recorded = [work(given, *options, seed) for seed in (0, 1)]
    for ours, wanted in zip(recorded, plain, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    # What is computed once a run is recorded for each number of steps.
    assert networks <= len(once) <= 2 * networks
    steps = [recorder for recorder in recorders if recorder not in once]
    assert len(steps) == networks
    assert sum(recorder.replays for recorder in steps) >= 4 + 5 - networks - 1
    assert all(len(recorder.tape) > 30 for recorder in steps)
