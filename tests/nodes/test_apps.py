"""Every template is an app too, for hosts that have app mode: what it asks for, what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TEMPLATES = sorted((Path(__file__).resolve().parents[2] / "example_workflows").glob("*.json"))
WORDS = {
    *("Prompt", "From", "To", "Class"),
    *("Picture", "First picture", "Second picture", "Picture and mask", "Depth map"),
    *("Seed", "How many", "Candidates"),
    *("How much to change", "How much of the first, MoVQ", "How much of the first, VQGAN"),
}
"""What inputs are called for people."""


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def graph(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def widgets(graph):
    """Every widget that has its own value: (node, name) to its label."""
    return {
        (node["id"], entry["widget"]["name"]): entry.get("label")
        for node in graph["nodes"]
        for entry in node.get("inputs", ())
        if "widget" in entry and entry["link"] is None
    }


def test_a_template_opens_as_an_app_with_inputs_named_for_people(graph):
    app = graph["extra"]["linearData"]
    assert graph["extra"]["linearMode"] is True
    labels = [widgets(graph)[number, name] for number, name, *_ in app["inputs"]]
    assert set(labels) <= WORDS and len({*labels}) == len(labels) > 1
    assert app["outputs"] == [n["id"] for n in graph["nodes"] if n["type"] == "SaveImage"]


def test_an_app_asks_for_every_prompt_and_picture(graph):
    asked = {(number, name) for number, name, *_ in graph["extra"]["linearData"]["inputs"]}
    for node in graph["nodes"]:
        for name in ("text", "image", "value"):
            said = (node.get("widgets_values") or [""])[0]
            if (node["id"], name) in widgets(graph) and said and isinstance(said, str):
                assert (node["id"], name) in asked, node
