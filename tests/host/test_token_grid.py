"""The token grid of AR Complete and AR Variations in the editor, in both renderers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Comfy, Run
from .editing import node_by_type, open_template, queued, wait_for_value, widget_value

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.usefixtures("picture_to_load"),
]

ENCODE, COMPLETE, SAVE = "5", "7", "8"
"""Nodes of the template, whose picture is of 64 pixels and 8x8 codes."""

UNMASKED = """() => app.graph.getNodeById(5).connect(0, app.graph.getNodeById(7), 2)"""
"""Wires AR Complete's latent_image to VQGAN Encode, past the noise mask."""

VARY = """() => {
    const [complete, load, save] = [7, 4, 8].map(id => app.graph.getNodeById(id));
    const vary = LiteGraph.createNode("PriorArtARVariations");
    const decode = LiteGraph.createNode("VAEDecode");
    vary.pos = [...complete.pos];
    app.graph.add(vary);
    app.graph.add(decode);
    app.graph.getNodeById(3).connect(0, vary, 0);
    app.graph.getNodeById(2).connect(0, vary, 1);
    load.connect(0, vary, 2);
    vary.connect(0, decode, 0);
    app.graph.getNodeById(2).connect(0, decode, 1);
    decode.connect(0, save, 0);
    vary.widgets.find(w => w.name === "candidates").value = 2;
    app.graph.remove(complete);
}"""
"""AR Variations in AR Complete's place."""

SCORE = """() => {
    const [vqgan, transformer, encode] = [2, 3, 5].map(id => app.graph.getNodeById(id));
    const score = LiteGraph.createNode("PriorArtARScore");
    const show = LiteGraph.createNode("PreviewAny");
    app.graph.add(score);
    app.graph.add(show);
    transformer.connect(0, score, 0);
    vqgan.connect(0, score, 1);
    encode.connect(0, score, 2);
    score.connect(1, show, 0);
}"""


