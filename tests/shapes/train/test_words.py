"""The family's tokenizer, as transformers reads it back."""

from __future__ import annotations

import pytest

from prior_art.shapes.train import words

PROMPT = "a small red circle on a blue background"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words.write_tokenizer(folder)
    return words.read_tokenizer(folder)


def test_specials_stand_where_clip_has_them(tokenizer):
    size = len(tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("!", 0)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (size - 2, size - 1)
    assert tokenizer.model_max_length == 77


def test_every_word_is_one_token(tokenizer):
    for word in words.WORDS:
        assert len(tokenizer(word).input_ids) == 3, word


def test_ids_with_and_without_padding(tokenizer):
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = tokenizer([PROMPT, ""]).input_ids
    assert [len(ids) for ids in plain] == [10, 2]
    assert plain[1] == [start, end]
    assert (plain[0][0], plain[0][-1]) == (start, end)
    padded = tokenizer([PROMPT, ""], padding="max_length", max_length=77, truncation=True)
    for ids, full, mask in zip(plain, padded.input_ids, padded.attention_mask, strict=True):
        assert full == ids + [0] * (77 - len(ids))
        assert mask == [1] * len(ids) + [0] * (77 - len(ids))


def test_long_prompts_end_with_the_end_token(tokenizer):
    ids = tokenizer(PROMPT * 20, truncation=True, max_length=77).input_ids
    assert len(ids) == 77
    assert ids[-1] == tokenizer.eos_token_id


def test_any_text_can_be_written_down(tokenizer):
    every_ascii = " ".join(chr(i) for i in range(1, 128))
    for text in (every_ascii, "\u00dcn\u00efcode \u20ac, \u6f22\u5b57, \U0001f642", "\x00\x7f"):
        ids = tokenizer(text).input_ids[1:-1]
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.bos_token_id not in ids
    assert "\u6f22\u5b57" in tokenizer.decode(tokenizer("\u6f22\u5b57").input_ids)


def test_writing_is_repeatable(tmp_path):
    for name in ("one", "two"):
        words.write_tokenizer(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
