"""A saved graph as ComfyUI's editor opens it, and the prompt that it queues.

The editor saves nodes with widget values by position and links by number. When it opens a file it
matches every slot with its node's definition by name, gives each instance of a subgraph values of
its own for the widgets that the subgraph promotes, and lets primitives write into the widgets they
drive; when it queues, it flattens subgraphs and follows links through reroutes and bypassed nodes.
These steps follow comfyui-frontend-package 1.49.6, that of ComfyUI v0.33.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from .editor_format import (
    BYPASSED,
    MUTED,
    Link,
    check_format,
    mapping,
    read_link,
    subgraph_definitions,
    unique_ids,
)
from .editor_text import dynamic_prompt, filled, rounded
from .errors import WorkflowError
from .native_nodes import TITLES

REROUTES = ("Reroute", "Reroute (rgthree)")
NOTES = ("Note", "MarkdownNote")
PRIMITIVE = "PrimitiveNode"
EDITORS_OWN = {PRIMITIVE: "Primitive", "Note": "Note", "MarkdownNote": "Markdown Note"}
"""Titles of what only the editor has."""
# Nodes of other packs that only the editor knows: none of them reaches the prompt.
FOREIGN_VIRTUAL = frozenset(
    (
        "Label (rgthree)",
        "Bookmark (rgthree)",
        "Fast Muter (rgthree)",
        "Fast Bypasser (rgthree)",
        "Fast Groups Muter (rgthree)",
        "Fast Groups Bypasser (rgthree)",
        "Fast Actions Button (rgthree)",
        "Mute / Bypass Relay (rgthree)",
        "Mute / Bypass Repeater (rgthree)",
        "Random Unmuter (rgthree)",
        "Node Collector (rgthree)",
        "Note Plus (mtb)",
        "Bookmark (mtb)",
        "LabelNode",
        "BookmarkNode",
    )
)
# A subgraph's own input and output in its links.
INSIDE_INPUT, INSIDE_OUTPUT = "-10", "-20"
REPLACE = "Run widget replace on values"
LARGEST, DEEPEST = 20_000, 50
"""Nodes of a workflow, those inside of all its instances counted; subgraphs within each other."""
Step = tuple[Any, ...] | None
"""On the way along a link: ("in", key, slot, type) and ("out", ...), or what it ends at."""
FILE_NAME = ("SaveImage", "filename_prefix")
"""The one widget of the runner's nodes whose tokens the editor fills in."""


@dataclass
class Slot:
    """An input of a node: its link's number, and the widget behind it."""

    name: str
    type: str
    link: Any = None
    widget: str | None = None


@dataclass
class Port:
    """A subgraph's input or output, and its links inside."""

    name: str
    type: str
    links: list[Any]


@dataclass
class Node:
    """A node as the editor holds it once the file is open.

    Attributes:
        id: unique in its graph.
        data: the node as saved.
        title: what the editor writes above it.
        schema: its definition; ``None`` for what only the editor has and for unknown nodes.
        definition: for an instance of a subgraph.
        inputs: in the definition's order, sockets before widgets.
        outputs: types.
        widgets: values by name, those of control included.
    """

    id: str
    data: Mapping[str, Any]
    title: str
    schema: Any = None
    definition: Any = None  # of an instance of a subgraph: its Graph
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    widgets: dict[str, Any] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return self.data["type"]

    @property
    def mode(self) -> int:
        return self.data.get("mode") or 0

    @property
    def properties(self) -> Mapping[str, Any]:
        return mapping(self.data.get("properties"))

    @property
    def virtual(self) -> bool:
        """Whether it exists in the editor only."""
        names = (*NOTES, *REROUTES, PRIMITIVE)
        return self.definition is not None or self.type in names or self.type in FOREIGN_VIRTUAL


@dataclass
class Graph:
    """The workflow itself or a subgraph's definition."""

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    links: dict[Any, Link] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    _size: int | None = None

    def size(self) -> int:
        """How many nodes there are, those inside of instances counted at each."""
        if self._size is None:
            inside = (node.definition for node in self.nodes.values() if node.definition)
            self._size = len(self.nodes) + sum(graph.size() for graph in inside)
        return self._size

    def wired(self, node: Node) -> bool:
        """Whether a link goes into or out of a node."""
        ends = ((link.origin, link.target) for link in self.links.values())
        return any(node.id in pair for pair in ends)


