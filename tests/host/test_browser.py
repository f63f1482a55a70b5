"""Every template opened in a real browser: nothing missing, nothing red, Run makes the picture."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .editing import open_template, queued

PACK = Path(__file__).resolve().parents[2]
BLUEPRINTS = sorted(path.stem for path in (PACK / "subgraphs").glob("*.json"))
TEMPLATES = sorted(path.stem for path in (PACK / "example_workflows").glob("*.json"))
PICTURES = {
    "karlo_image_variation": 3,
    "karlo_three_seeds": 3,
    "mindalle_rerank": 4,
    "mindalle_completion": 3,
}
"""Where a template saves more than one."""

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.usefixtures("picture_to_load"),
]


def overlaps(page: Any) -> list[list[str]]:
    """Pairs of nodes that lie over one another, previews and results shown."""
    return page.evaluate(
        """() => {
            const title = LiteGraph.NODE_TITLE_HEIGHT, nodes = app.graph._nodes;
            const apart = (a, b) =>
                a.pos[0] + a.size[0] <= b.pos[0] || a.pos[1] + a.size[1] <= b.pos[1] - title;
            return nodes.flatMap((a, i) => nodes.slice(i + 1)
                .filter(b => !apart(a, b) && !apart(b, a)).map(b => [a.type, b.type]));
        }"""
    )


def test_templates_are_listed_with_thumbnails(comfy: Any) -> None:
    assert sorted(comfy.get("/workflow_templates")["ComfyUI-PriorArt"]) == TEMPLATES
    for name in TEMPLATES:
        assert (PACK / "example_workflows" / f"{name}.jpg").is_file()


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_opens_without_missing_nodes_or_red_links(page: Any, name: str) -> None:
    open_template(page, name)
    problems = page.evaluate(
        """() => {
            const found = [];
            for (const node of app.graph._nodes) {
                if (!LiteGraph.registered_node_types[node.type]) found.push("missing " + node.type);
                if (node.has_errors) found.push("error " + node.type);
                for (const input of node.inputs ?? []) {
                    if (input.link == null && !input.widget && input.shape !== 7)
                        found.push("unwired " + node.type + "." + input.name);
                    if (input.link != null && !app.graph.links.get(input.link))
                        found.push("broken link into " + node.type + "." + input.name);
                }
            }
            return found;
        }"""
    )
    assert not problems
    # The editor says what it does not like in dialogs (missing nodes) and toasts (schema).
    assert not page.locator(".p-dialog:visible").all_inner_texts()
    assert not page.locator(".p-toast-message:visible").all_inner_texts()


@pytest.mark.parametrize("name", TEMPLATES)
def test_run_makes_the_picture(page: Any, comfy: Any, name: str) -> None:
    open_template(page, name)
    run = queued(page, comfy)
    graph = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    (save,) = (str(node["id"]) for node in graph["nodes"] if node["type"] == "SaveImage")
    assert len(run["outputs"][save]["images"]) == PICTURES.get(name, 1)
    # The editor fetches the pictures when it hears of them.
    page.wait_for_function(
        "count => app.graph._nodes.find(n => n.type === 'SaveImage').imgs?.length === count",
        arg=PICTURES.get(name, 1),
        timeout=30_000,
    )
    assert not overlaps(page)
    folder = os.environ.get("PRIOR_ART_SCREENSHOTS")
    if folder:
        page.evaluate("() => { app.canvas.ds.scale = 0.58; app.canvas.ds.offset = [570, 330]; }")
        page.evaluate("() => app.canvas.setDirty(true, true)")
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_a_node_that_makes_its_picture(page: Any, comfy: Any, name: str) -> None:
    from prior_art.shapes.check import check
    from prior_art.shapes.grammar import parse

    blueprint = json.loads((PACK / "subgraphs" / f"{name}.json").read_text())
    widgets = page.evaluate(
        """async blueprint => {
            await app.loadGraphData(blueprint);
            const [node] = app.graph._nodes, save = LiteGraph.createNode("SaveImage");
            app.graph.add(save);
            node.connect(0, save, 0);
            return (node.widgets ?? []).map(widget => [widget.name, widget.value]);
        }""",
        blueprint,
    )
    (node,) = blueprint["nodes"]
    assert widgets == [
        [entry["name"], value]
        for entry, value in zip(node["inputs"], node["widgets_values"], strict=True)
    ]
    run = queued(page, comfy)
    (shown,) = (entry["images"] for entry in run["outputs"].values() if "images" in entry)
    first = comfy.base / "output" / shown[0]["filename"]
    assert check(np.asarray(Image.open(first).convert("RGB"))).all_right(parse(widgets[0][1]))


def test_a_png_of_the_headless_runner_dropped_into_the_editor_restores_the_graph(
    page: Any, tmp_path: Path
) -> None:
    from prior_art.headless.runner import Runner, node_classes

    graph = json.loads((PACK / "example_workflows" / "karlo_text_to_image.json").read_text())
    for node in graph["nodes"]:
        if node["type"] in ("PriorArtPrior", "PriorArtKarloDecoder"):
            node["widgets_values"][2] = 3  # steps
    run = Runner(node_classes(), tmp_path).run(graph)
    png = base64.b64encode(run.pictures[0].read_bytes()).decode()
    page.evaluate("() => window.app.graph.clear()")
    page.evaluate(
        """async png => {
            const bytes = Uint8Array.from(atob(png), c => c.charCodeAt(0));
            await app.handleFile(new File([bytes], "karlo.png", { type: "image/png" }));
        }""",
        png,
    )
    page.wait_for_timeout(1000)
    restored = page.evaluate("() => app.graph.serialize()")
    assert {node["type"] for node in restored["nodes"]} == {n["type"] for n in graph["nodes"]}
    assert len(restored["links"]) == len(graph["links"])
    steps = [n["widgets_values"][2] for n in restored["nodes"] if n["type"] == "PriorArtPrior"]
    assert steps == [3]


def test_an_original_file_that_is_missing_is_offered(page: Any) -> None:
    """`properties.models` of a loader: who opens the graph elsewhere is told where the file is."""
    path = PACK / "example_workflows" / "kandinsky_2_1_text_to_image.json"
    graph = json.loads(path.read_text())
    graph["extra"]["linearMode"] = False  # as a graph
    (loader,) = (node for node in graph["nodes"] if node["type"] == "PriorArtLoadPrior")
    (model,) = loader["properties"]["models"]
    loader["widgets_values"][0] = model["name"]
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.get_by_text(model["name"]).first.wait_for(timeout=30_000)
    details = page.get_by_role("button", name="View details")
    if details.count():  # a newer editor shows a note first
        details.click()
    page.get_by_text(re.compile("^Download")).first.wait_for(timeout=30_000)
