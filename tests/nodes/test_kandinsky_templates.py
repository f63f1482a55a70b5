"""Kandinsky's templates, run headless on the embedded family, against diffusers' pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.shapes.check import check
from prior_art.shapes.grammar import Scene, parse
from prior_art.shapes.pictures import draw, silhouette

pytestmark = pytest.mark.slow

FAMILY = Path(__file__).resolve().parents[2] / "shapes" / "weights" / "kandinsky"
SHOWN = Scene("red", "circle", "blue", "medium")


@pytest.fixture
def shown(runner):
    """The picture that the templates' LoadImage nodes find."""
    runner.input_folder.mkdir()
    picture = draw(SHOWN, 0)
    picture.save(runner.input_folder / "example.png")
    return picture


def stream(seed=0):
    return [torch.Generator().manual_seed(seed)]


def values(run, prompt, kind, title=None):
    return run.values[
        next(
            key
            for key, node in prompt.items()
            if node["class_type"] == kind and title in (None, node["_meta"]["title"])
        )
    ]


def embeds(tiny, prompt, find):
    """What diffusers' prior makes of the template's prompt."""
    text = find(prompt, "Prompt")["inputs"]["text"]
    return tiny.kandinsky_pipeline(FAMILY, "prior")(text, generator=stream()).to_tuple()


def near(run, prompt, published):
    made = values(run, prompt, "VAEDecode")[0].movedim(-1, 1)
    wanted = torch.as_tensor(published)
    assert (made - (wanted * 0.5 + 0.5).clamp(0, 1)).abs().max() <= 1e-4


def test_text_to_image_is_the_published_chain(runner, template, find, tiny):
    prompt = template("kandinsky_text_to_image", None)
    run = runner.run(prompt)
    image, zero = embeds(tiny, prompt, find)
    pipe = tiny.kandinsky_pipeline(FAMILY, "decoder")
    near(
        run,
        prompt,
        pipe(
            image_embeds=image,
            negative_image_embeds=zero,
            height=64,
            width=64,
            generator=stream(),
            output_type="pt",
        ).images,
    )


def test_image_to_image_is_the_published_chain(runner, template, find, tiny, shown):
    prompt = template("kandinsky_image_to_image", None)
    run = runner.run(prompt)
    image, zero = embeds(tiny, prompt, find)
    latents = tiny.kandinsky_pipeline(FAMILY, "decoder", "KandinskyV22Img2ImgPipeline")(
        image=shown,
        image_embeds=image,
        negative_image_embeds=zero,
        height=64,
        width=64,
        strength=find(prompt, "PriorArtKandinskyImage")["inputs"]["strength"],
        generator=stream(),
        output_type="latent",
    ).images
    made = values(run, prompt, "PriorArtKandinskyImage")[0]["samples"]
    assert (made - latents).abs().max() <= 1e-4


def test_mixing_is_the_published_interpolation(runner, template, find, tiny, shown):
    prompt = template("kandinsky_image_mixing", None)
    run = runner.run(prompt)
    pipe = tiny.kandinsky_pipeline(FAMILY, "prior")
    text = find(prompt, "Prompt")["inputs"]["text"]
    wanted = pipe.interpolate([shown, shown, text], [0.3, 0.4, 0.3], generator=stream())
    mixed = values(run, prompt, "PriorArtMixEmbeddings", "and a text")[0].image_embeds
    assert (mixed - wanted.image_embeds).abs().max() <= 1e-4


def test_depth_is_the_published_chain(runner, template, find, tiny):
    runner.input_folder.mkdir()
    depth = silhouette("square", 16, 32, 32).convert("RGB")
    depth.save(runner.input_folder / "example.png")
    prompt = template("kandinsky_depth", None)
    run = runner.run(prompt)
    image, zero = embeds(tiny, prompt, find)
    hint = torch.from_numpy(np.asarray(depth)).float().permute(2, 0, 1)[None] / 255
    pipe = tiny.kandinsky_pipeline(FAMILY, "depth")
    near(
        run,
        prompt,
        pipe(
            image_embeds=image,
            negative_image_embeds=zero,
            hint=hint,
            height=64,
            width=64,
            generator=stream(),
            output_type="pt",
        ).images,
    )


