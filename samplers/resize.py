"""Resizing as the published pipelines do it: through Pillow, on 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_and_crop(
    picture: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """A picture with its shorter side resized to ``size`` and the centre cut out: torchvision's
    Resize and CenterCrop, to the bit.

    Returns:
        ``[size, size, channels]``, 8 bits.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short != size:
        longer = int(size * long / short)  # cut off, as torchvision's Resize does
        wide = (size, longer) if width <= height else (longer, size)
        picture = picture.resize(wide, resample)
    width, height = picture.size
    # Python's rounding to even, as torchvision's CenterCrop.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))
