"""What an original checkpoint changes around Kandinsky's sampler, and how pictures are shrunk."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from prior_art.edges import EdgeError
from prior_art.headless.core_nodes import VAEDecode
from prior_art.host import host
from prior_art.loaders import kandinsky
from prior_art.networks.kandinsky_movq import encode
from prior_art.nodes import kandinsky as nodes
from prior_art.nodes.kandinsky import NEGATIVE, KandinskyPrior, KandinskyPriorImage
from prior_art.samplers.kandinsky import known_mask

from .test_kandinsky import DIM, decode, picture, prompt, repaint, sample_prior, vary
from .test_kandinsky import stages as stages


@pytest.fixture
def exact(stages):
    """The same stages, as if their decoders had come from original files."""

    def original(model):
        _, loaded = host.open("latent_decoder", model)
        return host.wrap("latent_decoder", replace(loaded, exact=True))

    return SimpleNamespace(
        **vars(stages) | {"decoder": original(stages.decoder), "inpaint": original(stages.inpaint)}
    )


def decoded(stages, latent):
    return VAEDecode.execute(latent, stages.vae).args[0]


@pytest.mark.parametrize(("width", "height"), [(100, 40), (64, 64), (65, 128), (1, 130)])
def test_an_originals_picture_has_the_size_that_was_asked_for(stages, exact, width, height):
    whole, _ = decode(stages, width=width, height=height)
    cut, _ = decode(exact, width=width, height=height)
    torch.testing.assert_close(cut["samples"], whole["samples"])
    everything, picture = decoded(stages, whole), decoded(exact, cut)
    assert everything.shape[1:3] == (-(-height // 64) * 64, -(-width // 64) * 64)
    assert picture.shape[1:3] == (height, width)
    torch.testing.assert_close(picture, everything[:, :height, :width])


def test_latents_that_were_worked_on_are_decoded_whole(exact):
    latent, _ = decode(exact, width=100, height=40)
    assert decoded(exact, {"samples": latent["samples"] * 1}).shape[1:3] == (64, 128)


@pytest.mark.parametrize("asked", [(0, 0), (40, 50)])
def test_an_originals_image_to_image_keeps_proportions_and_size(exact, asked):
    """Resized to the asked size, not to the multiples of 64 around it."""
    image = picture(90, 70)
    width, height = asked
    latent, _ = vary(exact, image=image, strength=0.0, width=width, height=height)
    size = height or 90, width or 70
    made = decoded(exact, latent)
    assert made.shape[1:3] == size
    eight = (image[0].numpy() * 255).round().astype(np.uint8)
    small = Image.fromarray(eight).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=1)
    if size == (90, 70):  # its own size is not rounded to 8 bits
        pixels = image.movedim(-1, 1) * 2 - 1
    else:
        pixels = torch.from_numpy(np.array(small)).movedim(-1, 0)[None].float() / 127.5 - 1
    right, below = -size[1] % 64, -size[0] % 64
    pixels = F.pad(pixels, (0, right, 0, below), mode="replicate")
    wanted = encode(host.open("movq", exact.vae)[0].network, pixels)
    torch.testing.assert_close(latent["samples"], wanted, atol=1e-4, rtol=1e-4)


def test_an_originals_mask_is_taken_by_its_nearest_places(exact, stages):
    """diffusers resizes it to the picture with a smooth filter first."""
    mask = torch.zeros(1, 13, 13)
    mask[:, 4:9, 4:9] = 1
    grown = nodes._fitted_mask(mask, (64, 64), True)
    wanted = known_mask(F.interpolate(mask[:, None], (8, 8), mode="nearest")[:, 0], (8, 8))
    assert torch.equal(known_mask(grown, (8, 8)), wanted)
    latent = repaint(exact, image=picture(50, 70), mask=torch.ones(1, 50, 70))[0]
    assert decoded(exact, latent).shape[1:3] == (50, 70)
    part = torch.zeros(1, 50, 70)
    part[:, :25] = 1
    kept = nodes._fitted_mask(part, (50, 70), True)
    assert kept.shape == (1, 64, 128) and not kept[:, 25:].any() and kept[:, :25].all()


@pytest.mark.parametrize("size", [(200, 130), (128, 500), (129, 65), (64, 64)])
def test_pictures_shrink_with_pillows_reducing_gap(size):
    """As the pipelines and the original resize: up to whole factors first, which shows."""
    height, width = size
    image = picture(height, width)
    found = nodes._fitted(image, (64, 64), "image")
    eight = Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8))
    if size != (64, 64):
        eight = eight.resize((64, 64), Image.Resampling.BICUBIC, reducing_gap=1)
        wanted = torch.from_numpy(np.array(eight)).movedim(-1, 0)[None].float() / 127.5 - 1
        torch.testing.assert_close(found, wanted)
    else:
        torch.testing.assert_close(found, image.movedim(-1, 1) * 2 - 1)


def test_the_originals_samplers_are_offered(tmp_path, tiny):
    from prior_art.loaders.files.catalogue import find_source
    from prior_art.loaders.kandinsky_keys import SAMPLERS
    from prior_art.nodes.kandinsky import LoadLatentDecoder

    options = LoadLatentDecoder.define_schema().inputs[-1].options["options"]
    assert options[0] == "published" and set(options[1:]) < set(SAMPLERS)
    tiny.tiny_kandinsky_21(tmp_path / "old")
    source = find_source("old/decoder", "latent_decoder", [tmp_path])
    for name in options[1:]:
        loaded = kandinsky.load_latent_decoder(source, sampler=name)
        assert loaded.schedule.spacing is SAMPLERS[name].spacing and not loaded.exact


# -- the negative decoder prompt -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_the_decoder_steers_away_from_what_the_prior_makes_of_a_prompt(stages, count):
    """The prior's negative guides both; the decoder's is sampled like the prompt, each picture's
    from the seed after its own."""
    bad, away = prompt(stages, "blurry"), prompt(stages, "a dog")
    both = {"negative": bad, "batch_size": count}
    embeds, found, offset = sample_prior(stages, negative_decoder_prompt=away, **both)
    alone, _, _ = sample_prior(stages, **both)
    wanted, _, _ = sample_prior(stages, positive=away, seed=4, **both)
    torch.testing.assert_close(embeds.image_embeds, alone.image_embeds)
    torch.testing.assert_close(found.image_embeds, wanted.image_embeds)
    assert offset == 3 * DIM


def test_image_to_image_makes_it_from_noise(stages):
    away = prompt(stages, "a dog")
    given, _, _ = sample_prior(stages, seed=9)
    image = {"image_embeds": given, "strength": 0.5}
    _, found, _ = sample_prior(stages, KandinskyPriorImage, negative_decoder_prompt=away, **image)
    wanted, _, _ = sample_prior(stages, positive=away, seed=4)
    torch.testing.assert_close(found.image_embeds, wanted.image_embeds)


def test_it_needs_no_image_encoder(stages):
    bare = replace(stages.prior, zero_image=None)
    sample_prior(stages, prior=bare, negative_decoder_prompt=prompt(stages, "a dog"))


def test_a_negative_decoder_prompt_that_cannot_be_is_refused(stages):
    away = prompt(stages, "a dog")
    with pytest.raises(EdgeError, match=r"negative_decoder_prompt.*negative_embeds"):
        sample_prior(stages, negative_decoder_prompt=away, negative_embeds=NEGATIVE)
    three = [[torch.cat([away[0][0]] * 3), {k: v for k, v in away[0][1].items()}]]
    for key in ("pooled_output", "attention_mask"):
        three[0][1][key] = torch.cat([away[0][1][key]] * 3)
    with pytest.raises(EdgeError, match=r"negative_decoder_prompt.*3 rows"):
        sample_prior(stages, negative_decoder_prompt=three)
    foreign = [[torch.zeros(1, 77, 48), {"pooled_output": torch.zeros(1, 48)}]]
    with pytest.raises(EdgeError, match="negative_decoder_prompt"):
        sample_prior(stages, negative_decoder_prompt=foreign)


def test_it_is_the_last_input_so_that_saved_graphs_keep_their_widgets():
    for node in (KandinskyPrior, KandinskyPriorImage):
        last = node.define_schema().inputs[-1]
        assert last.id == "negative_decoder_prompt" and last.optional
