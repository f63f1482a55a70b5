"""A training's state on disk: written whole or not at all, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..edges import reason_of
from ..loaders.files.safe import written


class Unfinished(Exception):
    """Training stopped where it was told to; its state lies ready to go on."""


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes a dict of plain tensors and numbers; a reader sees the old file or the new one.

    Raises:
        OSError: the disk is full or cannot be written; the old file is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as scratch:
            torch.save(state, scratch)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeErrors
        raise OSError(
            f"'{path}' cannot be written ({reason_of(error)}). Free some space or make its"
            " folder writable, and run it again"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """What ``save_atomically`` wrote, without running code."""
    return torch.load(path, map_location="cpu", weights_only=True)