@dataclass(frozen=True)
class Place:
    """A node of the flattened workflow: the node, its graph, the key of the instance around it."""

    node: Node
    graph: Graph
    around: str | None


class Editor:
    """A saved graph, opened.

    Args:
        workflow: the parsed file.
        schemas: a node class's schema by its id; KeyError for unknown ones.

    Raises:
        WorkflowError: the file does not fit together, or holds what is not known here.
    """

    def __init__(self, workflow: Mapping[str, Any], schemas: Callable[[str], Any]) -> None:
        own = deepcopy(dict(workflow))
        self._schemas = schemas
        self._definitions = subgraph_definitions(own)
        check_format(own, self._definitions)
        unique_ids(own, self._definitions)
        self._graphs: dict[str, Graph] = {}
        self._opening: list[str] = []
        self._instances: dict[int, list[Node]] = {}
        for key in self._definitions:
            self._graph(key)
        self.root = self._open(own, "workflow")
        if (count := self.root.size()) > LARGEST:
            raise WorkflowError(
                f"this workflow has {count:,} nodes, those inside of all its subgraphs counted, and"
                f" at most {LARGEST:,} are run; run parts of it"
            )
        for graph in (self.root, *self._graphs.values()):
            for node in graph.nodes.values():
                if node.type == PRIMITIVE:
                    self._drive(graph, node)
        self.places = {place[0]: place[1] for place in self._flatten()}

    # Opening ----------------------------------------------------------------------------------

    def _graph(self, key: str) -> Graph:
        """A subgraph's definition, opened after those inside it."""
        if key not in self._graphs:
            if key in self._opening:
                raise WorkflowError(
                    f"the subgraph '{key}' of this workflow contains itself; open the workflow in"
                    " ComfyUI, take it out of itself and save again"
                )
            if len(self._opening) >= DEEPEST:
                raise WorkflowError(
                    f"this workflow has subgraphs within each other more than {DEEPEST} deep; open"
                    " it in ComfyUI and unpack some"
                )
            self._opening.append(key)
            saved = self._definitions[key]
            self._graphs[key] = self._open(saved, saved.get("name") or key)
            self._opening.pop()
        return self._graphs[key]

    def _open(self, saved: Mapping[str, Any], name: str) -> Graph:
        graph = Graph(name)
        for link in saved.get("links") or ():
            if link is not None:  # old editors leave holes
                number, found = read_link(link)
                graph.links[number] = found
        graph.inputs = [
            _port(port, graph, partial(_comes_in, i))
            for i, port in enumerate(saved.get("inputs") or ())
        ]
        graph.outputs = [
            _port(port, graph, partial(_goes_out, i))
            for i, port in enumerate(saved.get("outputs") or ())
        ]
        for data in saved["nodes"]:
            node = self._node(data)
            graph.nodes[node.id] = node
        for node in graph.nodes.values():
            if node.definition is not None:
                self._promote_old(graph, node)
        return graph

    def _node(self, data: Mapping[str, Any]) -> Node:
        saved = {slot["name"]: slot for slot in data.get("inputs") or ()}
        node = Node(str(data["id"]), data, data.get("title") or "")
        given = [_type(slot) for slot in data.get("outputs") or ()]
        if data["type"] in self._definitions:
            self._instance(node, saved)
        elif schema := self._schema(data["type"]):
            node.schema = schema
            node.title = node.title or TITLES.get(data["type"], schema.display_name)
            ordered = sorted(schema.inputs, key=lambda socket: socket.optional)
            ordered.sort(key=lambda socket: socket.is_widget)
            for socket in ordered:
                link = saved.pop(socket.id, {}).get("link")
                widget = socket.id if socket.is_widget else None
                node.inputs.append(Slot(socket.id, socket.io_type, link, widget))
            # What the definition lacks stays, unless it was a widget's.
            left = (slot for slot in saved.values() if "widget" not in slot)
            node.inputs += [Slot(slot["name"], _type(slot), slot.get("link")) for slot in left]
            node.outputs = [socket.io_type for socket in schema.outputs]
            node.outputs += given[len(node.outputs) :]
            node.widgets = _values(schema, data)
        else:
            slots = data.get("inputs") or ()
            node.inputs = [Slot(slot["name"], _type(slot), slot.get("link")) for slot in slots]
            node.outputs = given
            node.title = node.title or EDITORS_OWN.get(data["type"], "")
            if data["type"] in (*NOTES, PRIMITIVE):
                names = ["text"] if data["type"] in NOTES else ["value", "control_after_generate"]
                node.widgets = dict(zip(names, _listed(data), strict=False))
        return node

    def _schema(self, class_type: str) -> Any:
        try:
            return self._schemas(class_type)
        except KeyError:
            return None

    def _instance(self, node: Node, saved: Mapping[str, Any]) -> None:
        """An instance's slots are its definition's, by name; promoted widgets have its values."""
        graph = node.definition = self._graph(node.type)
        node.title = node.title or graph.name
        node.outputs = [port.type for port in graph.outputs]
        self._instances.setdefault(id(graph), []).append(node)
        for port in graph.inputs:
            slot = Slot(port.name, port.type, saved.get(port.name, {}).get("link"))
            node.inputs.append(slot)
            self._promote(node, slot, port)
        promoted = [slot.name for slot in node.inputs if slot.widget]
        listed, named = node.data.get("widgets_values"), node.data.get("widgets_values_named")
        if isinstance(listed, list):
            node.widgets |= {n: rounded(v) for n, v in zip(promoted, listed, strict=False)}
        elif isinstance(by_name := listed or named, Mapping):
            node.widgets |= {n: rounded(v) for n, v in by_name.items() if n in promoted}
        # What an older file had by name and a newer editor could not place.
        for entry in reversed(_parsed(node.properties.get("proxyWidgetErrorQuarantine"))):
            source, name = [*(mapping(entry).get("originalEntry") or ()), "", ""][:2]
            if source == "-1" and name in promoted and "hostValue" in entry:
                node.widgets[name] = rounded(entry["hostValue"])

    def _promote(self, node: Node, slot: Slot, port: Port) -> None:
        """Give a slot of an instance the widget that its port leads to, if it leads to one."""
        found = _behind(node.definition, port)
        if found is not None:
            inner, target = found
            slot.widget = port.name
            node.widgets[port.name] = inner.widgets.get(target.widget or "")

    def _promote_old(self, graph: Graph, node: Node) -> None:
        """Widgets promoted the old way, in ``properties.proxyWidgets``: (node, widget) pairs in
        the order of the instance's values. The editor makes inputs of them."""
        entries = _parsed(node.properties.get("proxyWidgets"))
        if not all(isinstance(entry, list) and len(entry) in (2, 3) for entry in entries) or any(
            not isinstance(text, str) for entry in entries for text in entry
        ):
            return
        inside, listed = node.definition, node.data.get("widgets_values")
        listed = listed if isinstance(listed, list) else []
        primitives: dict[str, list[Any]] = {}
        for i, (source, name, *others) in enumerate(entries):
            value = rounded(listed[i]) if i < len(listed) else None
            inner = inside.nodes.get(source)
            linked = _promoted_from(node, source, name)
            stripped = re.match(r"(?:\s*(\d+)\s*:\s*)+(.+)$", name)
            if linked is None and stripped and _widget_slot(inner, name, None) is None:
                name, others = stripped[2], [stripped[1]]
                linked = _promoted_from(node, source, name)
            if source == "-1":
                linked = next((slot for slot in node.inputs if slot.name == name), None)
            elif linked is None and inner is not None and inner.type == PRIMITIVE:
                primitives.setdefault(source, []).append((name, value))
                continue
            elif linked is None and inner is not None and not name.startswith("$$"):
                target = _widget_slot(inner, name, others[0] if others else None)
                if target is not None:
                    linked = self._new_port(node, name, [(inner, target)])
            if linked is not None and linked.widget and value is not None:
                node.widgets[linked.name] = value
        for source, promised in primitives.items():
            self._promote_primitive(node, inside.nodes[source], promised)

    def _promote_primitive(self, node: Node, primitive: Node, promised: list) -> None:
        """A promoted primitive becomes an input that leads to all that it drove."""
        inside = node.definition
        targets = []
        for link in inside.links.values():
            if link.origin == primitive.id and link.target in inside.nodes:
                target = inside.nodes[link.target]
                slots = (s for s in target.inputs if inside.links.get(s.link) is link)
                targets += [(target, slot) for slot in slots]
        if not targets:
            return
        title = primitive.data.get("title")
        name = title if title and title != PRIMITIVE else promised[0][0]
        slot = self._new_port(node, name, targets)
        values = [value for _, value in promised if value is not None]
        if slot.widget and values:
            node.widgets[slot.name] = values[0]

    def _new_port(self, node: Node, name: str, targets: list[tuple[Node, Slot]]) -> Slot:
        """Add an input to an instance's definition, and to every instance of it."""
        inside = node.definition
        names, wanted, count = [port.name for port in inside.inputs], name, 1
        while name in names:
            name, count = f"{wanted}_{count}", count + 1
        port = Port(name, targets[0][1].type, [])
        place = len(inside.inputs)
        for inner, slot in targets:
            slot.link = ("promoted", place, inner.id, slot.name)
            inside.links[slot.link] = Link(INSIDE_INPUT, place, inner.id, inner.inputs.index(slot))
            port.links.append(slot.link)
        inside.inputs.append(port)
        for instance in self._instances[id(inside)]:
            added = Slot(name, port.type)
            instance.inputs.append(added)
            self._promote(instance, added, port)
        return next(slot for slot in node.inputs if slot.name == name)

    def _drive(self, graph: Graph, primitive: Node) -> None:
        """A primitive writes its value into the widgets it is linked to, even while muted."""
        if "value" not in primitive.widgets:
            return
        value = primitive.widgets["value"]
        if value and isinstance(value, str) and primitive.properties.get(REPLACE):
            value = filled(value, self.look_up, datetime.now())
        for link in graph.links.values():
            target = graph.nodes.get(link.target) if link.origin == primitive.id else None
            if target is None:
                continue
            for slot in target.inputs:
                if slot.widget and graph.links.get(slot.link) is link:
                    target.widgets[slot.widget] = value

    # Queueing ---------------------------------------------------------------------------------

    def _flatten(self) -> Iterator[tuple[str, Place]]:
        """Every node by the key it has in a prompt: its id behind those of the instances around
        it. A muted or bypassed instance in the workflow itself has nothing inside; deeper ones
        have, as in the editor."""

        def inside(instance: Node, key: str) -> Iterator[tuple[str, Place]]:
            for node in instance.definition.nodes.values():
                inner = f"{key}:{node.id}"
                yield inner, Place(node, instance.definition, key)
                if node.definition is not None:
                    yield from inside(node, inner)

        for node in sorted(self.root.nodes.values(), key=lambda n: n.data.get("order") or 0):
            yield node.id, Place(node, self.root, None)
            if node.definition is not None and node.mode not in (MUTED, BYPASSED):
                yield from inside(node, node.id)

    def prompt(self) -> tuple[dict[str, dict[str, Any]], set[tuple[str, str]]]:
        """What is queued, before texts are resolved; and (key, widget) of the values in it that
        are the node's own, neither wired nor an instance's."""
        prompt, own = {}, set()
        for key, place in self.places.items():
            node = place.node
            if node.schema is None or node.mode in (MUTED, BYPASSED):
                continue
            names = [socket.id for socket in node.schema.inputs if socket.is_widget]
            inputs = {name: _wrapped(node.widgets.get(name)) for name in names}
            mine = {(key, name) for name in names}
            for index, slot in enumerate(node.inputs):
                found = self._input(key, index)
                if found is not None:
                    mine.discard((key, slot.name))
                    value = found[1]
                    inputs[slot.name] = _wrapped(value) if found[0] == "value" else list(value)
            own |= mine
            prompt[key] = {
                "class_type": node.type,
                "inputs": inputs,
                "_meta": {"title": node.title},
            }
        return prompt, own

    def unknown(self) -> Iterator[tuple[str, Node, bool]]:
        """Nodes that nobody here knows and that are neither muted nor bypassed: key, node, and
        whether they are stray, touched by no link, so that nothing depends on them."""
        for key, place in self.places.items():
            node = place.node
            if node.schema is None and not node.virtual and node.mode not in (MUTED, BYPASSED):
                yield key, node, not place.graph.wired(node)

    def resolve_texts(self, prompt: dict[str, dict[str, Any]], own: set[tuple[str, str]]) -> None:
        """Resolve choices and comments of prompts, and the tokens of file names, in place."""
        now = datetime.now()
        for key, name in own:
            node, value = self.places[key].node, prompt[key]["inputs"].get(name)
            socket = next(socket for socket in node.schema.inputs if socket.id == name)
            if not isinstance(value, str):
                continue
            if (node.type, name) == FILE_NAME:
                prompt[key]["inputs"][name] = filled(value, self.look_up, now)
            elif socket.options.get("dynamic_prompts"):
                prompt[key]["inputs"][name] = dynamic_prompt(value)

    def look_up(self, name: str, widget: str) -> Any:
        """The value of a widget of the first node of that class, else of that title; nodes of a
        subgraph count where its instance stands.

        Raises:
            KeyError: no such node, or it has no such widget.
        """

        def walk(graph: Graph) -> Iterator[Node]:
            for node in graph.nodes.values():
                if node.definition is not None:
                    yield from walk(node.definition)
                yield node

        nodes = list(walk(self.root))
        found = [node for node in nodes if _alias(node) == name]
        found = found or [node for node in nodes if node.title == name]
        if not found:
            raise KeyError(name)
        return found[0].widgets[widget]

    def _input(self, key: str, index: int) -> tuple[str, Any] | None:
        """What goes into a node's input: ("link", (key, slot)), ("value", v) or nothing."""
        step: Any = ("in", key, index, None)
        seen: set[tuple[str, str, int]] = set()
        while step is not None and step[0] in ("in", "out"):
            way, key, index, wanted = step
            if (way, key, index) in seen:
                raise WorkflowError(f"the links into node {key} go round in a circle")
            seen.add((way, key, index))
            go = self._into if way == "in" else self._out_of
            step = go(key, index, wanted)
        return step

    def _into(self, key: str, index: int, wanted: str | None) -> Step:
        """Where an input's link leads to."""
        place = self.places[key]
        slot = place.node.inputs[index]
        if slot.link is None:
            return None
        link = place.graph.links.get(slot.link)
        if link is None:
            raise WorkflowError(_lost(key, slot))
        if link.origin == INSIDE_INPUT and place.around is not None:
            outer = self.places[place.around].node
            if link.slot >= len(outer.inputs):
                return None
            port = outer.inputs[link.slot]
            if port.link is not None:
                return "in", place.around, link.slot, None
            return ("value", outer.widgets.get(port.name)) if port.widget else None
        around = f"{place.around}:" if place.around is not None else ""
        if link.origin not in place.graph.nodes:
            raise WorkflowError(_lost(key, slot))
        return "out", f"{around}{link.origin}", link.slot, wanted or slot.type

    def _out_of(self, key: str, slot: int, wanted: str) -> Step:
        """What comes out of a node's output, for an input of type ``wanted``, or where from."""
        node = self.places[key].node
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            index = _passes(node, slot, wanted)
            return None if index is None else ("in", key, index, None)
        if node.definition is not None:
            ports = node.definition.outputs
            links = ports[slot].links if slot < len(ports) else []
            link = node.definition.links.get(links[0]) if links else None
            if link is None:
                return None
            if link.origin == INSIDE_INPUT:  # straight through
                return ("in", key, link.slot, None) if link.slot < len(node.inputs) else None
            inner = f"{key}:{link.origin}"
            return ("out", inner, link.slot, wanted) if inner in self.places else None
        if node.virtual:
            through = node.type in REROUTES and slot < len(node.inputs)
            return ("in", key, slot, wanted) if through else None
        return "link", (key, slot)


