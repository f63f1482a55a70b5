"""Which real ComfyUI the host tests run against."""

from __future__ import annotations

import os
from pathlib import Path

FOLDERS = ("~/comfy33/ComfyUI", "~/comfy/ComfyUI")
"""Where a ComfyUI is looked for: the version that people run, then the oldest supported one."""


def python_of(folder: Path) -> Path | None:
    """The Python that runs the ComfyUI in ``folder``: COMFYUI_PYTHON, or that of an environment in
    or beside it."""
    named = os.environ.get("COMFYUI_PYTHON")
    places = (folder / ".venv", folder / "venv", folder.parent / "venv")
    pythons = [Path(named).expanduser()] if named else [p / "bin" / "python" for p in places]
    return next((python for python in pythons if python.is_file()), None)


def missing_of(folder: Path) -> str | None:
    """Why the ComfyUI in ``folder`` cannot be tested against, or ``None``."""
    if not (folder / "main.py").is_file():
        return f"{folder} has no main.py"
    if python_of(folder) is None:
        return f"{os.environ.get('COMFYUI_PYTHON') or f'a Python in or beside {folder}'} is missing"
    return None


def found_host() -> tuple[Path, list[str]]:
    """The ComfyUI named by COMFYUI_PATH, or the first of :data:`FOLDERS` that is there, and what is
    said of the others.

    Raises:
        LookupError: there is none; says why.
    """
    named = os.environ.get("COMFYUI_PATH")
    folders = [Path(name).expanduser() for name in ([named] if named else FOLDERS)]
    missing = [missing_of(folder) for folder in folders]
    if all(missing):
        raise LookupError("; ".join(str(why) for why in missing))
    at = missing.index(None)
    others = [
        why or f"not against {folder}, which COMFYUI_PATH can name"
        for i, (folder, why) in enumerate(zip(folders, missing, strict=True))
        if i != at
    ]
    return folders[at], others
