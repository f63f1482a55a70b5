"""The runner's core nodes have exactly the inputs that ComfyUI's have, but for fewer choices."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prior_art.headless.core_nodes import CORE_NODES
from prior_art.headless.table import FOLDER_INPUTS, HOST

pytestmark = [pytest.mark.host, pytest.mark.slow]

SCHEMAS = {node.define_schema().node_id: node.define_schema() for node in CORE_NODES}


@pytest.fixture(scope="session")
def host_schemas(host_paths) -> dict[str, Any]:
    """What the host says of each of these nodes."""
    version = re.search(r'"([\d.]+)"', (host_paths.folder / "comfyui_version.py").read_text())
    if version is None or f"v{version[1]}" != HOST:
        pytest.skip(f"the table is of {HOST}")
    done = subprocess.run(
        [
            str(host_paths.python),
            str(Path(__file__).with_name("schemas.py")),
            str(host_paths.folder),
            *SCHEMAS,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=host_paths.env,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SCHEMAS)
def test_inputs_are_the_hosts(host_schemas, name) -> None:
    theirs, schema = host_schemas[name], SCHEMAS[name]
    assert differences(theirs, schema) == []
    assert theirs["outputs"] == [socket.io_type for socket in schema.outputs]
    assert theirs["is_output_node"] == schema.is_output_node


def differences(theirs: dict[str, Any], schema: Any) -> list[str]:
    """In names, order, types, defaults, bounds and choices; ours may be fewer."""
    wanted = [(*one, False) for one in map(_input, theirs["required"])]
    wanted += [(*one, True) for one in map(_input, theirs["optional"])]
    if [one[0] for one in wanted] != [socket.id for socket in schema.inputs]:
        return [f"inputs {[one[0] for one in wanted]}"]
    found = []
    for (name, kind, options, optional), socket in zip(wanted, schema.inputs, strict=True):
        if isinstance(kind, list):
            kind, options = "COMBO", {"options": kind, **options}
        if (kind, optional) != (socket.io_type, socket.optional):
            found.append(f"{name} is {kind}")
        for bound in ("min", "max", "step"):
            if options.get(bound) != socket.options.get(bound):
                found.append(f"{name}: {bound} {options.get(bound)}")
        if kind == "COMBO" and (schema.node_id, name) not in FOLDER_INPUTS:
            choices = options["options"]
            if [choice for choice in choices if choice in socket.options["options"]] != (
                socket.options["options"]
            ):
                found.append(f"{name}: {choices}")
            if options.get("default", choices[0]) != socket.default():
                found.append(f"{name}: default {choices[0]}")
        elif socket.takes_value and options.get("default", socket.default()) != socket.default():
            found.append(f"{name}: default {options.get('default')}")
    return found


def _input(one: list) -> tuple[str, Any, dict[str, Any]]:
    name, kind, *more = one
    return name, kind, more[0] if more else {}