def _lost(key: str, slot: Slot) -> str:
    return (
        f"node {key}'s '{slot.name}' is wired by link {slot.link}, of which the file has not both"
        " ends; ComfyUI cannot queue it either. Open the workflow there, wire the input and save"
    )


def _passes(node: Node, slot: int, wanted: str) -> int | None:
    """Which input passes through a bypassed node to its output ``slot``, for an input of type
    ``wanted``: the one in the same place if it fits, else the first of that very type, else the
    first that fits."""
    if not node.inputs:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(node.inputs) else 0
    given = node.outputs[slot] if slot < len(node.outputs) else "*"

    def fits(at: int) -> bool:
        return _connects(node.inputs[at].type, given) and _connects(node.inputs[at].type, wanted)

    if slot < len(node.inputs) and fits(slot):
        return slot
    places = range(len(node.inputs))
    exact = [at for at in places if node.inputs[at].type == wanted]
    return next(iter(exact or [at for at in places if fits(at)]), None)


def _connects(one: str, other: str) -> bool:
    """Whether the editor lets a wire between two types; case does not count."""
    if one in ("*", "", "0") or other in ("*", "", "0"):
        return True
    return not set(one.lower().split(",")).isdisjoint(other.lower().split(","))


def _comes_in(place: int, link: Link) -> bool:
    """Whether a link inside a subgraph begins at its input number ``place``."""
    return (link.origin, link.slot) == (INSIDE_INPUT, place)


