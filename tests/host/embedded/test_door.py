"""The embedded host: what it tells the user, where it looks for weights."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.host.embedded import door as embedded
from prior_art.host.embedded import unclip
from prior_art.loaders.clip import Preprocess
from prior_art.samplers import clip as clip_sampler
from prior_art.samplers.kandinsky import check_places

from ...tiny import write_tokenizer


@pytest.fixture
def clip(tmp_path):
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    return unclip.Clip(SimpleNamespace(), SimpleNamespace(tokenizer=tokenizer))


def test_a_long_prompt_warns_with_what_was_cut(clip, monkeypatch):
    said = []
    monkeypatch.setattr(embedded.session, "on_warning", said.append)
    ids, mask = clip.tokenize("red " * 75)
    assert ids.shape == mask.shape == (1, 77) and not said
    clip.tokenize("red " * 75 + "the cat")
    assert said == ["the prompt is longer than 77 tokens; not seen: 'the cat'"]


def test_models_are_looked_for_here_and_in_the_pack(monkeypatch, tmp_path):
    monkeypatch.delenv(embedded.MODELS_VARIABLE, raising=False)
    own, here = embedded.PACK / "models" / "prior_art", Path("models") / "prior_art"
    monkeypatch.chdir(tmp_path)
    assert embedded.model_folders() == [here, own]
    monkeypatch.chdir(embedded.PACK)
    assert embedded.model_folders() == [here]
    monkeypatch.setenv(embedded.MODELS_VARIABLE, "a:~/b")
    assert embedded.model_folders() == [Path("a"), Path.home() / "b"]


def test_without_crop_an_image_encoder_sees_the_whole_picture(monkeypatch):
    seen = []
    loaded = SimpleNamespace(
        preprocess=Preprocess(size=8, resize=8), space=SimpleNamespace(name="x")
    )
    tower = unclip.ClipVision(SimpleNamespace(), loaded)
    monkeypatch.setattr(unclip, "use", lambda managed: (None, torch.device("cpu"), torch.float32))
    monkeypatch.setattr(
        clip_sampler, "encode_image", lambda n, pixels, d, t: seen.append(pixels) or pixels
    )
    wide = torch.zeros(1, 16, 48, 3)
    wide[:, :, :16] = 1
    tower.encode_image(wide, crop=True)
    tower.encode_image(wide, crop=False)
    cropped, whole = (pixels[0, 0] for pixels in seen)  # red
    dark = cropped[0, 7]
    assert (cropped[:, 2:] - dark).abs().max() < 0.05  # the middle third, and no more
    assert (whole[:, :2] > dark + 1).all() and (whole[:, 5:] - dark).abs().max() < 0.05


@pytest.mark.parametrize(("size", "fits"), [((8, 8), True), ((12, 8), False), ((8, 9), False)])
def test_a_latent_that_cannot_be_halved_is_refused_with_a_size_that_can(size, fits):
    unet = SimpleNamespace(config=SimpleNamespace(down_block_types=("a", "b", "c", "d")))
    expected = pytest.raises(EdgeError, match=r"multiples of 64; make it of (64x128|128x64)")
    with nullcontext() if fits else expected:
        check_places(unet, size)


@pytest.mark.parametrize("named", ["", ":", "::"])
def test_no_named_model_folder_leaves_the_usual_ones(monkeypatch, tmp_path, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(embedded.MODELS_VARIABLE, named.replace(":", os.pathsep))
    assert embedded.model_folders()[-1] == embedded.PACK / "models" / "prior_art"


def test_a_user_that_is_not_there_is_a_folder_that_is_not_there(monkeypatch):
    monkeypatch.setenv(embedded.MODELS_VARIABLE, "~no-such-user/models")
    assert embedded.model_folders() == [Path("~no-such-user/models")]
    monkeypatch.setenv(embedded.CACHE_VARIABLE, "~no-such-user/.cache")
    assert embedded.cache_folder() == Path(tempfile.gettempdir()) / "prior_art"
