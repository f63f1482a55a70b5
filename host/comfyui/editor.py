"""Pictures for the pack's widgets in ComfyUI's editor."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import folder_paths
import torch
from PIL.Image import fromarray

from .compat import warn

FOLDER = "prior_art"


def show(picture: Callable[[], torch.Tensor]) -> dict[str, str] | None:
    """Keep a picture ``[1, H, W, 3]`` in [0, 1] in the temporary folder.

    Returns:
        What the editor asks for it by; ``None``, with a warning, where it cannot be written: what a
        widget shows is no reason to lose what the node made.
    """
    pixels = (picture()[0].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    encoded = io.BytesIO()
    # One file for all thumbnails: no colour may run over from a picture into the next.
    fromarray(pixels).save(encoded, "JPEG", quality=92, subsampling=0)
    name = f"{uuid4().hex}.jpg"
    file = Path(folder_paths.get_temp_directory()) / FOLDER / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded.getvalue())
    except OSError as error:
        file.unlink(missing_ok=True)
        warn(f"the widget's picture could not be kept in '{file.parent}': {error.strerror}")
        return None
    return {"filename": name, "subfolder": FOLDER, "type": "temp"}
