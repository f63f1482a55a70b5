"""The one room that knows where the nodes run: inside ComfyUI, or in the embedded host.

Both doors, :mod:`.comfyui` and :mod:`.embedded`, export the same names. Everything else in the
pack says ``from ..host import host, io`` and never imports ComfyUI.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Host
    from .comfyui import door as comfyui_door
    from .embedded import door as host

    # Here mypy compares both doors with the interface.
    _comfyui: Host = comfyui_door
    _embedded: Host = host
elif "comfy.model_management" in sys.modules and os.environ.get("PRIOR_ART_HOST") != "embedded":
    from .comfyui import door as host
else:
    from .embedded import door as host

if TYPE_CHECKING:
    from .embedded import io
else:
    io = host.io

__all__ = ["host", "io"]
