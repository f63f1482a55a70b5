"""The four systems as subgraph blueprints: every node and wire in them is one that exists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prior_art.headless.runner import node_classes

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
INPUT, OUTPUT = -10, -20
"""What the editor calls the two ends of a subgraph."""


def test_every_system_has_one():
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {"KOALA", "Kandinsky 2.2", "Karlo", "minDALL-E"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_its_nodes_and_wires_exist(path):
    file, classes = json.loads(path.read_text()), node_classes()
    (outer,), (inner,) = file["nodes"], file["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"] and outer["title"] == inner["name"] == path.stem
    assert inner["description"] and file["extra"]["BlueprintSearchAliases"]
    for side, ends in (("inputs", outer["inputs"]), ("outputs", outer["outputs"])):
        assert [(e["name"], e["type"]) for e in inner[side]] == [
            (e["name"], e["type"]) for e in ends
        ]
    nodes = {node["id"]: node for node in inner["nodes"]}
    for node in nodes.values():
        known = {i.id for i in classes[node["type"]].define_schema().inputs}
        assert {entry["name"] for entry in node["inputs"]} <= known
    links = {link["id"]: link for link in inner["links"]}
    for link in links.values():
        source = {"outputs": inner["inputs"]} if link["origin_id"] == INPUT else None
        target = {"inputs": inner["outputs"]} if link["target_id"] == OUTPUT else None
        source, target = source or nodes[link["origin_id"]], target or nodes[link["target_id"]]
        assert source["outputs"][link["origin_slot"]]["type"] == link["type"]
        end = target["inputs"][link["target_slot"]]
        assert link["id"] in end.get("linkIds", [end.get("link")])
    wired = [e["link"] for node in nodes.values() for e in node["inputs"] if e["link"] is not None]
    ended = [link["id"] for link in links.values() if link["target_id"] != OUTPUT]
    assert sorted(wired) == sorted(ended)
