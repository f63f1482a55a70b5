"""Where work is done: in this process, or by workers on Ray, one a GPU. Whoever is idle gets the
next job, and a worker that died is replaced."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..edges import UserError, plain, reason_of
from ..host import host
from ..loaders.files.libraries import LibraryError
from .rows import scale_library

TRIES = 3
"""Workers that a job may cost before it is given up, and starts in a row that may fail."""

SECONDS_TO_ANSWER = 10
"""That a cluster has."""

STORE_BYTES = 2**29
"""Of Ray's shared memory: what travels are settings, results and sums, never pictures."""

Job = TypeVar("Job")


@dataclass(frozen=True)
class Lost:
    """What is there instead of a job's result: why it was given up."""

    reason: str


def spread(
    jobs: Iterator[Job],
    worker: type,
    arguments: tuple[Any, ...],
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[tuple[Job, Any]]:
    """Each job with what a worker's ``run`` gives for it, in the order in which they are done.

    A worker has one job at a time. Where it dies, another takes that job, and a new one its place.

    Args:
        jobs: taken as workers become idle; each can be hashed.
        worker: a class; arguments: what each worker is made of.
        workers: how many; ``None`` is one a GPU, else one. One without ``address`` is this process.
        address: of a Ray cluster; without it several workers are this machine's.

    Raises:
        UserError: no cluster there, workers do not start, or ``run`` raises one.
        LibraryError: Ray is asked for and not installed.
    """
    if address is None:
        workers = workers or max(1, torch.cuda.device_count())
    if workers == 1 and address is None:
        alone = worker(*arguments)
        yield from ((job, alone.run(job)) for job in jobs)
        return
    try:
        ray = scale_library("ray")
    except LibraryError as error:
        raise LibraryError(f"{error}; --workers 1 needs no Ray") from error
    _connect(ray, workers, address)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        environment = {"env_vars": _environment()}
        actor = ray.remote(**needs, max_restarts=0, runtime_env=environment)(worker)
        yield from _Team(ray, actor, arguments).run(jobs, workers or gpus or 1)
    finally:
        ray.shutdown()


def _connect(ray: Any, workers: int | None, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {"address": address}
    if address is None:
        cpus = max(workers or 1, os.cpu_count() or 1)
        own = {"address": "local", "num_cpus": cpus, "object_store_memory": STORE_BYTES}
        own["include_dashboard"] = False
    try:
        if address is not None:
            _check_reachable(address)
        ray.init(**own, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # its client raises many kinds
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        # It quotes a traceback, whose last line says what it is about.
        said = plain(str(reason).strip().rpartition("\n")[2])[:200]
        raise UserError(
            f"Ray does not answer at '{address or 'this machine'}' ({said}); start it"
            " with `ray start --head`, and give --ray the address that it shows"
        ) from error


def _check_reachable(address: str) -> None:
    """Knock first: Ray itself tries for minutes.

    Raises:
        OSError: nobody answers. ValueError: no port.
    """
    machine, colon, port = address.rpartition("/")[2].rpartition(":")
    if colon:
        socket.create_connection((machine, int(port)), SECONDS_TO_ANSWER).close()


def _environment() -> dict[str, str]:
    """What a worker has to know before it imports anything, wherever it starts."""
    models = os.pathsep.join(str(folder.resolve()) for folder in host.model_folders())
    return {"PRIOR_ART_HOST": "embedded", "PRIOR_ART_MODELS": models}


class _Team:
    """Actors that start, wait or work."""

    def __init__(self, ray: Any, actor: Any, arguments: tuple[Any, ...]) -> None:
        self._ray, self._actor, self._arguments = ray, actor, arguments
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Any]] = {}
        self._failed = 0

    def _start(self) -> None:
        actor = self._actor.remote(*self._arguments)
        self._starting[actor.__ray_ready__.remote()] = actor

    def run(self, jobs: Iterator[Job], workers: int) -> Iterator[tuple[Job, Any]]:
        again: list[Job] = []
        deaths: dict[Job, int] = {}
        for _ in range(workers):
            self._start()
        while True:
            while self._idle and (job := again.pop() if again else next(jobs, None)):
                actor = self._idle.pop()
                self._running[actor.run.remote(job)] = actor, job
            if self._idle and not self._running:
                return
            (ready,), _ = self._ray.wait([*self._running, *self._starting])
            if ready in self._starting:
                self._welcome(ready)
                continue
            actor, job = self._running.pop(ready)
            try:
                result = self._ray.get(ready)
            except UserError as error:  # the worker's own, in Ray's wrapping
                raise UserError(str(getattr(error, "cause", error))) from error
            except self._ray.exceptions.RayError as error:
                self._start()
                deaths[job] = deaths.get(job, 0) + 1
                if deaths[job] < TRIES:
                    again.append(job)
                else:
                    yield job, Lost(f"{TRIES} workers died of it ({reason_of(error)})")
            else:
                self._idle.append(actor)
                yield job, result

    def _welcome(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            self._failed += 1
            if self._failed >= TRIES:
                raise UserError(
                    f"workers do not start ({reason_of(error)}); each machine of the cluster needs"
                    " this pack and its requirements"
                ) from error
            self._start()
        else:
            self._failed = 0
            self._idle.append(actor)
