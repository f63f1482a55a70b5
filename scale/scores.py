"""CLIP-score and Frechet distance as sums over pictures, which parts of a table can be added to.

Sums are float64, and parts are added in the order of their rows, so that it makes no difference who
scored which.

Sources: Hessel et al. 2021 (CLIPScore); Heusel et al. 2017 (Frechet Inception distance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Sums over feature vectors.

    Attributes:
        count: how many; total: their sum ``[D]``; outer: the sum of their products ``[D, D]``.
    """

    count: int
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Those of features ``[N, D]``."""
        rows = np.asarray(features, dtype=np.float64)
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> np.ndarray:
        """``[D]``."""
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """``[D, D]``, unbiased."""
        centred = self.outer - self.count * np.outer(self.mean, self.mean)
        return centred / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared Frechet distance of the Gaussians with these moments.

    The trace of the root of ``A B`` is that of ``sqrt(A) B sqrt(A)``, which is symmetric, so that
    no eigenvalue is complex.

    Raises:
        ValueError: fewer than two vectors on a side.
    """
    if min(first.count, second.count) < 2:
        raise ValueError("a Frechet distance takes two pictures on each side at least")
    a, b = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ b @ root)
    away = first.mean - second.mean
    trace = np.trace(a) + np.trace(b) - 2 * np.sqrt(mixed.clip(min=0)).sum()
    return float(away @ away + trace)


@dataclass(frozen=True)
class Scores:
    """Sums over pictures and their captions.

    Attributes:
        moments: of the pictures' features, or ``None`` where nobody compares them.
        count: pictures with a caption.
        cosine: sum of the cosines between picture and caption; positive: without negative ones.
        right: pictures that obey their caption by the rules; colours: those whose colours do.
    """

    moments: Moments | None = None
    count: int = 0
    cosine: float = 0.0
    positive: float = 0.0
    right: int = 0
    colours: int = 0

    def __add__(self, other: Scores) -> Scores:
        both = [one for one in (self.moments, other.moments) if one is not None]
        return Scores(
            both[0] + both[1] if len(both) == 2 else next(iter(both), None),
            self.count + other.count,
            self.cosine + other.cosine,
            self.positive + other.positive,
            self.right + other.right,
            self.colours + other.colours,
        )
