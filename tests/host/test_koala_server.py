"""KOALA in a running ComfyUI: our sampler, the host's own on the same model, both headless too."""

from __future__ import annotations

import time
from typing import Any

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

FOLDER, STEPS = "tiny-koala", 4
OWN = "from the source"


@pytest.fixture(scope="module", autouse=True)
def tiny_weights(comfy: Any, tiny: Any) -> None:
    """Miniatures of both KOALAs and of SDXL under the host's models/prior_art."""
    tiny.tiny_koala(comfy.base / "models" / "prior_art" / FOLDER)


def koala(name: str = "koala-700m", variant: str = "any KOALA", **changes: Any) -> Graph:
    """Text to image with the published sampler."""
    side = {"clip": ["load", 1], "width": 64, "height": 64}
    side |= {"crop_w": 0, "crop_h": 0, "target_width": 0, "target_height": 0}
    own = {"clip_l": OWN, "clip_g": OWN, "vae": OWN}
    source = f"{FOLDER}/{name}"
    sampling = {"width": 64, "height": 64, "seed": 3, "steps": STEPS, "cfg": 7.5, "batch_size": 1}
    return {
        "load": node("PriorArtLoadKoala", source=source, dtype="auto", variant=variant, **own),
        "positive": node("PriorArtKoalaTextEncode", text="the red cat", **side),
        "negative": node("PriorArtKoalaTextEncode", text="low quality", **side),
        "sample": node(
            "PriorArtKoalaSample",
            model=["load", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            timestep_spacing="as published",
            **sampling | changes,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="koala"),
    }


def native(name: str = "koala-1b") -> Graph:
    """Our loader and prompts, then the host's own nodes."""
    graph = koala(name)
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph["sample"] = node(
        "KSampler",
        model=["load", 0],
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        seed=5,
        steps=STEPS,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    return graph


GRAPHS = {
    "700M": koala(),
    "1B, batch": koala("koala-1b", batch_size=2),
    "SDXL": koala("sdxl", "any SDXL"),
    "700M, KSampler": native("koala-700m"),
    "1B, KSampler": native(),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_paints_the_same_here_and_headless(comfy: Any, name: str, monkeypatch) -> None:
    from prior_art.headless.runner import Runner, node_classes

    graph = GRAPHS[name]
    run = comfy.run(graph)
    assert run.error is None
    bar_fills(run, "sample", STEPS)
    pictures = comfy.pictures(run, "save")
    assert all(is_a_picture(picture) for picture in pictures)
    monkeypatch.setenv("PRIOR_ART_MODELS", str(comfy.base / "models" / "prior_art"))
    with one_thread():
        runner = Runner(node_classes(), comfy.base / "headless", comfy.base / "input")
        headless = runner.run(graph)
    assert len(headless.pictures) == len(pictures) == (2 if "batch" in name else 1)
    for ours, theirs in zip(headless.pictures, pictures, strict=True):
        assert levels(Image.open(ours), theirs) <= 1


@pytest.mark.parametrize("graph", [koala(), native()], ids=["ours", "native"])
def test_previews_come_with_the_steps(comfy: Any, graph: Graph) -> None:
    run = comfy.run(with_inputs(graph, "sample", seed=int(time.time())))
    assert run.error is None
    seen = previews_of(run, "sample")
    assert len(seen) > 1 and all(is_a_picture(picture) for picture in seen)


def test_interrupt_stops_a_stage(comfy: Any) -> None:
    stops_before_its_end(comfy, koala(), "sample")
    assert comfy.run(koala()).error is None


def test_the_info_node_shows_the_variant(comfy: Any) -> None:
    graph = koala("koala-1b")
    graph["info"] = node("PriorArtKoalaInfo", model=["load", 0])
    graph["text"] = node("PreviewAny", source=["info", 1])
    run = comfy.run(graph)
    assert run.error is None
    (shown,) = [event["output"] for event in run.of("executed") if event["node"] == "text"]
    assert "KOALA-1B (miniature)" in shown["text"][0]
    assert "mid block: yes" in shown["text"][0]


def test_wrong_wires_are_one_clear_error(comfy: Any) -> None:
    one_clear_error(comfy, koala("sdxl"), "SDXL-Base", "any KOALA")
    one_clear_error(comfy, koala("koala-1b", "KOALA-700M"), "KOALA-1B", "KOALA-700M")
    wrong = koala(width=60)
    one_clear_error(comfy, wrong, "multiples of 8")
    wrong = koala()
    wrong["clip"] = node("PriorArtLoadTextEncoder", source="shapes-karlo", dtype="auto")
    wrong["positive"]["inputs"]["clip"] = ["clip", 0]
    one_clear_error(comfy, wrong, "Load KOALA")
