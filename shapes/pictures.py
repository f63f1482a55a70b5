"""The pictures of the data set: 64x64 RGB, drawn with Pillow, never twice the same.

Place, size and both colours jitter, so that the networks learn a distribution and not a table.
A picture is a silhouette (8 bit, antialiased) and two colours; training keeps a pool of
silhouettes and mixes fresh colours in, because drawing is the slow part.
"""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .grammar import COLOURS, KINDS, SIZES, Scene, held_out, nearest_colour

SIDE = 64
_OVERSAMPLE = 4
# Half the arm's width of a cross, and half the side of a square, as parts of the half box.
CROSS_ARM = 0.36
SQUARE = 0.92
_COLOUR_JITTER = 14
_CHANNELS, _APART = (10, 245), 100  # of colours off the palette
# How far the middle may wander, in pixels: large shapes must stay off the border.
_WANDER = {"small": 3.0, "medium": 2.5, "large": 2.0}


def silhouette(kind: str, half: float, x: float, y: float, side: int = SIDE) -> Image.Image:
    """The shape in white on black, mode "L", ``side`` x ``side``, antialiased.

    ``half`` is half the side of the box that holds the shape and (``x``, ``y``) its middle, all
    in pixels of the finished picture.
    """
    scale = _OVERSAMPLE
    big = Image.new("L", (side * scale, side * scale), 0)
    pen = ImageDraw.Draw(big)
    x, y, half = x * scale, y * scale, half * scale
    if kind == "circle":
        pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
    elif kind == "square":
        half *= SQUARE
        pen.rectangle((x - half, y - half, x + half, y + half), fill=255)
    elif kind == "triangle":
        low = y + 0.9 * half
        pen.polygon([(x, y - 0.9 * half), (x + half, low), (x - half, low)], fill=255)
    elif kind == "cross":
        arm = half * CROSS_ARM
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=255)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=255)
    else:
        raise ValueError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")
    return big.resize((side, side), Image.Resampling.BOX)


def jittered_silhouette(kind: str, size: str, rng: random.Random) -> Image.Image:
    """A silhouette of this kind and named size, at a place and of a size drawn from ``rng``."""
    half = rng.uniform(*SIZES[size])
    wander = _WANDER[size]
    x = SIDE / 2 + rng.uniform(-wander, wander)
    y = SIDE / 2 + rng.uniform(-wander, wander)
    return silhouette(kind, half, x, y)


def draw(scene: Scene, seed: int | str = 0) -> Image.Image:
    """The scene as a 64x64 RGB picture; equal seeds give equal pictures."""
    rng = random.Random(f"{scene}: {seed}")
    size = scene.size or rng.choice(tuple(SIZES))
    mask = jittered_silhouette(scene.kind, size, rng)
    colours = [
        tuple(
            min(255, max(0, channel + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER)))
            for channel in COLOURS[name]
        )
        for name in (scene.colour, scene.background)
    ]
    ground = Image.new("RGB", (SIDE, SIDE), colours[1])
    ground.paste(Image.new("RGB", (SIDE, SIDE), colours[0]), mask=mask)
    return ground


@lru_cache(maxsize=1)
def silhouette_pool(each: int = 1000, seed: int = 0) -> np.ndarray:
    """Silhouettes to train on: uint8 ``[kinds, sizes, each, 64, 64]``, 0..255."""
    pool = np.empty((len(KINDS), len(SIZES), each, SIDE, SIDE), np.uint8)
    rng = random.Random(f"pool: {seed}")
    for k, kind in enumerate(KINDS):
        for s, size in enumerate(SIZES):
            for i in range(each):
                pool[k, s, i] = np.asarray(jittered_silhouette(kind, size, rng))
    return pool


def training_batch(scenes: list[Scene], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture a scene from the pool: float32 ``[B, 3, 64, 64]`` in -1..1.

    Returned with its silhouette, float32 ``[B, 1, 64, 64]`` in 0..1.
    """
    pool = silhouette_pool()
    sizes = tuple(SIZES)
    masks = np.stack(
        [
            pool[
                KINDS.index(scene.kind),
                sizes.index(scene.size) if scene.size else rng.integers(len(sizes)),
                rng.integers(pool.shape[2]),
            ]
            for scene in scenes
        ]
    )
    masks = masks[:, None].astype(np.float32) / 255
    return coloured(scenes, masks, rng), masks


def coloured(
    scenes: list[Scene], masks: np.ndarray, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Silhouettes in their scenes' colours: jittered where ``rng`` is given, else the palette's.

    Args:
        masks: float32 ``[B, 1, 64, 64]`` in 0..1.

    Returns:
        float32 ``[B, 3, 64, 64]`` in -1..1.
    """
    both = np.array([[COLOURS[s.colour], COLOURS[s.background]] for s in scenes], np.float32)
    if rng is not None:
        both += rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER, both.shape).astype(np.float32)
    return _painted(both, masks)


def oddly_coloured(scenes: list[Scene], masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Silhouettes of these scenes' kinds in any two colours that are well apart.

    Colours whose nearest names would make a held-out combination are drawn again, so that training
    on these pictures sees none of them either.

    Args:
        masks: float32 ``[B, 1, 64, 64]`` in 0..1.

    Returns:
        float32 ``[B, 3, 64, 64]`` in -1..1.
    """
    hidden = held_out()
    both: list[tuple[np.ndarray, np.ndarray]] = []
    while len(both) < len(scenes):
        one, ground = rng.uniform(*_CHANNELS, (2, 3))
        nearest = [nearest_colour(rgb.tolist())[0] for rgb in (one, ground)]
        names = nearest[0], scenes[len(both)].kind, nearest[1]
        if np.linalg.norm(one - ground) >= _APART and names not in hidden:
            both.append((one, ground))
    return _painted(np.array(both, np.float32), masks)


def _painted(both: np.ndarray, masks: np.ndarray) -> np.ndarray:
    both = np.clip(both, 0, 255)[..., None, None] / 127.5 - 1
    return both[:, 1] + (both[:, 0] - both[:, 1]) * masks
