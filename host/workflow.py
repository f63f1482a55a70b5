"""From the editor's saved workflow to the prompt that a host executes.

The editor saves nodes with widget values by position and numbered links; the API format maps node
ids to ``{class_type, inputs}`` where a link is ``[node id, slot]``. Reroutes, primitives, muted
and bypassed nodes and subgraphs exist in the first only; this module resolves them as the editor
does when it queues a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
CONTROLS = ("fixed", "increment", "increment-wrap", "decrement", "randomize")
# A subgraph's own input and output in its links.
_INSIDE_INPUT, _INSIDE_OUTPUT = -10, -20


class WorkflowError(ValueError):
    """A workflow that cannot be read or run; the message names the node and the cure."""


def is_api(workflow: Any) -> bool:
    """Whether a parsed JSON file is in API format."""
    return (
        isinstance(workflow, Mapping)
        and bool(workflow)
        and all(isinstance(node, Mapping) and "class_type" in node for node in workflow.values())
    )


def to_api(workflow: Mapping[str, Any], nodes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert a workflow to API format; one that already is comes back as it is.

    Args:
        workflow: parsed JSON of either format.
        nodes: node classes by id, for the order of widgets.

    Raises:
        WorkflowError: neither format, or a node that is not in ``nodes``.
    """
    if isinstance(workflow, Mapping) and is_api(workflow.get("prompt")):
        workflow = workflow["prompt"]  # what a client posts to the host
    if is_api(workflow):
        return {
            str(key): {**node, "inputs": dict(node.get("inputs") or {})}
            for key, node in workflow.items()
        }
    if not isinstance(workflow, Mapping) or not isinstance(workflow.get("nodes"), list):
        raise WorkflowError(
            "this JSON is no workflow; export it from ComfyUI with 'Save' or 'Export (API)'"
        )
    graph = _Graph(workflow)
    prompt = {}
    for key in graph.order():
        node = graph.nodes[key]
        if graph.silent(key) or node["type"] in (*NOTES, *_VIRTUAL):
            continue
        if node["type"] not in nodes:
            raise WorkflowError(unknown_node(key, node["type"], node.get("properties")))
        schema = nodes[node["type"]].define_schema()
        inputs = _widget_values(schema, node)
        for socket in node.get("inputs") or ():
            if socket.get("link") is None:
                continue
            found = graph.resolve(key, socket["link"])
            if found is None:
                # Nothing stands behind the link any more: a widget keeps its own value.
                if "widget" not in socket:
                    inputs.pop(socket["name"], None)
            else:
                inputs[socket["name"]] = found[1] if found[0] == "value" else list(found[1])
        prompt[key] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or schema.display_name},
        }
    return prompt


