"""The embedding pad in the editor, in both renderers: where it is clicked and drawn is painted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from .conftest import Comfy, Run
from .editing import node_by_type, queued, ran, widget_value

pytestmark = [pytest.mark.host, pytest.mark.browser]

SCENES = {
    "a": "a large red circle on a blue background",
    "b": "a large yellow triangle on a black background",
    "c": "a large green square on a white background",
    "d": "a large blue circle on a yellow background",
}
MIX = {"class_type": "PriorArtMixEmbeddings", "weight_a": 0.5, "weight_b": 0.5, "mode": "slerp"}
WALK = {"class_type": "PriorArtInterpolateEmbeddings", "count": 3, "mode": "slerp"}
SAVE = "30"


@pytest.fixture(scope="module", autouse=True)
def pictures(comfy: Comfy) -> None:
    """A picture for each corner."""
    from prior_art.shapes.grammar import parse
    from prior_art.shapes.pictures import draw

    for name, words in SCENES.items():
        draw(parse(words), 0).save(comfy.base / "input" / f"{name}.png")


def graph(node: dict[str, Any]) -> dict[str, Any]:
    """Four pictures' embeddings into a node's corners, and what Karlo paints of its output."""

    def part(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}

    def loaded(stage: str) -> dict[str, Any]:
        return part(f"PriorArtLoad{stage}", source="shapes-karlo", dtype="auto")

    found = {"5": loaded("ImageEncoder"), "6": loaded("TextEncoder"), "7": loaded("Decoder")}
    found |= {"8": loaded("Upscaler"), "9": part("PriorArtTextEncode", clip=["6", 0], text="")}
    corners: dict[str, Any] = {}
    for i, name in enumerate(SCENES, 1):
        found[f"{i}"] = part("LoadImage", image=f"{name}.png")
        found[f"1{i}"] = part("PriorArtImageEncode", clip_vision=["5", 0], image=[f"{i}", 0])
        corners[f"image_embeds_{name}"] = [f"1{i}", 0]
    own = dict(node)
    found["20"] = part(own.pop("class_type"), **own, **corners, pad="")
    stage = {"positive": ["9", 0], "negative": ["9", 0], "seed": 3, "steps": 15}
    found["28"] = part(
        "PriorArtKarloDecoder",
        model=["7", 0],
        image_embeds=["20", 0],
        **stage,
        cfg=4.0,
        batch_size=1,
    )
    found["29"] = part("PriorArtKarloUpscale", upscaler=["8", 0], image=["28", 0], seed=3, steps=7)
    found[SAVE] = part("SaveImage", images=["29", 0], filename_prefix="pad")
    return found


class Pad:
    """The widget of a node in the middle of a new graph."""

    def __init__(self, editor: Any, comfy: Comfy, node: dict[str, Any]) -> None:
        self.page, self.comfy = editor, comfy
        editor.evaluate("graph => app.loadApiJson(graph, 'pad')", graph(node))
        editor.wait_for_timeout(1000)
        self.node = node_by_type(editor, node["class_type"])
        self.square = editor.locator(".prior-art-pad")
        self.square.wait_for()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where on the page that place of the pad is."""
        box = self.square.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def draw(self, *points: tuple[float, float]) -> None:
        """Press the pointer at the first point, drag it through the others."""
        self.page.mouse.move(*self.place(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.place(*point), steps=8)
        self.page.mouse.up()

    def points(self) -> Any:
        text = widget_value(self.page, self.node, "pad")
        return text and json.loads(text)

    def said(self) -> str:
        return self.page.locator(".prior-art [role=status]").inner_text()

    def paints(self) -> list[str]:
        """Which corners' scenes the pictures of a run obey; the run is kept."""
        from prior_art.shapes.check import check
        from prior_art.shapes.grammar import parse

        self.run = queued(self.page, self.comfy)
        pictures = self.comfy.pictures(Run("", history=self.run), SAVE)
        return [
            "".join(
                name
                for name, words in SCENES.items()
                if check(np.asarray(picture)).all_right(parse(words))
            )
            for picture in pictures
        ]


def test_what_is_dragged_to_is_painted_and_nothing_before_it_runs_again(
    editor: Any, comfy: Comfy
) -> None:
    pad = Pad(editor, comfy, MIX)
    pad.draw((0.5, 0.5), (0.3, 0.9), (0.98, 0.97))
    assert pad.points() == [pytest.approx([0.98, 0.97], abs=0.01)]
    assert pad.paints() == ["d"]
    pad.draw((0.02, 0.98))  # a click
    assert pad.paints() == ["c"]
    assert ran(pad.run) == {"20", "28", "29", SAVE}


def test_a_path_that_is_drawn_is_walked_as_one_batch(editor: Any, comfy: Comfy) -> None:
    pad = Pad(editor, comfy, WALK)
    pad.draw((0.01, 0.01), (0.99, 0.01), (0.99, 0.99))
    path = pad.points()
    assert len(path) > 10
    assert [path[0], path[-1]] == [
        pytest.approx([0.01] * 2, abs=0.01),
        pytest.approx([0.99] * 2, abs=0.01),
    ]
    assert pad.square.locator("span").count() == 3  # as many as the walk has
    assert pad.paints() == ["a", "b", "d"]
    assert len({*map(str, path)}) == len(path)


def test_the_pad_is_used_by_keys_which_reach_nothing_of_the_editors(
    editor: Any, comfy: Comfy
) -> None:
    pad = Pad(editor, comfy, MIX)
    nodes = editor.evaluate("() => app.graph._nodes.length")
    assert pad.said().startswith("The middle.")
    pad.square.focus()
    for key in ("Shift+ArrowRight", "ArrowRight", "ArrowUp"):
        editor.keyboard.press(key)
    assert pad.points() == [[0.61, 0.49]]
    assert pad.said() == "a 20%, b 31%, c 19%, d 30%"
    for _ in range(6):
        editor.keyboard.press("Shift+ArrowDown")
    assert pad.points() == [[0.61, 1]]
    editor.keyboard.press("Delete")
    assert pad.points() == ""
    assert editor.evaluate("() => app.graph._nodes.length") == nodes
    assert pad.square.get_attribute("aria-label").startswith("Place of the mixture")


def test_a_path_is_made_by_keys_and_clicks(editor: Any, comfy: Comfy) -> None:
    pad = Pad(editor, comfy, WALK)
    pad.square.focus()
    for key in ("Enter", "Shift+ArrowLeft", "Enter", "Shift+ArrowDown"):
        editor.keyboard.press(key)
    assert pad.points() == [[0.4, 0.5], [0.4, 0.6]]
    pad.draw((0.9, 0.9))
    assert pad.points()[2] == pytest.approx([0.9, 0.9], abs=0.01)
    assert pad.said().startswith("3 embeddings, the last at a 1%")
    editor.get_by_role("button", name="Clear", exact=True).click()
    assert pad.points() == ""


def test_a_place_is_saved_with_the_graph_and_can_be_undone(editor: Any, comfy: Comfy) -> None:
    pad = Pad(editor, comfy, MIX)
    for place in ((0.2, 0.2), (0.6, 0.4)):
        pad.draw(place)
    saved = widget_value(editor, pad.node, "pad")
    editor.keyboard.press("Control+z")
    editor.wait_for_timeout(500)
    node = node_by_type(editor, MIX["class_type"])
    assert json.loads(widget_value(editor, node, "pad")) == [pytest.approx([0.2, 0.2], abs=0.01)]
    editor.evaluate("([node, saved]) => { node.widgets.at(-1).value = saved; }", [node, saved])
    editor.evaluate("() => app.loadGraphData(app.graph.serialize())")
    editor.wait_for_timeout(500)
    again = node_by_type(editor, MIX["class_type"])
    assert widget_value(editor, again, "pad") == saved
    prompt = editor.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt["20"]["inputs"]["pad"] == saved


def test_a_corner_shows_the_picture_or_the_prompt_that_it_was_made_of(
    editor: Any, comfy: Comfy
) -> None:
    pad = Pad(editor, comfy, MIX)
    for name in SCENES:
        picture = pad.square.locator(f".prior-art-corner-{name} img")
        assert f"filename={name}.png" in picture.get_attribute("src")
        assert picture.evaluate(
            "async image => { await image.decode(); return image.naturalWidth; }"
        )
    editor.evaluate("node => node.disconnectInput(node.findInputSlot('image_embeds_d'))", pad.node)
    assert pad.square.locator(".prior-art-corner-d").is_hidden()
    pad.draw((0.3, 0.99))
    assert pad.said() == "a 1%, b 0%, c 99%"
    words = editor.evaluate(
        """async node => {
            const prior = LiteGraph.createNode("PriorArtPrior");
            const text = LiteGraph.createNode("PriorArtTextEncode");
            app.graph.add(prior);
            app.graph.add(text);
            text.widgets.find(w => w.name === "text").value = "a large red circle";
            text.connect(0, prior, prior.findInputSlot("positive"));
            prior.connect(0, node, node.findInputSlot("image_embeds_d"));
            await new Promise(requestAnimationFrame);
            return document.querySelector(".prior-art-corner-d").innerText;
        }""",
        pad.node,
    )
    assert words.split("\n") == ["d", "a large red circle"]
