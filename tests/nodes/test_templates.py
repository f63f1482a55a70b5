"""Each template, run headless on the embedded family, gives the published pipelines' picture.

With the family's trained weights and the published defaults, whole chains agree in fp32 to 1e-4;
networks of random weights are compared stage by stage in tests/parity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FAMILY = Path(__file__).resolve().parents[2] / "shapes" / "weights" / "karlo"
PROMPT = "a large red circle on a white background"


def streams(seed, count):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def picture_of(run):
    return np.stack([np.asarray(Image.open(path)) for path in run.pictures]).astype(int)


@pytest.mark.parametrize(("name", "count"), [("karlo_text_to_image", 1), ("karlo_three_seeds", 3)])
def test_text_to_image_is_the_published_pipeline(runner, template, find, tiny, name, count):
    prompt = template(name, "shapes-karlo")
    find(prompt, "Prompt")["inputs"]["text"] = PROMPT
    find(prompt, "PrimitiveInt")["inputs"]["value"] = 5
    run = runner.run(prompt)
    published = (
        tiny.pipeline(FAMILY)
        .to(torch.float32)(
            PROMPT,
            num_images_per_prompt=count,
            generator=streams(5, count),
            output_type="np",
        )
        .images
    )
    key = next(k for k, n in prompt.items() if n["class_type"] == "PriorArtKarloUpscale")
    assert np.abs(run.values[key][0].numpy() - published).max() <= 1e-4
    assert np.abs(picture_of(run) - np.floor(published * 255)).max() <= 1


def test_image_variation_is_the_published_pipeline(runner, template, find, tiny):
    runner.input_folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    photograph = Image.fromarray(colours)
    photograph.save(runner.input_folder / "example.png")
    prompt = template("karlo_image_variation", "shapes-karlo")
    find(prompt, "PrimitiveInt")["inputs"]["value"] = 3
    run = runner.run(prompt)
    published = (
        tiny.variation_pipeline(FAMILY)
        .to(torch.float32)(
            photograph,
            num_images_per_prompt=3,
            generator=streams(3, 3),
            output_type="np",
        )
        .images
    )
    key = next(k for k, n in prompt.items() if n["class_type"] == "PriorArtKarloUpscale")
    assert np.abs(run.values[key][0].numpy() - published).max() <= 1e-4


def test_an_image_of_a_batch_can_be_made_again_alone(runner, template, find):
    prompt = template("karlo_three_seeds")
    for stage in ("PriorArtPrior", "PriorArtKarloDecoder"):
        find(prompt, stage)["inputs"]["steps"] = 4
    three = picture_of(runner.run(prompt))
    find(prompt, "PrimitiveInt")["inputs"]["value"] += 1
    find(prompt, "PriorArtPrior")["inputs"]["batch_size"] = 1
    alone = picture_of(runner.run(prompt))
    assert np.abs(three[1] - alone[0]).max() <= 1
    assert np.abs(three[0] - alone[0]).max() > 1


def test_changing_the_upscalers_steps_runs_only_the_upscaler(runner, template, find):
    prompt = template("karlo_text_to_image")
    for stage in ("PriorArtPrior", "PriorArtKarloDecoder"):
        find(prompt, stage)["inputs"]["steps"] = 3
    runner.run(prompt)
    find(prompt, "PriorArtKarloUpscale")["inputs"]["steps"] = 4
    ran = runner.run(prompt).seconds
    assert {prompt[key]["class_type"] for key in ran} == {"PriorArtKarloUpscale", "SaveImage"}
