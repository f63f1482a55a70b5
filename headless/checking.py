"""Whether a prompt in API format fits together, looked at before anything runs."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..edges import EdgeError, check_text
from .errors import Unsupported, WorkflowError
from .native_nodes import NATIVE_NODES
from .workflow import unknown_node

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


SHOWN = 5
"""Faults of different outputs that a message lists."""


def is_link(value: Any) -> bool:
    """Whether an input's value is a link ``[node id, slot]``."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def wires(node: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The wires into a node: another node's id and which of its outputs."""
    return [tuple(value) for value in node["inputs"].values() if is_link(value)]


def check(prompt: Mapping[str, Any], nodes: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Check a prompt before anything runs.

    Returns:
        The ids that its outputs need, ancestors first; and the outputs that cannot run, with the
        reason.

    Raises:
        WorkflowError: an unknown node, nothing to show, or no output that could run for a missing
            input, a value or link that does not fit, or a circle.
        Unsupported: something that only ComfyUI can do.
    """
    for key, node in prompt.items():
        if node["class_type"] not in nodes:
            raise Unsupported(unknown_node(key, node["class_type"]))
    found = {
        name: nodes[name].define_schema() for name in {n["class_type"] for n in prompt.values()}
    }
    schemas = {key: found[node["class_type"]] for key, node in prompt.items()}
    outputs = [key for key, schema in schemas.items() if schema.is_output_node]
    if not outputs:
        raise WorkflowError("the workflow has no output; add a Save Image or Preview Image node")
    walk = _Walk(prompt, schemas, nodes)
    faults = {key: str(fault) for key in outputs if (fault := walk.fault_of(key)) is not None}
    if len(faults) == len(outputs):
        said = list(dict.fromkeys(faults.values()))
        more = [f"and {len(said) - SHOWN} more like these"] if len(said) > SHOWN else []
        raise WorkflowError("; ".join(said[:SHOWN] + more))
    wanted = _ancestors(prompt, [key for key in outputs if key not in faults])
    left_out = {
        key: why if why.startswith(f"node {key} ") else f"node {key}, because {why}"
        for key, why in faults.items()
    }
    return [key for key in walk.order if key in wanted], left_out


class _Walk:
    """From outputs to all that they need; without recursion, as chains may be long.

    Attributes:
        order: nodes without a fault, those that others need before them.
    """

    def __init__(self, prompt: Mapping[str, Any], schemas: Mapping[str, Any], nodes: Any) -> None:
        self._prompt, self._schemas, self._nodes = prompt, schemas, nodes
        # What is wrong with each node that was looked at, its ancestors' faults included.
        self._verdicts: dict[str, WorkflowError | None] = {}
        # The way from the output to where the walk is, with the sources not yet looked at.
        self._open: dict[str, deque[str]] = {}
        self.order: list[str] = []

    def fault_of(self, output: str) -> WorkflowError | None:
        """What is wrong with an output, or with the first wrong thing that it needs."""
        self._enter(output)
        while self._open:
            key = next(reversed(self._open))
            sources, fault = self._open[key], None
            while sources and fault is None:
                source = sources[0]
                if source in self._open:
                    fault = WorkflowError(f"node {source}'s inputs go round in a circle")
                elif source in self._verdicts:
                    fault = self._verdicts[source]
                else:
                    break
                sources.popleft()
            if sources and fault is None:
                self._enter(sources[0])
                continue
            del self._open[key]
            self._verdicts[key] = fault
            if fault is None:
                self.order.append(key)
        return self._verdicts[output]

    def _enter(self, key: str) -> None:
        """Look at a node's own inputs; what they are wired to comes next, if they are sound."""
        if key in self._verdicts:
            return
        try:
            check_inputs(key, self._prompt, self._schemas, self._nodes)
        except Unsupported:
            raise
        except WorkflowError as error:
            self._verdicts[key] = error
        else:
            self._open[key] = deque(source for source, _ in wires(self._prompt[key]))


