"""CLIP Rerank's gallery in the editor, in both renderers: what is picked there comes out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from .conftest import Comfy, Run
from .editing import node_by_type, open_template, queued, ran, wait_for_value, widget_value

pytestmark = [pytest.mark.host, pytest.mark.browser]

SAMPLE, RERANK, ALL, SAVE = "5", "7", "9", "10"
"""Nodes of the template: of its sixteen candidates All candidates shows a grid of four by four."""


class Gallery:
    """The widget of the template's CLIP Rerank, after a run."""

    def __init__(self, editor: Any, comfy: Comfy) -> None:
        open_template(editor, "mindalle_rerank")
        self.page, self.comfy = editor, comfy
        self.node = node_by_type(editor, "PriorArtCLIPRerank")
        self.run()
        self.candidates = editor.locator(".prior-art-gallery [role=option]")
        self.tray = editor.locator(".prior-art-tray [role=option]")
        self.candidates.nth(15).wait_for()

    def run(self) -> dict[str, Any]:
        """What the host keeps of one more run."""
        run = queued(self.page, self.comfy)
        self.ranking = run["outputs"][RERANK]["PRIOR_ART_GALLERY"][0]["ranking"]
        return run

    def picked(self) -> str:
        return widget_value(self.page, self.node, "picked")

    def places(self, *ranks: int) -> str:
        return str([self.ranking[rank - 1] for rank in ranks]).replace(" ", "")

    def saved(self, run: dict[str, Any]) -> str:
        """Where in the batch each saved picture was, by what it looks like."""
        pictures = [self.comfy.pictures(Run("", history=run), node) for node in (ALL, SAVE)]
        (sheet,), saved = [[np.asarray(one) for one in some] for some in pictures]
        cells = sheet.reshape(4, 64, 4, 64, 3).swapaxes(1, 2).reshape(16, 64, 64, 3)
        found = [[np.array_equal(one, cell) for cell in cells].index(True) for one in saved]
        return str(found).replace(" ", "")


@pytest.fixture
def gallery(editor: Any, comfy: Comfy) -> Iterator[Gallery]:
    found = Gallery(editor, comfy)
    yield found
    # The host keeps what it made: a run that changes nothing tells an older editor nothing.
    comfy.post("/free", {"free_memory": True, "unload_models": False})


def test_what_is_clicked_and_dragged_comes_out_in_that_order(gallery: Gallery) -> None:
    for rank in (4, 7, 2):
        gallery.candidates.nth(rank - 1).click()
    assert gallery.picked() == gallery.places(4, 7, 2)
    gallery.tray.nth(2).drag_to(gallery.tray.nth(0))
    assert gallery.picked() == gallery.places(2, 4, 7)
    gallery.candidates.nth(7 - 1).click()
    assert gallery.picked() == gallery.places(2, 4)
    assert gallery.candidates.nth(4 - 1).get_attribute("aria-selected") == "true"
    run = gallery.run()
    assert gallery.saved(run) == gallery.picked()
    assert SAMPLE not in ran(run) and RERANK in ran(run)


def test_the_next_in_rank_order_come_out_without_sampling_anew(gallery: Gallery) -> None:
    for first in (5, 9):
        gallery.page.get_by_role("button", name="Next 4").click()
        assert gallery.picked() == gallery.places(*range(first, first + 4))
        run = gallery.run()
        assert gallery.saved(run) == gallery.picked()
        assert SAMPLE not in ran(run)
    gallery.page.get_by_role("button", name="Next 4").click()
    assert gallery.page.get_by_role("button", name="Next 4").is_disabled()
    gallery.page.get_by_role("button", name="Best 4").click()
    assert gallery.picked() == ""
    assert gallery.saved(gallery.run()) == gallery.places(1, 2, 3, 4)


def test_keys_pick_and_order_and_reach_nothing_of_the_editors(gallery: Gallery) -> None:
    press = gallery.page.keyboard.press
    nodes = gallery.page.evaluate("() => app.graph._nodes.length")
    gallery.candidates.nth(0).focus()
    for key in ("Space", "ArrowRight", "Enter", "End", "Space"):
        press(key)
    assert gallery.picked() == gallery.places(1, 2, 16)
    gallery.tray.nth(0).focus()
    for key in ("Shift+ArrowRight", "ArrowRight", "Delete"):
        press(key)
    assert gallery.picked() == gallery.places(2, 1)
    said = gallery.page.locator(".prior-art [role=status]").inner_text()
    assert said == "Rank 16 is not picked any more."
    names = [option.get_attribute("aria-label") for option in gallery.candidates.all()[:3]]
    assert [name.split(", ", 2)[2:] for name in names] == [
        ["picked, number 2"],
        ["picked, number 1"],
        [],
    ]
    assert gallery.page.evaluate("() => app.graph._nodes.length") == nodes


def test_picks_are_saved_with_the_graph_and_can_be_undone(gallery: Gallery) -> None:
    page = gallery.page
    for rank in (3, 1):
        gallery.candidates.nth(rank - 1).click()
    page.keyboard.press("Control+z")
    wait_for_value(page, "PriorArtCLIPRerank", "picked", gallery.places(3))
    gallery.candidates.nth(15).wait_for(state="attached")
    page.evaluate("() => app.loadGraphData(app.graph.serialize())")
    wait_for_value(page, "PriorArtCLIPRerank", "picked", gallery.places(3))
    page.get_by_text("Run once: the candidates appear here.").wait_for()


def test_other_candidates_than_those_picked_from_are_told(gallery: Gallery) -> None:
    gallery.candidates.nth(0).click()
    sample = node_by_type(gallery.page, "PriorArtARSample")
    gallery.page.evaluate("n => { n.widgets.find(w => w.name === 'seed').value = 9; }", sample)
    gallery.run()
    said = gallery.page.get_by_text("other candidates than those that were picked from")
    said.wait_for(timeout=10_000)


def test_a_removed_node_takes_its_gallery_along(gallery: Gallery) -> None:
    gallery.page.evaluate("node => app.graph.remove(node)", gallery.node)
    gallery.page.wait_for_timeout(500)
    assert gallery.page.locator(".prior-art").count() == 0
