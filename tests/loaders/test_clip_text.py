"""A prompt's tokens as OpenAI's own tokenizer makes them, written anew here: ftfy, HTML's entities,
white space, lower case, the split into words, byte pairs."""

from __future__ import annotations

import html
import json
import logging
import sys
from itertools import pairwise
from pathlib import Path

import ftfy
import pytest
import regex
import torch

from prior_art.loaders import clip
from prior_art.loaders.files.catalogue import EMBEDDED_ROOT, find_source
from prior_art.shapes.train import words

WEIGHTS = EMBEDDED_ROOT
KARLO = WEIGHTS / "karlo" / "tokenizer"
PLAIN = "a small red circle on a blue background"

PROMPTS = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))


class Published:
    """OpenAI's tokenizer over a small vocabulary."""

    def __init__(self, folder: Path) -> None:
        self.ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        self.rank = {tuple(line.split()): i for i, line in enumerate(lines)}
        names = words.byte_symbols()  # in the order of ids: printable bytes, then the others
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = [*plain, *(byte for byte in range(256) if byte not in plain)]
        self.symbol = dict(zip(order, names, strict=True))

    def __call__(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        split = (
            r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}"
            r"|[^\s\p{L}\p{N}]+"
        )
        found = []
        for word in regex.findall(split, text):
            if word in ("<|startoftext|>", "<|endoftext|>"):
                found.append(self.ids[word])
                continue
            parts = [self.symbol[byte] for byte in word.encode()]
            parts[-1] += "</w>"
            while len(parts) > 1:
                pairs = list(pairwise(parts))
                best = min(pairs, key=lambda pair: self.rank.get(pair, 10**9))
                if best not in self.rank:
                    break
                merged, i = [], 0
                while i < len(parts):
                    if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                        merged.append("".join(best))
                        i += 2
                    else:
                        merged.append(parts[i])
                        i += 1
                parts = merged
            found += [self.ids[part] for part in parts]
        return [self.ids["<|startoftext|>"], *found, self.ids["<|endoftext|>"]]


def read(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("folder", [KARLO, WEIGHTS / "clip"])
def test_tokens_are_the_published_ones(folder: Path) -> None:
    published = Published(folder)
    # As beside an original checkpoint, where "!" is a letter like others.
    tokenizer = clip.load_tokenizer(folder, pad_token="<|endoftext|>")
    tokenizer.model_max_length = 400
    assert len(set(PROMPTS)) == 50
    ids, mask, cut = clip.tokenize(tokenizer, PROMPTS)
    for prompt, found in zip(PROMPTS, read(ids, mask), strict=True):
        assert found == published(prompt), prompt
    assert cut == [""] * 50
    uncleaned, shown, _ = clip.tokenize(tokenizer, PROMPTS, cleaned=False)
    differing = [a != b for a, b in zip(read(ids, mask), read(uncleaned, shown), strict=True)]
    assert sum(differing) > 20  # transformers alone would not do


def test_a_hub_folder_pads_with_a_token_that_prompts_hold_too() -> None:
    """Karlo's hub folder makes "!" a token of its own, which OpenAI's vocabulary has not."""
    tokenizer, published = clip.load_tokenizer(KARLO), Published(KARLO)
    ids, mask, _ = clip.tokenize(tokenizer, [p for p in PROMPTS if "!" not in p][:8])
    for prompt, found in zip(PROMPTS, read(ids, mask), strict=False):
        assert found == published(prompt)
    for prompt in ("wow!!!", "?!?!", "!", "a red! circle"):
        got, _, _ = clip.tokenize(tokenizer, [prompt])
        assert got[0].tolist() == tokenizer(prompt, padding="max_length")["input_ids"], prompt


def test_long_prompts_are_cut_after_cleaning() -> None:
    tokenizer = clip.load_tokenizer(KARLO)
    ids, mask, cut = clip.tokenize(tokenizer, ["\u201cred\u201d " * 40 + "the cat"])
    assert ids.shape == (1, 77) and bool(mask.all()) and ids[0, -1] == tokenizer.eos_token_id
    assert cut[0].endswith("the cat") and cut[0].count("red") == 15


def test_a_multilingual_prompt_is_not_cleaned() -> None:
    tokenizer = words.read_multilingual_tokenizer(WEIGHTS / "kandinsky" / "2-1" / "tokenizer")
    prompts = [p for p in PROMPTS if p.isprintable()]
    ids, mask, _ = clip.tokenize(tokenizer, prompts)
    wanted = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(mask, wanted["attention_mask"].bool())


def test_sdxl_prompts_are_left_to_transformers() -> None:
    from transformers import CLIPTokenizer

    folder = find_source("shapes-koala-1b", "koala_text", []).folder("tokenizer")
    ids, mask, _ = clip.tokenize(clip.load_tokenizer(folder), PROMPTS, cleaned=False)
    wanted = CLIPTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(mask, wanted["attention_mask"].bool())


def test_without_ftfy_unusual_prompts_bring_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = clip.load_tokenizer(KARLO)
    with caplog.at_level(logging.WARNING, "prior_art"):
        same, _, _ = clip.tokenize(tokenizer, ["A red  circle &amp; a cat\n"])
    assert not caplog.records
    assert torch.equal(same, clip.tokenize(tokenizer, ["a red circle & a cat"])[0])
    for prompt in ("it\u2019s red", "red\x07"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "prior_art"):
            clip.tokenize(tokenizer, [prompt])
        assert [record.message.count("pip install ftfy") for record in caplog.records] == [1]
