"""Resizing as the published pipelines do it: through Pillow, on 8 bits."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ...edges import EdgeError

LARGEST = 2**26
"""Pixels of a picture on the way to its crop: 224 beside 299,593."""


def longer_side(picture: Image.Image, size: int) -> int:
    """The longer side of a picture whose shorter one becomes ``size``; cut off, as torchvision's
    Resize does.

    Raises:
        EdgeError: it is so much longer that the picture would take all memory.
    """
    short, long = min(picture.size), max(picture.size)
    longer = int(size * long / short)
    if size * longer > LARGEST:
        raise EdgeError(
            f"'image' is {picture.width}x{picture.height}; resized until its shorter side is {size}"
            f" the other would be {longer}. Cut it, or put 'Upscale Image' before it"
        )
    return longer


def resize_and_crop(
    picture: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """A picture with its shorter side resized to ``size`` and the centre cut out: torchvision's
    Resize and CenterCrop, to the bit.

    Returns:
        ``[size, size, channels]``, 8 bits.

    Raises:
        EdgeError: a picture of such proportions that nothing could hold it.
    """
    width, height = picture.size
    if min(width, height) != size:
        longer = longer_side(picture, size)
        wide = (size, longer) if width <= height else (longer, size)
        picture = picture.resize(wide, resample)
    width, height = picture.size
    # Python's rounding to even, as torchvision's CenterCrop.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def resized(
    pixels: torch.Tensor,
    size: tuple[int, int],
    resample: Image.Resampling,
    reducing_gap: float | None = None,
) -> torch.Tensor:
    """Pictures ``[B, H, W, 3]`` or masks ``[B, H, W]`` in 0..1 as ones of this height and width.

    Args:
        reducing_gap: Pillow's: a picture that is this often larger, and twice, is first shrunk by
            whole numbers; ``None`` leaves that out.
    """
    eight = (pixels.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    rows = [
        np.asarray(Image.fromarray(row).resize(size[::-1], resample, reducing_gap=reducing_gap))
        for row in eight
    ]
    return torch.from_numpy(np.stack(rows)).float() / 255
