"""Rows a few at a time, fewer where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Rows = TypeVar("Rows")


def in_chunks(
    work: Callable[[slice], Rows],
    count: int,
    chunk: int | None = None,
    generators: Sequence[torch.Generator] = (),
) -> list[Rows]:
    """``work`` on all rows, some at a time; where memory runs out, on half as many, once more.

    Args:
        work: called with the rows to do.
        count: of all rows.
        chunk: rows at once, all of them by default.
        generators: what each row draws from, if it does; wound back before rows are done again.

    Returns:
        What ``work`` returned, in order.

    Raises:
        torch.cuda.OutOfMemoryError: memory does not even suffice for one row.
    """
    size, start, parts = chunk or count, 0, []
    while start < count:
        rows = slice(start, min(start + size, count))
        states = [generator.get_state() for generator in generators[rows]]
        try:
            parts.append(work(rows))
        except torch.cuda.OutOfMemoryError:
            size = rows.stop - rows.start
            if size == 1:
                raise
            size //= 2
            for generator, state in zip(generators[rows], states, strict=True):
                generator.set_state(state)
            continue
        start = rows.stop
    return parts
