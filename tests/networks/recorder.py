"""A recorder for the CPU in a CUDA graph's place.

It keeps what a CUDA graph keeps: the operations that reached the device, on which memory, with
every number of Python's as it was then. Nothing here runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from prior_art.networks import graphs


class Recorder(TorchDispatchMode):
    """Keeps operations as they run; :meth:`replay` runs them again, on the same tensors."""

    # What makes Python wait for the device, or reads the host's memory.
    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "_pin_memory", "is_pinned")

    # What changes the shape of a tensor in its place: nothing on the device.
    SHAPES = ("squeeze_", "unsqueeze_", "transpose_", "t_")

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        kept = tree_map(_alias, (func, args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if name not in self.SHAPES:
            self.tape.append((*kept, tree_map(_alias, result)))
        return result

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, recorded in self.tape:
            again = func(*args, **kwargs)
            if not isinstance(recorded, (tuple, list)):
                again, recorded = (again,), (recorded,)
            for new, old in zip(again, recorded, strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def _alias(value: object) -> object:
    """A tensor of the same memory, whatever is done to the shape of the one given."""
    if not isinstance(value, Tensor):
        return value
    return value.as_strided(value.size(), value.stride(), value.storage_offset())


def record_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Let every network be recorded; the list fills with what is."""
    made: list[Recorder] = []

    def record(
        work: Callable[[], tuple[Tensor, ...]], device: torch.device
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Callable[[], None]]:
        now = work()
        with Recorder() as recorder:
            again = work()
        made.append(recorder)
        return now, again, recorder.replay

    monkeypatch.setattr(graphs, "_places", lambda *_: 1)
    monkeypatch.setattr(graphs, "record", record)
    return made
