"""Classifier-free guidance (Ho & Salimans 2022), and how rows of a batch meet."""

from __future__ import annotations

import torch

from ..edges import EdgeError


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    """``u + s * (c - u)``; a scale of 1 returns the conditional prediction."""
    return unconditional + guidance_scale * (conditional - unconditional)


def spread(rows: torch.Tensor, count: int, name: str) -> torch.Tensor:
    """Repeat ``rows`` ``[R, ...]`` to ``[count, ...]``, each row's copies side by side.

    Raises:
        EdgeError: ``count`` is no multiple of R.
    """
    if len(rows) == 0 or count % len(rows):
        raise EdgeError(
            f"'{name}' has {len(rows)} rows, which do not divide into {count} images; use one row,"
            " or as many as there are images"
        )
    return rows if len(rows) == count else rows.repeat_interleave(count // len(rows), dim=0)
