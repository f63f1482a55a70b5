"""The graph: one file a system, each node a schema, a few checks and one call."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..host import host

SYSTEMS = ("unclip", "karlo", "kandinsky", "embeddings", "koala", "mindalle", "rerank")
"""Every file here that has ``NODES``, in the order in which the host lists them."""

NODES: list[type[Any]] = [
    node for name in SYSTEMS for node in import_module(f".{name}", __name__).NODES
]


class PriorArtExtension(host.ComfyExtension):
    """The list of nodes that the host registers."""

    async def get_node_list(self) -> list[type]:
        """Every node class of the pack."""
        return NODES