def _ancestors(prompt: Mapping[str, Any], outputs: list[str]) -> set[str]:
    """Some outputs and all that they need."""
    wanted, open_nodes = set(), list(outputs)
    while open_nodes:
        key = open_nodes.pop()
        if key not in wanted:
            wanted.add(key)
            open_nodes += [source for source, _ in wires(prompt[key])]
    return wanted


def check_inputs(
    key: str, prompt: Mapping[str, Any], schemas: Mapping[str, Any], nodes: Mapping[str, Any]
) -> None:
    """Check one node's own inputs, and make them what their types ask for, in place.

    Args:
        key: the node's id in ``prompt``; schemas: of every node by id; nodes: classes by name.

    Raises:
        WorkflowError: an input is missing or does not fit.
        Unsupported: something that only ComfyUI can do.
    """
    node, schema = prompt[key], schemas[key]
    sockets = {socket.id: socket for socket in schema.inputs}
    # As in the host: what a node does not know (an editor's widget, an old input) is left out.
    node["inputs"] = {k: v for k, v in node["inputs"].items() if k in sockets}
    title = (node.get("_meta") or {}).get("title") or schema.display_name
    where = f"node {key} '{title}' ({node['class_type']})"
    if schema.is_input_list:
        raise Unsupported(f"{where} takes whole lists; run this workflow in ComfyUI")
    validate = getattr(nodes[node["class_type"]], "validate_inputs", None)
    own = inspect.signature(validate).parameters if validate is not None else {}
    looks_at_all = any(one.kind is one.VAR_KEYWORD for one in own.values())
    for name, socket in sockets.items():
        if name not in node["inputs"]:
            if not socket.optional:
                cure = "set it" if socket.is_widget else "wire it"
                raise WorkflowError(f"{where}: '{name}' ({socket.io_type}) is missing; {cure}")
            continue
        value = node["inputs"][name]
        if isinstance(value, list) and not is_link(value):
            raise WorkflowError(
                f"{where}: '{name}' is a list; a wire is a node's id as text and a number"
            )
        if isinstance(value, Mapping) and "__value__" in value:
            value = node["inputs"][name] = value["__value__"]  # how the editor sends a list
        if is_link(value):
            _check_link(where, name, socket, value, prompt, schemas)
        elif not socket.takes_value:
            raise WorkflowError(f"{where}: '{name}' needs a wire of type {socket.io_type}")
        else:
            bounded = not (looks_at_all or name in own)
            node["inputs"][name] = _widget(where, socket, value, bounded)
            _check_choice(where, name, socket, node, bounded)
    if validate is not None:
        values = {k: v for k, v in node["inputs"].items() if looks_at_all or k in own}
        _ask_node(where, values, validate, own)
    only_there = getattr(nodes[node["class_type"]], "only_in_comfyui", None)
    if only_there is not None:
        sources = {k: prompt[v[0]]["class_type"] for k, v in node["inputs"].items() if is_link(v)}
        values = {k: v for k, v in node["inputs"].items() if k not in sources}
        if why := only_there(values, sources):
            raise Unsupported(f"{where}: {why}")


def _ask_node(where: str, values: Mapping[str, Any], validate: Callable, own: Mapping) -> None:
    """Let a node's ``validate_inputs`` see the values it asks for; what is wired has none yet."""
    given = {name: value for name, value in values.items() if not is_link(value)}
    needed = [name for name, one in own.items() if one.default is one.empty and one.kind in _NAMED]
    if not all(name in given for name in needed):
        return
    try:
        verdict = validate(**given)
    except Exception as error:  # as in the host, whose nodes may stumble over odd values
        verdict = f"{type(error).__name__}: {error}"
    if verdict is not True:
        said = verdict or f"refused {', '.join(given)}"
        raise WorkflowError(f"{where}: {said}")


