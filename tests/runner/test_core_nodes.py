"""The host's own nodes, as the headless runner has them."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.host.core_latents import LatentBatch, LatentBlend, LatentComposite
from prior_art.host.core_nodes import (
    ConditioningAverage,
    ImageBatch,
    ImageCompositeMasked,
    LoadImage,
    PreviewAny,
    SaveImage,
    UnCLIPConditioning,
)
from prior_art.host.embedded import session
from prior_art.host.workflow import WorkflowError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "input_folder", tmp_path)
    monkeypatch.setattr(session, "output_folder", tmp_path)
    monkeypatch.setattr(session, "prompt", None)
    monkeypatch.setattr(session, "workflow", None)
    return tmp_path


def load(name):
    return LoadImage.execute(name).args


def test_every_frame_of_an_animation_is_loaded(folder):
    first, *others = (Image.new("RGB", (4, 2), colour) for colour in (RED, GREEN, BLUE))
    first.save(folder / "a.gif", save_all=True, append_images=others)
    image, mask = load("a.gif")
    assert image.shape == (3, 2, 4, 3)
    assert image[:, 0, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert mask.shape == (3, 64, 64) and not mask.any()


def test_frames_with_and_without_alpha_get_masks_of_one_size(folder):
    clear = Image.new("RGBA", (4, 2), (0, 255, 0, 0))
    Image.new("RGB", (4, 2), RED).save(folder / "a.tiff", save_all=True, append_images=[clear])
    image, mask = load("a.tiff")
    assert image.shape == (2, 2, 4, 3)
    assert mask.shape == (2, 2, 4) and not mask[0].any() and mask[1].min() == 1


def test_frames_of_another_size_are_left_out(folder):
    other = Image.new("RGB", (6, 6), GREEN)
    Image.new("RGB", (4, 2), RED).save(folder / "a.tiff", save_all=True, append_images=[other])
    assert load("a.tiff")[0].shape == (1, 2, 4, 3)


def test_a_transparent_palette_colour_is_masked(folder):
    picture = Image.new("P", (4, 2), 0)
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    picture.save(folder / "a.png", transparency=1)
    image, mask = load("a.png")
    assert image[0, 0, 0].tolist() == [1, 0, 0]
    assert mask[0, 0].tolist() == [0, 1, 0, 0]


def test_sixteen_bits_keep_their_greys(folder):
    levels = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(folder / "a.png")
    image, _ = load("a.png")
    assert image[0, 0, :, 0].tolist() == pytest.approx([0, 0.5, 1], abs=0.01)


@pytest.mark.parametrize(
    ("prefix", "code"),
    [
        ("%year%-%month%-%day%/pic", "%Y-%m-%d/pic"),
        ("%hour%%minute%%second%_%width%x%height%", "%H%M%S_4x2"),
        # The editor's tokens are the editor's: in an API file they stay, as in the host.
        ("%date:yyyy%_%KSampler.seed%_%date%", "%%date:yyyy%%_%%KSampler.seed%%_%%date%%"),
    ],
)
def test_a_prefix_takes_date_and_size(folder, monkeypatch, prefix, code):
    now = time.struct_time((2024, 3, 5, 17, 8, 9, 1, 65, 0))
    monkeypatch.setattr(time, "localtime", lambda: now)
    [path] = SaveImage.execute(torch.zeros(1, 2, 4, 3), prefix).ui["images"]
    assert path == folder / (time.strftime(code, now) + "_00001_.png")


def test_prompts_are_averaged_and_the_shorter_padded():
    to = [[torch.ones(1, 3, 2), {"pooled_output": torch.ones(1, 2), "more": 1}]]
    other = [[torch.full((1, 2, 2), 3.0), {"pooled_output": torch.full((1, 2), 5.0)}]]
    [[hidden, extra]] = ConditioningAverage.execute(to, other, 0.75).args[0]
    assert hidden[0, :, 0].tolist() == [1.5, 1.5, 0.75]
    assert extra["pooled_output"].tolist() == [[2, 2]] and extra["more"] == 1
    assert to[0][1]["pooled_output"].max() == 1


def test_a_longer_prompt_is_cut_and_may_lack_the_pooled_one():
    to, other = [[torch.ones(1, 1, 2), {}]], [[torch.zeros(1, 4, 2), {}]]
    [[hidden, extra]] = ConditioningAverage.execute(to, other, 0.5).args[0]
    assert hidden.tolist() == [[[0.5, 0.5]]] and extra == {}


def test_a_prompt_carries_every_image_embedding_wired_to_it():
    prompt, embeds = [[torch.ones(1, 3, 2), {}]], SimpleNamespace()
    once = UnCLIPConditioning.execute(prompt, embeds, 0.5, 0.1).args[0]
    twice = UnCLIPConditioning.execute(once, embeds, 1.0, 0.0).args[0]
    entry = {"clip_vision_output": embeds, "strength": 0.5, "noise_augmentation": 0.1}
    assert once[0][1]["unclip_conditioning"] == [entry]
    assert [one["strength"] for one in twice[0][1]["unclip_conditioning"]] == [0.5, 1.0]
    assert UnCLIPConditioning.execute(prompt, embeds, 0.0, 0.0).args[0] is prompt
    assert prompt[0][1] == {}


def test_a_batch_crops_and_resizes_the_second_picture():
    wide = torch.zeros(2, 4, 8, 3)
    wide[:, :, 2:6] = 1  # the middle that is left of it
    batch = ImageBatch.execute(torch.zeros(1, 2, 2, 3), wide).args[0]
    assert batch.shape == (3, 2, 2, 3)
    assert batch[0].max() == 0 and batch[1:].min() == 1


def test_a_picture_is_pasted_where_the_mask_says():
    ground, patch = torch.zeros(2, 4, 6, 3), torch.ones(1, 3, 3, 3)
    (plain,) = ImageCompositeMasked.execute(ground, patch, 4, 2, False).args
    assert plain.sum() == 2 * 2 * 2 * 3 and plain[:, 2:, 4:].min() == 1  # cut at the border
    mask = torch.zeros(1, 2, 3)
    mask[:, :, 0] = 1
    (masked,) = ImageCompositeMasked.execute(ground, patch, 0, 0, True, mask).args
    assert masked.shape == ground.shape and ground.max() == 0
    assert masked[:, :, 0].min() == 1 and masked[:, :, 4:].max() == 0
    # As in the host: as many as there are grounds.
    assert ImageCompositeMasked.execute(ground[:1], patch.repeat(3, 1, 1, 1), 0, 0, False).args[
        0
    ].shape == (1, 4, 6, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (2, "2"), (0.5, "0.5"), ([1, "b"], '[1, "b"]'), (torch.Size([2]), "[2]")],
)
def test_any_value_is_shown_as_text(value, text):
    assert PreviewAny.execute(value).ui == {"text": [text]}


def test_latents_of_different_size_are_not_mixed():
    one, two = {"samples": torch.zeros(1, 4, 8, 8)}, {"samples": torch.zeros(1, 4, 8, 9)}
    for node, more in ((LatentBlend, (0.5,)), (LatentBatch, ())):
        with pytest.raises(WorkflowError, match="resizes none"):
            node.execute(one, two, *more)


def test_a_pasted_latent_fades_towards_inner_edges():
    ground, patch = {"samples": torch.zeros(1, 1, 4, 8)}, {"samples": torch.ones(1, 1, 4, 4)}
    made = LatentComposite.execute(ground, patch, 32, 0, 16).args[0]["samples"]
    assert made[0, 0, 0].tolist() == [0, 0, 0, 0, 0.5, 1, 1, 1] and ground["samples"].max() == 0
