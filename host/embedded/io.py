"""The ``io`` names that nodes are written with, for the host without ComfyUI.

Signatures follow ComfyUI's V3 node API (``comfy_api.latest.io``): the same keywords, and the same
order where they are given by position. What the runner has no use for is kept in ``options``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

# What an input takes by position, as in the host's API.
_COMMON = ("display_name", "optional", "tooltip", "lazy")
_POSITIONS = {
    "INT": (*_COMMON, "default", "min", "max", "step", "control_after_generate"),
    "FLOAT": (*_COMMON, "default", "min", "max", "step", "round"),
    "STRING": (*_COMMON, "multiline", "placeholder", "default", "dynamic_prompts"),
    "BOOLEAN": (*_COMMON, "default", "label_on", "label_off"),
    "COMBO": ("options", *_COMMON, "default", "control_after_generate", "upload"),
}
_OUTPUT_POSITIONS = ("display_name", "tooltip", "is_output_list")


class _Socket:
    """An input or output of a node: its id, its type, what the editor shows.

    Attributes:
        io_type: the type's name; several that fit are separated by commas, ``*`` fits any.
        options: the other keywords it was made with (``default``, ``min``, ``options``, ...).
    """

    def __init__(self, io_type: str, id: str | None = None, **options: Any) -> None:
        self.io_type = io_type
        self.id = id
        self.display_name = options.pop("display_name", None)
        self.tooltip = options.pop("tooltip", None)
        self.optional = bool(options.pop("optional", False))
        options |= options.pop("extra_dict", {})
        self.force_input = bool(options.pop("force_input", False))
        self.is_output_list = bool(options.pop("is_output_list", False))
        choices = options.get("options")
        if isinstance(choices, type) and issubclass(choices, Enum):
            options["options"] = [member.value for member in choices]
        if isinstance(options.get("default"), Enum):
            options["default"] = options["default"].value
        self.options = options

    @property
    def takes_value(self) -> bool:
        """Whether a plain value fits, not only a wire."""
        return self.io_type in WIDGET_TYPES

    @property
    def is_widget(self) -> bool:
        """Whether the editor saves a value for it by position."""
        return self.takes_value and not self.force_input

    def as_dict(self) -> dict[str, Any]:
        """The other keywords, as in the host's API."""
        return self.options

    def default(self) -> Any:
        """What the editor fills in: the default, or the first choice of a list."""
        default = self.options.get("default")
        if default is None and self.io_type == "COMBO":
            return next(iter(self.options.get("options") or ()), None)
        blank = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
        return blank.get(self.io_type) if default is None else default


def _named(positions: Sequence[str], values: Sequence[Any], options: dict) -> dict[str, Any]:
    """Values given by position, by name."""
    if len(values) > len(positions):
        raise TypeError(f"give what comes after '{positions[-1]}' by name")
    return {**dict(zip(positions, values, strict=False)), **options}


class _Type:
    """One type of edge: ``Input`` and ``Output`` make its sockets."""

    def __init__(self, io_type: str) -> None:
        self.io_type = io_type

    def Input(self, id: str, *values: Any, **options: Any) -> _Socket:
        """An input socket or widget called ``id``."""
        positions = _POSITIONS.get(self.io_type, _COMMON)
        return _Socket(self.io_type, id, **_named(positions, values, options))

    def Output(self, id: str | None = None, *values: Any, **options: Any) -> _Socket:
        """An output socket."""
        return _Socket(self.io_type, id, **_named(_OUTPUT_POSITIONS, values, options))


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
ControlNet = _Type("CONTROL_NET")
AnyType = _Type("*")


def Custom(io_type: str) -> _Type:
    """A type of the pack's own."""
    return _Type(io_type)


class MultiType:
    """An input that takes several types."""

    @staticmethod
    def Input(id: str, types: Sequence[_Type], *values: Any, **options: Any) -> _Socket:
        """An input called ``id`` for any of ``types``."""
        io_type = ",".join(one.io_type for one in types)
        return _Socket(io_type, id, **_named(_COMMON, values, options))


class Hidden(str, Enum):
    """What a node may ask the host for; the embedded host has ``unique_id`` and ``prompt``."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


class Schema:
    """What a node is called, takes and gives."""

    def __init__(
        self,
        node_id: str,
        display_name: str | None = None,
        category: str = "",
        inputs: list[_Socket] | None = None,
        outputs: list[_Socket] | None = None,
        hidden: list[Hidden] | None = None,
        description: str = "",
        is_input_list: bool = False,
        is_output_node: bool = False,
        not_idempotent: bool = False,
        **editor: Any,  # is_deprecated, is_experimental, search_aliases...: nothing for the runner
    ) -> None:
        self.node_id = node_id
        self.display_name = display_name or node_id
        self.category = category
        self.description = description
        self.inputs = inputs or []
        self.outputs = outputs or []
        self.is_output_node = is_output_node
        self.hidden = hidden or []
        self.is_input_list = is_input_list
        self.not_idempotent = not_idempotent


class NodeOutput:
    """What a node's ``execute`` returns: its outputs in order, and what the editor shows."""

    def __init__(
        self,
        *args: Any,
        ui: dict[str, Any] | None = None,
        expand: dict[str, Any] | None = None,
        block_execution: str | None = None,
    ) -> None:
        self.args = args
        self.ui = ui
        self.expand = expand
        self.block_execution = block_execution


class ComfyNode:
    """A node: ``define_schema`` says what it is, ``execute`` does it. No state.

    A subclass may have ``validate_inputs(**some inputs)`` (true, or what is wrong) and
    ``fingerprint_inputs(**inputs)`` (changes when the node must run again).
    """

    hidden: Any = None

    @classmethod
    def define_schema(cls) -> Schema:
        """The node's schema."""
        raise TypeError(f"{cls.__name__} has no schema")

    @classmethod
    def execute(cls, *args: Any, **inputs: Any) -> NodeOutput:
        """The node's work."""
        raise TypeError(f"{cls.__name__} has no execute")


class ComfyExtension:
    """A pack: the list of its nodes."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        """Every node class."""
        return []
