"""The pack in a running ComfyUI, through /prompt and the websocket, as a browser uses it."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = [pytest.mark.host, pytest.mark.slow]

PACK = Path(__file__).resolve().parents[2]
Graph = dict[str, Any]
SOURCE, OTHER, MINDALLE = "tiny", "tiny-48d", "tiny-mindalle"
PRIOR_STEPS, DECODER_STEPS, UPSCALER_STEPS = 5, 4, 3
OUTPUTS = {
    "PriorArtLoadTextEncoder": ["CLIP"],
    "PriorArtLoadImageEncoder": ["CLIP_VISION"],
    "PriorArtLoadPrior": ["UNCLIP_PRIOR"],
    "PriorArtLoadDecoder": ["MODEL"],
    "PriorArtLoadUpscaler": ["UNCLIP_UPSCALER"],
    "PriorArtLoadImageNormalizer": ["MODEL"],
    "PriorArtTextEncode": ["CONDITIONING"],
    "PriorArtBatchPrompts": ["CONDITIONING"],
    "PriorArtImageEncode": ["CLIP_VISION_OUTPUT"],
    "PriorArtZeroImage": ["CLIP_VISION_OUTPUT"],
    "PriorArtPrior": ["CLIP_VISION_OUTPUT", "INT"],
    "PriorArtKarloDecoder": ["IMAGE", "INT"],
    "PriorArtKarloUpscale": ["IMAGE"],
    "PriorArtLoadLatentDecoder": ["MODEL"],
    "PriorArtLoadMoVQ": ["VAE"],
    "PriorArtLoadMCLIP": ["CLIP"],
    "PriorArtKandinskyPrior": ["CLIP_VISION_OUTPUT", "CLIP_VISION_OUTPUT", "INT"],
    "PriorArtKandinskyPriorImage": ["CLIP_VISION_OUTPUT", "CLIP_VISION_OUTPUT", "INT"],
    "PriorArtKandinskyDecoder": ["LATENT", "INT"],
    "PriorArtKandinskyImage": ["LATENT", "INT"],
    "PriorArtKandinskyInpaint": ["LATENT", "INT"],
    "PriorArtKandinskyDepth": ["LATENT", "INT"],
    "PriorArtKandinskyConditioning": ["CONDITIONING", "CONDITIONING"],
    "PriorArtKandinskySampler": ["SAMPLER"],
    "PriorArtKandinskySchedule": ["SIGMAS"],
    "PriorArtMixEmbeddings": ["CLIP_VISION_OUTPUT"],
    "PriorArtInterpolateEmbeddings": ["CLIP_VISION_OUTPUT"],
    "PriorArtTextDifference": ["CLIP_VISION_OUTPUT"],
    "PriorArtCompareEmbeddings": ["STRING", "IMAGE"],
    "PriorArtSaveEmbeddings": ["CLIP_VISION_OUTPUT"],
    "PriorArtLoadEmbeddings": ["CLIP_VISION_OUTPUT", "STRING"],
    "PriorArtLoadVQGAN": ["VAE"],
    "PriorArtLoadARTransformer": ["AR_TRANSFORMER"],
    "PriorArtLoadReranker": ["CLIP", "CLIP_VISION"],
    "PriorArtVQGANEncode": ["LATENT", "STRING"],
    "PriorArtVQGANDecode": ["IMAGE", "STRING"],
    "PriorArtARSample": ["LATENT"],
    "PriorArtARVariations": ["LATENT"],
    "PriorArtARComplete": ["LATENT", "IMAGE", "FLOAT"],
    "PriorArtARScore": ["FLOAT", "STRING"],
    "PriorArtCLIPRerank": ["IMAGE", "FLOAT", "INT"],
    "PriorArtImageGrid": ["IMAGE"],
}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


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


def with_inputs(graph: Graph, name: str, **inputs: Any) -> Graph:
    """A copy of ``graph`` with other inputs on one node."""
    changed = copy.deepcopy(graph)
    changed[name]["inputs"].update(inputs)
    return changed


def levels(a: Any, b: Any) -> int:
    """The largest difference of two pictures, in levels of 255."""
    assert a.size == b.size
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def bar_fills(run: Any, name: str, total: int) -> None:
    """A node's progress bar rises to its end, however many of its steps the host shows."""
    values, ends = zip(*run.steps(name), strict=True)
    assert set(ends) == {total}
    assert list(values) == sorted(set(values)) and values[-1] == total, values


def previews_of(run: Any, name: str) -> list[Any]:
    """The pictures that a node showed while it ran."""
    return [picture for node_id, picture in run.previews if node_id == name]


def is_a_picture(picture: Any) -> bool:
    pixels = np.asarray(picture, dtype=float)
    return pixels.std() > 1.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Spare a busy machine the spinning threads, as the host's environment does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def tiny_weights(comfy: Any, tiny: Any) -> None:
    """A miniature Karlo under the host's models/prior_art, and one of another embedding space."""
    folder = comfy.base / "models" / "prior_art"
    tiny.tiny_karlo(folder / SOURCE)
    tiny.tiny_mindalle(folder / MINDALLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.TEXT, "projection_dim", 48)
        patch.setitem(tiny.VISION, "projection_dim", 48)
        tiny.tiny_karlo(folder / OTHER)


def test_pack_imports_cleanly(comfy: Any) -> None:
    lines = [line for line in comfy.log_text().splitlines() if "PriorArt" in line]
    assert lines, "the host did not look at the pack"
    assert not [line for line in lines if re.search("IMPORT FAILED|Cannot import", line)]


