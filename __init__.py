"""ComfyUI-PriorArt: four text-to-image systems taken apart, every stage a node."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's door into the pack: the extension that lists every node."""
    from .nodes import PriorArtExtension

    return PriorArtExtension()
