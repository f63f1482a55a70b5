"""From a workflow's file to the prompt that a host executes.

The editor saves nodes with widget values by position and numbered links; the API format maps node
ids to ``{class_type, inputs}`` where a link is ``[node id, slot]``. :mod:`.editor` turns the first
into the second as ComfyUI's editor does when it queues a prompt.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..loaders.files.safe import NoPicture, cure_of, open_picture, read_bytes
from .editor import Editor
from .errors import Unsupported, WorkflowError
from .native_nodes import NATIVE_NODES

__all__ = [
    "Unsupported",
    "WorkflowError",
    "assign",
    "is_api",
    "read_workflow",
    "to_api",
    "unknown_node",
]

WORKFLOW_BYTES = 2**24
"""Of a workflow's JSON; parsed it takes thirty times as much."""

DEEPEST = 100
"""Lists and mappings within each other; workflows have some ten."""

_WHOLE = 2**27
"""Pixels of a picture that carries a workflow."""

_SWITCHES = {"true": True, "yes": True, "on": True, "1": True}
_SWITCHES |= {"false": False, "no": False, "off": False, "0": False}


def read_workflow(path: Path) -> Any:
    """The workflow in a file: JSON in any Unicode encoding, with or without a byte order mark, or
    a picture (PNG, WebP and what else Pillow reads) that carries it.

    A picture's saved graph comes before its prompt, as when it is dropped into the editor.

    Raises:
        WorkflowError: no such file, neither JSON nor a picture, or a picture without a workflow.
    """
    try:
        carried = _in_picture(path)
        if carried is None:
            return _parsed(read_bytes(path, WORKFLOW_BYTES), f"'{path}'")
    except OSError as error:
        raise WorkflowError(f"cannot read the workflow '{path}': {cure_of(error)}") from error
    texts = {key.lower(): text for key, text in carried.items()}
    for key in ("workflow", "prompt"):
        # Clients of the host that queue a prompt save "null" or "{}" for the graph.
        if texts.get(key) and (found := _parsed(texts[key], f"the {key} in '{path}'")):
            return found
    raise WorkflowError(
        f"'{path}' is a picture that carries no workflow; give one that ComfyUI or prior-art saved,"
        " unchanged by other programs, or the workflow's JSON"
    )


