"""The pack in a running ComfyUI, through /prompt and the websocket, as a browser uses it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .serving import (
    SOURCE,
    is_a_picture,
    levels,
    node,
    one_thread,
    shown,
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.usefixtures("karlo_weights"),
]

PACK = Path(__file__).resolve().parents[2]
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


def test_log_stays_free_of_leaks(comfy: Any) -> None:
    assert "memory leak" not in comfy.log_text()
