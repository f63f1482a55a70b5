"""KOALA's templates, run headless on the embedded family, against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.shapes.check import check
from prior_art.shapes.grammar import parse

pytestmark = pytest.mark.slow

FAMILY = Path(__file__).resolve().parents[2] / "shapes" / "weights" / "koala"


def published(tiny, variant, prompt, find):
    """The picture of the published pipeline for a template's prompt: ``[1, 3, 64, 64]``."""
    return tiny.koala_pipeline(FAMILY / variant)(
        find(prompt, "Prompt")["inputs"]["text"],
        negative_prompt=find(prompt, "Negative prompt")["inputs"]["text"],
        num_inference_steps=25,
        guidance_scale=7.5,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def near(image, wanted):
    # The pipeline decodes in fp32 too; 25 guided steps of a trained network leave this much.
    assert (image.movedim(-1, 1) - wanted).abs().max() <= 1e-3


def shown(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_text_to_image_is_the_published_pipeline(runner, template, find, tiny):
    prompt = template("koala_text_to_image", None)
    run = runner.run(prompt)
    key = next(k for k, n in prompt.items() if n["class_type"] == "VAEDecode")
    near(run.values[key][0], published(tiny, "700m", prompt, find))
    (path,) = run.pictures
    assert check(shown(path)).all_right(parse(find(prompt, "Prompt")["inputs"]["text"]))


def test_side_by_side_is_both_published_pipelines(runner, template, find, tiny):
    prompt = template("koala_side_by_side", None)
    run = runner.run(prompt)
    key = next(k for k, n in prompt.items() if n["class_type"] == "ImageBatch")
    both = run.values[key][0]
    for row, variant in enumerate(("700m", "1b")):
        near(both[row : row + 1], published(tiny, variant, prompt, find))
    (path,) = run.pictures
    assert shown(path).shape == (64, 128, 3)


@pytest.mark.parametrize("variant", ["shapes-koala-700m", "shapes-koala-1b"])
def test_native_sampling_obeys_the_prompt(runner, template, find, variant):
    prompt = template("koala_ksampler", None)
    next(n for n in prompt.values() if n["class_type"] == "PriorArtLoadKoala")["inputs"][
        "source"
    ] = variant
    (path,) = runner.run(prompt).pictures
    assert check(shown(path)).all_right(parse(find(prompt, "Prompt")["inputs"]["text"]))