class Grid:
    """The open template's token grid."""

    def __init__(self, page: Any, comfy: Comfy, kind: str) -> None:
        self.page, self.comfy, self.kind = page, comfy, kind
        self.node = node_by_type(page, kind)
        self.cells = page.locator(".prior-art-cell")
        self.cells.nth(63).wait_for()

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """From the code in one (row, column) to another, with the pointer."""
        boxes = [self.cells.nth(row * 8 + column).bounding_box() for row, column in (start, end)]
        middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
        mouse = self.page.mouse
        mouse.move(*middles[0])
        mouse.down()
        mouse.move(*middles[1], steps=3)
        mouse.up()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def painted(self) -> list[str] | None:
        """The rows that the node stores."""
        text = widget_value(self.page, self.node, "redraw")
        return json.loads(text) if text else None

    def said(self) -> str:
        return self.page.locator(".prior-art [role=status]").inner_text()

    def run(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the grid was told of one more run, and the pictures that it saved."""
        run = queued(self.page, self.comfy)
        pictures = self.comfy.pictures(Run("", history=run), SAVE)
        told = run["outputs"][str(self.page.evaluate("node => node.id", self.node))]
        return told["PRIOR_ART_TOKENS"][0], [np.asarray(one, dtype=int) for one in pictures]


@pytest.fixture
def grid(editor: Any, comfy: Comfy) -> Iterator[Callable[..., Grid]]:
    """``grid(script, kind)``: the widget of the template after ``script`` has changed it."""

    def opened(script: str, kind: str = "PriorArtARComplete") -> Grid:
        open_template(editor, "mindalle_completion")
        editor.evaluate(script)
        return Grid(editor, comfy, kind)

    yield opened
    comfy.post("/free", {"free_memory": True, "unload_models": False})


def pixels(rows: list[str]) -> np.ndarray:
    """Which of the picture's pixels ``[64, 64]`` the painted codes cover."""
    marks = np.array([[mark == "1" for mark in row] for row in rows])
    return marks.repeat(8, axis=0).repeat(8, axis=1)


def test_what_is_painted_is_drawn_anew_and_nothing_else(
    grid: Callable[..., Grid], comfy: Comfy
) -> None:
    found = grid(UNMASKED)
    assert found.said() == "Paint the codes to draw anew, or wire a noise mask."
    found.drag((2, 2), (2, 5))
    found.drag((3, 2), (5, 2))
    rows = found.painted()
    assert rows == ["0" * 8] * 2 + ["00111100"] + ["00100000"] * 3 + ["0" * 8] * 2
    assert found.said().startswith("Best of N: 39 codes stay")
    told, pictures = found.run()
    assert told["redrawn"] == rows and not told["masked"]
    given = Image.open(comfy.base / "input" / "example.png").convert("RGB")
    changed = np.abs(pictures[0] - np.asarray(given, dtype=int)).max(axis=-1)
    assert changed[~pixels(rows)].max() <= 1 and changed[pixels(rows)].max() > 1


def test_erase_invert_rows_to_the_end_and_clear(grid: Callable[..., Grid]) -> None:
    found = grid(UNMASKED)
    found.page.get_by_role("rowheader", name="Row 7").click()
    assert found.painted() == ["0" * 8] * 6 + ["1" * 8] + ["0" * 8]
    assert "8 codes stay" in found.said()
    found.press("Erase")
    found.drag((6, 0), (6, 3))
    assert found.painted() == ["0" * 8] * 6 + ["00001111"] + ["0" * 8]
    found.press("To the end")
    assert found.painted() == ["0" * 8] * 6 + ["00001111"] + ["1" * 8]
    assert found.said() == "Exact: nothing stays after the first code drawn anew."
    found.press("Invert")
    assert found.painted() == ["1" * 8] * 6 + ["11110000"] + ["0" * 8]
    found.press("Clear")
    assert found.painted() is None


def test_keys_paint_a_code_and_a_row(grid: Callable[..., Grid]) -> None:
    found = grid(UNMASKED)
    found.cells.nth(0).focus()
    for key in ("ArrowRight", "Space", "ArrowDown", "Enter", "End", "Space", "Delete"):
        found.page.keyboard.press(key)
    assert found.painted() == ["01000000"] * 2 + ["0" * 8] * 5 + ["00000001"]
    assert found.cells.nth(9).get_attribute("aria-label") == "Row 2, column 2, drawn anew"
    found.cells.nth(24).focus()
    for key in ("ArrowLeft", "Space"):
        found.page.keyboard.press(key)
    assert found.painted()[3] == "1" * 8
    assert found.page.evaluate("() => app.graph._nodes.length") == 8
    found.page.keyboard.press("Control+z")
    before = json.dumps(["01000000"] * 2 + ["0" * 8] * 5 + ["00000001"], separators=(",", ":"))
    wait_for_value(found.page, "PriorArtARComplete", "redraw", before)


def test_a_noise_mask_wins_and_is_shown(grid: Callable[..., Grid]) -> None:
    found = grid("() => {}")
    found.drag((0, 0), (0, 1))
    told, _ = found.run()
    assert told["masked"] and told["redrawn"] == ["0" * 8] * 4 + ["1" * 8] * 4
    found.page.get_by_text("The noise mask of latent_image says").wait_for(timeout=10_000)
    assert found.page.locator(".prior-art-cell.masked").count() == 32
    assert found.said().endswith("Exact: nothing stays after the first code drawn anew.")


def test_variations_keep_rows_or_what_is_painted(grid: Callable[..., Grid]) -> None:
    found = grid(VARY, "PriorArtARVariations")
    marked = found.page.locator(".prior-art-cell[aria-selected=true]")
    assert marked.count() == 32 and found.painted() is None  # four rows are kept
    found.press("Erase")
    found.drag((7, 0), (7, 7))
    assert found.painted() == ["0" * 8] * 4 + ["1" * 8] * 3 + ["0" * 8]
    assert "8 codes stay" in found.said()
    told, pictures = found.run()
    assert told["redrawn"] == found.painted() and len(pictures) == 2
    apart = np.abs(pictures[0] - pictures[1]).max(axis=-1)
    # The VQGAN looks beyond a code: a change is strong in its own pixels and faint in others.
    assert apart[pixels(told["redrawn"])].mean() > 3 * apart[:32].mean()


def test_a_code_and_its_probability_are_told_under_the_pointer(grid: Callable[..., Grid]) -> None:
    found = grid(UNMASKED)
    found.page.evaluate(SCORE)
    found.drag((4, 6), (4, 7))
    told, _ = found.run()
    found.page.wait_for_timeout(1000)
    found.cells.nth(3 * 8 + 4).hover()
    hint = found.page.get_by_text("Row 4, column 5: code").first.inner_text()
    code, chance = hint.removeprefix("Row 4, column 5: code ").split(", p = ")
    assert int(code) == told["codes"][3][4] and 0 < float(chance) <= 1
