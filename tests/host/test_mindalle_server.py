"""minDALL-E in a running ComfyUI: candidates, completions, the same graph headless."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .serving import (
    SOURCE,
    Graph,
    bar_fills,
    is_a_picture,
    levels,
    node,
    one_clear_error,
    one_thread,
    previews_of,
    shown,
    with_inputs,
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.usefixtures("karlo_weights"),
]

FOLDER = "tiny-mindalle"


@pytest.fixture(scope="module", autouse=True)
def tiny_weights(comfy: Any, tiny: Any) -> None:
    """A miniature minDALL-E under the host's models/prior_art."""
    tiny.tiny_mindalle(comfy.base / "models" / "prior_art" / FOLDER)


def mindalle(seed: int = 3, candidates: int = 5, prompt: str = "red cat") -> Graph:
    """Text to candidates, the best of them, and each candidate's codes."""
    model = {"ar_transformer": ["model", 0], "vae": ["vae", 0]}
    return {
        "vae": node("PriorArtLoadVQGAN", source=FOLDER, dtype="auto"),
        "model": node("PriorArtLoadARTransformer", source=FOLDER, dtype="auto"),
        "rank": node("PriorArtLoadReranker", source=SOURCE, dtype="auto"),
        "sample": node(
            "PriorArtARSample",
            **model,
            text=prompt,
            seed=seed,
            candidates=candidates,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            class_id=0,
        ),
        "decode": node("PriorArtVQGANDecode", vae=["vae", 0], samples=["sample", 0]),
        "score": node("PriorArtARScore", **model, samples=["sample", 0], text=prompt, class_id=0),
        "best": node(
            "PriorArtCLIPRerank",
            clip=["rank", 0],
            clip_vision=["rank", 1],
            image=["decode", 0],
            text=prompt,
            keep=3,
        ),
        "view": node("PriorArtImageGrid", image=["best", 0], columns=2),
        "save": node("SaveImage", images=["view", 0], filename_prefix="mindalle"),
        "all": node("SaveImage", images=["decode", 0], filename_prefix="all"),
    }


def test_mindalle_gives_the_headless_runners_tokens_and_ranking(comfy: Any, tmp_path: Path) -> None:
    from prior_art.headless.runner import Runner, node_classes

    graph = mindalle()
    wires = {"codes": ["decode", 1], "scores": ["best", 1], "places": ["best", 2]}
    wires["likely"] = ["score", 0]
    graph |= {key: node("PreviewAny", source=wire) for key, wire in wires.items()}
    run = comfy.run(graph)
    assert run.error is None, run.error
    folder = comfy.base / "models" / "prior_art"
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("PRIOR_ART_MODELS", str(folder))
        runner = Runner(node_classes(), output_folder=tmp_path)
        headless = runner.run(graph)
    for key in ("codes", "places"):
        assert shown(run, key) == headless.texts[key]
    assert len(shown(run, "codes")) == 5 and len(shown(run, "places")) == 3
    for key in ("scores", "likely"):
        expected = [float(text) for text in headless.texts[key]]
        assert [float(text) for text in shown(run, key)] == pytest.approx(expected, rel=1e-4)
    (ours,), headless = comfy.pictures(run, "save"), Image.open(headless.pictures[0])
    assert ours.size == (64, 64) and is_a_picture(ours)
    assert levels(ours, headless.convert("RGB")) <= 1


def test_mindalle_reports_every_token_and_shows_rows(comfy: Any) -> None:
    run = comfy.run(mindalle(seed=40, candidates=2))
    assert run.error is None, run.error
    bar_fills(run, "sample", 128)
    previews = previews_of(run, "sample")
    assert 1 <= len(previews) <= 8  # at most one a row
    assert {picture.size for picture in previews} == {(512, 256)}  # two, side by side
    assert is_a_picture(previews[-1])


