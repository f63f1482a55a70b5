"""CLIP Rerank and Image Grid on miniatures."""

from __future__ import annotations

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.host import host
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.rerank import load_reranker
from prior_art.nodes.rerank import CLIPRerank, ImageGrid, LoadReranker
from prior_art.nodes.unclip import LoadImageEncoder
from prior_art.samplers.clip import encode_image, encode_text
from prior_art.samplers.rerank import preprocess, rerank_scores

CPU = torch.device("cpu")
TEXT = "a red cat"


@pytest.fixture(autouse=True)
def placed(models, monkeypatch):
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))


@pytest.fixture
def towers(placed):
    return LoadReranker.execute("tiny-karlo", "auto").args


@pytest.fixture
def images():
    return torch.rand(40, 40, 48, 3, generator=torch.Generator().manual_seed(0))


def published(models, images, text=TEXT):
    """Scores from the published parts, written out."""
    found = load_reranker(find_source("tiny-karlo", "reranker", [models]))
    ids, mask, _ = tokenize(found.tokenizer, [text])
    prompt = encode_text(found.network["text"], ids, mask, found.space, CPU, torch.float32).pooled
    pixels = preprocess(images, found.size, found.mean, found.std)
    features = encode_image(found.network["vision"], pixels, CPU, torch.float32)
    return rerank_scores(prompt, features)


def test_pictures_come_in_the_published_order(towers, images, models):
    expected = published(models, images)
    ranked, scores, indices = CLIPRerank.execute(*towers, images, TEXT, keep=0).args
    assert indices == expected.argsort(descending=True).tolist()
    assert scores == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)
    assert torch.equal(ranked, images[indices])
    best, few, places = CLIPRerank.execute(*towers, images, TEXT, keep=4).args
    assert (few, places) == (scores[:4], indices[:4]) and torch.equal(best, ranked[:4])
    assert len(CLIPRerank.execute(*towers, images, TEXT, keep=99).args[1]) == 40


def test_pictures_are_truncated_to_8_bits_as_published(towers, models):
    images = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    lower = (images * 255).floor() / 255 + 1e-4
    _, vision = towers
    prepare = host.open("image_encoder", vision)[1].preprocess
    assert torch.equal(prepare(images), prepare(lower))


def test_a_long_prompt_is_cut_with_a_warning(towers, images, monkeypatch):
    warnings = []
    monkeypatch.setattr(host, "warn", warnings.append)
    _, scores, _ = CLIPRerank.execute(*towers, images, "red " * 75 + "the cat", keep=2).args
    assert len(warnings) == 1 and "77 tokens" in warnings[0] and "'the cat'" in warnings[0]
    assert len(scores) == 2


def test_towers_of_two_clips_are_refused_with_both_names(towers, images, models, tiny, monkeypatch):
    monkeypatch.setitem(tiny.TEXT, "projection_dim", 48)
    monkeypatch.setitem(tiny.VISION, "projection_dim", 48)
    tiny.tiny_karlo(models / "karlo-48d")
    (other,) = LoadImageEncoder.execute("karlo-48d", "auto").args
    with pytest.raises(EdgeError, match=r"'custom-32d'.*'custom-48d'.*Load CLIP \(Rerank\)"):
        CLIPRerank.execute(towers[0], other, images, TEXT, keep=1)


def test_bad_input_is_named(towers, images):
    for inputs, words in (
        ((object(), towers[1], images), r"'clip'.*Load CLIP \(Rerank\)"),
        ((towers[0], object(), images), r"'clip_vision'.*Load CLIP \(Rerank\)"),
        ((*towers, images[:0]), "'image' must be an IMAGE"),
        ((*towers, images * float("nan")), "'image' holds NaN"),
    ):
        with pytest.raises(EdgeError, match=words):
            CLIPRerank.execute(*inputs, TEXT, keep=1)
    with pytest.raises(EdgeError, match="'keep' is -1"):
        CLIPRerank.execute(*towers, images, TEXT, keep=-1)


