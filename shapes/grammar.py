"""What the embedded family can be asked to paint: sizes, colours, kinds and backgrounds.

A prompt reads "a small red circle on a blue background". The size may be left out. Every
ordered pair of colours keeps one kind back (a quarter of all combinations): training never sees
these, so that a score on them says whether the networks compose or merely remember.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The corners of the RGB cube, drawn in a little: as far apart as eight colours can be, and where
# strong guidance saturates towards.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 32, 32),
    "green": (32, 200, 48),
    "blue": (32, 48, 225),
    "yellow": (235, 220, 32),
    "purple": (200, 32, 215),
    "cyan": (32, 210, 225),
    "white": (240, 240, 240),
    "black": (18, 18, 18),
}
KINDS: tuple[str, ...] = ("circle", "square", "triangle", "cross")
# Half the side of the box that holds the shape, in pixels of a 64 pixel picture.
SIZES: dict[str, tuple[float, float]] = {
    "small": (12.0, 13.5),
    "medium": (15.0, 17.0),
    "large": (21.0, 24.0),
}


@dataclass(frozen=True, order=True)
class Scene:
    """One thing to paint. ``size`` is ``None`` where the prompt leaves it open."""

    colour: str
    kind: str
    background: str
    size: str | None = None

    @property
    def combination(self) -> tuple[str, str, str]:
        """(colour, kind, background): what is held out of training."""
        return (self.colour, self.kind, self.background)

    @property
    def prompt(self) -> str:
        """The scene in words."""
        size = f"{self.size} " if self.size else ""
        return f"a {size}{self.colour} {self.kind} on a {self.background} background"


def nearest_colour(rgb: Sequence[float]) -> tuple[str, float]:
    """The palette's name nearest to an RGB colour (0..255), and how far away it is."""
    distances = {name: math.dist(rgb, known) for name, known in COLOURS.items()}
    best = min(distances, key=distances.__getitem__)
    return best, distances[best]


def parse(prompt: str) -> Scene:
    """The scene of a prompt that ``Scene.prompt`` could have made; ``ValueError`` for others."""
    words = prompt.lower().split()
    size = next((word for word in words if word in SIZES), None)
    colours = [word for word in words if word in COLOURS]
    kinds = [word for word in words if word in KINDS]
    if len(colours) != 2 or len(kinds) != 1:
        raise ValueError(f"not a prompt of the shapes family: {prompt!r}")
    return Scene(colours[0], kinds[0], colours[1], size)


def combinations() -> list[tuple[str, str, str]]:
    """All (colour, kind, background) whose two colours differ, in a fixed order."""
    return [
        (colour, kind, background)
        for colour in COLOURS
        for background in COLOURS
        if colour != background
        for kind in KINDS
    ]


def held_out() -> frozenset[tuple[str, str, str]]:
    """The combinations that training never sees: one kind of every ordered pair of colours."""
    kept = set()
    for colour in COLOURS:
        for background in COLOURS:
            if colour != background:
                # Seeding with a string is stable over runs and machines, unlike hash().
                kind = random.Random(f"held out: {colour} on {background}").choice(KINDS)
                kept.add((colour, kind, background))
    return frozenset(kept)


def _with_sizes(kept: Iterable[tuple[str, str, str]]) -> list[Scene]:
    """Every scene of some combinations: three sizes, and the size left open."""
    return [Scene(*combination, size) for combination in kept for size in (*SIZES, None)]


def training_scenes() -> list[Scene]:
    """Every scene that training may see, in a fixed order."""
    hidden = held_out()
    return _with_sizes(c for c in combinations() if c not in hidden)


def held_out_scenes() -> list[Scene]:
    """Every scene that training never sees, in a fixed order."""
    return _with_sizes(sorted(held_out()))


def draw_prompts(count: int, seed: int = 0) -> list[Scene]:
    """``count`` all-different scenes, a quarter of them (rounded) of held-out combinations.

    The held-out ones are mixed in among the others, so that every batch has some.
    """
    known, hidden = training_scenes(), held_out_scenes()
    quarter = round(count / 4)
    if quarter > len(hidden) or count - quarter > len(known):
        raise ValueError(f"only {len(known) + len(hidden)} different prompts exist")
    rng = random.Random(f"prompts: {seed}")
    drawn = rng.sample(hidden, quarter) + rng.sample(known, count - quarter)
    rng.shuffle(drawn)
    return drawn
