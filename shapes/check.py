"""Rules, not a network, that say what a 64x64 picture shows: colours, kind and size.

The border gives the background's colour; what differs from it is the shape. Its silhouette,
cut out and compared with each kind's ideal inside the same box, gives the kind. A picture that
is not one clean shape on one plain ground gets ``None`` where it fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .grammar import KINDS, SIZES, Scene, nearest_colour
from .pictures import CROSS_ARM, SIDE, SQUARE

_FARTHEST = 105.0  # RGB distance at which a colour no longer has a name
_BORDER = 2
_EVEN_BORDER = 0.9  # the part of the border that must bear the background's colour
_WHOLE = 0.9  # the part of the shape's pixels that must hang together
_STRAY = 0.08  # the part of all pixels that may be neither colour nor a mix of the two
# Overlap (intersection over union) with a kind's ideal, and how far ahead of the next kind.
_ALIKE, _AHEAD = 0.84, 0.06
_SMALLEST, _LARGEST = 10, 56  # sides of the shape's box, in pixels


@dataclass(frozen=True)
class Finding:
    """What the rules found; ``None`` where they found nothing they would name."""

    colour: str | None
    kind: str | None
    background: str | None
    size: str | None = None

    def colours_right(self, scene: Scene) -> bool:
        """Both colours are those of the scene."""
        return (self.colour, self.background) == (scene.colour, scene.background)

    def all_right(self, scene: Scene) -> bool:
        """Both colours and the kind are those of the scene."""
        return self.colours_right(scene) and self.kind == scene.kind


def _name(colour: np.ndarray) -> str | None:
    """The palette's nearest name of an RGB colour (0..255), or ``None`` when none is near."""
    name, distance = nearest_colour(colour.tolist())
    return name if distance <= _FARTHEST else None


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected piece of a boolean mask."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    best: list[tuple[int, int]] = []
    while left:
        piece = [left.pop()]
        for y, x in piece:  # the list grows while it is walked: a flood
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    piece.append(near)
        best = max(best, piece, key=len)
    out = np.zeros_like(mask)
    if best:
        out[tuple(np.array(best).T)] = True
    return out


def _ideal(kind: str, height: int, width: int) -> np.ndarray:
    """A kind's silhouette filling a box: bool ``[height, width]``."""
    y = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    x = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    if kind == "circle":
        return x * x + y * y <= 1
    if kind == "square":
        return np.ones((height, width), bool)
    if kind == "triangle":
        return np.abs(x) <= (y + 1) / 2
    return (np.abs(x) <= CROSS_ARM) | (np.abs(y) <= CROSS_ARM)


def check(picture: Image.Image | np.ndarray) -> Finding:
    """What a picture shows. Takes RGB 64x64: Pillow, uint8 ``[64, 64, 3]`` or float 0..1."""
    array = np.asarray(picture)
    if array.shape != (SIDE, SIDE, 3):
        raise ValueError(f"the checker reads {SIDE}x{SIDE} RGB, not an array of {array.shape}")
    rgb = array.astype(np.float32) * (1.0 if array.dtype == np.uint8 else 255.0)

    inner = np.zeros((SIDE, SIDE), bool)
    inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    border = rgb[~inner]
    ground = np.median(border, axis=0)
    even = np.linalg.norm(border - ground, axis=1) < _FARTHEST / 2
    background = _name(ground) if even.mean() >= _EVEN_BORDER else None

    # The shape's colour is the median of what lies farthest from the ground, so that the soft
    # edge has no say.
    away = np.linalg.norm(rgb - ground, axis=2)
    farthest = float(np.quantile(away, 0.98))
    if background is None or farthest < _FARTHEST / 2:
        return Finding(None, None, background)
    paint = np.median(rgb[away > 0.75 * farthest], axis=0)
    colour = _name(paint)
    if colour == background:
        colour = None

    # Every pixel should lie on the line from ground to paint.
    line = paint - ground
    along = ((rgb - ground) @ line) / float(line @ line)
    aside = np.linalg.norm(rgb - ground - np.clip(along, 0, 1)[..., None] * line, axis=2)
    if (aside > _FARTHEST / 2).mean() > _STRAY:
        return Finding(None, None, background)

    mask = along > 0.5
    piece = _largest_piece(mask)
    if piece.sum() < _WHOLE * mask.sum():
        return Finding(colour, None, background)
    rows, columns = np.nonzero(piece.any(1))[0], np.nonzero(piece.any(0))[0]
    box = piece[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    if not (min(box.shape) >= _SMALLEST and max(box.shape) <= _LARGEST):
        return Finding(colour, None, background)
    if not 0.72 <= height / width <= 1.39:
        return Finding(colour, None, background)

    alike = {}
    for kind in KINDS:
        ideal = _ideal(kind, height, width)
        alike[kind] = (box & ideal).sum() / (box | ideal).sum()
    second, best = sorted(alike.values())[-2:]
    clear = best >= _ALIKE and best - second >= _AHEAD
    found = max(alike, key=alike.__getitem__) if clear else None
    half = max(height, width) / 2 / (SQUARE if found == "square" else 1)
    size = min(SIZES, key=lambda name: abs(sum(SIZES[name]) / 2 - half))
    return Finding(colour, found, background, size)
