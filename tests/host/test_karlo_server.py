"""Karlo in a running ComfyUI: stages, caches, native nodes around them, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .serving import (
    OTHER,
    SOURCE,
    Graph,
    bar_fills,
    is_a_picture,
    levels,
    node,
    one_clear_error,
    previews_of,
    stops_before_its_end,
    told_no,
    with_inputs,
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.usefixtures("karlo_weights"),
]
PRIOR_STEPS, DECODER_STEPS, UPSCALER_STEPS = 5, 4, 3


def loader(kind: str) -> dict[str, Any]:
    return node(f"PriorArtLoad{kind}", source=SOURCE, dtype="auto")


def karlo(seed: int = 3, batch: int = 1, prompt: str = "a small red circle") -> Graph:
    """Text to image through all stages."""
    return {
        "clip": loader("TextEncoder"),
        "positive": node("PriorArtTextEncode", clip=["clip", 0], text=prompt),
        "negative": node("PriorArtTextEncode", clip=["clip", 0], text=""),
        "prior_model": loader("Prior"),
        "prior": node(
            "PriorArtPrior",
            prior=["prior_model", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            seed=seed,
            steps=PRIOR_STEPS,
            cfg=4.0,
            batch_size=batch,
        ),
        "decoder_model": loader("Decoder"),
        "decoder": node(
            "PriorArtKarloDecoder",
            model=["decoder_model", 0],
            image_embeds=["prior", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            seed=seed,
            steps=DECODER_STEPS,
            cfg=8.0,
            batch_size=1,
            noise_offset=["prior", 1],
        ),
        "upscaler_model": loader("Upscaler"),
        "upscale": node(
            "PriorArtKarloUpscale",
            upscaler=["upscaler_model", 0],
            image=["decoder", 0],
            seed=seed,
            steps=UPSCALER_STEPS,
            noise_offset=["decoder", 1],
        ),
        "save": node("SaveImage", images=["upscale", 0], filename_prefix="karlo"),
    }


def test_all_stages_report_their_steps_and_previews(comfy: Any) -> None:
    run = comfy.run(karlo())
    assert run.error is None
    for name, total in (
        ("prior", PRIOR_STEPS),
        ("decoder", DECODER_STEPS),
        ("upscale", UPSCALER_STEPS),
    ):
        bar_fills(run, name, total)
    for name in ("decoder", "upscale"):
        assert len(previews_of(run, name)) > 1
    assert all(is_a_picture(picture) for picture in previews_of(run, "upscale"))
    (picture,) = comfy.pictures(run, "save")
    assert picture.size == (32, 32)
    assert is_a_picture(picture)


def test_second_identical_run_is_served_from_the_cache(comfy: Any) -> None:
    graph = karlo(seed=4)
    comfy.run(graph)
    again = comfy.run(graph)
    (cached,) = again.of("execution_cached")
    assert set(cached["nodes"]) == set(graph)
    assert not again.of("progress")


def test_changed_seed_runs_only_the_stages_behind_it(comfy: Any) -> None:
    graph = karlo(seed=5)
    comfy.run(graph)
    again = comfy.run(with_inputs(graph, "upscale", seed=6))
    assert again.steps("upscale")
    assert not again.steps("prior")
    assert not again.steps("decoder")


def test_each_picture_of_a_batch_can_be_made_alone(comfy: Any) -> None:
    together = comfy.pictures(comfy.run(karlo(seed=20, batch=3)), "save")
    assert len(together) == 3
    alone = comfy.pictures(comfy.run(karlo(seed=22)), "save")
    assert levels(together[2], alone[0]) <= 1
    assert levels(together[0], together[1]) > 1


def test_native_clip_vision_encode_feeds_the_decoder(comfy: Any) -> None:
    graph = karlo()
    graph["vision"] = loader("ImageEncoder")
    graph["image"] = node("EmptyImage", width=80, height=60, batch_size=1, color=0xC04020)
    graph["native"] = node(
        "CLIPVisionEncode", clip_vision=["vision", 0], image=["image", 0], crop="center"
    )
    graph["own"] = node("PriorArtImageEncode", clip_vision=["vision", 0], image=["image", 0])
    graph = with_inputs(graph, "decoder", image_embeds=["native", 0], noise_offset=0)
    native = comfy.run(graph)
    assert native.error is None
    own = comfy.run(with_inputs(graph, "decoder", image_embeds=["own", 0]))
    assert own.steps("decoder")
    assert levels(comfy.pictures(native, "save")[0], comfy.pictures(own, "save")[0]) == 0


def native_graph(batch: int = 1) -> Graph:
    """Our prior and text, then the host's own nodes around our MODEL."""
    graph = {
        key: value
        for key, value in karlo(batch=batch).items()
        if key not in ("decoder", "upscaler_model", "upscale", "save")
    }
    graph["native_text"] = node("CLIPTextEncode", clip=["clip", 0], text="a small red circle")
    graph["unclip"] = node(
        "unCLIPConditioning",
        conditioning=["native_text", 0],
        clip_vision_output=["prior", 0],
        strength=1.0,
        noise_augmentation=0.0,
    )
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=batch)
    graph["sample"] = node(
        "KSampler",
        model=["decoder_model", 0],
        positive=["unclip", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        seed=3,
        steps=6,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    graph["vae"] = node("VAELoader", vae_name="pixel_space")
    graph["decode"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix="native")
    return graph


@pytest.mark.parametrize("batch", [1, 2])
def test_native_ksampler_runs_the_decoder_on_the_prior(comfy: Any, batch: int) -> None:
    run = comfy.run(native_graph(batch))
    assert run.error is None
    bar_fills(run, "sample", 6)
    assert len(previews_of(run, "sample")) > 1
    pictures = comfy.pictures(run, "save")
    assert len(pictures) == batch
    assert all(is_a_picture(picture) for picture in pictures)


def test_native_ksampler_without_an_image_embedding_warns(comfy: Any) -> None:
    run = comfy.run(with_inputs(native_graph(), "sample", positive=["native_text", 0]))
    assert run.error is None
    assert any("unCLIPConditioning" in text for text in run.texts)


@pytest.mark.parametrize("stage", ["prior", "decoder", "upscale", "sample"])
def test_interrupt_stops_a_stage(comfy: Any, stage: str) -> None:
    stops_before_its_end(comfy, native_graph() if stage == "sample" else karlo(), stage)
    assert comfy.run(karlo()).error is None


def test_foreign_image_embedding_is_refused(comfy: Any) -> None:
    graph = karlo()
    graph["vision"] = node("PriorArtLoadImageEncoder", source=OTHER, dtype="auto")
    graph["image"] = node("EmptyImage", width=40, height=40, batch_size=1, color=0)
    graph["own"] = node("PriorArtImageEncode", clip_vision=["vision", 0], image=["image", 0])
    graph["native"] = node(
        "CLIPVisionEncode", clip_vision=["vision", 0], image=["image", 0], crop="center"
    )
    for name, maker in (("own", "Image Encode"), ("native", "CLIP Vision Encode")):
        wrong = with_inputs(graph, "decoder", image_embeds=[name, 0])
        one_clear_error(comfy, wrong, "custom-48d", "custom-32d", maker)
    wrong = native_graph() | {key: graph[key] for key in ("vision", "image", "own")}
    wrong = with_inputs(wrong, "unclip", clip_vision_output=["own", 0])
    one_clear_error(comfy, wrong, "custom-48d", "custom-32d", "unCLIPConditioning")


def test_foreign_prompt_is_refused(comfy: Any) -> None:
    graph = with_inputs(karlo(), "clip", source=OTHER)
    one_clear_error(comfy, graph, "custom-48d", "custom-32d", "positive")


def test_zeroed_prompt_is_welcome(comfy: Any) -> None:
    graph = karlo()
    graph["zero"] = node("ConditioningZeroOut", conditioning=["positive", 0])
    assert comfy.run(with_inputs(graph, "prior", negative=["zero", 0])).error is None


def test_wrong_picture_size_is_refused(comfy: Any) -> None:
    graph = karlo()
    graph["image"] = node("EmptyImage", width=40, height=24, batch_size=1, color=0)
    one_clear_error(comfy, with_inputs(graph, "upscale", image=["image", 0]), "40", "24")


def test_unknown_source_is_refused(comfy: Any) -> None:
    told_no(comfy, with_inputs(karlo(), "prior_model", source="nowhere"), "source", "nowhere")


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        ("prior", "steps", 0),
        ("decoder", "steps", 0),
        ("upscale", "steps", 0),
        ("prior", "batch_size", 0),
        ("decoder", "batch_size", 0),
    ],
)
def test_impossible_numbers_are_refused(comfy: Any, stage: str, name: str, value: int) -> None:
    answer = comfy.refused(with_inputs(karlo(), stage, **{name: value}))
    (error,) = answer["node_errors"][stage]["errors"]
    assert error["extra_info"]["input_name"] == name
    assert comfy.alive()


