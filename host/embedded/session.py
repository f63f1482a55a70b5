"""What surrounds a headless run: folders, listeners, the stop button."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...edges import plain

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("prior_art")


class Interrupted(Exception):
    """The user stopped the run."""


@dataclass
class Session:
    """What surrounds the running workflow: folders, what SaveImage notes in its PNGs, who listens
    to progress and warnings, the stop button."""

    input_folder: Path = Path("input")
    output_folder: Path = Path("output")
    prompt: dict[str, Any] | None = None
    workflow: dict[str, Any] | None = None
    on_progress: Callable[[int, int, Image | None], None] | None = None
    on_warning: Callable[[str], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


session = Session()


def progress(total: int) -> Callable[..., None]:
    """``update(step, preview)`` for the running node; raises :class:`Interrupted` when stopped."""

    def update(step: int, preview: Image | None = None) -> None:
        if session.on_progress is not None:
            session.on_progress(step, total, preview)
        if session.stop.is_set():
            raise Interrupted(f"stopped at step {step} of {total}")

    return update


def stop_if_asked() -> None:
    """Raise :class:`Interrupted` when the user stopped the run."""
    if session.stop.is_set():
        raise Interrupted("stopped")


def warn(message: str) -> None:
    """Tell the user."""
    message = plain(message)
    if session.on_warning is not None:
        session.on_warning(message)
    else:
        logger.warning("%s", message)
