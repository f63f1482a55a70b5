"""The headless runner: executes a workflow's JSON with the embedded host.

Accepts what ComfyUI saves (:mod:`.workflow`), runs only what the outputs need, keeps what did not
change from one run to the next, and names the node in every error.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..edges import plain
from ..host.embedded import door as embedded
from ..host.embedded.door import Interrupted, session
from ..loaders.files.safe import cure_of
from .checking import check, check_bounds, is_link, wires
from .workflow import to_api


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
        saves_again: output nodes run in every run, also where nothing changed: somebody takes
            their files away.
        on_node: called with (id, title) before a node runs.
        on_progress: called with (id, step, steps, preview or None) while it runs.
    """

    nodes: Mapping[str, Any]
    output_folder: Path = Path("output")
    input_folder: Path = Path("input")
    keep: bool = True
    saves_again: bool = False
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
        waiting = Counter(wire for key in needed for wire in wires(prompt[key]))
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
                if isinstance(error, OSError) and error.filename:
                    said = f"'{error.filename}': {cure_of(error)}"
                where = f"node {key} '{title}' ({node['class_type']})"
                raise NodeError(plain(f"{where}: {said}")) from error
            run.values[key], shown = self._cache[number]
            run.pictures += (shown or {}).get("images", [])
            if shown and "text" in shown:
                run.texts[key] = shown["text"]
            if not self.keep:
                del self._cache[number]
                waiting.subtract(wires(node))
                for source in {source for source, _ in wires(node)}:
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
        for socket in schema.inputs:
            if is_link(node["inputs"].get(socket.id)) and socket.io_type in ("INT", "FLOAT"):
                value = inputs[socket.id]
                for one in value if isinstance(value, Several) else [value]:
                    check_bounds(socket, one)
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
        alone: Any = key if schema.not_idempotent or schema.hidden or not self.keep else None
        if self.saves_again and schema.is_output_node:
            alone = object()
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


def node_classes() -> dict[str, Any]:
    """Every node that the headless runner has, by id: the pack's and a few of ComfyUI's."""
    from ..nodes import NODES
    from .core_nodes import CORE_NODES

    return {node.define_schema().node_id: node for node in [*NODES, *CORE_NODES]}


def interrupt() -> None:
    """Stop the running workflow within one step; may be called from any thread."""
    embedded.session.stop.set()