def test_every_node_is_registered_with_its_types(comfy: Any) -> None:
    known = comfy.get("/object_info")
    for name, outputs in OUTPUTS.items():
        assert known[name]["output"] == outputs
        assert known[name]["description"], name
        tips = {
            key: spec[1].get("tooltip")
            for group in ("required", "optional")
            for key, spec in known[name]["input"].get(group, {}).items()
        }
        assert all(tips.values()), tips
    assert SOURCE in known["PriorArtLoadPrior"]["input"]["required"]["source"][1]["options"]


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


def stops_before_its_end(comfy: Any, graph: Graph, stage: str) -> None:
    """Interrupts a run of 1000 steps as soon as its bar moves. That it takes no further step is
    counted in in_process.py: here messages and clicks are on their way."""
    graph = with_inputs(graph, stage, steps=1000, seed=int(time.time()))
    asked: list[int] = []

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == stage and not asked:
            comfy.interrupt()
            asked.append(data["value"])

    run = comfy.run(graph, on_event=watch)
    assert asked, "the stage never began"
    assert run.of("execution_interrupted"), run.events[-3:]
    assert run.steps(stage)[-1][0] < 1000
    assert run.history["status"]["status_str"] == "error"
    assert comfy.alive()


def one_clear_error(comfy: Any, graph: Graph, *words: str) -> None:
    run = comfy.run(graph)
    assert run.error is not None
    for word in words:
        assert word in run.error, run.error
    (message,) = (m for m in run.history["status"]["messages"] if m[0] == "execution_error")
    assert message[1]["exception_message"] == run.error
    assert comfy.alive()


def told_no(comfy: Any, graph: Graph, *words: str) -> None:
    """Refused in words: by the server before anything runs (newer hosts know a node's choices), or
    by the node."""
    status, answer = comfy.post("/prompt", {"prompt": graph})
    if status == 200:
        one_clear_error(comfy, graph, *words)
        return
    assert status == 400, (status, answer)
    said = json.dumps(answer["node_errors"])
    assert all(word in said for word in words), said
    assert comfy.alive()


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


TEMPLATES = sorted(path.stem for path in (PACK / "example_workflows").glob("*.json"))
FEWER_STEPS = {"PriorArtPrior": 8, "PriorArtKarloDecoder": 8, "PriorArtKarloUpscale": 3}


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_gives_the_headless_runners_picture(
    comfy: Any, template: str, tmp_path: Path
) -> None:
    from prior_art.headless.runner import Runner, node_classes
    from prior_art.headless.workflow import to_api

    workflow = json.loads((PACK / "example_workflows" / f"{template}.json").read_text())
    graph = to_api(workflow, node_classes())
    for part in graph.values():
        if part["class_type"] in FEWER_STEPS:
            part["inputs"]["steps"] = FEWER_STEPS[part["class_type"]]
    samplers = ("PriorArtARSample", "PriorArtARComplete")
    for key in [key for key, part in graph.items() if part["class_type"] in samplers]:
        vae = graph[key]["inputs"]["vae"]
        graph["decode"] = node("PriorArtVQGANDecode", vae=vae, samples=[key, 0])
        graph["codes"] = node("PreviewAny", source=["decode", 1])
    inputs = comfy.base / "input"
    picture = Image.linear_gradient("L").resize((96, 72)).convert("RGB")
    picture.putalpha(Image.new("L", (96, 36), 255).crop((0, 0, 96, 72)))
    picture.save(inputs / "example.png")
    run = comfy.run(graph)
    assert run.error is None, run.error
    assert "not on same device" not in comfy.log_text()
    (save,) = (key for key, part in graph.items() if part["class_type"] == "SaveImage")
    ours = comfy.pictures(run, save)
    runner = Runner(node_classes(), output_folder=tmp_path, input_folder=inputs)
    with one_thread():
        alone = runner.run(graph)
    saved = [path for path in alone.pictures if path.parent == tmp_path]  # previews lie deeper
    headless = [Image.open(path).convert("RGB") for path in saved]
    assert len(ours) == len(headless)
    if "codes" in graph:
        assert shown(run, "codes") == alone.texts["codes"]
    for one, other in zip(ours, headless, strict=True):
        assert is_a_picture(one)
        assert levels(one, other) <= 1


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


def mindalle(seed: int = 3, candidates: int = 5, prompt: str = "red cat") -> Graph:
    """Text to candidates, the best of them, and each candidate's codes."""
    model = {"ar_transformer": ["model", 0], "vae": ["vae", 0]}
    return {
        "vae": node("PriorArtLoadVQGAN", source=MINDALLE, dtype="auto"),
        "model": node("PriorArtLoadARTransformer", source=MINDALLE, dtype="auto"),
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


def shown(run: Any, name: str) -> list[str]:
    return run.history["outputs"][name]["text"]


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
    assert 1 < len(previews) <= 8  # at most one a row
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
    assert any("'image' is 48×32" in text for text in run.texts)
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
    assert any("[UNK]" in text for text in comfy.run(mindalle(prompt="red 🐸")).texts)


def test_log_stays_free_of_leaks(comfy: Any) -> None:
    assert "memory leak" not in comfy.log_text()


def test_other_cache_works_too(launch: Any, tiny: Any, tmp_path: Path) -> None:
    tiny.tiny_karlo(tmp_path / "models" / "prior_art" / SOURCE)
    graph = karlo()
    with launch(tmp_path, "--cache-lru", "20") as other:
        assert other.run(graph).error is None
        assert not other.run(graph).of("progress")
        assert "memory leak" not in other.log_text()
