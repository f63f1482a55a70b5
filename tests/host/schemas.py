"""Prints what the host says of some of its nodes, as one JSON object.

Started by test_headless_table.py as ``<host's python> schemas.py <ComfyUI folder> <node> ...``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

sys.path.insert(0, sys.argv[1])
wanted, sys.argv = sys.argv[2:], sys.argv[:1]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
logging.disable(logging.WARNING)

import nodes  # noqa: E402

asyncio.run(nodes.init_builtin_extra_nodes())
found = {}
for name in wanted:
    if name in nodes.NODE_CLASS_MAPPINGS:
        node = nodes.NODE_CLASS_MAPPINGS[name]
        inputs = node.INPUT_TYPES()
        found[name] = {
            "required": [[key, *value] for key, value in inputs.get("required", {}).items()],
            "optional": [[key, *value] for key, value in inputs.get("optional", {}).items()],
            "outputs": list(node.RETURN_TYPES),
            "is_output_node": bool(getattr(node, "OUTPUT_NODE", False)),
        }
print(json.dumps(found, default=str))
