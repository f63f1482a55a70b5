"""A step of a sampler recorded as a CUDA graph: one launch in place of hundreds.

A step of a published size is 400 to 1,300 small operations, and starting them one by one from
Python takes longer than a GPU needs to do them. A CUDA graph starts them all at once, on the same
memory each time. So what stays the same in a run lies in tensors that stay
(:attr:`Recording.held`), and what changes from step to step is copied in. Both outlive the run: the
next one of the same shapes puts its own numbers there and records nothing.

Where nothing can be recorded, each operation is started by itself, to the same result.
"""

from __future__ import annotations

import functools
import gc
import logging
import traceback
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .leaf import is_bare

Tensors = tuple[Tensor, ...]

_KEPT = 4
"""Recordings of one network and key that are kept: of so many sizes of picture or batch."""

_GRAPHS = 16
"""Steps of one recording that are kept: minDALL-E has one for each temperature that was used."""

logger = logging.getLogger("prior_art")


@dataclass
class _Graph:
    """One recorded step: what is copied in, what it writes, and how it is started."""

    inputs: Tensors
    outputs: Tensors
    replay: Callable[[], None]


@dataclass
class _Kept:
    """What outlives a run of one network: the fixed tensors, and graphs that read them."""

    held: list[Tensor]
    places: int
    device: torch.device
    graphs: dict[Hashable, _Graph] = field(default_factory=dict)
    user: Callable[[], Recording | None] = lambda: None


_kept: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Hashable, ...], _Kept]] = (
    weakref.WeakKeyDictionary()
)

# Some releases of PyTorch do not come out of a failed recording whole: it is not tried twice.
_failed = False