def _parsed(content: str | bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{what} is no JSON: {error}") from error


def _in_picture(path: Path) -> dict[str, str] | None:
    """A picture's texts by name, or nothing if the file is no picture."""
    try:
        with open_picture(path, pixels=_WHOLE) as opened:
            if opened.format == "PNG":
                # Texts may also lie behind the picture, which need not be whole.
                with contextlib.suppress(Exception):  # decoders raise many kinds
                    opened.load()
                found = getattr(opened, "text", None) or opened.info
                return {str(key): text for key, text in found.items() if isinstance(text, str)}
            # Elsewhere each text is one of EXIF's strings and begins with its name.
            entries = (text for text in opened.getexif().values() if isinstance(text, str))
            return dict(text.split(":", 1) for text in entries if ":" in text)
    except NoPicture:
        return None


def is_api(workflow: Any) -> bool:
    """Whether a parsed JSON file is in API format."""
    return (
        isinstance(workflow, Mapping)
        and bool(workflow)
        and all(isinstance(node, Mapping) and "class_type" in node for node in workflow.values())
    )


def to_api(
    workflow: Mapping[str, Any], nodes: Mapping[str, Any], settings: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Convert a workflow to API format; one that already is comes back as it is.

    Args:
        workflow: parsed JSON of either format.
        nodes: node classes by id, for the order of widgets.
        settings: changes, ``NODE.INPUT=VALUE`` as :func:`assign` takes them. In a saved graph they
            are made before the editor's work on texts, as if typed into the widget.

    Raises:
        WorkflowError: neither format, a node that is not in ``nodes``, or a setting that does not
            fit.
    """
    _check_depth(workflow)
    if isinstance(workflow, Mapping) and is_api(workflow.get("prompt")):
        workflow = workflow["prompt"]  # what a client posts to the host
    if is_api(workflow):
        prompt = {str(key): _api_node(key, node) for key, node in workflow.items()}
        for setting in settings:
            assign(prompt, setting)
        return prompt
    if not isinstance(workflow, Mapping) or not isinstance(workflow.get("nodes"), list):
        raise WorkflowError(
            "this JSON is no workflow; export it from ComfyUI with 'Save' or 'Export (API)'"
        )
    editor = Editor(workflow, lambda class_type: nodes[class_type].define_schema())
    prompt, own = editor.prompt()
    for key, node, stray in editor.unknown():
        # A label or note of another pack, or a node that nothing is wired to, changes nothing; a
        # group node or subgraph may hold everything.
        if not stray or not prompt or _is_group(node.type) or _is_uuid(node.type):
            raise Unsupported(unknown_node(key, node.type, node.properties))
    for setting in settings:
        key, name = assign(prompt, setting)
        if (key, name) in own:
            editor.places[key].node.widgets[name] = prompt[key]["inputs"][name]
    editor.resolve_texts(prompt, own)
    return prompt


def _check_depth(workflow: Any) -> None:
    """Refuse what no editor saves, and what much that reads it would stumble over.

    Raises:
        WorkflowError: lists and mappings within each other more than :data:`DEEPEST` deep.
    """
    level: list[Any] = [[workflow]]
    depth = 0
    while level:
        if depth > DEEPEST:
            raise WorkflowError(
                f"this JSON is no workflow: it has lists within each other more than {DEEPEST}"
                " deep; export it from ComfyUI again"
            )
        held = (one.values() if isinstance(one, Mapping) else one for one in level)
        level = [part for of in held for part in of if isinstance(part, (Mapping, list, tuple))]
        depth += 1


def _api_node(key: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    inputs = node.get("inputs")
    parts = (inputs or {}, node.get("_meta") or {})
    if not isinstance(node["class_type"], str) or not all(isinstance(p, Mapping) for p in parts):
        raise WorkflowError(
            f"node {key} of this prompt is damaged: its class_type must be text, its inputs and"
            " its _meta mappings; export the workflow again"
        )
    return {**node, "inputs": dict(inputs or {})}


def unknown_node(key: str, class_type: str, properties: Mapping[str, Any] | None = None) -> str:
    """Say which node is unknown, and which pack it seems to belong to."""
    properties = properties or {}
    pack = properties.get("cnr_id") or properties.get("aux_id")
    if pack == "comfy-core" or class_type in NATIVE_NODES:
        return (
            f"node {key} ({class_type}) is ComfyUI's own and not one of those that the headless"
            " runner has; run this workflow in ComfyUI"
        )
    if _is_group(class_type):
        return (
            f"node {key} ({class_type}) is a group node of an old editor; open the workflow in"
            " ComfyUI, turn it into a subgraph (or ungroup it) and save again"
        )
    if _is_uuid(class_type):
        return (
            f"node {key} is a subgraph ({class_type}) whose definition this file lacks; open the"
            " workflow in ComfyUI and save it again"
        )
    if pack:
        where = f"it belongs to the pack '{pack}'"
    elif class_type.startswith("PriorArt"):
        where = "it seems to belong to a newer version of ComfyUI-PriorArt"
    else:
        where = "it seems to belong to another custom node pack"
    return (
        f"node {key} ({class_type}) is unknown here: {where}. The headless runner has this pack's"
        " nodes and a few of ComfyUI's; run this workflow in ComfyUI with that pack installed"
    )


def _is_group(class_type: str) -> bool:
    return class_type.startswith(("workflow/", "workflow>"))


def _is_uuid(name: str) -> bool:
    from uuid import UUID

    try:
        return str(UUID(name)) == name.lower()
    except ValueError:
        return False


def assign(prompt: Mapping[str, Any], setting: str) -> tuple[str, str]:
    """Apply ``NODE.INPUT=VALUE`` to a prompt in API format, in place; which (node, input) it was.

    The value becomes what the old one is: text stays as it is typed, a switch takes true or false,
    yes or no, on or off, 1 or 0, in any case, and a number a number.

    Raises:
        WorkflowError: no such node or input, several nodes of that name, or a value of another
            kind than the old one.
    """
    target, equals, value = setting.partition("=")
    name, dot, field = target.rpartition(".")
    if not (equals and dot):
        raise WorkflowError(f"--set '{setting}' is not of the form NODE.INPUT=VALUE")
    found = [key for key in prompt if key == name] or [
        key
        for key, node in prompt.items()
        if name in (node["class_type"], (node.get("_meta") or {}).get("title"))
    ]
    if len(found) != 1:
        listed = ", ".join(f"{key} ({node['class_type']})" for key, node in prompt.items())
        count = f"{len(found)} nodes are" if found else "no node is"
        raise WorkflowError(f"--set '{setting}': {count} called '{name}'; there are {listed}")
    node = prompt[found[0]]
    if field not in node["inputs"]:
        raise WorkflowError(
            f"--set '{setting}': node {found[0]} ({node['class_type']}) has no input '{field}';"
            f" it has {', '.join(node['inputs'])}"
        )
    old = node["inputs"][field]
    if isinstance(old, (list, tuple)):
        raise WorkflowError(f"--set '{setting}': '{field}' is wired; set the node it comes from")
    node["inputs"][field] = _as_old(setting, old, value)
    return found[0], field


def _as_old(setting: str, old: Any, value: str) -> Any:
    """A typed value as the kind of the one it replaces."""
    if isinstance(old, str):
        return value
    if isinstance(old, bool):
        switch = _SWITCHES.get(value.strip().lower())
        if switch is None:
            raise WorkflowError(f"--set '{setting}': this is a switch; give true or false")
        return switch
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    if isinstance(old, (int, float)) and not _is_number(parsed):
        raise WorkflowError(f"--set '{setting}': this is a number (now {old}); give a number")
    return parsed


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
