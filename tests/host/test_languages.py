"""The editor in each language: titles, inputs, menus and help pages as the locale files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.browser]

PACK = Path(__file__).resolve().parents[2]
NODE = "PriorArtPrior"


@pytest.fixture(scope="module", params=["ko", "ru", "zh"])
def language(request: Any, comfy: Any, page: Any) -> Any:
    """The editor, reloaded in a language."""
    comfy.post("/settings/Comfy.Locale", request.param)
    page.reload()
    page.wait_for_function("() => window.app && window.app.graph", timeout=120_000)
    page.wait_for_selector("canvas#graph-canvas", timeout=60_000)
    page.wait_for_timeout(3000)
    yield request.param
    comfy.post("/settings/Comfy.Locale", "en")


def test_a_node_speaks_it(page: Any, language: str) -> None:
    said = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text())[NODE]
    menu = json.loads((PACK / "locales" / language / "main.json").read_text())["nodeCategories"]
    page.evaluate("() => app.graph.clear()")
    shown = page.evaluate(
        """name => {
            const node = LiteGraph.createNode(name);
            app.graph.add(node);
            const called = slot => slot.label ?? slot.localized_name ?? slot.name;
            return {
                title: node.title,
                category: node.constructor.category,
                inputs: node.inputs.filter(slot => !slot.widget).map(called),
                widgets: node.widgets.map(widget => [widget.name, widget.label ?? widget.name]),
            };
        }""",
        NODE,
    )
    assert shown["title"] == said["display_name"]
    assert shown["category"] == f"PriorArt/unCLIP/{menu['sample']}"
    named = {key: socket["name"] for key, socket in said["inputs"].items()}
    sockets = ("prior", "positive", "negative", "noise_offset")
    assert shown["inputs"] == [named[key] for key in sockets]
    own = dict(shown["widgets"])
    assert {key: own[key] for key in ("seed", "steps", "cfg")} == {
        key: named[key] for key in ("seed", "steps", "cfg")
    }


def test_its_help_page_opens_in_it(page: Any, language: str) -> None:
    page.evaluate("() => app.graph.clear()")
    page.evaluate(
        """name => {
            const node = LiteGraph.createNode(name);
            node.pos = [400, 400];
            app.graph.add(node);
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [0, 0];
            app.canvas.selectNode(node);
        }""",
        NODE,
    )
    heading = (PACK / "web" / "docs" / NODE / f"{language}.md").read_text().splitlines()[0]
    page.get_by_test_id("info-button").dispatch_event("click")
    page.get_by_role("heading", name=heading.removeprefix("# "), level=1).wait_for(timeout=30_000)
