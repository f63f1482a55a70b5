"""What a saved graph may look like: what is damaged, and what only a newer or patched editor saves,
is refused by name before anything is read from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Unsupported, WorkflowError

MUTED, BYPASSED = 2, 4
# 1 and 3 wait for events that ComfyUI's graphs have not: the editor queues them like 0.
MODES = (0, 1, MUTED, 3, BYPASSED)


@dataclass(frozen=True)
class Link:
    """A link, from a node's output to a node's input, nodes by id."""

    origin: str
    slot: int
    target: str
    target_slot: int


def subgraph_definitions(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Subgraph definitions by id, those inside others included."""
    found: dict[str, Any] = {}
    inside = workflow.get("definitions") or {}
    if not isinstance(inside, Mapping):
        raise WorkflowError(_damaged("the workflow", "definitions"))
    for name in inside:
        if name != "subgraphs" and inside[name]:
            raise Unsupported(
                f"the workflow defines '{name}', which the headless runner does not know; run it in"
                " ComfyUI"
            )
    listed = inside.get("subgraphs") or []
    if not isinstance(listed, list):
        raise WorkflowError(_damaged("the workflow", "definitions"))
    for definition in listed:
        if not isinstance(definition, Mapping) or not isinstance(definition.get("id"), str):
            raise WorkflowError(_damaged("a subgraph's definition", "id"))
        found[definition["id"]] = definition
        found |= subgraph_definitions(definition)
    return found


def check_format(workflow: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
    """Look a workflow over, its subgraphs too.

    Raises:
        Unsupported: a version, mode or kind of link that only a newer or patched editor has.
        WorkflowError: something is damaged.
    """
    version = workflow.get("version")
    if version not in (None, 0.4, 1):
        raise Unsupported(
            f"the workflow's format is version {version}; the headless runner knows 0.4 and 1. Run"
            " it in ComfyUI, or export it with 'Export (API)'"
        )
    if mapping(workflow.get("extra")).get("ue_links"):
        raise Unsupported(
            "the workflow has links of 'Use Everywhere', which exist only while that pack runs in"
            " the editor; export the workflow with 'Export (API)'"
        )
    for key, graph in (("", workflow), *definitions.items()):
        where = f"the subgraph '{graph.get('name') or key}'" if key else "the workflow"
        nodes = graph.get("nodes")
        if not isinstance(nodes, list) or not all(isinstance(n, Mapping) for n in nodes):
            raise WorkflowError(_damaged(where, "nodes"))
        if not isinstance(graph.get("links") or [], list):
            raise WorkflowError(_damaged(where, "links"))
        for name in ("inputs", "outputs") if key else ():
            ports = graph.get(name) or []
            if not _are_slots(ports) or not all(_are_numbers(p.get("linkIds")) for p in ports):
                raise WorkflowError(_damaged(where, name))
        for node in nodes:
            _check_node(node)


def _check_node(node: Mapping[str, Any]) -> None:
    if not isinstance(node.get("type"), str):
        raise WorkflowError(f"node {node.get('id')} has no type; save it again in ComfyUI")
    where = f"node {node.get('id')} ({node['type']})"
    fits = {
        "id": isinstance(node.get("id"), (int, str)),
        "order": isinstance(node.get("order") or 0, (int, float)),
        "title": isinstance(node.get("title") or "", str),
        "inputs": _are_slots(node.get("inputs") or []),
        "outputs": _are_slots(node.get("outputs") or []),
        "properties": isinstance(node.get("properties") or {}, Mapping),
        "widgets_values": isinstance(node.get("widgets_values") or [], (list, Mapping)),
        "widgets_values_named": isinstance(node.get("widgets_values_named") or {}, Mapping),
    }
    for name, well in fits.items():
        if not well:
            raise WorkflowError(_damaged(where, name))
    links = [slot.get("link") for slot in node.get("inputs") or ()]
    if not _are_numbers([link for link in links if link is not None]):
        raise WorkflowError(_damaged(where, "inputs"))
    if (node.get("mode") or 0) not in MODES:
        raise Unsupported(
            f"{where} has mode {node['mode']!r}, which the headless runner does not know; run this"
            " workflow in ComfyUI"
        )


def _are_slots(slots: Any) -> bool:
    """Whether these are slots as saved, each with a name."""
    return isinstance(slots, list) and all(
        isinstance(slot, Mapping) and isinstance(slot.get("name"), str) for slot in slots
    )


def _are_numbers(links: Any) -> bool:
    """Whether these are links' numbers; old files may leave them out."""
    return links is None or (
        isinstance(links, list) and all(isinstance(link, (int, str)) for link in links)
    )


def _damaged(where: str, what: str) -> str:
    return f"{where}: '{what}' is damaged; open the workflow in ComfyUI and save it again"


def unique_ids(workflow: dict[str, Any], definitions: Mapping[str, dict[str, Any]]) -> None:
    """Give nodes of subgraphs new ids where the workflow, or another subgraph, has them too."""
    used = {str(node["id"]) for node in workflow["nodes"]}
    numbers = [workflow.get("last_node_id"), mapping(workflow.get("state")).get("lastNodeId")]
    last = max((n for n in numbers if isinstance(n, int)), default=0)
    changed: dict[str, dict[str, int]] = {}
    for key, definition in definitions.items():
        new = changed[key] = {}
        for node in definition["nodes"]:
            name = str(node["id"])
            if name in used:
                last += 1
                while str(last) in used:
                    last += 1
                new[name] = node["id"] = last
            elif isinstance(node["id"], int):
                last = max(last, node["id"])
            used.add(str(node["id"]))
        for link in definition.get("links") or ():
            if link is not None and new:
                read_link(link)  # or it says what is wrong
                for end in ("origin_id", "target_id") if isinstance(link, Mapping) else (1, 3):
                    link[end] = new.get(str(link[end]), link[end])
    for graph in (workflow, *definitions.values()):
        for node in graph["nodes"]:
            entries = mapping(node.get("properties")).get("proxyWidgets")
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, list) and entry and node["type"] in changed:
                    found = changed[node["type"]].get(str(entry[0]))
                    entry[0] = entry[0] if found is None else str(found)


def read_link(link: Any) -> tuple[Any, Link]:
    """A link of either form, by its number.

    Raises:
        WorkflowError: another form.
    """
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    try:
        ends = [link[name] for name in names] if isinstance(link, Mapping) else link[:5]
        number, origin, slot, target, target_slot = ends
        found = Link(str(origin), int(slot), str(target), int(target_slot))
        if isinstance(number, (int, str)) and min(found.slot, found.target_slot) >= 0:
            return number, found
    except (KeyError, TypeError, ValueError):
        pass
    raise WorkflowError(
        f"link {json.dumps(link)[:80]} is of an unknown form; open the workflow in ComfyUI and save"
        " it again"
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or an empty one where there is none."""
    return value if isinstance(value, Mapping) else {}