def _goes_out(place: int, link: Link) -> bool:
    """Whether a link inside a subgraph ends at its output number ``place``."""
    return (link.target, link.target_slot) == (INSIDE_OUTPUT, place)


def _behind(graph: Graph, port: Port) -> tuple[Node, Slot] | None:
    """The node and slot inside whose widget a subgraph's input promotes: the first it leads to."""
    for number in port.links:
        link = graph.links.get(number)
        node = graph.nodes.get(link.target) if link is not None else None
        if node is None:
            continue
        for slot in node.inputs:
            if slot.link == number and slot.widget:
                return node, slot
    return None


def _promoted_from(node: Node, source: str, name: str) -> Slot | None:
    """The slot of an instance that already promotes widget ``name`` of node ``source``."""
    for slot, port in zip(node.inputs, node.definition.inputs, strict=False):
        found = _behind(node.definition, port)
        if found is not None and (found[0].id, found[1].name) == (source, name):
            return slot
    return None


def _widget_slot(node: Node | None, name: str, behind: str | None) -> Slot | None:
    """The slot of a node's widget; of an instance also by what the widget promotes."""
    if node is None:
        return None
    if node.definition is not None:
        for slot, port in zip(node.inputs, node.definition.inputs, strict=False):
            found = _behind(node.definition, port)
            if found is None:
                continue
            matches = found[1].name == name
            if matches and found[0].id == behind:
                return slot
            if behind is None and (matches or slot.name == name):
                return slot
        return None
    return next((slot for slot in node.inputs if slot.widget == name), None)