def unknown_node(key: str, class_type: str, properties: Mapping[str, Any] | None = None) -> str:
    """Say which node is unknown, and which pack it seems to belong to."""
    properties = properties or {}
    pack = properties.get("cnr_id") or properties.get("aux_id")
    if pack == "comfy-core" or (not pack and class_type in _CORE):
        return (
            f"node {key} ({class_type}) is ComfyUI's own and not one of those that the headless"
            " runner has; run this workflow in ComfyUI"
        )
    if class_type.startswith(("workflow/", "workflow>")):
        return (
            f"node {key} ({class_type}) is a group node of an old editor; open the workflow in"
            " ComfyUI, turn it into a subgraph (or ungroup it) and save again"
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


_VIRTUAL = ("Reroute", "PrimitiveNode")
# ComfyUI nodes that people put beside this pack's; older files do not name their pack.
_CORE = frozenset(
    (
        "KSampler",
        "KSamplerAdvanced",
        "SamplerCustom",
        "SamplerCustomAdvanced",
        "CheckpointLoaderSimple",
        "UNETLoader",
        "CLIPLoader",
        "DualCLIPLoader",
        "CLIPVisionLoader",
        "LoraLoader",
        "LoraLoaderModelOnly",
        "ImageScale",
        "ImageUpscaleWithModel",
        "LatentUpscale",
        "ConditioningCombine",
        "ConditioningSetArea",
        "VAEDecodeTiled",
        "VAEEncodeTiled",
        "VAEEncodeForInpaint",
        "LoadImageMask",
        "ControlNetApply",
    )
)


class _Graph:
    """Every node of a workflow and of its subgraphs by key, and the links between them."""

    def __init__(self, workflow: Mapping[str, Any]) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.links: dict[tuple[str, int], tuple] = {}
        # For each subgraph instance: what its outputs are linked to inside.
        self.outlets: dict[str, dict[int, int]] = {}
        definitions = (workflow.get("definitions") or {}).get("subgraphs") or []
        self.definitions = {definition["id"]: definition for definition in definitions}
        self._add(workflow, "")

    def _add(self, graph: Mapping[str, Any], scope: str) -> None:
        if scope.count(":") > 16:
            raise WorkflowError("a subgraph of this workflow contains itself")
        for link in graph.get("links") or ():
            if link is None:  # old editors leave holes
                continue
            number, origin, slot, target, target_slot = _link(link)
            self.links[scope, number] = (origin, slot)
            if target == _INSIDE_OUTPUT:
                self.outlets.setdefault(scope, {})[target_slot] = number
        for node in graph["nodes"]:
            key = f"{scope}{node['id']}"
            self.nodes[key] = node
            if node["type"] in self.definitions:
                self._add(self.definitions[node["type"]], f"{key}:")

    def order(self) -> list[str]:
        """Keys of the nodes that can run, in the order the editor drew up."""
        keys = [key for key, node in self.nodes.items() if node["type"] not in self.definitions]
        return sorted(keys, key=lambda key: (":" in key, self.nodes[key].get("order", 0)))

    def silent(self, key: str) -> bool:
        """Whether a node, or a subgraph around it, is muted or bypassed."""
        parts = key.split(":")
        around = (":".join(parts[:count]) for count in range(1, len(parts) + 1))
        return any(self.nodes[name].get("mode", 0) in (MUTED, BYPASSED) for name in around)

    def resolve(self, key: str, number: int) -> tuple | None:
        """What a link into node ``key`` carries: ("link", (id, slot)), ("value", v) or nothing."""
        scope = key[: key.rfind(":") + 1]
        for _ in range(1000):
            if (scope, number) not in self.links:
                return None
            origin, slot = self.links[scope, number]
            if origin == _INSIDE_INPUT:
                outer = scope[:-1]
                sockets = self.nodes[outer].get("inputs") or []
                number = sockets[slot].get("link") if slot < len(sockets) else None
                scope = outer[: outer.rfind(":") + 1]
                if number is None:
                    return None
                continue
            source = f"{scope}{origin}"
            node = self.nodes.get(source)
            if node is None or node.get("mode", 0) == MUTED:
                return None
            if node["type"] == "PrimitiveNode":
                saved = node.get("widgets_values") or [None]
                return "value", next(iter(saved.values() if isinstance(saved, Mapping) else saved))
            if node["type"] in self.definitions and node.get("mode", 0) != BYPASSED:
                number = self.outlets.get(f"{source}:", {}).get(slot)
                scope = f"{source}:"
                continue
            if node["type"] == "Reroute" or node.get("mode", 0) == BYPASSED:
                number = _through(node, slot)
                if number is None:
                    return None
                continue
            return "link", (source, slot)
        raise WorkflowError(f"the links into node {key} go round in a circle")


def _link(link: Any) -> tuple[int, int, int, int, int]:
    if isinstance(link, Mapping):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        return tuple(link[name] for name in names)
    return tuple(link[:5])


def _through(node: Mapping[str, Any], slot: int) -> int | None:
    """The link that passes through a reroute or a bypassed node to its output ``slot``."""
    inputs = node.get("inputs") or []
    if node["type"] == "Reroute":
        return inputs[0].get("link") if inputs else None
    outputs = node.get("outputs") or []
    wanted = outputs[slot]["type"] if slot < len(outputs) else None
    # As in the editor: the input in the same place, else the first of the type, wired or not.
    for fits in (wanted, "*"):
        for socket in [*inputs[slot : slot + 1], *inputs]:
            if socket.get("type") == fits or wanted == "*":
                return socket.get("link")
    return None


def _widget_values(schema: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node's widget values by name; saved lists also hold what only the editor uses."""
    saved = node.get("widgets_values") or []
    widgets = [socket for socket in schema.inputs if socket.is_widget]
    # What the file is too old to know gets the default, as in the editor.
    values = {socket.id: socket.default() for socket in widgets}
    if isinstance(saved, Mapping):
        return values | {socket.id: saved[socket.id] for socket in widgets if socket.id in saved}
    rest = list(saved)
    # The editor lines up the optional inputs after the required ones.
    for socket in sorted(widgets, key=lambda socket: socket.optional):
        if not rest:
            break
        values[socket.id] = rest.pop(0)
        controlled = socket.options.get("control_after_generate")
        if (controlled or socket.id in ("seed", "noise_seed")) and rest and rest[0] in CONTROLS:
            rest.pop(0)
            if socket.io_type == "COMBO" and rest and isinstance(rest[0], str):
                rest.pop(0)  # the filter beside a controlled list
    return values
