"""Prompts times seeds as one batch a stage: every row is what a single run of its own makes."""

from __future__ import annotations

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.host import host
from prior_art.nodes.karlo import KarloDecoder, LoadDecoder
from prior_art.nodes.unclip import BatchPrompts, LoadPrior, LoadTextEncoder, PriorSample, TextEncode

from .conftest import SOURCE

SEED = 20


@pytest.fixture
def stages(models, monkeypatch):
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))
    loaders = (LoadTextEncoder, LoadPrior, LoadDecoder)
    return [loader.execute(SOURCE, "fp32").args[0] for loader in loaders]


def sampled(stages, positive, negative, seed, batch_size):
    _, prior, decoder = stages
    embeds = PriorSample.execute(prior, positive, negative, seed, 3, 4.0, batch_size).args[0]
    image = KarloDecoder.execute(decoder, embeds, positive, negative, seed + 7, 3, 8.0, 1).args[0]
    return embeds.image_embeds, image


def test_prompts_times_seeds_are_their_single_runs(stages):
    words = ("the red cat", "a blue dog", "red")
    prompts = [TextEncode.execute(stages[0], text).args[0] for text in words]
    (negative,) = TextEncode.execute(stages[0], "").args
    (two,) = BatchPrompts.execute(prompts[0], prompts[1]).args
    (three,) = BatchPrompts.execute(two, prompts[2]).args
    embeds, images = sampled(stages, three, negative, SEED, 2)
    assert embeds.shape[0] == images.shape[0] == 6
    for row in range(6):
        alone = sampled(stages, prompts[row // 2], negative, SEED + row, 1)
        scale = alone[0].abs().max()
        torch.testing.assert_close(embeds[row] / scale, alone[0][0] / scale, atol=1e-5, rtol=0)
        # The first step multiplies rounding by 20,000, so single pixels may lie apart.
        apart = (images - alone[1]).abs().mean((1, 2, 3))
        assert apart.argmin() == row and apart[row] < 0.01 * apart.sort().values[1]


def test_the_bar_shows_the_cosine_to_the_prompt(stages, monkeypatch):
    shown = []
    monkeypatch.setattr("prior_art.nodes.charts.curves", lambda steps, title: steps[-1])
    monkeypatch.setattr(host, "progress", lambda total: lambda step, picture: shown.append(picture))
    positive, negative = (TextEncode.execute(stages[0], text).args[0] for text in ("a cat", ""))
    made = PriorSample.execute(stages[1], positive, negative, 7, 3, 4.0, 2).args[0]
    text = positive[0][1]["pooled_output"]
    assert len(shown) == 3 and all(len(step) == 2 for step in (shown[0], shown[-1]))
    cosines = torch.cosine_similarity(made.image_embeds, text)
    torch.testing.assert_close(torch.tensor(shown[-1]), cosines, atol=1e-4, rtol=0)


def prompt(width=8, **extra):
    beside = {"pooled_output": torch.zeros(1, 4), "embedding_space": "a"} | extra
    return [[torch.zeros(1, 77, width), beside]]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([], prompt(), "'conditioning_a' holds 0 prompts"),
        (prompt(), prompt() + prompt(), "'conditioning_b' holds 2 prompts"),
        (prompt(), prompt(9), "one text encoder"),
        (prompt(), prompt(mask=torch.ones(1, 8, 8)), "one text encoder"),
        (prompt(), prompt(embedding_space="b"), "'embedding_space' is a beside"),
    ],
)
def test_what_is_no_batch_is_refused(a, b, words):
    with pytest.raises(EdgeError, match=words):
        BatchPrompts.execute(a, b)
