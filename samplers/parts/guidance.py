"""Classifier-free guidance (Ho & Salimans 2022), and the checks that every sampler makes."""

from __future__ import annotations

import math

import torch

from ...edges import EdgeError, TextEncoding


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    """``u + s * (c - u)``; a scale of 1 returns the conditional prediction."""
    return unconditional + guidance_scale * (conditional - unconditional)


def is_guided(guidance_scale: float, negative: object | None) -> bool:
    """Whether an unconditional pass is needed: at scales above 1.

    Raises:
        EdgeError: a scale that is no finite number; no negative prompt where one is needed.
    """
    if not math.isfinite(guidance_scale):
        raise EdgeError(f"'guidance_scale' is {guidance_scale}; guidance needs a finite number")
    if guidance_scale > 1 and negative is None:
        raise EdgeError(
            f"'guidance_scale' is {guidance_scale}, which needs a negative prompt; encode an empty"
            " one, or set 'guidance_scale' to 1"
        )
    return guidance_scale > 1


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


def spread_text(text: TextEncoding, count: int, name: str) -> TextEncoding:
    """:func:`spread` for the rows of a prompt."""
    hidden, pooled, mask = (spread(t, count, name) for t in (text.hidden, text.pooled, text.mask))
    return TextEncoding(hidden, pooled, mask, text.space)


def refuse_nan(result: torch.Tensor, stage: str, dtype: torch.dtype) -> torch.Tensor:
    """A sampler's result, if it is one.

    Raises:
        EdgeError: it holds NaN or infinite numbers.
    """
    if not bool(torch.isfinite(result).all()):
        raise EdgeError(
            f"the {stage} computed NaN or infinite numbers in {str(dtype).removeprefix('torch.')};"
            " its network overflowed, or its weights or inputs are damaged. Load it as fp32 or"
            " bf16, or download it again"
        )
    return result
