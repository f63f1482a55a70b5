"""Noise: drawn on the CPU, one generator per image, in the published pipelines' order.

So every image of a batch can be made again alone, and no result depends on the batch size or
the device.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ...edges import EdgeError

# Numbers burnt at a time when a stream is wound forward: bounds the memory.
_BURN = 2**20
# Threads that draw for a GPU at most: more of them wait for Python longer than they draw.
_THREADS = 12
# What they draw at a time, calls and numbers at most, and how often ahead of need.
_TOGETHER, _NUMBERS = 4, 2**22
_AHEAD = 3


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
        noise = torch.empty((len(self), *shape))
        for row, stream in zip(noise, self.generators, strict=True):
            torch.randn(shape, generator=stream, out=row)
        self.drawn += math.prod(shape)
        if device is None or device.type not in ("cuda", "meta"):
            return noise if device is None else noise.to(device)
        cuda = device.type == "cuda"
        lies = torch.channels_last if len(shape) == 3 else torch.contiguous_format
        sent = torch.empty_like(noise, memory_format=lies, pin_memory=cuda).copy_(noise)
        return sent.to(device, non_blocking=cuda)


class ExponentialNoise:
    """Exponential(1) noise ``[B, size]`` at each call, fp32, row i from stream i.

    The numbers that ``torch.multinomial`` divides by on a CPU, drawn as -log(1 - u) from uniform
    doubles, which every release of PyTorch draws alike (some draw ``exponential_`` itself with MKL,
    from another stream). Only u is drawn on the CPU, which is what takes long: 0.2 ms for a row of
    16384. For a CUDA device threads draw ahead of need, some calls at a time, and what they have
    drawn is copied beside the device's other work. The streams end where so many calls leave them,
    or anywhere before, if it is closed early.
    """

    def __init__(
        self, streams: list[torch.Generator], size: int, device: torch.device, calls: int
    ) -> None:
        """For at most ``calls`` calls; to be closed, as a context is."""
        self._streams, self._device, self._left = streams, device, calls
        # Each with rows of its own, which it draws in order.
        count = _threads(device, len(streams))
        self._threads = [ThreadPoolExecutor(1) for _ in range(count)]
        together = max(1, min(_TOGETHER, calls, _NUMBERS // (len(streams) * size))) if count else 1
        self._drawn = deque[tuple[_Buffer, int, list[Future[None]]]]()
        self._ready = deque[torch.Tensor]()
        self._buffers = [
            _Buffer((len(streams), together, size), device) for _ in range(_AHEAD if count else 1)
        ]
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        for buffer in self._buffers if count else ():
            self._draw_ahead(buffer)

    def __enter__(self) -> ExponentialNoise:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing: no thread touches the streams any more."""
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)

    def __call__(self) -> torch.Tensor:
        """``[B, size]`` on the device."""
        if not self._ready:
            self._ready.extend(self._next())
        return self._ready.popleft()

    def _next(self) -> torch.Tensor:
        """Some calls' numbers ``[calls, B, size]``."""
        if not self._threads:
            (buffer,) = self._buffers
            self._draw(buffer, slice(None), 1)
            return _exponential(buffer.drawn.to(self._device))
        buffer, calls, drawing = self._drawn.popleft()
        for part in drawing:
            part.result()
        uniform = buffer.drawn if self._side is None else buffer.send(self._side)
        noise = _exponential(uniform[:, :calls])
        buffer.release()
        self._draw_ahead(buffer)
        return noise

    def _draw_ahead(self, buffer: _Buffer) -> None:
        calls = min(self._left, buffer.drawn.shape[1])
        if calls:
            self._left -= calls
            count = len(self._threads)
            drawing = [
                thread.submit(self._draw, buffer, slice(first, None, count), calls)
                for first, thread in enumerate(self._threads)
            ]
            self._drawn.append((buffer, calls, drawing))

    def _draw(self, buffer: _Buffer, rows: slice, calls: int) -> None:
        buffer.wait()
        # A host's inference mode holds for its own thread only, and so for this buffer's.
        with torch.inference_mode():
            for row, stream in zip(buffer.drawn[rows], self._streams[rows], strict=True):
                row[:calls].uniform_(generator=stream)


def _exponential(uniform: torch.Tensor) -> torch.Tensor:
    """-log(1 - u), in fp32, ``[calls, B, size]`` of ``[B, calls, size]``."""
    return uniform.neg().log1p_().neg_().float().movedim(1, 0).contiguous()


class _Buffer:
    """Room for the uniform doubles of some calls ``[B, calls, size]``, where they are drawn and, on
    CUDA, where they are read."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self.drawn = torch.empty(shape, dtype=torch.float64, pin_memory=self._cuda)
        if self._cuda:
            self._there = torch.empty_like(self.drawn, device=device)
            self._copied, self._read = torch.cuda.Event(), torch.cuda.Event()

    def wait(self) -> None:
        """Until what was drawn before has been copied."""
        if self._cuda:
            self._copied.synchronize()

    def send(self, side: torch.cuda.Stream) -> torch.Tensor:
        """What was drawn on the device, copied while it does other things."""
        with torch.cuda.stream(side):
            side.wait_event(self._read)
            self._there.copy_(self.drawn, non_blocking=True)
            self._copied.record(side)
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._there

    def release(self) -> None:
        """The device has been told all that it reads of this."""
        if self._cuda:
            self._read.record(torch.cuda.current_stream(self._device))


def _threads(device: torch.device, rows: int) -> int:
    """How many threads draw ahead; none for a CPU, which computes with its cores meanwhile."""
    return min(rows, os.cpu_count() or 1, _THREADS) if device.type == "cuda" else 0