def _alias(node: Node) -> str | None:
    """The name under which file names find a node, before its title."""
    saved = node.properties.get("Node name for S&R")
    has_one = node.schema is not None and node.type != FILE_NAME[0]
    return node.type if saved is None and has_one else saved


def _values(schema: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """A node's widget values by name, with those of the controls beside them."""
    ordered = sorted(schema.inputs, key=lambda socket: socket.optional)
    widgets = [socket for socket in ordered if socket.is_widget]
    # What the file is too old to know gets the default.
    values = {socket.id: socket.default() for socket in widgets}
    saved = data.get("widgets_values")
    if isinstance(saved, Mapping):
        values |= {name: rounded(saved[name]) for name in values if name in saved}
    else:
        names = [name for socket in widgets for name in (socket.id, *_controls(socket))]
        listed = _without_dummies(ordered, saved or [])
        for name, value in reversed([*zip(names, listed, strict=False)]):
            values[name] = rounded(value)
    for socket in widgets:
        if socket.io_type == "COMBO" and values[socket.id] is None:
            values[socket.id] = next(iter(socket.options.get("options") or ()), None)
    return values


def _controls(socket: Any) -> list[str]:
    """The widgets beside a widget, which only the editor uses."""
    controlled = socket.options.get("control_after_generate")
    if socket.io_type == "INT" and controlled is None:
        controlled = socket.id in ("seed", "noise_seed")
    if not controlled or socket.io_type not in ("INT", "FLOAT", "COMBO"):
        return []
    filtered = ["control_filter_list"] if socket.io_type == "COMBO" else []
    return ["control_after_generate", *filtered]


def _without_dummies(ordered: list[Any], saved: list[Any]) -> list[Any]:
    """Editors before 1.16 kept a value for inputs that take a wire only."""
    dummies = []
    for socket in ordered:
        if socket.is_widget or socket.force_input:
            dummies.append(socket.force_input)
            if socket.options.get("control_after_generate"):
                dummies.append(False)
    if len(dummies) != len(saved):
        return saved
    return [value for value, dummy in zip(saved, dummies, strict=True) if not dummy]


def _listed(data: Mapping[str, Any]) -> list[Any]:
    saved = data.get("widgets_values") or []
    return [rounded(v) for v in (saved.values() if isinstance(saved, Mapping) else saved)]


def _wrapped(value: Any) -> Any:
    """A list would be taken for a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _parsed(value: Any) -> list[Any]:
    """A list property, which some editors saved as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return value if isinstance(value, list) else []


def _type(slot: Mapping[str, Any]) -> str:
    """A slot's type; very old files list a combo's choices instead."""
    kind = slot.get("type", "*")
    return "COMBO" if isinstance(kind, list) else str(kind)


def _port(saved: Mapping[str, Any], graph: Graph, is_its: Callable[[Link], bool]) -> Port:
    links = saved.get("linkIds")
    if links is None:
        links = [number for number, link in graph.links.items() if is_its(link)]
    return Port(saved["name"], _type(saved), list(links))
