"""Who gets which row, and what a death costs: the team of workers on a Ray that is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from prior_art.edges import UserError
from prior_art.loaders.files.libraries import LibraryError
from prior_art.scale.cluster import TRIES, Lost, _Team, spread
from prior_art.scale.rows import Job
from prior_art.scale.worker import Result


class Death(Exception):
    """Ray's error of an actor that is gone."""


class Instant:
    """A Ray whose first future is always done."""

    exceptions = SimpleNamespace(RayError=Death)

    def wait(self, futures):
        return futures[:1], futures[1:]

    def get(self, future):
        return future()


class Actor:
    """One that dies of some rows, or at its start."""

    started = 0

    def __init__(self, poison=(), starts=True):
        self.poison, self.starts = poison, starts

    def remote(self):
        Actor.started += 1

        def ready():
            if not self.starts:
                raise Death("no module called prior_art")

        def run(job):
            def result():
                if job.row in self.poison:
                    raise Death("killed")
                return Result(job.row, {})

            return result

        return SimpleNamespace(
            __ray_ready__=SimpleNamespace(remote=lambda: ready),
            run=SimpleNamespace(remote=run),
        )


def results(actor, rows=5, workers=2):
    jobs = (Job(row, ("A.b=c",)) for row in range(rows))
    return list(_Team(Instant(), actor, ()).run(jobs, workers))


def test_each_row_is_given_once():
    assert sorted(result.row for _, result in results(Actor())) == [0, 1, 2, 3, 4]


def test_a_row_that_kills_its_workers_is_given_up_and_the_others_are_made():
    Actor.started = 0
    found = {job.row: result for job, result in results(Actor(poison={1}))}
    assert found.pop(1) == Lost(f"{TRIES} workers died of it (killed)")
    assert found == {row: Result(row, {}) for row in (0, 2, 3, 4)}
    assert Actor.started == 2 + TRIES


def test_workers_that_do_not_start_are_one_error():
    with pytest.raises(UserError, match=r"do not start \(no module called prior_art\)"):
        results(Actor(starts=False))


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LibraryError, match=r'pip install "\.\[scale\]".*--workers 1'):
        list(spread(iter(()), Result, (), workers=2))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_said_at_once(address):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=f"Ray does not answer at '{address}'.* --ray the address"):
        list(spread(iter(()), Result, (), address=address))
