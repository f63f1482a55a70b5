"""Weights in: one file a system, what systems share (``unclip``, ``rerank``), and ``files/``."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from ..edges import SPACES
from .files.catalogue import SYSTEMS

NAMES = ("karlo", "mindalle", "kandinsky", "koala", "rerank", "unclip")
"""Every file here that has ``SYSTEMS``, in the order in which sources are listed."""

for _name in NAMES:
    for _system in import_module(f".{_name}", __name__).SYSTEMS:
        SYSTEMS[_system.name] = _system
        SPACES.update({space.name: space for space in _system.spaces})

for _name, _space in SPACES.items():
    if _known := [system.speaks[_name] for system in SYSTEMS.values() if _name in system.speaks]:
        SPACES[_name] = replace(_space, encoder=f"{_space.encoder} ({', '.join(_known)})")