def test_wrong_kind_of_edge_is_refused(comfy: Any) -> None:
    answer = comfy.refused(with_inputs(karlo(), "prior", prior=["decoder_model", 0]))
    assert "prior" in json.dumps(answer["node_errors"])


def test_native_image_to_image_and_mask(comfy: Any) -> None:
    """The pixel_space VAE encodes as well; a noise mask keeps what it covers."""
    graph = native_graph()
    graph["image"] = node("EmptyImage", width=8, height=8, batch_size=1, color=0x20C040)
    graph["encode"] = node("VAEEncode", pixels=["image", 0], vae=["vae", 0])
    graph["mask"] = node("SolidMask", value=0.0, width=8, height=8)
    graph["masked"] = node("SetLatentNoiseMask", samples=["encode", 0], mask=["mask", 0])
    strong = with_inputs(graph, "sample", latent_image=["encode", 0], denoise=0.5)
    (picture,) = comfy.pictures(comfy.run(strong), "save")
    assert picture.size == (8, 8)
    kept = with_inputs(graph, "sample", latent_image=["masked", 0], denoise=1.0)
    (picture,) = comfy.pictures(comfy.run(kept), "save")
    assert np.abs(np.asarray(picture, dtype=int) - (0x20, 0xC0, 0x40)).max() <= 1


