"""One row's pictures: a headless runner whose models stay loaded from row to row."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..edges import plain
from ..headless.checking import is_link
from ..headless.runner import Run, Runner, node_classes
from ..host.embedded.door import session
from .rows import Job, apply

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
        self._renew()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)

    def _renew(self) -> None:
        self._runner = Runner(node_classes(), self._scratch, self._pictures, saves_again=True)

    def run(self, job: Job) -> Result:
        """A row's result; what goes wrong is in it. The files have their names when it returns."""
        warnings: list[str] = []
        session.on_warning = warnings.append
        inputs = inputs_of(job)
        try:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(parents=True)
            prompt, _ = apply(self.prompt, job.settings)
            run = self._runner.run(prompt)
            files = self._placed(job.row, run)
        except Exception as error:
            self._failed += 1
            if self._failed % _RENEWED == 0:
                self._renew()
            said, stops = plain(str(error) or type(error).__name__), self._is_ours(error)
            return Result(
                job.row, inputs, worker=self.name, warnings=warnings, error=said, stops=stops
            )
        self._failed = 0
        return Result(
            job.row, inputs, seed_of(prompt), files, _by_stage(prompt, run), self.name, warnings
        )

    def _placed(self, row: int, run: Run) -> list[dict[str, str]]:
        """Move a run's files out of the scratch folder: pictures first, as they were saved."""
        every = sorted(path for path in self._scratch.rglob("*") if path.is_file())
        # What is previewed is saved nowhere, as in ComfyUI.
        kept = [path for path in every if path.relative_to(self._scratch).parts[0] != "previews"]
        order = {path.resolve(): place for place, path in enumerate(run.pictures)}
        kept.sort(key=lambda path: order.get(path.resolve(), len(order)))
        files = []
        for place, path in enumerate(kept):
            name = f"{row:08}-{place}{path.suffix}"
            target = Path(PICTURES) / f"{row // IN_A_FOLDER:05}" / name
            (self.out / target).parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
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


def inputs_of(job: Job) -> dict[str, str]:
    """A row's values by ``NODE.INPUT``."""
    return {target: value for target, _, value in (one.partition("=") for one in job.settings)}


def seed_of(prompt: Mapping[str, Any]) -> int | None:
    """The seed of the first node that has one, wired or not."""
    for node in prompt.values():
        for name in ("seed", "noise_seed"):
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
