"""The headless runner: executes a workflow's JSON with the embedded host.

Accepts what ComfyUI saves (:mod:`.workflow`), runs only what the outputs need, keeps what did not
change from one run to the next, and names the node in every error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import embedded
from .embedded import Interrupted, session
from .workflow import WorkflowError, is_api, to_api, unknown_node


class NodeError(RuntimeError):
    """A node failed; the message names its id, title and class, the cause is chained."""


@dataclass
class Run:
    """What a run did.

    Attributes:
        pictures: files that SaveImage wrote, in order.
        values: outputs of every node, by id.
        seconds: wall time of each executed node, by id.
        cached: ids served from the cache.
    """

    pictures: list[Path] = field(default_factory=list)
    values: dict[str, tuple] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)


@dataclass
class Runner:
    """Executes prompts; its cache lives as long as it does.

    Attributes:
        nodes: node classes by id.
        output_folder, input_folder: for SaveImage and LoadImage.
        on_node: called with (id, title) before a node runs.
        on_progress: called with (id, step, steps, preview or None) while it runs.
    """

    nodes: Mapping[str, Any]
    output_folder: Path = Path("output")
    input_folder: Path = Path("input")
    on_node: Callable[[str, str], None] | None = None
    on_progress: Callable[[str, int, int, Any], None] | None = None
    _cache: dict[Any, tuple[tuple, dict | None]] = field(default_factory=dict)

    def run(self, workflow: Mapping[str, Any]) -> Run:
        """Execute a workflow of either format.

        Raises:
            WorkflowError: the workflow does not fit together; nothing was executed.
            NodeError: a node failed.
            Interrupted: ``session.stop`` was set.
        """
        prompt = to_api(workflow, self.nodes)
        needed = check(prompt, self.nodes)
        session.input_folder, session.output_folder = self.input_folder, self.output_folder
        session.prompt = prompt
        session.workflow = None if is_api(workflow) else dict(workflow)
        session.stop.clear()
        run, signatures, shown = Run(), {}, {}
        for key in needed:
            node = prompt[key]
            title = (node.get("_meta") or {}).get("title") or node["class_type"]
            try:
                signatures[key] = self._signature(node, signatures)
                if signatures[key] in self._cache:
                    run.cached.append(key)
                else:
                    self._execute(key, title, node, run, signatures[key])
            except Interrupted:
                raise
            except Exception as error:
                raise NodeError(f"node {key} '{title}' ({node['class_type']}): {error}") from error
            run.values[key], shown[key] = self._cache[signatures[key]]
            run.pictures += (shown[key] or {}).get("images", [])
        kept = set(signatures.values())
        self._cache = {name: value for name, value in self._cache.items() if name in kept}
        return run

    def _execute(self, key: str, title: str, node: dict, run: Run, signature: Any) -> None:
        inputs = {
            name: run.values[value[0]][value[1]] if is_link(value) else value
            for name, value in node["inputs"].items()
        }
        if self.on_node is not None:
            self.on_node(key, title)
        if self.on_progress is not None:
            session.on_progress = lambda *step: self.on_progress(key, *step)
        started = time.perf_counter()
        try:
            output = self.nodes[node["class_type"]].execute(**inputs)
        finally:
            session.on_progress = None
        run.seconds[key] = time.perf_counter() - started
        self._cache[signature] = (output.args, output.ui)

    def _signature(self, node: dict, ancestors: dict[str, Any]) -> Any:
        """Equal for two nodes that must give the same result."""
        inputs = tuple(
            (name, ("link", ancestors[value[0]], value[1]) if is_link(value) else repr(value))
            for name, value in sorted(node["inputs"].items())
        )
        return node["class_type"], inputs, self._fingerprint(node)

    def _fingerprint(self, node: dict) -> Any:
        look = getattr(self.nodes[node["class_type"]], "fingerprint_inputs", None)
        if look is None:
            return None
        constants = {k: None if is_link(v) else v for k, v in node["inputs"].items()}
        try:
            return look(**constants)
        except Exception:
            # As in the host: what cannot be fingerprinted runs again, and says itself why.
            return object()


def node_classes() -> dict[str, Any]:
    """Every node that the headless runner has, by id: the pack's and a few of ComfyUI's."""
    from ..nodes import NODES
    from .core_nodes import CORE_NODES

    return {node.define_schema().node_id: node for node in [*NODES, *CORE_NODES]}


def is_link(value: Any) -> bool:
    """Whether an input's value is a link ``[node id, slot]``."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def check(prompt: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[str]:
    """Check a prompt before anything runs.

    Returns:
        The ids that its outputs need, ancestors first.

    Raises:
        WorkflowError: an unknown node, a missing input, a value or link that does not fit, a
            circle, or nothing to show.
    """
    for key, node in prompt.items():
        if node["class_type"] not in nodes:
            raise WorkflowError(unknown_node(key, node["class_type"]))
    schemas = {key: nodes[node["class_type"]].define_schema() for key, node in prompt.items()}
    outputs = [key for key, schema in schemas.items() if schema.is_output_node]
    if not outputs:
        raise WorkflowError("the workflow has no output; add a Save Image or Preview Image node")
    order: list[str] = []
    open_nodes: set[str] = set()

    def visit(key: str) -> None:
        if key in order:
            return
        if key in open_nodes:
            raise WorkflowError(f"node {key}'s inputs go round in a circle")
        open_nodes.add(key)
        _check_inputs(key, prompt, schemas)
        for value in prompt[key]["inputs"].values():
            if is_link(value):
                visit(value[0])
        order.append(key)

    for key in outputs:
        visit(key)
    return order


