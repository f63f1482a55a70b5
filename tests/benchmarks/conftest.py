"""The benchmarks are scripts beside each other, which import each other by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="package", autouse=True)
def scripts() -> Iterator[Path]:
    """The folder of the scripts, which can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield BENCHMARKS
        for path in BENCHMARKS.glob("*.py"):
            sys.modules.pop(path.stem, None)
