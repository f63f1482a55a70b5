"""Every node tells the user what it is; saved widgets stay in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prior_art.host import io
from prior_art.nodes import NODES

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = json.loads((Path(__file__).parent / "widgets.json").read_text())
LOCALE = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_node_explains_itself(node_id):
    schema = SCHEMAS[node_id]
    assert node_id.startswith("PriorArt")
    assert schema.display_name and schema.description and schema.category.startswith("PriorArt/")
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.tooltip, f"{node_id}: {socket.id} has no tooltip"


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_node_has_a_help_page_that_names_its_inputs(node_id):
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    missing = [socket.id for socket in SCHEMAS[node_id].inputs if f"`{socket.id}`" not in page]
    assert not missing


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_locale_says_what_the_schema_says(node_id):
    schema, entry = SCHEMAS[node_id], LOCALE[node_id]
    assert entry["display_name"] == schema.display_name
    assert entry["description"] == schema.description
    assert {key: value["tooltip"] for key, value in entry["inputs"].items()} == {
        socket.id: socket.tooltip for socket in schema.inputs
    }
    assert [entry["outputs"][str(i)]["tooltip"] for i in range(len(schema.outputs))] == [
        socket.tooltip for socket in schema.outputs
    ]


def test_widgets_are_only_ever_appended():
    """Saved workflows store widgets by position: the recorded order must stay a prefix."""
    assert set(SNAPSHOT) == set(SCHEMAS)
    for node_id, recorded in SNAPSHOT.items():
        ids = [socket.id for socket in SCHEMAS[node_id].inputs]
        assert ids[: len(recorded)] == recorded, node_id


def test_input_and_output_names_do_not_collide():
    for schema in SCHEMAS.values():
        inputs = {socket.id for socket in schema.inputs}
        assert not inputs & {socket.id for socket in schema.outputs if socket.id}


def test_the_two_doors_offer_the_same_names():
    """What nodes use of ``io`` exists in the embedded door."""
    for name in ("ComfyNode", "Schema", "NodeOutput", "Custom", "Combo", "Int", "Float", "String"):
        assert hasattr(io, name)
