"""python -m tests.host.editor: starts a ComfyUI with the pack in it, and opens a template.

The ComfyUI is the one that the host tests would take; it runs on the CPU, which is enough for the
embedded family, and on a folder of its own, so that nothing in the installation changes.
"""

from __future__ import annotations

import shutil
import sys
import webbrowser

from .conftest import PACK, HostPaths, host_environment, start_comfy, stop_comfy
from .finding import found_host, python_of

BASE = PACK / "output" / "host"
TEMPLATE = "karlo_text_to_image"

NONE_FOUND = """no ComfyUI found: {why}

One way to get it, where the tests look for it (v0.33.0; about 6 GB with torch):

    git clone --branch v0.33.0 --depth 1 https://github.com/Comfy-Org/ComfyUI ~/comfy33/ComfyUI
    python3 -m venv ~/comfy33/venv
    ~/comfy33/venv/bin/pip install torch torchvision torchaudio \\
        -r ~/comfy33/ComfyUI/requirements.txt -r requirements.txt

Or name one that you have: make host COMFYUI_PATH=DIR, with COMFYUI_PYTHON=FILE where its Python is
not in a .venv or venv in or beside it."""


def main() -> int:
    """Run until Ctrl-C; 1 where there is no ComfyUI."""
    try:
        folder, _ = found_host()
    except LookupError as error:
        print(NONE_FOUND.format(why=error), file=sys.stderr)
        return 1
    print(f"starting {folder}, which takes a while; Ctrl-C ends it", flush=True)
    comfy = start_comfy(HostPaths(folder, python_of(folder), host_environment()), BASE)
    try:
        # What some templates load.
        shutil.copy(folder / "input" / "example.png", BASE / "input")
        url = f"{comfy.url}/?template={TEMPLATE}&source=ComfyUI-PriorArt"
        print(url)
        print(f"an older editor opens empty: Templates, then ComfyUI-PriorArt. Log: {comfy.log}")
        webbrowser.open(url)
        comfy.process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        stop_comfy(comfy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
