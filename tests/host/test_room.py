"""What there is no memory for is refused before it is taken, and nothing that would fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from prior_art.edges import EdgeError
from prior_art.host import room

TOLD = "MemTotal:  24000000 kB\nMemAvailable:  2000 kB\nHugePages_Total:  0\nSwapFree:  500 kB\n"


def test_what_is_refused_says_figures_and_cure() -> None:
    with pytest.raises(EdgeError) as error:
        room.refuse_larger(275 * 10**9, 22 * 10**9, "64 pictures of 4096x4096", "lower 'width'")
    assert str(error.value) == (
        "64 pictures of 4096x4096 would take at least 275.0 GB of memory, of which there are 22.0;"
        " lower 'width', or free what else takes memory"
    )


@pytest.mark.parametrize("there", [10**9, None])
def test_what_just_fits_and_what_nobody_can_tell_is_let_through(there: int | None) -> None:
    room.refuse_larger(10**9, there, "a picture", "lower 'width'")


@pytest.mark.parametrize(
    ("said", "there"), [(TOLD, 2500 * 1024), ("MemFree: 3 kB\n", None), ("nothing\n", None)]
)
def test_main_memory_is_what_is_available_and_what_can_be_swapped(
    monkeypatch, said: str, there: int | None
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: said)
    assert room.main_memory() == there


def test_a_system_that_tells_nothing_refuses_nothing(monkeypatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert room.main_memory() is None
