"""Arithmetic of image embeddings: mixtures, walks from one to another, differences of texts.

Source: unCLIP (Ramesh et al. 2022, sections 3.2 and 3.3: interpolations and text diffs); spherical
interpolation (Shoemake 1985), of directions, with lengths mixed linearly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..edges import EdgeError

MODES = (
    "weighted sum",
    "average",
    "average, length kept",
    "add",
    "subtract",
    "slerp",
)
_PARALLEL, _OPPOSITE = 1 - 1e-6, -1 + 1e-6


def mix(a: Tensor, b: Tensor, weight_a: float, weight_b: float, mode: str) -> Tensor:
    """Two embeddings ``[R, D]`` as one; a single row serves all rows of the other.

    Args:
        mode: "weighted sum" ``wa*a + wb*b``; "average" divides that by ``wa + wb``; "average,
            length kept" gives it the average of their lengths; "add" and "subtract" are ``a +-
            wb*b``; "slerp" goes from a to b on the sphere, as far as ``wb / (wa + wb)``.

    Raises:
        EdgeError: another mode, batches of different length, weights that add up to nothing where
            they divide, opposite directions in "slerp", a mixture too large for fp32.
    """
    if mode not in MODES:
        raise EdgeError(f"'mode' is '{mode}'; choose {', '.join(MODES)}")
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise EdgeError(
            f"'a' has {len(a)} rows and 'b' {len(b)}; make them equal, or one of them a single row"
        )
    a, b = a.float(), b.float().to(a.device)
    if mode in ("add", "subtract"):
        return _finite(a + (weight_b if mode == "add" else -weight_b) * b)
    if mode == "weighted sum":
        return _finite(weight_a * a + weight_b * b)
    total = weight_a + weight_b
    if total == 0:
        raise EdgeError(
            f"'weight_a' and 'weight_b' are {weight_a} and {weight_b}, which add up to nothing;"
            f" '{mode}' divides by their sum"
        )
    share = weight_b / total
    if mode == "slerp":
        return slerp(a, b, share)
    average = (1 - share) * a + share * b
    if mode == "average":
        return _finite(average)
    length = (1 - share) * _length(a) + share * _length(b)
    return _finite(average / _length(average).clamp(min=1e-12) * length)


def _length(x: Tensor) -> Tensor:
    """Of each row ``[R, 1]``. Squares of large numbers need more than fp32."""
    return _finite(x.double().norm(dim=-1, keepdim=True).float())


def _finite(result: Tensor) -> Tensor:
    """A result, if it is one.

    Raises:
        EdgeError: it overflowed.
    """
    if not bool(torch.isfinite(result).all()):
        raise EdgeError(
            "the image embeddings are too large for this: the result is infinite. Published"
            " embeddings are of length 10 to 60; look at what made them, and take smaller numbers"
            " where there are weights"
        )
    return result


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """From ``a`` (0) to ``b`` (1) ``[R, D]`` on the sphere, the length changing linearly.

    Raises:
        EdgeError: opposite directions, between which no way is shorter than another.
    """
    lengths = _length(a), _length(b)
    first, second = (x / n.clamp(min=1e-12) for x, n in zip((a, b), lengths, strict=True))
    cosine = (first * second).sum(dim=-1, keepdim=True)
    if bool((cosine < _OPPOSITE).any()):
        raise EdgeError(
            "the two embeddings point in opposite directions, between which 'slerp' knows no way;"
            " mix them by 'average', or put a third between them"
        )
    angle = cosine.clamp(-1, _PARALLEL).acos()
    weights = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    # Almost the same direction: the chord is the arc.
    near = cosine > _PARALLEL
    weights = (
        torch.where(near, torch.as_tensor(1 - share).to(a), weights[0]),
        torch.where(near, torch.as_tensor(share).to(a), weights[1]),
    )
    length = (1 - share) * lengths[0] + share * lengths[1]
    return _finite((weights[0] * first + weights[1] * second) * length)


def interpolate(points: Tensor, count: int, mode: str) -> Tensor:
    """``count`` embeddings ``[count, D]`` on the way through ``points`` ``[P, D]``, evenly spaced;
    both ends, and points that are met, exactly.

    Args:
        mode: "lerp" or "slerp".

    Raises:
        EdgeError: fewer points than 2, fewer embeddings than 2, opposite directions.
    """
    if len(points) < 2:
        raise EdgeError(f"a walk needs two embeddings or more, but got {len(points)}")
    if count < 2:
        raise EdgeError(f"'count' is {count}; a walk has two ends, so ask for two or more")
    points = points.float()
    rows = []
    for i in range(count):
        place, part = divmod(i * (len(points) - 1), count - 1)
        if part == 0:
            rows.append(points[place])
            continue
        share, (a, b) = part / (count - 1), points[place : place + 2]
        rows.append(slerp(a, b, share) if mode == "slerp" else (1 - share) * a + share * b)
    return _finite(torch.stack(rows))


def on_pad(corners: Sequence[Tensor | None], x: float, y: float, mode: str) -> Tensor:
    """The embeddings ``[R, D]`` at a point of a square that has one in each corner: between the
    ends of the upper and of the lower edge, then between what was found there.

    Args:
        corners: top left, top right, bottom left, bottom right. An edge with one of them is that
            one everywhere; without a lower edge the square is its upper one.
        x: 0 (left) to 1 (right); y: 0 (top) to 1 (bottom).
        mode: of :func:`mix`, with weights that add up to 1: "weighted sum" and "average" are the
            bilinear mixture, "slerp" the spherical one.

    Raises:
        EdgeError: a mode that leaves the first whole, and what :func:`mix` refuses.
    """
    if mode in ("add", "subtract"):
        raise EdgeError(
            f"'mode' is '{mode}', which leaves the first embedding whole, but on a pad all share"
            " one whole; choose weighted sum, average or slerp"
        )

    def between(a: Tensor | None, b: Tensor | None, share: float) -> Tensor | None:
        if a is None or b is None:
            return b if a is None else a
        return mix(a, b, 1 - share, share, mode)

    a, b, c, d = corners
    found = between(between(a, b, x), between(c, d, x), y)
    if found is None:
        raise EdgeError("a pad needs an embedding in one corner at least")
    return found


def along(path: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """``count`` points (x, y) on the line through ``path``, evenly spaced by its length, both ends
    among them.

    Raises:
        EdgeError: a line without length.
    """
    points = np.asarray(path, dtype=np.float64)
    reached = np.append(0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum())
    if reached[-1] == 0:
        raise EdgeError("'path' stays where it is; draw it from one point to another")
    at = np.linspace(0, reached[-1], count)
    return list(zip(*(np.interp(at, reached, points[:, i]).tolist() for i in (0, 1)), strict=True))


def move_by_texts(embeds: Tensor, text: Tensor, from_text: Tensor, strength: float) -> Tensor:
    """Image embeddings ``[R, D]`` moved along ``text - from_text`` ``[1 or R, D]``, by ``strength``
    times their own length.

    Raises:
        EdgeError: texts that do not differ.
    """
    difference = (text.float() - from_text.float()).to(embeds.device)
    length = _length(difference)
    if bool((length == 0).any()):
        raise EdgeError("'text' and 'from_text' are the same, so there is no way between them")
    embeds = embeds.float()
    return _finite(embeds + strength * _length(embeds) * difference / length)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of ``a`` ``[N, D]`` with each of ``b`` ``[M, D]``: ``[N, M]``."""
    a, b = (x.float() / _length(x).clamp(min=1e-12) for x in (a, b))
    return (a @ b.T.to(a.device)).clamp(-1, 1)
