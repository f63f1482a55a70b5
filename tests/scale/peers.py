"""The libraries that figures are compared with; a torchvision that fits torch is not needed."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

PARTS = ("torchvision", "torchvision.datasets", "torchvision.transforms")
PARTS += ("torchvision.transforms.functional", "torchvision.models")


class _StandIn(ModuleType):
    """A module in which every name is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = ModuleSpec(name, None), []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def peer(name: str) -> Any:
    """A module of torch-fidelity or torchmetrics, or skip the test."""
    try:
        importlib.import_module("torchvision")
    except Exception:
        pass
    else:
        return pytest.importorskip(name)
    before = {part: sys.modules.get(part) for part in PARTS}
    for part in PARTS:
        outer, _, inner = part.rpartition(".")
        sys.modules[part] = _StandIn(part)
        if outer:
            setattr(sys.modules[outer], inner, sys.modules[part])
    try:
        return pytest.importorskip(name)
    finally:
        for part, module in before.items():
            if module is None:
                del sys.modules[part]
            else:
                sys.modules[part] = module
        # transformers remembers what it believed to be installed.
        if known := sys.modules.get("transformers.utils.import_utils"):
            known.is_torchvision_available.cache_clear()
