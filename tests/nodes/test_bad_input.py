"""Bad input gets one clear error that names the input and the cure, and the runner goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from prior_art.edges import EdgeError, batch_conditioning, conditioning_to_any_text
from prior_art.headless.runner import NodeError
from prior_art.headless.workflow import WorkflowError
from prior_art.host import host
from prior_art.nodes.karlo import KarloDecoder, KarloUpscale
from prior_art.nodes.unclip import PriorSample, TextEncode

FAST = {"seed": 0, "steps": 2}


@pytest.fixture(scope="module")
def stages(models):
    """The loaded stages of the miniature, as the loader nodes hand them out."""
    from prior_art.edges import Prior, Upscaler
    from prior_art.loaders import karlo, unclip
    from prior_art.loaders.files.catalogue import find_source

    def source(stage):
        return find_source("tiny-karlo", stage, [models])

    prior = unclip.load_prior(source("prior"))
    upscaler = karlo.load_upscaler(source("upscaler"))
    return {
        "clip": host.wrap("text_encoder", unclip.load_text_encoder(source("text_encoder"))),
        "prior": Prior(host.manage(prior.network), prior.schedule, prior.space),
        "model": host.wrap("decoder", karlo.load_decoder(source("decoder"))),
        "upscaler": Upscaler(
            host.manage(upscaler.network),
            upscaler.schedule,
            upscaler.low_size,
            upscaler.high_size,
        ),
    }


@pytest.fixture(scope="module")
def text(stages):
    return TextEncode.execute(stages["clip"], "a frog").args[0]


def decode(stages, embeds, text, **changes):
    inputs = {"cfg": 8.0, "batch_size": 1, **FAST, **changes}
    return KarloDecoder.execute(stages["model"], embeds, text, text, **inputs)


def embedding(dim, **extra):
    return host.clip_vision_output(torch.randn(1, dim), **extra)


def test_an_embedding_of_another_space_is_refused_with_both_names(stages, text):
    foreign = embedding(1280, embedding_space="laion-vit-bigg-14", made_by="Kandinsky Prior")
    with pytest.raises(EdgeError) as error:
        decode(stages, foreign, text)
    for said in ("laion-vit-bigg-14", "custom-32d", "Kandinsky Prior", "encode the picture again"):
        assert said in str(error.value)


def test_a_native_embedding_is_told_by_its_widths(stages, text):
    native = embedding(1024, last_hidden_state=torch.zeros(1, 257, 1280))
    with pytest.raises(EdgeError, match=r"laion-vit-h-14.*native CLIP Vision Encode"):
        decode(stages, native, text)


def test_a_prompt_of_another_encoder_is_refused(stages, text):
    hidden, extra = text[0]
    sdxl = [[torch.zeros(1, 77, 2048), {"pooled_output": torch.zeros(1, 1280)}]]
    other = [[hidden, {**extra, "embedding_space": "openai-vit-l-14"}]]
    for wrong, said in ((sdxl, "another kind of text encoder"), (other, "openai-vit-l-14")):
        with pytest.raises(EdgeError, match=said):
            PriorSample.execute(stages["prior"], wrong, text, cfg=4.0, batch_size=1, **FAST)
    with pytest.raises(EdgeError, match="Average"):
        PriorSample.execute(stages["prior"], text + text, text, cfg=4.0, batch_size=1, **FAST)


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_impossible_steps_are_named(stages, text, steps):
    with pytest.raises(EdgeError, match=f"'steps' is {steps}"):
        decode(stages, embedding(32, embedding_space="custom-32d"), text, steps=steps)


def test_a_batch_of_none_is_named(stages, text):
    with pytest.raises(EdgeError, match="'batch_size' is 0"):
        PriorSample.execute(stages["prior"], text, text, cfg=4.0, batch_size=0, **FAST)
    with pytest.raises(EdgeError, match="'batch_size' is 0"):
        decode(stages, embedding(32, embedding_space="custom-32d"), text, batch_size=0)


def test_a_picture_of_another_size_is_refused_by_the_upscaler(stages):
    with pytest.raises(EdgeError, match=r"'image' is 64x48.*8x8"):
        KarloUpscale.execute(stages["upscaler"], torch.zeros(1, 48, 64, 3), **FAST)
    with pytest.raises(EdgeError, match="shape"):
        KarloUpscale.execute(stages["upscaler"], torch.zeros(0, 8, 8, 3), **FAST)


def test_nan_is_named_at_the_door(stages, text):
    with pytest.raises(EdgeError, match="'image' holds NaN"):
        KarloUpscale.execute(stages["upscaler"], torch.full((1, 8, 8, 3), float("nan")), **FAST)
    nan = host.clip_vision_output(torch.full((1, 32), float("nan")), embedding_space="custom-32d")
    with pytest.raises(EdgeError, match="'image_embeds' holds NaN"):
        decode(stages, nan, text)


def test_a_foreign_model_is_named(stages, text):
    with pytest.raises(EdgeError, match="Load Decoder"):
        KarloDecoder.execute(object(), embedding(32), text, text, cfg=8.0, batch_size=1, **FAST)


def test_a_long_prompt_is_cut_with_a_warning_that_shows_what_was_cut(stages, monkeypatch):
    warnings = []
    monkeypatch.setattr(host, "warn", warnings.append)
    ((hidden, _extra),) = TextEncode.execute(stages["clip"], "frog " * 2000).args[0]
    assert hidden.shape[1] == 77
    assert len(warnings) == 1 and "77 tokens" in warnings[0] and "frog" in warnings[0]


def test_inputs_are_left_untouched(stages, text):
    image = torch.rand(1, 8, 8, 3)
    before, hidden = image.clone(), text[0][0].clone()
    embeds = embedding(32, embedding_space="custom-32d")
    kept = embeds.image_embeds.clone()
    KarloUpscale.execute(stages["upscaler"], image, **FAST)
    decode(stages, embeds, text)
    assert torch.equal(image, before)
    assert torch.equal(text[0][0], hidden) and torch.equal(embeds.image_embeds, kept)


def test_native_combos_are_checked_and_damaged_folders_named(runner, template, find, models):
    prompt = template("karlo_text_to_image")
    find(prompt, "PriorArtLoadPrior")["inputs"]["source"] = "nobody"
    with pytest.raises(WorkflowError, match="'nobody', which is not in the list"):
        runner.run(prompt)
    broken = models / "broken-karlo"
    shutil.copytree(models / "tiny-karlo", broken)
    weights = broken / "prior" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    find(prompt, "PriorArtLoadPrior")["inputs"]["source"] = "broken-karlo"
    with pytest.raises(NodeError, match=r"PriorArtLoadPrior.*safetensors"):
        runner.run(prompt)
    shutil.rmtree(broken)
    find(prompt, "PriorArtLoadPrior")["inputs"]["source"] = "tiny-karlo"
    for stage in ("PriorArtPrior", "PriorArtKarloDecoder", "PriorArtKarloUpscale"):
        find(prompt, stage)["inputs"]["steps"] = 2
    with Image.open(runner.run(prompt).pictures[0]) as picture:
        assert picture.size == (32, 32)


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_nodes_register_where_a_library_is_broken_and_the_error_names_it(models, missing):
    script = f"""
