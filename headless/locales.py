"""python -m prior_art.headless.locales: writes locales/en, all of it, from the nodes' schemas.

The schemas are the English text. ComfyUI shows a locale's entry before the schema's own word, so a
stale file would hide a better tooltip; a test compares what is stored with what this writes. Other
languages are translations of these files, key by key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..host.embedded import io
from ..nodes import NODES

ENGLISH = Path(__file__).resolve().parents[1] / "locales" / "en"


def english() -> dict[str, dict[str, Any]]:
    """The contents of each file of ``locales/en`` by its name, in ComfyUI's layout."""
    schemas = [node.define_schema() for node in NODES]
    categories = [part for schema in schemas for part in schema.category.split("/")]
    types = [socket.io_type for schema in schemas for socket in [*schema.inputs, *schema.outputs]]
    known = {kind.io_type for kind in vars(io).values() if hasattr(kind, "io_type")}
    own = [kind for joined in types for kind in joined.split(",") if kind not in known]
    return {
        "main.json": {
            "nodeCategories": {word: word for word in dict.fromkeys(categories)},
            "dataTypes": {kind: kind for kind in dict.fromkeys(own)},
        },
        "nodeDefs.json": {schema.node_id: _definition(schema) for schema in schemas},
    }


def _definition(schema: Any) -> dict[str, Any]:
    """One node's entry: inputs by id, outputs by position."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {socket.id: _socket(socket, socket.id) for socket in schema.inputs},
        "outputs": {
            str(place): _socket(socket, socket.id or socket.io_type)
            for place, socket in enumerate(schema.outputs)
        },
    }


def _socket(socket: Any, name: str) -> dict[str, str]:
    return {"name": socket.display_name or name, "tooltip": socket.tooltip}


def text(content: dict[str, Any]) -> str:
    """A locale file's text."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the files and say where."""
    for name, content in english().items():
        path = ENGLISH / name
        path.write_text(text(content), encoding="utf-8", newline="\n")
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
