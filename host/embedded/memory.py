"""The embedded host's memory management: on the GPU, where there is one, lies what a stage uses,
and what others used as long as there is room, so that the next row of a batch finds it there."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...edges import placed
from ...networks.graphs import forget
from ...networks.leaf import channels_last
from ..room import main_memory, refuse_larger


@dataclass
class Managed:
    """A network in the embedded host's care."""

    network: nn.Module


# A network whose owner is gone is not kept.
_on_device: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def manage(network: nn.Module) -> Managed:
    """Take a network into care."""
    return Managed(network)


SPARE = 3
"""One part in so many of the GPU stays free for what a stage computes beyond what it tells."""


def use(
    managed: Managed, activations: int = 0, beside: Sequence[Managed] = ()
) -> tuple[nn.Module, torch.device, torch.dtype]:
    """Put a network on the device, and those of other stages back where room is short: (network,
    device, dtype).

    ``beside`` are networks that the same stage uses too.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [one.network for one in (managed, *beside)]
    needed = activations * next(managed.network.parameters()).element_size()
    needed += sum(_weight_bytes(network) for network in set(wanted) - set(_on_device))
    others = set(_on_device) - set(wanted)
    for other in others if others and not _has_room(needed) else ():
        forget(other)
        other.to("cpu")
        _on_device.remove(other)
    for network in wanted if device.type != "cpu" else ():
        if network not in _on_device:
            channels_last(network.to(device))
            _on_device.add(network)
    return managed.network, device, next(managed.network.parameters()).dtype


def _weight_bytes(network: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in network.parameters())


def _has_room(needed: int) -> bool:
    """Whether the GPU holds so many bytes more. What torch has in reserve is not counted: some of
    it belongs to recordings."""
    free, total = torch.cuda.mem_get_info()
    return free >= needed + total // SPARE


def free_memory() -> int:
    """Bytes that are free on the device that computes."""
    if torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 4 * 2**30


def check_room(needed: int, what: str, cure: str) -> None:
    """Refuse what the device that computes could not hold even if it held nothing else.

    Raises:
        EdgeError: see :func:`~..room.refuse_larger`.
    """
    there = main_memory()
    if torch.cuda.is_available():
        # Windows lends a card main memory when its own is full.
        there = None if os.name == "nt" else torch.cuda.get_device_properties(0).total_memory
    refuse_larger(needed, there, what, cure)


def offload(value: Any) -> Any:
    """A node's output, a tensor or lists and dicts of them, in main memory, where what waits
    between nodes is kept."""
    return placed(value, "cpu")
