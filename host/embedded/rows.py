"""What ComfyUI does to rows and sizes that do not fit: repeat or cut rows, resize pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...edges import EdgeError
from ..room import check_main_memory


def fitted(rows: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` rows of ``rows`` ``[B, ...]``: cut, or repeated in turn."""
    return torch.cat([rows] * -(-count // len(rows)))[:count] if len(rows) else rows


def resized(
    rows: torch.Tensor, height: int, width: int, method: str, crop: str = "disabled"
) -> torch.Tensor:
    """``[B, C, H, W]`` in another size.

    Args:
        method: "nearest-exact", "bilinear", "area", "bicubic" (none of which smooths where it
            shrinks), "lanczos" (by 8 bits), or "bislerp".
        crop: "center" cuts to the new proportions before; "disabled" squeezes.

    Raises:
        EdgeError: nothing is left to be resized, or there is no memory for so much.
    """
    count, channels = rows.shape[:2]
    check_main_memory(
        count * channels * height * width,
        f"{count} of {width}x{height}",
        "lower 'width', 'height' or 'scale_by'",
    )
    if crop == "center":
        high, wide = rows.shape[2:]
        old, new = wide / high, width / height
        left = round((wide - wide * (new / old)) / 2) if old > new else 0
        top = round((high - high * (old / new)) / 2) if old < new else 0
        rows = rows[:, :, top : high - top, left : wide - left]
        if 0 in rows.shape[2:]:
            raise EdgeError(
                f"'width' and 'height' are {width} and {height}: to crop {wide}x{high} to such"
                " proportions leaves nothing. Set 'crop' to disabled, or take other sizes"
            )
    if method == "lanczos":
        return _lanczos(rows, height, width)
    if method == "bislerp":
        return _bislerp(_bislerp(rows, width, 3), height, 2)
    return F.interpolate(rows, (height, width), mode=method)


def _lanczos(rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    made = []
    for row in rows.movedim(1, -1).cpu().numpy():
        levels = np.clip(255.0 * row, 0, 255).astype(np.uint8)
        picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
        small = picture.resize((width, height), resample=Image.Resampling.LANCZOS)
        made.append(np.asarray(small, dtype=np.float32).reshape(height, width, -1) / 255.0)
    return torch.from_numpy(np.stack(made)).movedim(-1, 1)


def _bislerp(rows: torch.Tensor, length: int, axis: int) -> torch.Tensor:
    """One axis resized along great circles: directions and lengths are interpolated apart."""
    own = rows.shape[axis]
    numbers = torch.arange(own, dtype=torch.float32)[None, None, None]
    after = (numbers + 1).clamp(max=own - 1)
    places, following = (
        F.interpolate(n, (1, length), mode="bilinear").flatten() for n in (numbers, after)
    )
    flat = rows.movedim(1, -1).movedim(axis - 1, 0)  # [own, ..., C]
    first, second = flat[places.long()], flat[following.long()]
    share = places.frac().reshape(-1, *[1] * (flat.ndim - 1))
    norms = [part.norm(dim=-1, keepdim=True) for part in (first, second)]
    units = [
        torch.where(norm == 0, 0, part / norm)
        for part, norm in zip((first, second), norms, strict=True)
    ]
    cosine = (units[0] * units[1]).sum(-1, keepdim=True)
    angle = torch.acos(cosine)
    mixed = (
        torch.sin((1 - share) * angle) * units[0] + torch.sin(share * angle) * units[1]
    ) / torch.sin(angle)
    mixed = mixed * (norms[0] * (1 - share) + norms[1] * share)
    mixed = torch.where(cosine > 1 - 1e-5, first, mixed)
    mixed = torch.where(cosine < 1e-5 - 1, first * (1 - share) + second * share, mixed)
    return mixed.movedim(0, axis - 1).movedim(-1, 1)


def composite(
    ground: torch.Tensor,
    patch: torch.Tensor,
    x: int,
    y: int,
    stretch: bool,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """``patch`` ``[B', C, h, w]`` pasted into a copy of ``ground`` ``[B, C, H, W]`` at column x and
    row y, as far as it lies inside.

    Args:
        stretch: make the patch as large as the ground first.
        mask: ``[B'', h', w']``, 1 where the patch covers the ground; ``None`` for everywhere.
    """
    if stretch:
        patch = F.interpolate(patch, ground.shape[2:], mode="bilinear")
    patch = fitted(patch, len(ground))
    share = torch.ones_like(patch)
    if mask is not None:
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        share = fitted(F.interpolate(mask, patch.shape[2:], mode="bilinear"), len(ground))
    high, wide = (
        max(0, side - start) for side, start in zip(ground.shape[2:], (y, x), strict=True)
    )
    share, patch = share[..., :high, :wide], patch[..., :high, :wide]
    out = ground.clone()
    place = (..., slice(y, y + patch.shape[2]), slice(x, x + patch.shape[3]))
    out[place] = patch * share + out[place] * (1 - share)
    return out


def tiled(
    row: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    tile: tuple[int, int],
    overlap: int,
    scale: float,
) -> torch.Tensor:
    """A network over ``row`` ``[1, C, H, W]`` in tiles, faded into each other where they overlap.

    Args:
        function: a tile to its result, ``scale`` times as large.
        tile: height and width; overlap: of neighbours, less than either.
    """
    sizes = row.shape[2:]
    if all(side <= part for side, part in zip(sizes, tile, strict=True)):
        return function(row)
    high, wide = (round(side * scale) for side in sizes)
    total, weight = 0, torch.zeros(1, 1, high, wide)
    starts = [
        range(0, side - overlap, part - overlap) if side > part else [0]
        for side, part in zip(sizes, tile, strict=True)
    ]
    for top, left in itertools.product(*starts):
        part = function(row[:, :, top : top + tile[0], left : left + tile[1]])
        share = torch.ones(1, 1, *part.shape[2:])
        for axis in (2, 3):
            _fade(share.movedim(axis, 0), round(overlap * scale))
        y, x = round(top * scale), round(left * scale)
        margin = (x, wide - x - part.shape[3], y, high - y - part.shape[2])
        # Negative margins cut off what lies beyond the edge.
        total = total + F.pad(part * share, margin)
        weight = weight + F.pad(share, margin)
    return total / weight


def _fade(share: torch.Tensor, length: int) -> None:
    """Fade the first axis in and out, in place, where it is longer than that."""
    if length >= len(share):
        return
    for step in range(length):
        share[step] *= (step + 1) / length
        share[len(share) - 1 - step] *= (step + 1) / length
