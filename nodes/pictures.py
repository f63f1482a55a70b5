"""Pictures on the way in and out: the host's IMAGE, the networks' [-1, 1], previews."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..host import host
from ..loaders.files.cache import cached
from ..networks.latent_rgb import fit_rgb_factors
from ..samplers.parts.resize import resize_and_crop

if TYPE_CHECKING:
    from PIL.Image import Image


def to_image(pixels: torch.Tensor) -> torch.Tensor:
    """``[B, 3, H, W]`` in [-1, 1] -> IMAGE ``[B, H, W, 3]`` in [0, 1]."""
    return (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def from_image(image: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, 3 or 4]`` in [0, 1] -> ``[B, 3, H, W]`` in [-1, 1]."""
    return image[..., :3].permute(0, 3, 1, 2).float() * 2 - 1


def fit(image: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """IMAGE -> ``[B, size, size, 3]`` as published, with a warning where that changes anything.

    The shorter side is resized by Pillow's bilinear filter on 8 bits, the centre cut out.
    """
    height, width = image.shape[1:3]
    image = image[..., :3]
    if (height, width) == (size, size):
        return image
    from PIL.Image import Resampling, fromarray

    host.warn(
        f"'{name}' is {width}x{height}; its shorter side was resized to {size} and the centre"
        f" {size}x{size} cut out, as published"
    )
    eight = (image.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    rows = [resize_and_crop(fromarray(row), size, Resampling.BILINEAR) for row in eight]
    return torch.from_numpy(np.stack(rows)).float() / 255


def grid(image: torch.Tensor, columns: int) -> torch.Tensor:
    """IMAGE ``[B, H, W, 3]`` -> one picture ``[1, rows * H, columns * W, 3]``, row by row.

    Places that are left are black; fewer pictures than columns make fewer columns.
    """
    count, height, width, channels = image.shape
    columns = min(columns, count)
    rows = ceil(count / columns)
    empty = image.new_zeros(rows * columns - count, height, width, channels)
    cells = torch.cat([image, empty]).view(rows, columns, height, width, channels)
    return cells.transpose(1, 2).reshape(1, rows * height, columns * width, channels)


def thumbnails(image: torch.Tensor, columns: int, longest: int) -> torch.Tensor:
    """IMAGE ``[B, H, W, 3 or 4]`` -> one picture of them all as :func:`grid` lays them out, each
    scaled down until its longer side has at most ``longest`` pixels."""
    pixels = image[..., :3].permute(0, 3, 1, 2).float()
    height, width = pixels.shape[2:]
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if scale < 1:
        pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return grid(pixels.permute(0, 2, 3, 1), columns)


def preview(x0: torch.Tensor, count: int = 1) -> Image:
    """The first ``count`` pictures of a step's ``x0`` ``[B, 3, H, W]`` in [-1, 1], two in a row,
    for the progress bar."""
    from PIL.Image import fromarray

    picture = grid(to_image(x0[:count].float()), 2)[0]
    return fromarray((picture * 255).round().to(torch.uint8).cpu().numpy())


def rgb_factors(source: Path, vae: Callable[[], Any], spread: float = 1.0) -> torch.Tensor:
    """The ``latent_rgb_factors`` ``[5, 3]`` of a VAE of four channels, for previews: fitted once.

    Args:
        source: the folder or file of its weights.
        vae: the host's VAE, asked for only where the factors are not known yet.
        spread: the latents' standard deviation.
    """

    def fit() -> torch.Tensor:
        coder = vae()
        return fit_rgb_factors(lambda latents: from_image(coder.decode(latents)), spread=spread)

    return cached(host.cache_folder(), "latent_rgb_factors", source, fit)


def latent_preview(x0: torch.Tensor, factors: torch.Tensor | None) -> Image | None:
    """The first latent's colours, eight times as large, for the progress bar; ``None`` where the
    ``latent_rgb_factors`` (see ``networks.latent_rgb``) are not known."""
    if factors is None:
        return None
    factors = factors.to(x0)
    rgb = torch.einsum("bchw,cd->bdhw", x0[:1], factors[:-1]) + factors[-1][:, None, None]
    return preview(rgb.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3))