def _check_link(
    where: str, name: str, socket: Any, value: Any, prompt: Mapping, schemas: Mapping
) -> None:
    source, slot = value
    if source not in prompt:
        raise WorkflowError(f"{where}: '{name}' is wired to node {source}, which does not exist")
    outputs = schemas[source].outputs
    if not 0 <= slot < len(outputs):
        raise WorkflowError(
            f"{where}: '{name}' is wired to output {slot} of node {source}, which"
            f" has {len(outputs)}"
        )
    given = outputs[slot].io_type
    if not _fits(given, socket.io_type):
        raise WorkflowError(
            f"{where}: '{name}' needs {socket.io_type}, but node {source}"
            f" ({prompt[source]['class_type']}) gives {given}"
        )


def _fits(given: str, wanted: str) -> bool:
    """Whether a wire of type ``given`` may go into an input of type ``wanted``; ``*`` fits any."""
    if "*" in (given, wanted):
        return True
    return not set(given.split(",")).isdisjoint(wanted.split(","))


def _widget(where: str, socket: Any, value: Any, bounded: bool) -> Any:
    """A widget's value as its type, inside its bounds unless the node checks these itself."""
    try:
        value = _typed(socket.id, socket.io_type, value)
        if socket.io_type == "COMBO" and value not in (socket.options.get("options") or ()):
            check_text(value, socket.id)
        if bounded:
            check_bounds(socket, value)
    except EdgeError as error:
        raise WorkflowError(f"{where}: {error}") from None
    return value


def check_bounds(socket: Any, value: Any) -> None:
    """Refuse a number outside of its widget's bounds, from wherever it comes: ComfyUI lets a wire
    bring any, and nodes then take memory for it.

    Raises:
        EdgeError: names the input and its bounds.
    """
    low, high = socket.options.get("min"), socket.options.get("max")
    if low is not None and value < low:
        raise EdgeError(f"'{socket.id}' is {value}; the smallest is {low}")
    if high is not None and value > high:
        raise EdgeError(f"'{socket.id}' is {value}; the largest is {high}")


def _typed(name: str, io_type: str, value: Any) -> Any:
    """A value as its input's type. What ComfyUI would turn into text, a switch or a whole number
    unasked is refused: a number as text, a word as true, 1.9 steps as one.

    Raises:
        EdgeError: names the input.
    """
    if io_type == "STRING":
        check_text(value, name)
        return value
    shown = f"{value!r}"[:60]
    if io_type == "BOOLEAN" and not isinstance(value, (bool, int, float)):
        raise EdgeError(f"'{name}' is {shown}, which is no switch; use true or false")
    if io_type == "INT" and isinstance(value, float) and not value.is_integer():
        raise EdgeError(f"'{name}' is {shown}, which is no whole number; give one without a point")
    kinds = {"INT": int, "FLOAT": float, "BOOLEAN": bool}
    try:
        value = kinds.get(io_type, lambda same: same)(value)
    except (TypeError, ValueError, OverflowError):
        raise EdgeError(f"'{name}' is {shown}, which is no {io_type}; give a number") from None
    if io_type == "FLOAT" and not math.isfinite(value):
        raise EdgeError(f"'{name}' is {value}, which is no number; give a finite one")
    return value


def _check_choice(where: str, name: str, socket: Any, node: Mapping, bounded: bool) -> None:
    """A combo's value is one of its list."""
    options, value = socket.options.get("options"), node["inputs"][name]
    if options is None or not bounded or value in options:
        return
    shown = ", ".join(map(str, options[:10])) + (", ..." if len(options) > 10 else "")
    said = f"{where}: '{name}' is '{value}', which is not in the list: {shown}"
    if node["class_type"] in NATIVE_NODES and not socket.options.get("upload"):
        raise Unsupported(f"{said}. ComfyUI may have it; run this workflow there")
    raise WorkflowError(said)
