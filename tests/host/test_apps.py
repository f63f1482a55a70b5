"""Templates as apps and blueprints as nodes, in an editor that has them: asked, run, looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .editing import PACK, queued
from .test_browser import BLUEPRINTS, TEMPLATES

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.usefixtures("picture_to_load"),
]


@pytest.fixture(scope="module")
def app_editor(page: Any) -> Iterator[Any]:
    """The page, if its editor has app mode."""
    commands = page.evaluate("() => app.extensionManager.command.commands.map(c => c.id)")
    if "Comfy.ToggleLinear" not in commands:
        pytest.skip("this editor has no app mode")
    yield page


def open_app(page: Any, name: str) -> None:
    """A template, when the editor asks for its inputs by their names and nothing else."""
    graph = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    nodes = {node["id"]: node for node in graph["nodes"]}
    labels = [
        next(entry["label"] for entry in nodes[number]["inputs"] if entry["name"] == name)
        for number, name, *_ in graph["extra"]["linearData"]["inputs"]
    ]
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
    page.wait_for_function(
        """labels => JSON.stringify(labels) === JSON.stringify(
            [...document.querySelectorAll("[data-testid=builder-widget-label]")].map(
                label => label.innerText))""",
        arg=labels,
        timeout=60_000,
    )
    page.wait_for_timeout(1000)
    tour = page.get_by_role("button", name="Skip", exact=True)  # at the first app of all
    if tour.count():
        tour.click()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_as_an_app(app_editor: Any, name: str) -> None:
    open_app(app_editor, name)
    assert app_editor.get_by_role("button", name="Run", exact=True).count() == 1
    assert not app_editor.locator(".p-dialog:visible").all_inner_texts()
    assert not app_editor.locator(".p-toast-message:visible").all_inner_texts()


@pytest.mark.parametrize("name", ["karlo_text_to_image", "mindalle_rerank"])
def test_an_app_paints_what_it_is_asked_for(app_editor: Any, comfy: Any, name: str) -> None:
    """A prompt that is typed, and two pictures instead of one or four."""
    from prior_art.shapes.check import check
    from prior_art.shapes.grammar import parse

    text = "a large blue square on a white background"
    open_app(app_editor, name)
    items = app_editor.locator("[data-testid=app-mode-widget-item]")
    items.filter(has_text="Prompt").locator("textarea").fill(text)
    count = items.filter(has_text="How many").locator("input")
    count.fill("2")
    count.press("Enter")
    run = queued(app_editor, comfy)
    saved = [
        image
        for output in run["outputs"].values()
        for image in output.get("images", ())
        if image["type"] == "output"
    ]
    assert len(saved) == 2
    pictures = [Image.open(comfy.base / "output" / image["filename"]) for image in saved]
    assert check(np.asarray(pictures[0].convert("RGB"))).all_right(parse(text))
    shown = app_editor.locator(f"img[src*='{saved[0]['filename']}']")
    shown.first.wait_for(timeout=30_000)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_the_editor_lists_the_blueprint(app_editor: Any, name: str) -> None:
    app_editor.evaluate("() => app.loadGraphData()")
    app_editor.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    app_editor.wait_for_timeout(1000)
    app_editor.keyboard.type(name)
    found = app_editor.get_by_text("Blueprint", exact=True).first
    found.wait_for()
    described = json.loads((PACK / "subgraphs" / f"{name}.json").read_text())
    (inner,) = described["definitions"]["subgraphs"]
    assert app_editor.get_by_text(inner["description"]).count()
    app_editor.keyboard.press("Escape")
