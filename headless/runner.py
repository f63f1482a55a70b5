"""The headless runner: executes a workflow's JSON with the embedded host.

Accepts what ComfyUI saves (:mod:`.workflow`), runs only what the outputs need, keeps what did not
change from one run to the next, and names the node in every error.
"""

from __future__ import annotations

import inspect
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..host.embedded import door as embedded
from ..host.embedded.door import Interrupted, session
from .errors import Unsupported, WorkflowError
from .native_nodes import NATIVE_NODES
from .workflow import to_api, unknown_node

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class NodeError(RuntimeError):
    """A node failed; the message names its id, title and class, the cause is chained."""


class Several(list):
    """What an output of lists holds: a node behind it runs once for each value, as in the host."""


@dataclass
class Run:
    """What a run did.

    Attributes:
        pictures: files that SaveImage and PreviewImage wrote, in order.
        texts: what nodes show as text, by id.
        values: outputs of every node, by id; without a cache, of those that no node waits for.
        seconds: wall time of each executed node, by id.
        cached: ids served from the cache.
        left_out: outputs that could not run, by id, and why.
    """

    pictures: list[Path] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, tuple] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Runner:
    """Executes prompts; its cache lives as long as it does.

    Attributes:
        nodes: node classes by id.
        output_folder, input_folder: for SaveImage and LoadImage.
        keep: keep every node's outputs for the next run. Switched off, each output is freed once
            the last node that needs it has run, a loader's text encoder before its U-Net, and each
            run starts anew.
        on_node: called with (id, title) before a node runs.
        on_progress: called with (id, step, steps, preview or None) while it runs.
    """

    nodes: Mapping[str, Any]
    output_folder: Path = Path("output")
    input_folder: Path = Path("input")
    keep: bool = True
    on_node: Callable[[str, str], None] | None = None
    on_progress: Callable[[str, int, int, Any], None] | None = None
    _cache: dict[int, tuple[tuple, dict | None]] = field(default_factory=dict)
    # Numbers for signatures: a signature holds its ancestors' numbers, not their signatures, so
    # that it stays short however the graph branches.
    _numbers: dict[tuple, int] = field(default_factory=dict)
    _counter: Any = field(default_factory=itertools.count)

    def run(self, workflow: Mapping[str, Any]) -> Run:
        """Execute a workflow of either format.

        As in ComfyUI, an output that lacks an input or whose values do not fit is left out, with a
        warning, as long as another one can run.

        Raises:
            WorkflowError: the workflow does not fit together; nothing was executed.
            NodeError: a node failed.
            Interrupted: :func:`interrupt` was called; it stops between two steps or two nodes.
        """
        session.input_folder, session.output_folder = self.input_folder, self.output_folder
        prompt = to_api(workflow, self.nodes)
        needed, left_out = check(prompt, self.nodes)
        for why in left_out.values():
            embedded.warn(f"an output is left out: {why}")
        session.prompt = prompt
        session.workflow = dict(workflow) if "nodes" in workflow else None
        session.stop.clear()
        try:
            return self._run(prompt, needed, left_out)
        finally:
            if not self.keep:
                self._cache.clear()
                self._numbers.clear()

    def _run(self, prompt: dict[str, dict], needed: list[str], left_out: dict[str, str]) -> Run:
        run = Run(left_out=left_out)
        numbers: dict[str, int] = {}
        waiting = Counter(wire for key in needed for wire in _wires(prompt[key]))
        for key in needed:
            if session.stop.is_set():
                raise Interrupted(f"stopped before node {key}")
            node = prompt[key]
            title = (node.get("_meta") or {}).get("title") or node["class_type"]
            try:
                number = numbers[key] = self._number(key, node, numbers)
                if number in self._cache:
                    run.cached.append(key)
                else:
                    self._execute(key, title, node, run, number)
            except Interrupted:
                raise
            except Exception as error:
                said = str(error) or type(error).__name__
                raise NodeError(f"node {key} '{title}' ({node['class_type']}): {said}") from error
            run.values[key], shown = self._cache[number]
            run.pictures += (shown or {}).get("images", [])
            if shown and "text" in shown:
                run.texts[key] = shown["text"]
            if not self.keep:
                del self._cache[number]
                waiting.subtract(_wires(node))
                for source in {source for source, _ in _wires(node)}:
                    run.values[source] = tuple(
                        value if waiting[source, slot] else None
                        for slot, value in enumerate(run.values[source])
                    )
                    if not any(waiting[source, s] for s in range(len(run.values[source]))):
                        del run.values[source]
        valid = set(numbers.values())
        self._cache = {name: value for name, value in self._cache.items() if name in valid}
        self._numbers = {name: value for name, value in self._numbers.items() if value in valid}
        return run

    def _execute(self, key: str, title: str, node: dict, run: Run, number: int) -> None:
        inputs = {
            name: run.values[value[0]][value[1]] if is_link(value) else value
            for name, value in node["inputs"].items()
        }
        if self.on_node is not None:
            self.on_node(key, title)
        if self.on_progress is not None:
            session.on_progress = partial(self.on_progress, key)
        started = time.perf_counter()
        node_class = self.nodes[node["class_type"]]
        schema = node_class.define_schema()
        if schema.hidden:
            asked = SimpleNamespace(unique_id=key, prompt=session.prompt, extra_pnginfo=None)
            node_class = type(node_class.__name__, (node_class,), {"hidden": asked})
        try:
            outputs = [node_class.execute(**one) for one in _spread(inputs)]
        finally:
            session.on_progress = None
        for output in outputs:
            if output.block_execution is not None or output.expand is not None:
                raise ValueError("blocked itself or asked for more nodes; only ComfyUI can do that")
            if len(output.args) != len(schema.outputs):
                raise ValueError(f"gave {len(output.args)} outputs, but has {len(schema.outputs)}")
        run.seconds[key] = time.perf_counter() - started
        several = any(isinstance(value, Several) for value in inputs.values())
        self._cache[number] = _gathered(outputs, schema, several)

    def _number(self, key: str, node: dict, ancestors: dict[str, int]) -> int:
        """Equal for two nodes that must give the same result."""
        inputs = tuple(
            (name, ("link", ancestors[value[0]], value[1]) if is_link(value) else repr(value))
            for name, value in sorted(node["inputs"].items())
        )
        schema = self.nodes[node["class_type"]].define_schema()
        alone = key if schema.not_idempotent or schema.hidden or not self.keep else None
        signature = (node["class_type"], inputs, self._fingerprint(node), alone)
        return self._numbers.setdefault(signature, next(self._counter))

    def _fingerprint(self, node: dict) -> Any:
        look = getattr(self.nodes[node["class_type"]], "fingerprint_inputs", None)
        if look is None:
            return None
        constants = {k: None if is_link(v) else v for k, v in node["inputs"].items()}
        try:
            found = look(**constants)
            # NaN says "always run again": it differs from itself.
            return repr(found) if found == found else object()
        except Exception:
            # As in the host: what cannot be fingerprinted runs again, and says itself why.
            return object()