def _check_inputs(key: str, prompt: Mapping[str, Any], schemas: Mapping[str, Any]) -> None:
    node, schema = prompt[key], schemas[key]
    sockets = {socket.id: socket for socket in schema.inputs}
    # As in the host: what a node does not know (an editor's widget, an old input) is left out.
    node["inputs"] = {k: v for k, v in node["inputs"].items() if k in sockets}
    where = f"node {key} '{(node.get('_meta') or {}).get('title', schema.display_name)}'"
    where += f" ({node['class_type']})"
    for name, socket in sockets.items():
        if name not in node["inputs"]:
            if not socket.optional:
                raise WorkflowError(f"{where}: '{name}' ({socket.io_type}) is missing; wire it")
            continue
        value = node["inputs"][name]
        if is_link(value):
            _check_link(where, name, socket, value, prompt, schemas)
        elif not socket.is_widget:
            raise WorkflowError(f"{where}: '{name}' needs a wire of type {socket.io_type}")
        else:
            node["inputs"][name] = _widget(where, name, socket, value)


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
    if given != socket.io_type:
        raise WorkflowError(
            f"{where}: '{name}' needs {socket.io_type}, but node {source}"
            f" ({prompt[source]['class_type']}) gives {given}"
        )


def _widget(where: str, name: str, socket: Any, value: Any) -> Any:
    """A widget's value as its type, inside its bounds."""
    kinds = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    try:
        value = kinds.get(socket.io_type, lambda same: same)(value)
    except (TypeError, ValueError):
        raise WorkflowError(
            f"{where}: '{name}' is {value!r}, which is no {socket.io_type}"
        ) from None
    low, high = socket.options.get("min"), socket.options.get("max")
    if low is not None and value < low:
        raise WorkflowError(f"{where}: '{name}' is {value}; the smallest is {low}")
    if high is not None and value > high:
        raise WorkflowError(f"{where}: '{name}' is {value}; the largest is {high}")
    options = socket.options.get("options")
    if options is not None and value not in options and not socket.options.get("upload"):
        shown = ", ".join(map(str, options[:10]))
        raise WorkflowError(f"{where}: '{name}' is '{value}', which is not in the list: {shown}")
    return value


def interrupt() -> None:
    """Stop the running workflow within one step."""
    embedded.session.stop.set()
