"""Noise: drawn on the CPU, one generator per image, in the published pipelines' order.

So every image of a batch can be made again alone, and no result depends on the batch size or
the device.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ...edges import EdgeError

# Numbers burnt at a time when a stream is wound forward: bounds the memory.
_BURN = 2**20
# Threads that draw for a GPU at most; each must find enough to do. Not measured.
_THREADS = 16


def generators(
    seed: int, count: int, offset: int = 0, between: Callable[[], None] | None = None
) -> list[torch.Generator]:
    """``count`` CPU generators, image i seeded ``seed + i``.

    Args:
        seed: 0 to 2**64 - 1; sums wrap around.
        count: images, at least 1.
        offset: numbers per image that earlier stages of the same chain drew. The streams are
            wound past them, so that stages with equal seeds continue one stream as the published
            pipeline does. Exact where every earlier draw was a multiple of 16 numbers, which is
            how PyTorch consumes its stream; all published shapes are.
        between: called at every million numbers that are passed over; may raise.

    Raises:
        EdgeError: no images, or a negative offset.
    """
    if count < 1:
        raise EdgeError(f"'count' is {count}; at least 1 image must be asked for")
    if offset < 0:
        raise EdgeError(f"'offset' is {offset}; it counts numbers and cannot be negative")
    streams = [torch.Generator().manual_seed((seed + i) % 2**64) for i in range(count)]
    for stream in streams:
        left = offset
        while left > 0:
            torch.randn(min(left, _BURN), generator=stream)
            left -= _BURN
            if between is not None:
                between()
    return streams


@dataclass
class Noise:
    """The noise of B images, drawn in the order in which a sampler asks for it.

    Attributes:
        generators: a CPU generator for each image.
        drawn: normal numbers per image so far. The next stage of a chain is told this offset.
    """

    generators: list[torch.Generator]
    drawn: int = 0

    @classmethod
    def seeded(
        cls, seed: int, count: int, offset: int = 0, between: Callable[[], None] | None = None
    ) -> Noise:
        """Of :func:`generators`."""
        return cls(generators(seed, count, offset, between))

    def __len__(self) -> int:
        """How many images."""
        return len(self.generators)

    def normal(self, shape: tuple[int, ...], device: torch.device | None = None) -> torch.Tensor:
        """Standard normal ``[B, *shape]``, fp32, row i from generator i.

        Drawn on the CPU; sent to a CUDA ``device`` through pinned memory, so that no step waits for
        the one before it, and pictures in the layout that its convolutions want.
        """
        noise = torch.stack([torch.randn(shape, generator=g) for g in self.generators])
        self.drawn += math.prod(shape)
        if device is None or device.type == "cpu":
            return noise
        if device.type in ("cuda", "meta") and len(shape) == 3:
            noise = noise.contiguous(memory_format=torch.channels_last)
        if device.type == "cuda":
            return noise.pin_memory().to(device, non_blocking=True)
        return noise.to(device)


class ExponentialNoise:
    """Exponential(1) noise ``[B, size]`` at each call, fp32, row i from stream i.

    The numbers that ``torch.multinomial`` divides by on a CPU, drawn as -log(1 - u) from uniform
    doubles, which every release of PyTorch draws alike (some draw ``exponential_`` itself with MKL,
    from another stream). Only u is drawn on the CPU, which is what takes long: 0.2 ms for a row of
    16384. For a CUDA device rows are drawn by several threads, and up to two calls ahead of it.
    """

    def __init__(self, streams: list[torch.Generator], size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._streams, self._device = streams, device
        shape = (len(streams), size)
        # What u is drawn into, and when it was last copied from there, if another device reads it.
        self._buffers = itertools.cycle(
            [
                (
                    torch.empty(shape, dtype=torch.float64, pin_memory=cuda),
                    torch.cuda.Event() if cuda else None,
                )
                for _ in range(2 if cuda else 1)
            ]
        )
        self._threads = min(len(streams), os.cpu_count() or 1, _THREADS) if cuda else 1
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None

    def __call__(self) -> torch.Tensor:
        """``[B, size]`` on the device."""
        uniform, copied = next(self._buffers)
        if copied is not None:
            copied.synchronize()
        rows = uniform.unbind()

        def draw(first: int) -> None:
            # A host's inference mode holds for its own thread only, and so for this buffer's.
            with torch.inference_mode():
                for row, stream in zip(
                    rows[first :: self._threads], self._streams[first :: self._threads], strict=True
                ):
                    row.uniform_(generator=stream)

        if self._pool is None:
            draw(0)
        else:
            list(self._pool.map(draw, range(self._threads)))
        noise = uniform.to(self._device, non_blocking=True)
        if copied is not None:
            copied.record(torch.cuda.current_stream(noise.device))
        return noise.neg().log1p_().neg_().float()
