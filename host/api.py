"""What a host is to the rest of the pack: one interface, which both doors have.

A door is a module: ``comfyui/door.py`` inside ComfyUI, ``embedded/door.py`` without it. What one
system adds to a door (how its networks become the host's types, and how nodes get them back) is an
:class:`Adapter` in ``<door>/<system>.py``, registered under the stage that it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..edges import EdgeError, Role

SYSTEMS = ("unclip", "karlo", "kandinsky", "koala", "mindalle")
"""Every file of adapters that each door has."""


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def named_dtype(choice: str) -> torch.dtype:
    """The dtype that a user named.

    Raises:
        EdgeError: another name.
    """
    if choice not in DTYPES:
        raise EdgeError(f"'dtype' is '{choice}'; choose auto, {', '.join(DTYPES)}")
    return DTYPES[choice]


@dataclass(frozen=True)
class Adapter:
    """One stage's two ways through a door.

    Attributes:
        wrap: what a loader made, as the host's type.
        open: the host's type, as (what :meth:`Host.use` takes, what the loader knew); raises
            :class:`~prior_art.edges.EdgeError` for another kind. ``None`` where nodes never ask.
        load_files: the host's type of files in the host's own folders, where it can read them.
    """

    wrap: Callable[..., Any]
    open: Any = None
    load_files: Any = None


class Host(Protocol):
    """The names of a door; 20 of them."""

    NAME: str
    """In messages."""

    io: Any
    """The types and sockets that nodes are written with, as ``comfy_api.latest.io``."""

    ComfyExtension: Any
    """The base of the pack's list of nodes."""

    def model_folders(self) -> list[Path]:
        """Where weights may lie."""
        ...

    def embedding_folders(self) -> list[Path]:
        """Where files of image embeddings are: the first is written to."""
        ...

    def cache_folder(self) -> Path:
        """The pack's own folder for what can be made again; not there until something is kept."""
        ...

    def model_files(self, kind: str) -> list[str]:
        """Files of the host's own folder ``kind`` ("text_encoders", "vae")."""
        ...

    def load_files(self, stage: str, *names: str) -> Any:
        """Such files as the host's type.

        Raises:
            EdgeError: a host without such folders; CheckpointError: they are not what is wanted.
        """
        ...

    def pick_dtype(self, choice: str, role: Role) -> torch.dtype:
        """The dtype to store a network in: ``auto`` asks the host, ``fp32``, ``fp16`` and ``bf16``
        are taken at their word.

        Raises:
            EdgeError: another ``choice``.
        """
        ...

    def manage(self, network: nn.Module) -> Any:
        """Hand a network of the pack's own edge types to the host's memory management."""
        ...

    def use(
        self, managed: Any, activations: int = 0, beside: Sequence[Any] = ()
    ) -> tuple[Any, torch.device, torch.dtype]:
        """Put a network on its device, and make room for what it will hold.

        Args:
            managed: from :meth:`manage` or :meth:`open`.
            activations: how many numbers that is, in the dtype that it computes in.
            beside: networks that the same stage uses too.

        Returns:
            The network, the device to compute on and the dtype to compute in.
        """
        ...

    def free_memory(self) -> int:
        """Bytes that are free on the device that computes."""
        ...

    def check_room(self, needed: int, what: str, cure: str) -> None:
        """Refuse what cannot fit on the device that computes.

        Args:
            needed: bytes that it takes at the least.
            what: was asked for; cure: how to ask for less, by the names of inputs.

        Raises:
            EdgeError: it does not fit; says the figures and ``cure``.
        """
        ...

    def offload(self, value: Any) -> Any:
        """A node's output, a tensor or lists and dicts of them, on the device where the host keeps
        what waits between nodes."""
        ...

    def progress(self, total: int) -> Callable[..., None]:
        """``update(step, preview=None)`` of a bar on the running node; raises the host's own
        exception when the user stopped the run."""
        ...

    def stop_if_asked(self) -> None:
        """Raise the host's own exception when the user stopped the run: for what takes long outside
        of a bar's steps."""
        ...

    def warn(self, message: str) -> None:
        """Tell the user."""
        ...

    def show(self, picture: Callable[[], torch.Tensor]) -> dict[str, str] | None:
        """Keep a picture, IMAGE ``[1, H, W, 3]`` in [0, 1], where the node's widget finds it.

        Returns:
            What the editor asks for it by (``filename``, ``subfolder``, ``type``), for the node's
            ``ui``; ``None``, and nothing is called, where there is no editor.
        """
        ...

    def clip_vision_output(self, image_embeds: torch.Tensor, **extra: Any) -> Any:
        """A CLIP_VISION_OUTPUT of unnormalised ``image_embeds`` ``[B, D]`` and more attributes."""
        ...

    def wrap(self, stage: str, loaded: Any, **options: Any) -> Any:
        """What a loader made, as the host's type."""
        ...

    def open(self, stage: str, value: Any) -> tuple[Any, Any]:
        """The network in a value of the host's type, with the patches that native nodes have put
        on it since, for :meth:`use`; and what its loader knew.

        Raises:
            EdgeError: another kind of that type; says which, and what fits.
        """
        ...


def adapters(door: str) -> Mapping[str, Adapter]:
    """Every system's adapters of a door, by stage.

    Args:
        door: the package, such as ``prior_art.host.embedded``.
    """
    found: dict[str, Adapter] = {}
    for name in SYSTEMS:
        found.update(import_module(f"{door}.{name}").ADAPTERS)
    return found
