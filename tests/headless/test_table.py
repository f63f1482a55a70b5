"""The table of what the runner takes over from ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest

from prior_art.headless.core_nodes import CORE_NODES
from prior_art.headless.table import table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "HEADLESS.md"


def test_the_committed_table_is_what_the_command_prints():
    assert DOCUMENT.read_text(encoding="utf-8") == table(), (
        "run `python -m prior_art.headless.table > docs/HEADLESS.md`"
    )


@pytest.mark.parametrize("node", CORE_NODES, ids=lambda node: node.define_schema().node_id)
def test_every_core_node_says_how_close_it_is(node):
    assert isinstance(node.EQUAL, str) and node.EQUAL
    assert table().count(f"| `{node.define_schema().node_id}` |") == 1
