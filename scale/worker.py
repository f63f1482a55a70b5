"""One row's pictures: a headless runner whose models stay loaded from row to row."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..edges import UserError, plain
from ..headless.checking import check, is_link
from ..headless.runner import Run, Runner, node_classes
from ..host.embedded.door import session
from ..loaders.files.safe import digest_of
from .rows import Job, apply
from .together import SAVE, SEEDS, Apart, merged

PICTURES = "pictures"
SCRATCH = ".work"
IN_A_FOLDER = 1000
"""Rows whose pictures share a folder."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RENEWED = 8
"""Failures in a row after which a worker forgets what they left in its cache."""


@dataclass(frozen=True)
class Result:
    """What became of a row.

    Attributes:
        row: its number; inputs: its values by ``NODE.INPUT``, as text.
        seed: of the first node that has one.
        files: path below the batch's folder and sha256 of each file, in the workflow's order.
        seconds: wall time by the title of the stage.
        worker: who ran it; warnings: what its nodes said.
        error: why it has no files; stops: it is not the row's fault, and no other would do better.
    """

    row: int
    inputs: dict[str, str]
    seed: int | None = None
    files: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    worker: str = ""
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    stops: bool = False


class Worker:
    """Runs rows of one workflow, one after the other, and puts their files into place.

    On a CPU it computes in one thread: sums in another order would make other pictures.

    Attributes:
        prompt: the workflow in API format; out: the batch's folder.
        name: the machine and the process, for the manifest.
    """

    def __init__(self, prompt: Mapping[str, Any], out: Path, pictures: Path) -> None:
        self.prompt, self.out = prompt, out
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._pictures = pictures
        self._scratch = out / SCRATCH / uuid.uuid4().hex
        self._failed = 0
        self._nodes = node_classes()
        self._renew()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)

    def _renew(self) -> None:
        self._runner = Runner(self._nodes, self._scratch, self._pictures, saves_again=True)

    def run(self, jobs: tuple[Job, ...]) -> list[Result]:
        """Each row's result; what goes wrong is in it. The files have their names when it returns.

        Several rows run together where they can, else one by one.
        """
        if len(jobs) == 1:
            return [self._alone(jobs[0])]
        try:
            with _listening() as warnings:
                return self._together(jobs, warnings)
        except Exception as error:  # each one says for itself what is wrong with it
            why = f"ran alone: {plain(str(error) or type(error).__name__)}"
        results = [self._alone(job) for job in jobs]
        for result in results:
            result.warnings.append(why)
        return results

    def _alone(self, job: Job) -> Result:
        with _listening() as warnings:
            try:
                self._empty()
                prompt, _ = apply(self.prompt, job.settings)
                run = self._runner.run(prompt)
                files = self._placed(job.row, run.pictures)
                if not files:
                    raise UserError("the workflow saved no file; put a Save Image into it")
            except Exception as error:
                return self._failure(job, error, warnings)
        self._failed = 0
        seconds, seed = _by_stage(prompt, run), seed_of(prompt)
        return Result(job.row, inputs_of(job), seed, files, seconds, self.name, warnings)

    def _failure(self, job: Job, error: Exception, warnings: list[str]) -> Result:
        self._failed += 1
        if self._failed % _RENEWED == 0:
            self._renew()
        return Result(
            job.row,
            inputs_of(job),
            worker=self.name,
            warnings=warnings,
            error=plain(str(error) or type(error).__name__),
            stops=self._is_ours(error),
        )

    def _together(self, jobs: tuple[Job, ...], warnings: list[str]) -> list[Result]:
        prompts = [apply(self.prompt, job.settings)[0] for job in jobs]
        one = merged(prompts, self._nodes)
        run = self._runner.run(one.prompt)
        seconds = {k: v / len(jobs) for k, v in _by_stage(one.prompt, run).items()}
        results = []
        for place, (job, prompt) in enumerate(zip(jobs, prompts, strict=True)):
            self._empty()
            # As if this row alone had been run: its pictures carry its prompt.
            check(prompt, self._nodes)
            session.prompt = prompt
            pictures: list[Path] = []
            for key, (source, slot) in one.saves.items():
                images = run.values[source][slot]
                if len(images) != len(jobs):
                    raise Apart(f"{len(images)} pictures of {len(jobs)} rows")
                inputs = {**prompt[key]["inputs"], "images": images[place : place + 1]}
                pictures += self._nodes[SAVE].execute(**inputs).ui["images"]
            files, seed = self._placed(job.row, pictures), seed_of(prompt)
            results.append(
                Result(job.row, inputs_of(job), seed, files, seconds, self.name, warnings)
            )
        return results

    def _empty(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _placed(self, row: int, pictures: list[Path]) -> list[dict[str, str]]:
        """Move a row's files out of the scratch folder: pictures first, as they were saved."""
        every = sorted(path for path in self._scratch.rglob("*") if path.is_file())
        order = {path.resolve(): place for place, path in enumerate(pictures)}
        every.sort(key=lambda path: order.get(path.resolve(), len(order)))
        files = []
        for place, path in enumerate(every):
            name = f"{row:08}-{place}{path.suffix}"
            target = Path(PICTURES) / f"{row // IN_A_FOLDER:05}" / name
            (self.out / target).parent.mkdir(parents=True, exist_ok=True)
            digest = digest_of(path)
            path.replace(self.out / target)
            files.append({"path": target.as_posix(), "sha256": digest})
        return files

    def _is_ours(self, error: BaseException | None) -> bool:
        """Whether the batch's own folder is full or cannot be written."""
        while error is not None:
            if isinstance(error, OSError):
                below = Path(str(error.filename or "")).is_relative_to(self.out)
                if error.errno in _FULL or below:
                    return True
            error = error.__cause__
        return False


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What nodes say meanwhile."""
    said: list[str] = []
    before = session.on_warning
    session.on_warning = said.append
    try:
        yield said
    finally:
        session.on_warning = before


def inputs_of(job: Job) -> dict[str, str]:
    """A row's values by ``NODE.INPUT``."""
    return {target: value for target, _, value in (one.partition("=") for one in job.settings)}


def seed_of(prompt: Mapping[str, Any]) -> int | None:
    """The seed of the first node that has one, wired or not."""
    for node in prompt.values():
        for name in SEEDS:
            value = node["inputs"].get(name)
            if is_link(value):
                value = prompt[value[0]]["inputs"].get("value")
            if isinstance(value, int):
                return value
    return None


def _by_stage(prompt: Mapping[str, Any], run: Run) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for key, taken in run.seconds.items():
        node = prompt[key]
        title = (node.get("_meta") or {}).get("title") or node["class_type"]
        seconds[title] = round(seconds.get(title, 0.0) + taken, 6)
    return seconds
