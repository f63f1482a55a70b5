"""Numbers as pictures: cosines as a labelled matrix, a prior's way towards its prompt."""

from __future__ import annotations

import pytest
import torch

from prior_art.nodes.charts import LARGEST, MARGIN, cosine_to, curves, matrix


def test_a_matrix_has_a_cell_for_each_pair_and_labels_beside():
    picture = matrix(torch.tensor([[1.0, -1.0, 0.0]]), "a", "b")[0]
    assert picture.shape == (MARGIN + 48, MARGIN + 3 * 48, 3)
    corners = [float(picture[MARGIN + 1, MARGIN + i * 48 + 1, 0]) for i in range(3)]
    assert corners == pytest.approx([1, 0, 0.5], abs=0.01)
    for side in (picture[MARGIN:, :MARGIN], picture[:MARGIN, MARGIN:]):
        assert side.amax() > side.amin() + 0.5  # something is written
    assert picture[MARGIN + 15 :, MARGIN : MARGIN + 48].amin() < 0.2  # a number on white


@pytest.mark.parametrize(("shape", "cell"), [((2, 30), 34), ((300, 2), 3), ((2, 1100), 1)])
def test_a_large_matrix_has_smaller_cells(shape, cell):
    picture = matrix(torch.zeros(shape), "a", "b")[0]
    assert picture.shape[:2] == tuple(MARGIN + side * cell for side in shape)
    assert cell == 1 or max(picture.shape) <= LARGEST + MARGIN


def test_curves_rise_with_the_cosine():
    rising = curves([[0.0], [0.5], [1.0]], "cosine")
    assert rising.size == (512, 256)
    for x, y in ((511, 25), (256, 82), (1, 139)):
        assert max(rising.getpixel((x, y + off))[0] for off in (-1, 0, 1)) > 150
    assert curves([[0.3]], "cosine").size == (512, 256)  # a single step


def test_a_step_is_as_far_as_its_embeddings_are_from_their_prompts(monkeypatch):
    monkeypatch.setattr("prior_art.nodes.charts.curves", lambda steps, title: [*steps])
    preview = cosine_to(torch.eye(2, 4))
    images = torch.eye(4)[[0, 1, 1, 2]]  # two for each prompt
    assert preview(images) == [[1, 0, 1, 0]]
    assert preview(2 * images[[0, 0, 1, 1]])[1] == [1, 1, 1, 1]