def test_native_nodes_run_the_vqgan_and_mask_a_completion(comfy: Any) -> None:
    graph = mindalle()
    graph = {key: graph[key] for key in ("vae", "model")}
    graph |= {
        "image": node("EmptyImage", width=48, height=32, batch_size=1, color=0x20C040),
        "encode": node("PriorArtVQGANEncode", vae=["vae", 0], image=["image", 0]),
        "mask": node("SolidMask", value=0.0, width=48, height=32),
        "hole": node("SolidMask", value=1.0, width=8, height=12),
        "painted": node(
            "MaskComposite",
            destination=["mask", 0],
            source=["hole", 0],
            x=20,
            y=10,
            operation="add",
        ),
        "masked": node("SetLatentNoiseMask", samples=["encode", 0], mask=["painted", 0]),
        "complete": node(
            "PriorArtARComplete",
            ar_transformer=["model", 0],
            vae=["vae", 0],
            latent_image=["masked", 0],
            text="red",
            keep=2,
            seed=1,
            candidates=4,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            class_id=0,
            image=["image", 0],
        ),
        "native": node("VAEDecode", samples=["complete", 0], vae=["vae", 0]),
        "tiled": node(
            "VAEDecodeTiled",
            samples=["complete", 0],
            vae=["vae", 0],
            tile_size=64,
            overlap=16,
            temporal_size=64,
            temporal_overlap=8,
        ),
        "again": node("VAEEncode", pixels=["native", 0], vae=["vae", 0]),
        "other": node("VAEDecode", samples=["again", 0], vae=["vae", 0]),
    }
    for name, source in (("save", "complete"), ("saved", "native"), ("in tiles", "tiled")):
        slot = 1 if source == "complete" else 0
        graph[name] = node("SaveImage", images=[source, slot], filename_prefix=source)
    graph["last"] = node("PreviewImage", images=["other", 0])
    run = comfy.run(graph)
    assert run.error is None, run.error
    assert any("'image' is 48x32" in text for text in run.texts)
    for picture in comfy.pictures(run, "save"):
        pixels = np.asarray(picture, dtype=int)
        new = (np.abs(pixels - (0x20, 0xC0, 0x40)).max(2) > 1).nonzero()
        assert new[0].size and new[0].min() >= 10 and new[0].max() < 22
        assert new[1].min() >= 12 and new[1].max() < 20
    pairs = zip(comfy.pictures(run, "saved"), comfy.pictures(run, "in tiles"), strict=True)
    assert all(levels(one, other) <= 1 for one, other in pairs)
    wrong = with_inputs(graph, "complete", latent_image=["encode", 0])
    one_clear_error(comfy, wrong, "latent_image", "no noise mask", "Set Latent Noise Mask")


def test_mindalle_stops_within_a_token(comfy: Any) -> None:
    stopped_at: list[int] = []

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == "sample" and not stopped_at:
            stopped_at.append(data["value"])
            comfy.interrupt()

    run = comfy.run(mindalle(seed=int(time.time()), candidates=3000), on_event=watch)
    assert run.of("execution_interrupted"), run.events[-3:]
    assert run.steps("sample")[-1][0] < 3000 * 64
    assert comfy.run(mindalle()).error is None


@pytest.mark.parametrize(
    ("name", "value"), [("candidates", 0), ("top_k", -1), ("top_p", 1.5), ("temperature", -1.0)]
)
def test_impossible_draws_are_refused(comfy: Any, name: str, value: float) -> None:
    answer = comfy.refused(with_inputs(mindalle(), "sample", **{name: value}))
    (error,) = answer["node_errors"]["sample"]["errors"]
    assert error["extra_info"]["input_name"] == name


def test_mindalle_refuses_what_does_not_fit(comfy: Any) -> None:
    one_clear_error(comfy, with_inputs(mindalle(), "sample", top_p=0.0), "'top_p' is 0.0")
    graph = mindalle()
    graph["pixels"] = node("VAELoader", vae_name="pixel_space")
    wrong = with_inputs(graph, "decode", vae=["pixels", 0])
    one_clear_error(comfy, wrong, "'vae' is another kind of VAE", "Load VQGAN")
    graph["empty"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    wrong = with_inputs(graph, "decode", samples=["empty", 0])
    one_clear_error(comfy, wrong, "LATENT of shape [1, 4, 8, 8]", "VQGAN Encode")
    assert any("[UNK]" in text for text in comfy.run(mindalle(prompt="red \U0001f438")).texts)