def test_a_picture_with_transparency_is_ranked_and_kept_whole(towers, images):
    seen = torch.cat([images, torch.zeros(40, 40, 48, 1)], dim=-1)
    ranked, scores, _ = CLIPRerank.execute(*towers, seen, TEXT, keep=0).args
    assert ranked.shape[-1] == 4
    assert scores == CLIPRerank.execute(*towers, images, TEXT, keep=0).args[1]


def test_what_is_picked_wins_over_keep_and_comes_in_the_picked_order(towers, images, models):
    expected = published(models, images)
    picked, scores, places = CLIPRerank.execute(*towers, images, TEXT, keep=1, picked="[7, 0]").args
    assert places == [7, 0] and torch.equal(picked, images[[7, 0]])
    assert scores == pytest.approx(expected[[7, 0]].tolist(), abs=1e-5)


@pytest.mark.parametrize("picked", ["", " ", "[]", "null"])
def test_without_a_pick_the_best_are_kept(towers, images, picked):
    kept = CLIPRerank.execute(*towers, images, TEXT, keep=3, picked=picked).args[2]
    assert kept == CLIPRerank.execute(*towers, images, TEXT, keep=3).args[2]


@pytest.mark.parametrize(
    ("picked", "words"),
    [
        ("[0, 1", r"'picked' is no JSON; give a list of places such as \[5, 0, 2\]"),
        ("[" * 90_000, "'picked' is no JSON"),
        ('{"0": 1}', "'picked' is no list of whole numbers"),
        ("[0, true]", "'picked' is no list of whole numbers"),
        ("[1.5]", "'picked' is no list of whole numbers"),
        ("[40]", "'picked' names the picture at place 40, but 'image' holds 40, from 0 to 39"),
        ("[-1]", "'picked' names the picture at place -1"),
        ("[3, 3]", "'picked' names a picture twice"),
    ],
)
def test_a_pick_that_the_batch_does_not_have_is_refused(towers, images, picked, words):
    with pytest.raises(EdgeError, match=words):
        CLIPRerank.execute(*towers, images, TEXT, keep=1, picked=picked)


def test_the_gallery_is_shown_one_sheet_of_all_candidates(towers, images, monkeypatch):
    sheets = []
    monkeypatch.setattr(host, "show", lambda make: sheets.append(make()) or {"filename": "a.jpg"})
    output = CLIPRerank.execute(*towers, images.repeat(1, 4, 4, 1), TEXT, keep=2)
    (entry,) = output.ui["PRIOR_ART_GALLERY"]
    assert entry["sheet"] == {"filename": "a.jpg"} and entry["columns"] == 7
    assert entry["ranking"][:2] == output.args[2] and len(entry["ranking"]) == 40
    assert [entry["scores"][place] for place in entry["ranking"][:2]] == output.args[1]
    assert sheets[0].shape == (1, 6 * 107, 7 * 128, 3)  # 160x192 pictures, scaled to 107x128


def test_without_an_editor_nothing_is_shown(towers, images):
    assert CLIPRerank.execute(*towers, images, TEXT, keep=2).ui is None


@pytest.mark.parametrize(("count", "columns", "rows"), [(9, 3, 3), (7, 3, 3), (2, 3, 1), (5, 1, 5)])
def test_a_grid_is_read_row_by_row(images, count, columns, rows):
    (view,) = ImageGrid.execute(images[:count], columns).args
    across = min(columns, count)
    assert view.shape == (1, rows * 40, across * 48, 3)
    for i in range(rows * across):
        top, left = i // across * 40, i % across * 48
        cell = view[0, top : top + 40, left : left + 48]
        assert torch.equal(cell, images[i] if i < count else torch.zeros(40, 48, 3))


def test_a_grid_without_columns_is_refused(images):
    with pytest.raises(EdgeError, match="'columns' is 0"):
        ImageGrid.execute(images, 0)
