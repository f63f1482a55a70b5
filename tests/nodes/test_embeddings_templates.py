"""Chains across systems: their templates, run headless on the embedded family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.shapes.check import check
from prior_art.shapes.grammar import Scene, parse
from prior_art.shapes.pictures import draw

from .conftest import text_of

pytestmark = pytest.mark.slow

FAMILY = Path(__file__).resolve().parents[2] / "shapes" / "weights" / "kandinsky"
SHOWN = Scene("red", "circle", "blue", "large")


def key_of(prompt, kind, title=None):
    return next(
        key
        for key, node in prompt.items()
        if node["class_type"] == kind and title in (None, node["_meta"]["title"])
    )


def values(run, prompt, kind, title=None):
    return run.values[key_of(prompt, kind, title)]


def obeys(path, scene, columns=1):
    """The last picture of a row is what was asked."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    side = picture.shape[1] // columns
    return check(picture[:, -side:]).all_right(scene)


def asked(prompt, find):
    return parse(text_of(prompt, find(prompt, "Prompt")))


@pytest.fixture
def shown(runner):
    runner.input_folder.mkdir()
    draw(SHOWN, 0).save(runner.input_folder / "example.png")


def near_the_pipeline(run, prompt, find, tiny, image, away):
    """Kandinsky 2.1's decoder as diffusers runs it on these embeddings."""
    pipe = tiny.kandinsky_21_pipeline(FAMILY, "2-1", "KandinskyPipeline", movq="decoder")
    wanted = pipe(
        text_of(prompt, find(prompt, "Prompt, for the decoder")),
        image_embeds=image,
        negative_image_embeds=away,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(0)],
        output_type="pt",
    ).images
    made = values(run, prompt, "VAEDecode")[0].movedim(-1, 1)
    assert (made - (wanted * 0.5 + 0.5).clamp(0, 1)).abs().max() <= 1e-4


def test_kandinsky_2_1_is_the_published_chain(runner, template, find, tiny):
    prompt = template("kandinsky_2_1_text_to_image", None)
    run = runner.run(prompt)
    image, away, _ = values(run, prompt, "PriorArtKandinskyPrior")
    near_the_pipeline(run, prompt, find, tiny, image.image_embeds, away.image_embeds)
    assert obeys(run.pictures[0], asked(prompt, find))


def test_karlos_prior_feeds_kandinsky_2_1(runner, template, find, tiny):
    prompt = template("mix_karlo_kandinsky", None)
    run = runner.run(prompt)
    image, away = (
        values(run, prompt, kind)[0].image_embeds for kind in ("PriorArtPrior", "PriorArtZeroImage")
    )
    near_the_pipeline(run, prompt, find, tiny, image, away)
    assert obeys(run.pictures[0], asked(prompt, find))


def test_the_zero_image_is_what_kandinskys_prior_gives(runner, template):
    """Both priors' nothing is the same constant of their one CLIP."""
    other = template("kandinsky_2_1_text_to_image", None)
    prior = values(runner.run(other), other, "PriorArtKandinskyPrior")[1].image_embeds
    prompt = template("mix_karlo_kandinsky", None)
    made = values(runner.run(prompt), prompt, "PriorArtZeroImage")[0].image_embeds
    torch.testing.assert_close(made, prior, atol=1e-4, rtol=1e-4)


def test_kandinsky_2_1s_prior_feeds_karlo(runner, template, find):
    prompt = template("mix_kandinsky_karlo", None)
    run = runner.run(prompt)
    made = values(run, prompt, "PriorArtKandinskyPrior")[0]
    assert made.embedding_space == "shapes-vit-l"
    assert obeys(run.pictures[0], asked(prompt, find))


def test_native_clip_vision_feeds_both_decoders(runner, template, shown):
    prompt = template("mix_clip_vision", None)
    run = runner.run(prompt)
    for title, space in (("Karlo's", "shapes-vit-l"), ("Kandinsky's", "shapes-vit-g")):
        seen = values(run, prompt, "CLIPVisionEncode", f"{title} embedding")[0]
        assert seen.embedding_space == space
    picture = np.asarray(Image.open(run.pictures[0]).convert("RGB"))
    for half in (picture[:, :64], picture[:, 64:]):
        assert check(half).all_right(SHOWN)


def test_kandinskys_prior_steers_koala(runner, template, find):
    prompt = template("mix_kandinsky_koala", None)
    run = runner.run(prompt)
    assert obeys(run.pictures[0], asked(prompt, find))
    made = values(run, prompt, "KSampler")[0]["samples"]
    ks = key_of(prompt, "KSampler")
    prompt[ks]["inputs"]["positive"] = [key_of(prompt, "PriorArtKoalaTextEncode"), 0]
    plain = runner.run(prompt).values[ks][0]["samples"]
    assert (made - plain).abs().max() > 0.1


@pytest.mark.parametrize("name", ["mix_mindalle_kandinsky", "mix_rerank_karlo"])
def test_a_picture_of_minDALLE_goes_on_through_another_system(runner, template, find, name):
    prompt = template(name, None)
    assert obeys(runner.run(prompt).pictures[0], asked(prompt, find), columns=2)


def test_native_nodes_mix_latents_of_both_tokenizers(runner, template, shown):
    prompt = template("mix_latents", None)
    draw(Scene("yellow", "square", "black", "large"), 0).save(runner.input_folder / "other.png")
    prompt[key_of(prompt, "LoadImage", "Second picture")]["inputs"]["image"] = "other.png"
    run = runner.run(prompt)
    for vae in ("PriorArtLoadMoVQ", "PriorArtLoadVQGAN"):
        loader = key_of(prompt, vae)
        decode = next(
            k
            for k, n in prompt.items()
            if n["class_type"] == "VAEDecode" and n["inputs"]["vae"][0] == loader
        )
        blend, composite = run.values[decode][0]
        # The composite's left half is the first picture's; its right half the second's left one.
        ends = [
            run.values[key_of(prompt, "LoadImage", f"{which} picture")][0][0]
            for which in ("First", "Second")
        ]
        for part, of in ((slice(0, 24), 0), (slice(40, 64), 1)):
            from_ = part if of == 0 else slice(8, 32)
            away = [(composite[:, part] - end[:, from_]).abs().mean() for end in ends]
            assert away[of] < 0.1 < away[1 - of], (vae, away)
        assert blend.shape == composite.shape == (64, 64, 3)


def test_a_walk_is_one_batch_with_both_ends_exact(runner, template, find):
    prompt = template("mix_walk", None)
    find(prompt, "PriorArtKandinskyDecoder")["inputs"]["steps"] = 10
    run = runner.run(prompt)
    way = values(run, prompt, "PriorArtInterpolateEmbeddings")[0]
    walk = values(run, prompt, "PriorArtKandinskyDecoder")[0]["samples"]
    assert way.image_embeds.shape[0] == walk.shape[0] == 9
    # Each end alone, with the seed that it has in the batch.
    decoder = find(prompt, "PriorArtKandinskyDecoder")["inputs"]
    for row, end in ((0, 0), (8, 1)):
        prior = [k for k, n in prompt.items() if n["class_type"] == "PriorArtKandinskyPrior"][end]
        assert torch.equal(way.image_embeds[row], run.values[prior][0].image_embeds[0])
        decoder |= {"image_embeds": [prior, 0], "seed": row}
        alone = values(runner.run(prompt), prompt, "PriorArtKandinskyDecoder")[0]["samples"]
        assert (alone[0] - walk[row]).abs().max() <= 1e-4
