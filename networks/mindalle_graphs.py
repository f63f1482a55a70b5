"""minDALL-E's steps without Python between them: recorded as CUDA graphs, or compiled.

What changes from token to token has to lie in tensors: :meth:`Cache.step`. Choosing a token is part
of the step that feeds it, so that a token is one replay. With the kernels of :mod:`.few_rows` one
recording serves every token; plain operations look at a fixed part of the cache, and a longer part
needs another recording.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from ..edges import EdgeError
from .few_rows import ROWS, fits, linear
from .graphs import forget, recording
from .leaf import is_bare
from .mindalle import ARTransformer, Cache, Prefix, RunBlock, run_block, run_rows

# A graph costs some 20 ms to record, looking at keys and values that do not count yet costs
# bandwidth: for so few rows one graph over the whole cache is cheaper, for more one for each
# bucket of positions. Computed from the published size and 1 to 4 TB/s, not measured.
_FEW_ROWS = 8
_BUCKET = 64

logger = logging.getLogger("prior_art")

Choose = Callable[..., tuple[Tensor, ...]]


class Steps:
    """One token after another of candidates that continue one prefix.

    On NVIDIA a step is recorded and replayed for each token. Where that cannot be done, every
    operation is started by itself, to the same result.

    Attributes:
        cache: of the candidates.
        fused: whether the network's layers are read by kernels, and only there.
    """

    def __init__(
        self,
        network: ARTransformer,
        prefix: Prefix,
        rows: int,
        *,
        compiled: bool = False,
    ) -> None:
        """Steps of ``rows`` candidates, their blocks by torch.compile where ``compiled``."""
        if compiled and not _all_bare(network):
            logger.warning("the host patches the transformer's weights; it runs uncompiled")
            compiled = False
        size = network, prefix, rows, network.config.image_tokens - prefix.images
        self._recording = recording(network, Cache.holds(*size), prefix.hidden.device)
        self.cache = cache = Cache(*size, self._recording.held)
        self._network, self._compiled = network, compiled
        layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.LayerNorm))]
        there = self._recording.records or cache.device.type == "meta"
        self.fused = there and not compiled and fits(layers, cache.device, cache.dtype)
        self._run: RunBlock = run_rows if self.fused else run_block
        if compiled:
            self._run = compiled_block()
        self._places = torch.arange(network.config.image_tokens, device=cache.device)
        self._bucket = None if self.fused or rows <= _FEW_ROWS else _BUCKET

    def logits(self, hidden: Tensor) -> Tensor:
        """``[B, image_vocab]`` of what the token after each ``hidden`` ``[B, W]`` may be."""
        if self.fused:
            return linear(self._network.image_head.weight, hidden)
        return self._network.logits(hidden)

    def feed(self, token: Tensor) -> Tensor:
        """Feed the next token ``[B]`` of each row.

        Returns:
            ``[B, W]``: predicts the token after it.

        Raises:
            EdgeError: the blocks cannot be compiled.
            torch.cuda.OutOfMemoryError: too many rows.
        """
        return self.choose_and_feed(None, lambda token: (token,), token)[1]

    def choose_and_feed(self, key: Hashable, choose: Choose, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Choose the next token of each row and feed it.

        Args:
            key: everything that ``choose`` knows beside its inputs and the network.
            choose: makes tokens ``[B]`` of ``inputs``, and what else it wants to give back.

        Returns:
            The tokens ``[B]``; ``[B, W]``, which predicts the tokens after them; what else
            ``choose`` gave.

        Raises:
            As :meth:`feed`.
        """
        cache = self.cache
        if not (self._recording.records or self._compiled or self.fused):
            token, *rest = choose(*inputs)
            return token, cache.extend(self._network, token[:, None])[:, -1], *rest
        reach = cache.reach(self._bucket)

        def work(place: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            token, *rest = choose(*inputs)
            return token, self._step(token, place, reach), *rest

        place = self._places[cache.images : cache.images + 1]
        made = self._recording((key, reach, self._run), work, place, *inputs)
        cache.advance()
        return made

    def _step(self, token: Tensor, place: Tensor, reach: int) -> Tensor:
        try:
            states = self.cache.step(self._network, token[:, None], place, reach, self._run)
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
        return states[:, 0]


def release(network: ARTransformer, prefix: Prefix, rows: int) -> None:
    """Drop the recordings of ``rows`` candidates of a prefix, unless they are worth their memory.

    Kept are those of few candidates of nothing but a prompt: what the next run is likely to want.
    Keys and values of 96 are 6 GB.
    """
    if rows > ROWS or prefix.images:
        forget(network)


def _all_bare(network: nn.Module) -> bool:
    """Whether :meth:`Cache.step`, which calls no layer, passes over nothing of a host's."""
    return all(map(is_bare, network.modules()))


@functools.cache
def compiled_block() -> RunBlock:
    """:func:`run_block` by torch.compile: what is compiled for one block serves all."""
    return torch.compile(run_block)