def test_native_ksampler_draws_what_the_published_sampler_draws(comfy: Any) -> None:
    """On trained weights, from the same noise: the same thing in the same place."""
    graph = karlo() | native_graph()
    for name in ("clip", "prior_model", "decoder_model"):
        graph = with_inputs(graph, name, source="shapes-karlo")
    for name in ("positive", "native_text"):
        graph = with_inputs(graph, name, text="a large red circle on a blue background")
    graph = with_inputs(graph, "prior", steps=25)
    graph = with_inputs(graph, "decoder", steps=25, noise_offset=0)
    graph = with_inputs(graph, "latent", width=128, height=128)
    graph = with_inputs(graph, "sample", steps=25, cfg=8.0, sampler_name="ddpm")
    graph["own"] = node("SaveImage", images=["decoder", 0], filename_prefix="own")
    run = comfy.run(graph)
    assert run.error is None, run.error
    native, own = (np.asarray(comfy.pictures(run, name)[0], float) for name in ("save", "own"))
    assert np.corrcoef(native.ravel(), own.ravel())[0, 1] > 0.9


def test_other_cache_works_too(launch: Any, tiny: Any, tmp_path: Path) -> None:
    tiny.tiny_karlo(tmp_path / "models" / "prior_art" / SOURCE)
    graph = karlo()
    with launch(tmp_path, "--cache-lru", "20") as other:
        assert other.run(graph).error is None
        assert not other.run(graph).of("progress")
        assert "memory leak" not in other.log_text()
