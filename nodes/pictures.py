"""Pictures on the way in and out: the host's IMAGE, the networks' [-1, 1], previews."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..edges import EdgeError

if TYPE_CHECKING:
    from PIL.Image import Image


def check_image(image: torch.Tensor, name: str) -> None:
    """Refuse what is no IMAGE ``[B, H, W, 3 or 4]`` of finite numbers.

    Raises:
        EdgeError: another shape, no pictures, or NaN, naming the input.
    """
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or 0 in image.shape:
        raise EdgeError(
            f"'{name}' must be an IMAGE of one or more RGB pictures, but has the shape"
            f" {tuple(image.shape)}"
        )
    if not bool(torch.isfinite(image).all()):
        raise EdgeError(f"'{name}' holds NaN or infinite numbers; look at the node that made it")


def to_image(pixels: torch.Tensor) -> torch.Tensor:
    """``[B, 3, H, W]`` in [-1, 1] → IMAGE ``[B, H, W, 3]`` in [0, 1]."""
    return (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def from_image(image: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, 3 or 4]`` in [0, 1] → ``[B, 3, H, W]`` in [-1, 1]."""
    return image[..., :3].permute(0, 3, 1, 2).float() * 2 - 1


def preview(x0: torch.Tensor) -> Image:
    """The first picture of a step's ``x0`` ``[B, 3, H, W]`` in [-1, 1], for the progress bar."""
    from PIL.Image import fromarray

    picture = to_image(x0[:1].float())[0]
    return fromarray((picture * 255).round().to(torch.uint8).cpu().numpy())