def _spread(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs of each run of a node: one for each value of the longest list, shorter lists
    going on with their last value. An empty list runs nothing."""
    lists = [value for value in inputs.values() if isinstance(value, Several)]
    if not all(lists):
        return []
    return [
        {
            name: value[min(i, len(value) - 1)] if isinstance(value, Several) else value
            for name, value in inputs.items()
        }
        for i in range(max(map(len, lists), default=1))
    ]


def _gathered(outputs: list[Any], schema: Any, several: bool) -> tuple[tuple, dict | None]:
    """A node's outputs and what it shows, of all its runs."""
    values: list[Any] = []
    for slot, socket in enumerate(schema.outputs):
        found = [output.args[slot] for output in outputs]
        if socket.is_output_list:
            values.append(Several(itertools.chain.from_iterable(found)))
        else:
            values.append(Several(found) if several else found[0])
    shown: dict[str, list] = {}
    for output in outputs:
        for name, items in (output.ui or {}).items():
            shown.setdefault(name, []).extend(items)
    return tuple(values), shown or None


def _wires(node: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The wires into a node: another node's id and which of its outputs."""
    return [tuple(value) for value in node["inputs"].values() if is_link(value)]


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
    # What is wrong with each node that was looked at, its ancestors' faults included.
    verdicts: dict[str, WorkflowError | None] = {}
    order: list[str] = []
    open_nodes: set[str] = set()

    def visit(key: str) -> WorkflowError | None:
        if key in open_nodes:
            return WorkflowError(f"node {key}'s inputs go round in a circle")
        if key not in verdicts:
            open_nodes.add(key)
            verdicts[key] = examine(key)
            open_nodes.discard(key)
            if verdicts[key] is None:
                order.append(key)
        return verdicts[key]

    def examine(key: str) -> WorkflowError | None:
        try:
            _check_inputs(key, prompt, schemas, nodes)
        except Unsupported:
            raise
        except WorkflowError as error:
            return error
        sources = (value[0] for value in prompt[key]["inputs"].values() if is_link(value))
        return next((fault for source in sources if (fault := visit(source))), None)

    faults = {key: str(fault) for key in outputs if (fault := visit(key)) is not None}
    if len(faults) == len(outputs):
        raise WorkflowError("; ".join(dict.fromkeys(faults.values())))
    wanted = _ancestors(prompt, [key for key in outputs if key not in faults])
    left_out = {
        key: why if why.startswith(f"node {key} ") else f"node {key}, because {why}"
        for key, why in faults.items()
    }
    return [key for key in order if key in wanted], left_out


def _ancestors(prompt: Mapping[str, Any], outputs: list[str]) -> set[str]:
    """Some outputs and all that they need."""
    wanted, open_nodes = set(), list(outputs)
    while open_nodes:
        key = open_nodes.pop()
        if key not in wanted:
            wanted.add(key)
            open_nodes += [source for source, _ in _wires(prompt[key])]
    return wanted


def _check_inputs(
    key: str, prompt: Mapping[str, Any], schemas: Mapping[str, Any], nodes: Mapping[str, Any]
) -> None:
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
            node["inputs"][name] = _widget(where, name, socket, value, bounded)
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


def _widget(where: str, name: str, socket: Any, value: Any, bounded: bool) -> Any:
    """A widget's value as its type, inside its bounds unless the node checks these itself."""
    value = _typed(where, name, socket.io_type, value)
    if not bounded:
        return value
    low, high = socket.options.get("min"), socket.options.get("max")
    if low is not None and value < low:
        raise WorkflowError(f"{where}: '{name}' is {value}; the smallest is {low}")
    if high is not None and value > high:
        raise WorkflowError(f"{where}: '{name}' is {value}; the largest is {high}")
    return value


def _typed(where: str, name: str, io_type: str, value: Any) -> Any:
    """A value as its input's type. What ComfyUI would turn into text or a switch unasked is
    refused: a number as text, a word as true."""
    if io_type == "STRING":
        if not isinstance(value, str):
            shown = f"{value!r}"[:60]
            raise WorkflowError(f"{where}: '{name}' is {shown}, which is no text; put it in quotes")
        lone = next((letter for letter in value if "\ud800" <= letter <= "\udfff"), None)
        if lone is not None:
            raise WorkflowError(
                f"{where}: '{name}' holds half a character (U+{ord(lone):04X} at"
                f" {value.index(lone)}), which no encoding can write; delete it or write the whole"
            )
        return value
    if io_type == "BOOLEAN" and not isinstance(value, (bool, int, float)):
        raise WorkflowError(
            f"{where}: '{name}' is {value!r}, which is no switch; use true or false"
        )
    kinds = {"INT": int, "FLOAT": float, "BOOLEAN": bool}
    try:
        value = kinds.get(io_type, lambda same: same)(value)
    except (TypeError, ValueError, OverflowError):
        raise WorkflowError(f"{where}: '{name}' is {value!r}, which is no {io_type}") from None
    if io_type == "FLOAT" and not math.isfinite(value):
        raise WorkflowError(f"{where}: '{name}' is {value}, which is no number; give a finite one")
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


def interrupt() -> None:
    """Stop the running workflow within one step; may be called from any thread."""
    embedded.session.stop.set()
