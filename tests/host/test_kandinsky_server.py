"""Kandinsky in a running ComfyUI: stages, native nodes around them, the same graphs headless."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .serving import (
    Graph,
    bar_fills,
    is_a_picture,
    levels,
    node,
    one_clear_error,
    one_thread,
    previews_of,
    stops_before_its_end,
    with_inputs,
)

pytestmark = [pytest.mark.host, pytest.mark.slow]

FOLDER, STEPS = "tiny-kandinsky", 4


@pytest.fixture(scope="module", autouse=True)
def tiny_weights(comfy: Any, tiny: Any) -> None:
    """A miniature Kandinsky under the host's models/prior_art."""
    tiny.tiny_kandinsky(comfy.base / "models" / "prior_art" / FOLDER)
    shade = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.dstack([np.tile(shade, (64, 1)), np.tile(shade, (64, 1)).T, np.full((64, 64), 90)])
    alpha = np.full((64, 64), 255)
    alpha[:32, :32] = 0  # the editor's mask is the picture's transparency
    Image.fromarray(np.dstack([picture, alpha]).astype(np.uint8)).save(
        comfy.base / "input" / "shade.png"
    )


def loader(kind: str, part: str, **more: str) -> dict[str, Any]:
    return node(f"PriorArtLoad{kind}", source=f"{FOLDER}/{part}", dtype="auto", **more)


def decoder(part: str) -> dict[str, Any]:
    return loader("LatentDecoder", part, sampler="published")


COMMON = {"seed": 3, "steps": STEPS, "cfg": 4.0, "batch_size": 1}


def kandinsky(prompt: str = "a red cat", **changes: Any) -> Graph:
    """Text to image through all stages."""
    sides = {"image_embeds": ["prior", 0], "negative_image_embeds": ["prior", 1]}
    return {
        "clip": loader("TextEncoder", "prior"),
        "positive": node("PriorArtTextEncode", clip=["clip", 0], text=prompt),
        "negative": node("PriorArtTextEncode", clip=["clip", 0], text=""),
        "prior_model": loader("Prior", "prior"),
        "prior": node(
            "PriorArtKandinskyPrior",
            prior=["prior_model", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            negative_embeds="zero image",
            **COMMON,
        ),
        "model": decoder("decoder"),
        "vae": loader("MoVQ", "decoder"),
        "decoder": node(
            "PriorArtKandinskyDecoder",
            model=["model", 0],
            width=64,
            height=64,
            noise_offset=["prior", 2],
            **sides,
            **COMMON | changes,
        ),
        "decode": node("VAEDecode", samples=["decoder", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="kandinsky"),
    }


def other_mode(kind: str, part: str, **inputs: Any) -> Graph:
    """The same with a picture, and another decoder node."""
    graph = kandinsky()
    graph["model"] = decoder(part)
    graph["picture"] = node("LoadImage", image="shade.png")
    given = graph["decoder"]["inputs"] | {"width": 0, "height": 0} | inputs
    graph["decoder"] = node(kind, **given)
    return graph


GRAPHS = {
    "text to image": kandinsky(),
    "batch": kandinsky(batch_size=2),
    "image to image": other_mode(
        "PriorArtKandinskyImage", "decoder", image=["picture", 0], vae=["vae", 0], strength=0.6
    ),
    "inpaint": other_mode(
        "PriorArtKandinskyInpaint",
        "inpaint",
        image=["picture", 0],
        mask=["picture", 1],
        vae=["vae", 0],
    ),
    "depth": other_mode("PriorArtKandinskyDepth", "depth", depth=["picture", 0]),
}


def native(sampler: bool = False) -> Graph:
    """Our loaders and prior, then the host's own nodes."""
    graph = kandinsky()
    graph["sides"] = node(
        "PriorArtKandinskyConditioning",
        image_embeds=["prior", 0],
        negative_image_embeds=["prior", 1],
    )
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    common = {
        "model": ["model", 0],
        "positive": ["sides", 0],
        "negative": ["sides", 1],
        "latent_image": ["latent", 0],
        "cfg": 3.0,
    }
    if sampler:
        graph["sampler"] = node("PriorArtKandinskySampler")
        graph["sigmas"] = node(
            "PriorArtKandinskySchedule", model=["model", 0], steps=STEPS, denoise=1.0
        )
        graph["decoder"] = node(
            "SamplerCustom",
            add_noise=True,
            noise_seed=5,
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            **common,
        )
    else:
        graph["decoder"] = node(
            "KSampler",
            seed=5,
            steps=STEPS,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
            **common,
        )
    return graph


@pytest.mark.parametrize("name", [*GRAPHS, "KSampler", "SamplerCustom"])
def test_a_graph_paints_the_same_here_and_headless(comfy: Any, name: str, monkeypatch) -> None:
    from prior_art.headless.runner import Runner, node_classes

    graph = GRAPHS.get(name) or native(name == "SamplerCustom")
    run = comfy.run(graph)
    assert run.error is None
    bar_fills(run, "decoder", 2 if name == "image to image" else 4)
    pictures = comfy.pictures(run, "save")
    assert all(is_a_picture(picture) for picture in pictures)
    monkeypatch.setenv("PRIOR_ART_MODELS", str(comfy.base / "models" / "prior_art"))
    with one_thread():
        runner = Runner(node_classes(), comfy.base / "headless", comfy.base / "input")
        headless = runner.run(graph)
    assert len(headless.pictures) == len(pictures) == (2 if name == "batch" else 1)
    for ours, theirs in zip(headless.pictures, pictures, strict=True):
        assert levels(Image.open(ours), theirs) <= 1


@pytest.mark.parametrize("graph", [kandinsky(), native()], ids=["ours", "native"])
def test_previews_come_with_the_steps(comfy: Any, graph: Graph) -> None:
    run = comfy.run(with_inputs(graph, "decoder", seed=int(time.time())))
    assert run.error is None
    seen = previews_of(run, "decoder")
    assert len(seen) > 1 and all(is_a_picture(picture) for picture in seen)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_interrupt_stops_a_stage(comfy: Any, stage: str) -> None:
    stops_before_its_end(comfy, kandinsky(), stage)
    assert comfy.run(kandinsky()).error is None


def test_what_is_computed_of_weights_once_lies_in_the_packs_own_folder(comfy: Any) -> None:
    run = comfy.run(kandinsky())
    assert run.error is None
    kept = Path(comfy.base / "user" / "prior_art").glob("*.safetensors")
    assert {file.name.partition("-")[0] for file in kept} >= {
        "zero_image_embeds",
        "latent_rgb_factors",
    }
    models = Path(comfy.base / "models" / "prior_art")
    assert not list(models.rglob("zero_image_embeds*")), "in the user's model folder"
    again = comfy.run(kandinsky())
    (cached,) = again.of("execution_cached")
    assert set(cached["nodes"]) == set(kandinsky()), "keeping it made the host load anew"


def test_wrong_wires_are_one_clear_error(comfy: Any) -> None:
    wrong = kandinsky()
    wrong["model"] = decoder("inpaint")
    one_clear_error(comfy, wrong, "inpainting decoder", "text-to-image")
    wrong = other_mode(
        "PriorArtKandinskyInpaint",
        "inpaint",
        image=["picture", 0],
        mask=["picture", 1],
        vae=["pixels", 0],
    )
    wrong["pixels"] = node("VAELoader", vae_name="pixel_space")
    one_clear_error(comfy, wrong, "Load MoVQ")
    wrong = native()
    wrong["decoder"]["inputs"]["positive"] = ["positive", 0]
    one_clear_error(comfy, wrong, "Kandinsky Conditioning")
