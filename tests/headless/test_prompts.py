"""Prompt syntax as ComfyUI's own text encoders read it."""

from __future__ import annotations

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.host import prompts
from prior_art.host.prompts import LENGTH, chunks, empty_chunk, plain_warnings, weigh

from ..tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red cat", [("a red cat", 1)]),
        ("(red) cat", [("red", 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:0.5) cat:1.5)", [("a ", 1.5), ("red", 0.5), (" cat", 1.5)]),
        ("(red:1e-1)(cat: -2 )", [("red", 0.1), ("cat", -2)]),
        ("(red:x) (:2)", [("red:x", 1.1), (" ", 1), (":2", 1.1)]),
        ("a (red", [("a ", 1), ("(red", 1)]),
        (") a (red)", [(") a (red)", 1)]),
        ("()", []),
    ],
)
def test_brackets_weigh(text, pieces):
    found = prompts._weighed(text, 1.0)
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


def test_escaped_brackets_are_brackets(tokenizer):
    [found], [plain] = chunks(tokenizer, r"\(red:2\)"), chunks(tokenizer, "(red:2)")
    assert all(weight == 1 for _, weight in found)
    ids = tokenizer("(red:2)")["input_ids"]
    assert [token for token, _ in found][: len(ids)] == ids
    assert max(weight for _, weight in plain) == 2


def test_a_prompt_longer_than_a_tower_is_several_chunks(tokenizer):
    begin, end = tokenizer("")["input_ids"][:2]
    words = "red " * 74
    [one] = chunks(tokenizer, words)
    two = chunks(tokenizer, words + "(cat cat:1.5) red")
    assert one[0] == (begin, 1) and one[75] == (end, 1) and len(one) == LENGTH
    # A short piece is not broken: it goes on in the next chunk, and the first one is padded.
    assert two[0] == one and two[1][0] == (begin, 1) and two[1][1][1] == two[1][2][1] == 1.5
    broken = chunks(tokenizer, "red " * 100)
    assert [chunk[-1][0] == end or end in dict(chunk) for chunk in broken] == [True, True]
    assert broken[0][76] == (end, 1) and [len(chunk) for chunk in broken] == [LENGTH] * 2


def test_textual_inversions_are_refused_by_name(tokenizer):
    for text in ("embedding:frog", "a red embedding:frog, cat", "(embedding:frog:1.2)"):
        with pytest.raises(EdgeError, match="'embedding:frog"):
            chunks(tokenizer, text)
    assert chunks(tokenizer, "noembedding:frog")


def test_weights_lead_away_from_the_empty_prompt(tokenizer):
    hidden, empty = torch.full((1, 2, 3), 2.0), torch.ones(2, 3)
    made = weigh(hidden, empty, torch.tensor([[1.0, 1.5]]))
    assert made[0, 0].tolist() == [2, 2, 2] and made[0, 1].tolist() == [2.5, 2.5, 2.5]
    assert len(empty_chunk(tokenizer)) == LENGTH


def test_plain_encoders_say_what_they_do_not_read():
    assert plain_warnings("a red cat", "", 77) == []
    both = plain_warnings("(red:1.5) cat", "cat", 77)
    assert len(both) == 2 and "'cat'" in both[0] and "plain text" in both[1]


@pytest.mark.parametrize("weight", ["nan", "inf", "-Infinity", "1e999"])
def test_a_weight_is_finite(tokenizer, weight):
    with pytest.raises(EdgeError, match="weighs 'red' by"):
        chunks(tokenizer, f"a (red:{weight}) frog")
    assert chunks(tokenizer, rf"a \(red:{weight}\) frog")


def test_brackets_within_brackets_have_an_end():
    assert prompts._weighed("(" * 3 + "a" + ")" * 3, 1.0)[0][0] == "a"
    with pytest.raises(EdgeError, match="more than 100 deep"):
        prompts._weighed("(" * 3000 + "a" + ")" * 3000, 1.0)
