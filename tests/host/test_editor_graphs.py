"""Saved graphs of every kind: the runner makes of them what the real editor queues.

Titles are left out, which differ from one version to the next. Subgraphs are compared with the
editors that give each instance values of its own: 1.27.10, that of ComfyUI v0.3.64, shares one text
among all instances and numbers the nodes inside anew only where it must.
"""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from prior_art.headless.runner import node_classes
from prior_art.headless.workflow import to_api

from ..headless.graphs import FLAT, SUBGRAPHS

OWN_VALUES = (1, 49)
"""The oldest of the two editors that gives each instance its own values."""

pytestmark = [pytest.mark.host, pytest.mark.browser]
NODES = node_classes()


@pytest.fixture(scope="module", autouse=True)
def picture_to_load(comfy: Any) -> None:
    """What the graphs load; the editor reads the folder's names when it opens."""
    Image.new("RGB", (8, 8)).save(comfy.base / "input" / "example.png")


def queued(page: Any, graph: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a graph, and the editor's version."""
    return page.evaluate(
        """async graph => {
            await app.loadGraphData(graph);
            const { output, workflow } = await app.graphToPrompt();
            return { prompt: output, version: workflow.extra.frontendVersion };
        }""",
        graph,
    )


def bare(prompt: dict[str, Any]) -> dict[str, Any]:
    """Class and inputs of every node, without what only the editor's widgets have."""
    found = {}
    for key, node in prompt.items():
        known = {socket.id for socket in NODES[node["class_type"]].define_schema().inputs}
        inputs = {name: value for name, value in node["inputs"].items() if name in known}
        found[key] = (node["class_type"], inputs)
    return found


@pytest.mark.parametrize("kind", FLAT)
def test_a_graph_is_queued_as_the_editor_queues_it(page: Any, kind: str) -> None:
    assert bare(to_api(FLAT[kind], NODES)) == bare(queued(page, FLAT[kind])["prompt"])


@pytest.mark.parametrize("kind", SUBGRAPHS)
def test_a_subgraph_is_queued_as_the_editor_queues_it(page: Any, kind: str) -> None:
    found = queued(page, FLAT["plain"])
    if tuple(map(int, found["version"].split(".")[:2])) < OWN_VALUES:
        pytest.skip(f"editor {found['version']} shares texts among a subgraph's instances")
    found = queued(page, SUBGRAPHS[kind])
    assert bare(to_api(SUBGRAPHS[kind], NODES)) == bare(found["prompt"])
