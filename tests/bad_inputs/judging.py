"""What came of a case, in one of six words."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from prior_art.edges import UserError, plain
from prior_art.headless.runner import NodeError

from . import values
from .cases import Case

RIGHT, CLEAR, UNCLEAR, SILENT = "right", "one clear error", "unclear", "silent"
HANG, MEMORY = "hang", "memory"
WORDS = (RIGHT, CLEAR, UNCLEAR, SILENT, HANG, MEMORY)
SECONDS, BYTES = 10, 2 * 10**9

LONGEST = 1500
_RAW = re.compile(r"<[\w.]+ object at 0x|Traceback|\[Errno|Error:|Exception")
_ADVICE = re.compile(
    r"; |\. [A-Z]|, (or|and|but|which|so) |: |the (small|larg)est is|does not|must be|but it|needs"
)


@dataclass(frozen=True)
class Verdict:
    """A word, and what was said."""

    word: str
    said: str = ""


def of_error(case: Case, error: BaseException) -> Verdict:
    """Of a case that was refused, or that failed on the way."""
    cause = error.__cause__ if isinstance(error, NodeError) else error
    said = str(error)
    if not isinstance(cause, (UserError, OSError)):
        return Verdict(UNCLEAR, f"raw {type(cause).__name__}: {said}")
    return of_text(case, said)


def of_text(case: Case, said: str) -> Verdict:
    """Of what a user reads."""
    flaws = []
    # What is allowed may leave another input too few rows, say.
    if case.bad and case.names and not any(name in said for name in case.names):
        flaws.append(f"names none of {', '.join(case.names)}")
    if plain(said) != said:
        flaws.append("holds what a terminal obeys")
    if len(said) > LONGEST:
        flaws.append(f"has {len(said)} characters")
    if _RAW.search(said):
        flaws.append("is a library's")
    if not _ADVICE.search(said) or len(said) < 25:
        flaws.append("says not what to do")
    return Verdict(UNCLEAR, f"{', '.join(flaws)}: {said}") if flaws else Verdict(CLEAR, said)


def of_run(case: Case, run: Any, opened: Collection[str]) -> Verdict:
    """Of a case that gave a result; ``opened`` are the files that were read."""
    used = case.touched in run.values or any(file.endswith(case.touched) for file in opened)
    if not used and case.kind != "structure":
        return Verdict(RIGHT, "not used")
    if run.left_out:
        return of_text(case, "; ".join(run.left_out.values()))
    if case.bad:
        return Verdict(SILENT, "taken")
    if not all(map(values.is_finite, run.values.values())):
        return Verdict(SILENT, "NaN")
    return Verdict(RIGHT)
