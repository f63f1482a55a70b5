"""The embedded host: what it tells the user, where it looks for weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from prior_art.host.embedded import door as embedded

from ..tiny import write_tokenizer


@pytest.fixture
def clip(tmp_path):
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    return embedded.Clip(SimpleNamespace(), tokenizer, SimpleNamespace())


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
