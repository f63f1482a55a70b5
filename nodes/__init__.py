"""The graph: one file per stage, each node a schema, a few checks and one call."""

from __future__ import annotations

from ..host import host
from .decoder import KarloDecoder
from .image import ImageEncode
from .load import LoadDecoder, LoadImageEncoder, LoadPrior, LoadTextEncoder, LoadUpscaler
from .prior import PriorSample
from .text import TextEncode
from .upscale import KarloUpscale

NODES = [
    LoadTextEncoder,
    LoadImageEncoder,
    LoadPrior,
    LoadDecoder,
    LoadUpscaler,
    TextEncode,
    ImageEncode,
    PriorSample,
    KarloDecoder,
    KarloUpscale,
]


class PriorArtExtension(host.ComfyExtension):
    """The list of nodes that the host registers."""

    async def get_node_list(self) -> list[type]:
        """Every node class of the pack, in the order of the stages."""
        return NODES
