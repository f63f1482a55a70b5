"""What the reranker is taught with: spoilt silhouettes and how well they overlap true ones."""

from __future__ import annotations

import pytest
import torch

from prior_art.shapes.grammar import KINDS, Scene
from prior_art.shapes.pictures import silhouette_pool
from prior_art.shapes.train.loop import draw_for
from prior_art.shapes.train.reranker import _lesson, blurred, overlap, spoilt


def masks(kind: str, count: int = 40) -> torch.Tensor:
    return torch.from_numpy(silhouette_pool()[KINDS.index(kind), 1, :count]).float() / 255


@pytest.mark.parametrize("kind", KINDS)
def test_true_silhouettes_overlap_fully_and_spoilt_ones_less(kind: str) -> None:
    true = masks(kind)
    assert torch.equal(overlap(true, kind), torch.ones(len(true)))
    found = overlap(spoilt(true, draw_for("toy", 0, 0)), kind)
    assert (found > 0.96).sum() >= 4, "a fifth stays clean"
    assert 0.3 < found.min() < 0.85
    other = KINDS[KINDS.index(kind) - 1]
    assert overlap(true, other).max() < 0.9


@pytest.mark.slow
def test_equal_draws_spoil_equally() -> None:
    one, two, other = (spoilt(masks("cross"), draw_for("toy", 0, step)) for step in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() <= 1


def test_blur_keeps_what_it_spreads() -> None:
    dot = torch.zeros(1, 64, 64)
    dot[0, 32, 32] = 1.0
    seen = blurred(dot, torch.tensor([2.0]))[0]
    assert seen.sum() == pytest.approx(1, abs=1e-5)
    far = (torch.arange(64.0) - 32).square()
    spread = (seen.sum(0) * far).sum()
    assert spread == pytest.approx(4, abs=0.01)  # the variance across


def test_a_lesson_shows_its_scene() -> None:
    scene = Scene("red", "circle", "blue", "large")
    pictures, overlaps = _lesson([scene], draw_for("toy", 0, 0))
    assert pictures.shape == (1, 8, 3, 64, 64) and overlaps.shape == (1, 8)
    middle, corner = pictures[0, :, :, 32, 32], pictures[0, :, :, 0, 0]
    assert (middle[:, 0] > middle[:, 2]).all() and (corner[:, 2] > corner[:, 0]).all()
