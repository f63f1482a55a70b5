"""The embedded host: the same nodes without ComfyUI, for the headless runner and for tests.

Its names are those of :class:`..api.Host`; what is one system's is in the file of that system.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...edges import EdgeError, Role
from ..api import adapters, named_dtype
from . import io as io
from .io import ComfyExtension
from .memory import Managed, check_room, free_memory, manage, offload, use
from .session import Interrupted, progress, session, stop_if_asked, warn
from .unclip import clip_vision_output

NAME = "the embedded host"
MODELS_VARIABLE = "PRIOR_ART_MODELS"
CACHE_VARIABLE = "XDG_CACHE_HOME"
EMBEDDINGS = "image_embeds"
PACK = Path(__file__).resolve().parents[2]


def model_folders() -> list[Path]:
    """``$PRIOR_ART_MODELS`` (several, separated as in PATH), else ``models/prior_art``: that of
    the current folder, then the pack's own."""
    named = os.environ.get(MODELS_VARIABLE, "").split(os.pathsep)
    if any(named):
        return [Path(os.path.expanduser(part)) for part in named if part]
    here, own = Path("models") / "prior_art", PACK / "models" / "prior_art"
    return [here] if here.resolve() == own.resolve() else [here, own]


def embedding_folders() -> list[Path]:
    """Where files of image embeddings are: the first is written to."""
    return [session.output_folder / EMBEDDINGS, session.input_folder]


def cache_folder() -> Path:
    """The pack's own folder among those that a user's caches lie in; of a user without a home,
    among what is temporary."""
    caches = os.path.expanduser(os.environ.get(CACHE_VARIABLE) or "~/.cache")
    return Path(tempfile.gettempdir() if caches.startswith("~") else caches) / "prior_art"


def pick_dtype(choice: str, role: Role) -> torch.dtype:
    """Storage dtype: ``auto`` is fp32 on the CPU and fp16 on a GPU.

    Raises:
        EdgeError: another ``choice`` than auto, fp32, fp16, bf16.
    """
    if choice == "auto":
        return torch.float16 if torch.cuda.is_available() else torch.float32
    return named_dtype(choice)


def model_files(kind: str) -> list[str]:
    """Files of the host's own folder ``kind`` ("text_encoders", "vae"): it has none."""
    return []


def load_files(stage: str, *names: str) -> Any:
    """Such files as the host's type: there are none.

    Raises:
        EdgeError: always.
    """
    named = " and ".join(f"'{name}'" for name in names)
    raise EdgeError(f"{NAME} has no folder for {named}; run this in ComfyUI")


def show(picture: Callable[[], torch.Tensor]) -> dict[str, str] | None:
    """``None``: there is no editor to show a picture in."""
    return None


def wrap(stage: str, loaded: Any, **options: Any) -> Any:
    """What a loader made, as the host's type."""
    return ADAPTERS[stage].wrap(loaded, **options)


def open(stage: str, value: Any) -> tuple[Any, Any]:
    """The network in a value of the host's type, for :func:`use`, and what its loader knew.

    Raises:
        EdgeError: another kind of that type.
    """
    return ADAPTERS[stage].open(value)


ADAPTERS = adapters(__package__)

__all__ = [
    "NAME",
    "ComfyExtension",
    "Interrupted",
    "Managed",
    "cache_folder",
    "check_room",
    "clip_vision_output",
    "embedding_folders",
    "free_memory",
    "io",
    "load_files",
    "manage",
    "model_files",
    "model_folders",
    "offload",
    "open",
    "pick_dtype",
    "progress",
    "session",
    "show",
    "stop_if_asked",
    "use",
    "warn",
    "wrap",
]
