"""The few ``io`` names that nodes are written with, for the host without ComfyUI.

Signatures follow ComfyUI's V3 node API (``comfy_api.latest.io``), as far as the pack uses it.
"""

from __future__ import annotations

from typing import Any


class _Socket:
    """An input or output of a node: its id, its type, what the editor shows."""

    def __init__(self, io_type: str, id: str | None = None, **options: Any) -> None:
        self.io_type = io_type
        self.id = id
        self.display_name = options.pop("display_name", None)
        self.tooltip = options.pop("tooltip", None)
        self.optional = options.pop("optional", False)
        self.force_input = options.pop("force_input", False)
        self.options = options

    @property
    def is_widget(self) -> bool:
        """Whether the editor saves a value for it by position."""
        return self.io_type in WIDGET_TYPES and not self.force_input


WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


class _Type:
    """One type of edge: ``Input`` and ``Output`` make its sockets."""

    def __init__(self, io_type: str) -> None:
        self.io_type = io_type

    def Input(self, id: str, **options: Any) -> _Socket:
        """An input socket or widget called ``id``."""
        return _Socket(self.io_type, id, **options)

    def Output(self, id: str | None = None, **options: Any) -> _Socket:
        """An output socket."""
        return _Socket(self.io_type, id, **options)


Int, Float, String, Boolean, Combo = (_Type(name) for name in WIDGET_TYPES)
Image = _Type("IMAGE")
Mask = _Type("MASK")
Latent = _Type("LATENT")
Conditioning = _Type("CONDITIONING")
Clip = _Type("CLIP")
ClipVision = _Type("CLIP_VISION")
ClipVisionOutput = _Type("CLIP_VISION_OUTPUT")
Model = _Type("MODEL")
Vae = _Type("VAE")
Sampler = _Type("SAMPLER")
Sigmas = _Type("SIGMAS")


def Custom(io_type: str) -> _Type:
    """A type of the pack's own."""
    return _Type(io_type)


class Schema:
    """What a node is called, takes and gives."""

    def __init__(
        self,
        node_id: str,
        display_name: str | None = None,
        category: str = "",
        description: str = "",
        inputs: list[_Socket] | None = None,
        outputs: list[_Socket] | None = None,
        is_output_node: bool = False,
    ) -> None:
        self.node_id = node_id
        self.display_name = display_name or node_id
        self.category = category
        self.description = description
        self.inputs = inputs or []
        self.outputs = outputs or []
        self.is_output_node = is_output_node


class NodeOutput:
    """What a node's ``execute`` returns: its outputs in order, and what the editor shows."""

    def __init__(self, *args: Any, ui: dict[str, Any] | None = None) -> None:
        self.args = args
        self.ui = ui


class ComfyNode:
    """A node: ``define_schema`` says what it is, ``execute`` does it. No state."""

    @classmethod
    def define_schema(cls) -> Schema:
        """The node's schema."""
        raise TypeError(f"{cls.__name__} has no schema")

    @classmethod
    def execute(cls, **inputs: Any) -> NodeOutput:
        """The node's work."""
        raise TypeError(f"{cls.__name__} has no execute")


class ComfyExtension:
    """A pack: the list of its nodes."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        """Every node class."""
        return []
