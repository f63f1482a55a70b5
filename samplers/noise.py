"""Noise: drawn on the CPU, one generator per image, in the published pipelines' order.

So every image of a batch can be made again alone, and no result depends on the batch size or
the device.
"""

from __future__ import annotations

import torch

from ..edges import EdgeError

# Numbers burnt at a time when a stream is wound forward: bounds the memory.
_BURN = 2**20


def generators(seed: int, count: int, offset: int = 0) -> list[torch.Generator]:
    """``count`` CPU generators, image i seeded ``seed + i``.

    Args:
        seed: 0 to 2**64 - 1; sums wrap around.
        count: images, at least 1.
        offset: numbers per image that earlier stages of the same chain drew. The streams are
            wound past them, so that stages with equal seeds continue one stream as the published
            pipeline does. Exact where every earlier draw was a multiple of 16 numbers, which is
            how PyTorch consumes its stream; all published shapes are.

    Raises:
        EdgeError: no images, or a negative offset.
    """
    if count < 1:
        raise EdgeError(f"asked for {count} images; 'batch_size' must be at least 1")
    if offset < 0:
        raise EdgeError(f"'noise_offset' is {offset}; it counts numbers and cannot be negative")
    streams = [torch.Generator().manual_seed((seed + i) % 2**64) for i in range(count)]
    for stream in streams:
        left = offset
        while left > 0:
            torch.randn(min(left, _BURN), generator=stream)
            left -= _BURN
    return streams


def randn(
    shape: tuple[int, ...], streams: list[torch.Generator], device: torch.device | None = None
) -> torch.Tensor:
    """Standard normal ``[len(streams), *shape]``, fp32, row i from stream i.

    Drawn on the CPU; sent to a CUDA ``device`` through pinned memory, so that no step waits for
    the one before it.
    """
    noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
    if device is None or device.type == "cpu":
        return noise
    if device.type == "cuda":
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)