class Recording:
    """One run's use of the tensors and graphs of a network; from :func:`recording`.

    Attributes:
        held: what is fixed in the run, where recorded steps read it.
        records: whether steps are recorded.
    """

    def __init__(self, kept: _Kept, records: bool) -> None:
        self.held, self.records = kept.held, records
        self._graphs, self._device = kept.graphs, kept.device

    def __call__(self, key: Hashable, work: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
        """``work(*inputs)``, recorded at its first call and replayed at others.

        Args:
            key: everything that ``work`` knows beside its inputs, :attr:`held` and the network's
                weights; what is equal in it and in the inputs' shapes is the same recording.
            work: tensors to new tensors, nothing else: no number of a tensor is looked at.

        Returns:
            What ``work`` returns; tensors of their own, which no later step writes over.

        Raises:
            torch.cuda.OutOfMemoryError: too many rows.
        """
        if not self.records or _failed:
            return work(*inputs)
        key = (key, *(_shape(given) for given in inputs))
        graph = self._graphs.get(key)
        if graph is None:
            return self._record(key, work, inputs)
        for place, given in zip(graph.inputs, inputs, strict=True):
            place.copy_(given, non_blocking=True)
        graph.replay()
        return tuple(made.clone() for made in graph.outputs)

    def _record(self, key: Hashable, work: Callable[..., Tensors], inputs: Tensors) -> Tensors:
        """Do this step, and record it for those that follow."""
        global _failed
        with torch.inference_mode(False):
            places = tuple(torch.empty_like(given) for given in inputs)
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        try:
            now, again, replay = record(lambda: work(*places), self._device)
        except _Unrecorded as error:
            self.records = False
            if not isinstance(error.__cause__, torch.cuda.OutOfMemoryError):
                _failed = True
                logger.warning(
                    "a sampler's steps could not be recorded as a CUDA graph (%s); until a restart"
                    " they run one operation at a time, which is slower and gives the same"
                    " pictures",
                    error.__cause__,
                )
            return error.made
        self._graphs[key] = _Graph(places, again, replay)
        for older in list(self._graphs)[:-_GRAPHS]:
            del self._graphs[older]
        return now


class _Unrecorded(Exception):
    """The step was done, but not recorded, for the reason that is this error's cause."""

    def __init__(self, made: Tensors) -> None:
        super().__init__()
        self.made = made


def recording(
    network: nn.Module, held: Sequence[Tensor], device: torch.device, key: Hashable = None
) -> Recording:
    """A recording of steps that read ``network``'s weights and ``held``.

    The network's last one of that key with tensors of these shapes, with these numbers in them, if
    nobody uses it any more; else a new one. Those of weights that were moved since are dropped.

    Args:
        held: what is fixed in the run.
        device: where steps run.
        key: tells recordings of one network apart.
    """
    places = _places(network, device)
    if not places:
        forget(network)
        return Recording(_Kept(list(held), places, device), records=False)
    shelf = _kept.setdefault(network, {})
    for name in [name for name, kept in shelf.items() if kept.places != places]:
        del shelf[name]
    name = (key, *map(_shape, held))
    kept = shelf.pop(name, None)
    if kept is None or kept.user() is not None:
        busy, kept = kept, _copied(held, places, device)
        if busy is not None:  # it stays where it is, and the new one is its user's alone
            shelf[name] = busy
            return Recording(kept, records=True)
    else:
        for place, given in zip(kept.held, held, strict=True):
            place.copy_(given)
    shelf[name] = kept  # the latest is last
    for older in [other for other in shelf if other[0] == key][:-_KEPT]:
        del shelf[older]
    mine = Recording(kept, records=True)
    kept.user = weakref.ref(mine)
    return mine


def prepared(network: nn.Module, work: Callable[..., Tensors], given: Sequence[Tensor]) -> Tensors:
    """``work(*given)``, what a network computes once a run, recorded as a step is.

    Args:
        work: as in :meth:`Recording.__call__`, always the same of a network; it gets ``given``, on
            the device where it runs, or copies of them.
    """
    run = recording(network, given, given[0].device, "prepared")
    return run(None, lambda: work(*run.held))


def _copied(held: Sequence[Tensor], places: int, device: torch.device) -> _Kept:
    # Not as a host's inference tensors, which no later run could write to outside of its mode.
    with torch.inference_mode(False):
        return _Kept([torch.empty_like(given).copy_(given) for given in held], places, device)


def forget(network: nn.Module) -> None:
    """Drop what is recorded of a network and of the networks in it, and give the memory back."""
    for owner in list(_kept):
        if owner is network or any(owner is module for module in network.modules()):
            del _kept[owner]


def by_step(predict: Any, key: Hashable, work: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """``step(index, *inputs)``: ``work(place, *inputs)`` at each step of a schedule, recorded
    where it can be.

    Args:
        predict: the network that ``work`` calls as ``predict(x, place)``. One with a ``recording``
            is told by a tensor where in the schedule it is, ``predict.at(index)``; any other by
            the index itself, and nothing is recorded.
        key, work: as in :meth:`Recording.__call__`.
    """
    recorded = getattr(predict, "recording", None)
    if recorded is None or not recorded.records:
        return work
    return lambda index, *inputs: recorded(key, work, predict.at(index), *inputs)


def can_record(network: nn.Module, device: torch.device) -> bool:
    """Whether steps of ``network`` may become CUDA graphs: on NVIDIA, all its weights there, and
    nothing of a host's hung on its layers.

    Weights that a host leaves elsewhere would be moved anew in each replay. Deterministic
    algorithms are not recorded: some of them look at numbers.
    """
    return bool(_places(network, device))


def _places(network: nn.Module, device: torch.device) -> int:
    """A number that changes when a weight is moved or exchanged; 0 where nothing is recorded."""
    if (
        device.type != "cuda"
        or torch.version.hip is not None
        or _failed
        or torch.are_deterministic_algorithms_enabled()
        or torch.compiler.is_compiling()
    ):
        return 0
    places = []
    for module in network.modules():
        weights = [*module._parameters.values(), *module._buffers.values()]
        # Most hold no weights, and need no closer look.
        if module._forward_hooks or module._forward_pre_hooks or (weights and not is_bare(module)):
            return 0
        for weight in weights:
            if weight is not None:
                if weight.device.type != device.type:
                    return 0
                places.append(weight.data_ptr())
    return hash(tuple(places)) or 1


def record(
    work: Callable[[], Tensors], device: torch.device
) -> tuple[Tensors, Tensors, Callable[[], None]]:
    """Do ``work``, which loads what it needs, and record it as a CUDA graph.

    Returns:
        What it made, what each replay makes, and the replay.

    Raises:
        _Unrecorded: it does something that cannot be recorded.
        torch.cuda.OutOfMemoryError: it does not even run.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        main, side = torch.cuda.current_stream(), _side_stream(device)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                now = work()
                # A recording has memory of its own: what the step has just used is free for it.
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                try:
                    again = _capture(graph, work, device)
                except RuntimeError as error:
                    raise _Unrecorded(now) from error
        finally:
            main.wait_stream(side)
    return now, again, graph.replay


def _capture(
    graph: torch.cuda.CUDAGraph, work: Callable[[], Tensors], device: torch.device
) -> Tensors:
    collecting = gc.isenabled()
    gc.disable()  # what it would free may not be freed now
    try:
        # Recordings share their memory: none is read after another has run. What other threads of
        # the host do to the device meanwhile is no part of it.
        pools = [other.pool() for at, other in _live.items() if at == device]
        graph.capture_begin(*pools[:1], capture_error_mode="thread_local")
        try:
            made = work()
        except BaseException as error:
            # Memory of a recording must be given back before it ends.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    _live[device] = graph
    return made


# The last graph of each device, while it lives: the memory of graphs that are all gone may not be
# recorded into again.
_live: weakref.WeakValueDictionary[torch.device, torch.cuda.CUDAGraph] = (
    weakref.WeakValueDictionary()
)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """What recordings are made on, always the same: libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)


def _shape(given: Tensor) -> tuple[Any, ...]:
    return (given.shape, given.stride(), given.dtype, given.device)