def test_inpainting_leaves_what_is_not_painted(runner, template, find, tiny, shown):
    masked = np.dstack([np.asarray(shown), np.full((64, 64), 255, np.uint8)])
    masked[12:52, 12:52, 3] = 0  # the editor's mask is the picture's transparency
    Image.fromarray(masked).save(runner.input_folder / "example.png")
    prompt = template("kandinsky_inpaint", None)
    run = runner.run(prompt)
    image, zero = embeds(tiny, prompt, find)
    latents = tiny.kandinsky_pipeline(FAMILY, "inpaint")(
        image=shown,
        mask_image=(masked[..., 3] == 0).astype(np.float32),
        image_embeds=image,
        negative_image_embeds=zero,
        height=64,
        width=64,
        num_inference_steps=150,
        generator=stream(),
        output_type="latent",
    ).images
    made = values(run, prompt, "PriorArtKandinskyInpaint")[0]["samples"]
    assert (made - latents).abs().max() <= 1e-4
    saved = np.asarray(Image.open(run.pictures[0])).astype(int)
    outside = masked[..., 3] == 255
    assert np.abs(saved[outside] - np.asarray(shown)[outside]).max() == 0


def test_as_many_pictures_are_saved_as_were_painted(runner, template, find, shown):
    masked = np.dstack([np.asarray(shown), np.full((64, 64), 255, np.uint8)])
    masked[12:52, 12:52, 3] = 0
    Image.fromarray(masked).save(runner.input_folder / "example.png")
    prompt = template("kandinsky_inpaint", None)
    find(prompt, "PriorArtKandinskyInpaint")["inputs"] |= {"batch_size": 3, "steps": 2}
    saved = [np.asarray(Image.open(path)).astype(int) for path in runner.run(prompt).pictures]
    assert len(saved) == 3 and not np.array_equal(saved[0], saved[2])
    outside = masked[..., 3] == 255
    for one in saved:
        assert np.array_equal(one[outside], np.asarray(shown)[outside])


def test_native_sampling_obeys_the_prompt(runner, template, find):
    prompt = template("kandinsky_ksampler", None)
    run = runner.run(prompt)
    scene = parse(find(prompt, "Prompt")["inputs"]["text"])
    assert check(np.asarray(Image.open(run.pictures[0]))).all_right(scene)


def test_interpolation_passes_through_both_ends(runner, template, find):
    """Mixing with weights 1 and 0 gives the very picture of that end."""
    api = template("kandinsky_text_to_image", None)
    find(api, "PriorArtKandinskyDecoder")["inputs"]["steps"] = 20
    prompts = ("a large yellow triangle on a blue background", "a red square on a white background")
    ends = []
    for text in prompts:
        find(api, "Prompt")["inputs"]["text"] = text
        ends.append(values(runner.run(api), api, "VAEDecode")[0])
    mixed = json.loads(json.dumps(api))
    keys = {node["class_type"]: key for key, node in api.items()}
    first = dict(find(mixed, "Prompt"), inputs=dict(find(mixed, "Prompt")["inputs"]))
    first["inputs"]["text"] = prompts[0]
    mixed["901"] = first
    prior = mixed[keys["PriorArtKandinskyPrior"]]
    mixed["902"] = dict(prior, inputs=prior["inputs"] | {"positive": ["901", 0]})
    mix = {
        "image_embeds_a": ["902", 0],
        "image_embeds_b": [keys["PriorArtKandinskyPrior"], 0],
        "mode": "weighted sum",
    }
    mixed["903"] = {"class_type": "PriorArtMixEmbeddings", "inputs": mix, "_meta": {"title": "x"}}
    mixed[keys["PriorArtKandinskyDecoder"]]["inputs"]["image_embeds"] = ["903", 0]
    for weights, end in (((1.0, 0.0), ends[0]), ((0.0, 1.0), ends[1])):
        mix["weight_a"], mix["weight_b"] = weights
        made = values(runner.run(mixed), mixed, "VAEDecode")[0]
        assert (made - end).abs().max() <= 1e-5