import sys
sys.modules[{missing!r}] = None
from prior_art.headless.runner import node_classes
nodes = node_classes()
assert "PriorArtKarloDecoder" in nodes
for stage in ("LoadTextEncoder", "LoadPrior"):
    try:
        nodes["PriorArt" + stage].execute("tiny-karlo", "auto")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PRIOR_ART_MODELS": str(models), "PRIOR_ART_HOST": "embedded", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert missing in done.stdout and f"pip install -U {missing}" in done.stdout


@pytest.mark.parametrize(
    "entry",
    [
        ["x", {}],
        [None, {}],
        [{}, {}],
        [torch.zeros(3), {}],
        [torch.zeros(3, 2), {}],
        [torch.zeros(1, 4, 8), {"embedding_space": 3, "pooled_output": torch.zeros(1, 8)}],
        [torch.zeros(1, 4, 8), {"embedding_space": ["a"], "pooled_output": torch.zeros(1, 8)}],
    ],
)
def test_what_no_text_encoder_made_is_refused_by_its_input(entry: list) -> None:
    with pytest.raises(EdgeError, match="'conditioning_a' got a"):
        batch_conditioning([entry], [entry])
    with pytest.raises(EdgeError, match="'text' got a"):
        conditioning_to_any_text([entry], "text")
