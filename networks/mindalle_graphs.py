"""minDALL-E's steps without Python between them: recorded as CUDA graphs, or compiled.

A step of the published size is some 600 small operations, and starting them one by one from Python
takes longer than a GPU needs to do them. A CUDA graph starts them all at once, on the same memory
each time, so what changes from token to token has to lie in tensors: :meth:`Cache.step`. A graph
looks at a fixed part of the cache; a longer part needs another graph.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..edges import EdgeError
from .leaf import is_bare
from .mindalle import ARTransformer, Cache, RunBlock, run_block

# A graph costs some 20 ms to record, looking at keys and values that do not count yet costs
# bandwidth: for so few rows one graph over the whole cache is cheaper, for more one for each
# bucket of positions. Computed from the published size and 1 to 4 TB/s, not measured.
_FEW_ROWS = 8
_BUCKET = 64

logger = logging.getLogger("prior_art")


class Steps:
    """One token after another of the candidates of one cache.

    On NVIDIA a graph is recorded for each part of the cache that is looked at, and replayed for
    each token. Where that cannot be done, every operation is started by itself, to the same result.
    """

    def __init__(self, network: ARTransformer, cache: Cache, *, compiled: bool = False) -> None:
        """Steps of the cache's candidates, their blocks by torch.compile where ``compiled``."""
        if compiled and not _all_bare(network):
            logger.warning("the host patches the transformer's weights; it runs uncompiled")
            compiled = False
        self._network, self._cache, self._compiled = network, cache, compiled
        self._run: RunBlock = compiled_block() if compiled else run_block
        self._recorded = can_record(network, cache.device)
        self._bucket = _BUCKET if cache.rows > _FEW_ROWS else None
        self._token = torch.zeros(cache.rows, 1, dtype=torch.long, device=cache.device)
        self._place = torch.zeros(1, dtype=torch.long, device=cache.device)
        size = (cache.rows, 1, network.config.width)
        self._out = torch.empty(size, dtype=cache.dtype, device=cache.device)
        self._reach = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, token: Tensor) -> Tensor:
        """Feed the next token ``[B, 1]`` of each row.

        Returns:
            ``[B, 1, W]``: predicts the token after it.

        Raises:
            EdgeError: the blocks cannot be compiled.
            torch.cuda.OutOfMemoryError: too many rows.
        """
        if not (self._recorded or self._compiled):
            return self._cache.extend(self._network, token)
        self._token.copy_(token)
        self._place.fill_(self._cache.images)
        reach = self._cache.reach(self._bucket)
        if reach != self._reach:
            self._reach, self._replay = reach, None
        if self._replay is not None:
            self._replay()
        elif not self._recorded:
            self._step()
        elif not self._record():
            return self(token)
        self._cache.advance()
        return self._out.clone()  # the next step writes over it

    def _step(self) -> None:
        try:
            states = self._cache.step(
                self._network, self._token, self._place, self._reach, self._run
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self._compiled:
                raise
            raise EdgeError(
                "the transformer could not be compiled: torch.compile needs a C++ compiler, on a"
                " GPU Triton too. Switch 'compiled' off; the pictures are the"
                f" same. PyTorch says: {error}"
            ) from error
        self._out.copy_(states)

    def _record(self) -> bool:
        """Do this step, and record it for those that follow. False: neither, and never again."""
        global _failed
        try:
            self._replay = record(self._step, self._cache.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._recorded, _failed = False, True
            logger.warning(
                "the transformer's steps could not be recorded as a CUDA graph (%s); until a"
                " restart they run one operation at a time, which is slower and gives the same"
                " pictures",
                error,
            )
        return self._recorded


# Some releases of PyTorch do not come out of a failed recording whole: it is not tried twice.
_failed = False


def can_record(network: ARTransformer, device: torch.device) -> bool:
    """Whether ``network``'s steps may become CUDA graphs: on NVIDIA, all its weights there.

    Weights that a host leaves elsewhere would be moved anew in each replay. Deterministic
    algorithms are not recorded: what they do instead of writing into the cache is slow.
    """
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and not _failed
        and not torch.are_deterministic_algorithms_enabled()
        and all(parameter.device.type == "cuda" for parameter in network.parameters())
        and _all_bare(network)
    )


def _all_bare(network: nn.Module) -> bool:
    """Whether :meth:`Cache.step`, which calls no layer, passes over nothing of a host's."""
    return all(map(is_bare, network.modules()))


def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Do ``work``, which loads what it needs, and record it as a CUDA graph; the result repeats it.

    Raises:
        RuntimeError: it does something that cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        main, side = torch.cuda.current_stream(), _side_stream(device)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                work()
                # What other threads of the host do to the device meanwhile is no part of it.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    work()
                except BaseException as error:
                    # Memory of a recording must be given back before it ends.
                    traceback.clear_frames(error.__traceback__)
                    raise
                finally:
                    graph.capture_end()
        finally:
            main.wait_stream(side)
    return graph.replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """What recordings are made on, always the same: libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)


@functools.cache
def compiled_block() -> RunBlock:
    """:func:`run_block` by torch.compile: what is compiled for one block serves all."""
    return torch.compile(run_block)
