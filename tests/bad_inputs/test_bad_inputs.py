"""Bad inputs by the hundred: a result, or one clear error. ``python -m tests.bad_inputs`` runs
more, by other seeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prior_art.edges import UserError
from prior_art.headless.runner import NodeError, Run

from . import __main__ as command
from . import judging
from .__main__ import results
from .cases import Case

CASES, SEED = 1000, 1
CASE = Case("1/1", "widget", "KSampler.steps = 0", {}, ("'steps'",), True, "3")


@pytest.mark.slow
def test_no_input_is_unclear_or_silent_or_takes_all() -> None:
    found = list(results(SEED, 0, CASES))
    assert len(found) == CASES
    good = (judging.RIGHT, judging.CLEAR)
    assert not [line for line in found if line["word"] not in good]
    assert {line["word"] for line in found} == set(good)


@pytest.mark.parametrize("alone", [judging.RIGHT, judging.HANG])
def test_what_takes_long_is_run_again_alone_and_the_others_go_on(monkeypatch, alone: str) -> None:
    def worker(seed: int, first: int, count: int, host: object) -> Iterator[dict]:
        if (first, count) == (1, 1):
            yield {"name": "1/1", "word": alone}
            return
        for number in range(first, first + count):
            word = judging.HANG if number == 1 else judging.CLEAR
            yield {"name": f"1/{number}", "word": word}
            if word == judging.HANG:
                return  # it ended the process

    monkeypatch.setattr(command, "_worker", worker)
    found = [(line["name"], line["word"]) for line in results(1, 0, 4)]
    clear = judging.CLEAR
    assert found == [("1/0", clear), ("1/1", alone), ("1/2", clear), ("1/3", clear)]


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("node 3 'KSampler' (KSampler): 'steps' is 0; the smallest is 1", judging.CLEAR),
        ("node 3 'KSampler' (KSampler): 'cfg' is 0; the smallest is 1", judging.UNCLEAR),
        ("'steps': TypeError: expected str; see the documentation", judging.UNCLEAR),
        ("'steps' is \x1b[31m0; the smallest is 1 and the largest 100", judging.UNCLEAR),
        ("'steps' is wrong and that is all that is said", judging.UNCLEAR),
        ("'steps' is 0; the smallest is 1 " + "and so on " * 200, judging.UNCLEAR),
    ],
)
def test_an_error_is_clear_where_it_names_the_input_and_the_cure(said: str, word: str) -> None:
    assert judging.of_text(CASE, said).word == word


def test_what_nobody_foresaw_is_unclear_whatever_it_says() -> None:
    said = "'steps' is 0; the smallest is 1"
    for cause, word in ((UserError(said), judging.CLEAR), (ValueError(said), judging.UNCLEAR)):
        error = NodeError(said)
        error.__cause__ = cause
        assert judging.of_error(CASE, error).word == word


@pytest.mark.parametrize(
    ("values", "left_out", "word"),
    [
        ({"3": (1,)}, {}, judging.SILENT),
        ({}, {}, judging.RIGHT),
        ({"3": (1,)}, {"9": "node 3 (KSampler): 'steps' is 0; the smallest is 1"}, judging.CLEAR),
    ],
)
def test_a_result_of_what_is_bad_is_silent_if_it_was_used(values, left_out, word) -> None:
    assert judging.of_run(CASE, Run(values=values, left_out=left_out), set()).word == word
