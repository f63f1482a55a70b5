"""A workflow over the rows of a table: what is missing is made, each row once.

The driver reads rows, hands them to workers and writes down what became of them; pictures never
pass through it. It can be killed at any moment and started again.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edges import UserError
from ..headless.checking import check
from ..headless.contact_sheet import contact_sheet
from ..headless.runner import node_classes
from ..headless.workflow import read_workflow, to_api
from ..host.embedded.door import warn
from ..loaders.files.safe import (
    CONFIG_BYTES,
    Busy,
    cure_of,
    digest_of,
    locked,
    read_bytes,
    write_whole,
)
from .cluster import Lost, spread
from .manifest import Journal
from .rows import Job, apply, check_rows, jobs
from .together import merged, without_previews
from .worker import SCRATCH, Result, Worker, inputs_of

RECORD = "batch.json"
SHEET = 64
"""Pictures of a contact sheet."""


@dataclass(frozen=True)
class Batch:
    """What is to be made.

    Attributes:
        workflow: its file; rows: the table.
        mapping: ``NODE.INPUT=VALUE`` each, with ``{column}`` in the value.
        out: the folder that it goes to; pictures: where LoadImage looks.
        workers: how many; ``None`` is one a GPU, else one. One without ``ray`` needs no Ray.
        ray: the address of a cluster.
        manifest: jsonl or parquet.
        together: rows in one run of the graph, where its stages batch.
        max_failures: more than so many failed rows end the run; ``None`` lets them.
    """

    workflow: Path
    rows: Path
    mapping: tuple[str, ...]
    out: Path
    pictures: Path = Path("input")
    workers: int | None = None
    ray: str | None = None
    manifest: str = "jsonl"
    together: int = 1
    max_failures: int | None = None


@dataclass
class Done:
    """What a batch came to: rows, those that have their files, those that failed, the manifest."""

    rows: int
    made: int
    failed: int
    manifest: Path


Progress = Callable[[int, int, int], None]
"""Called with rows, those that have their files and those that failed, after each row."""


def run_batch(batch: Batch, progress: Progress = lambda *_: None) -> Done:
    """Make what is missing of a batch.

    Raises:
        UserError: something does not fit, nothing was run; or the folder is full, cannot be
            written, holds another batch or has another driver. What was made is in its journal.
        LibraryError: Ray or pyarrow is asked for and not installed.
    """
    _check_numbers(batch)
    try:
        batch.out.mkdir(parents=True, exist_ok=True)
        with locked(batch.out / RECORD):
            prompt, rows = _begin(batch)
            shutil.rmtree(batch.out / SCRATCH, ignore_errors=True)
            journal = Journal(batch.out, rows)
            try:
                return _drive(batch, prompt, journal, progress)
            finally:
                journal.close()
                shutil.rmtree(batch.out / SCRATCH, ignore_errors=True)
    except Busy as error:
        raise UserError(str(error)) from error


def _check_numbers(batch: Batch) -> None:
    for name, count, least in (
        ("--workers", batch.workers, 1),
        ("--batch", batch.together, 1),
        ("--max-failures", batch.max_failures, 0),
    ):
        if count is not None and count < least:
            raise UserError(f"{name} is {count}; give {least} or more")


def changes(batch: Batch, count: int = 3) -> Iterator[str]:
    """The first rows' changes to the workflow, a line each, once all rows were looked at.

    Raises:
        UserError: as :func:`run_batch`.
    """
    _check_numbers(batch)
    prompt, _ = _checked(batch)
    for job in itertools.islice(jobs(batch.rows, batch.mapping), count):
        changed, keys = apply(prompt, job.settings)
        for key in sorted(keys):
            old, new = prompt[key]["inputs"], changed[key]["inputs"]
            for name in (name for name in new if new[name] != old[name]):
                yield f"row {job.row}: node {key} {name}: {old[name]!r} -> {new[name]!r}"


def _checked(batch: Batch) -> tuple[dict[str, Any], int]:
    """The prompt in API format, and how many rows there are; all of them fit."""
    nodes = node_classes()
    prompt = without_previews(to_api(read_workflow(batch.workflow), nodes))
    rows = check_rows(batch.rows, batch.mapping, prompt, nodes)
    first = next(jobs(batch.rows, batch.mapping))
    _, left_out = check(apply(prompt, first.settings)[0], nodes)
    for why in left_out.values():
        warn(f"an output is left out: {why}")
    if batch.together > 1:
        some = itertools.islice(jobs(batch.rows, batch.mapping), batch.together)
        try:
            merged([apply(prompt, job.settings)[0] for job in some], nodes)
        except UserError as why:
            warn(f"rows run one by one: {why}")
    return prompt, rows


def _begin(batch: Batch) -> tuple[dict[str, Any], int]:
    """The prompt and the number of rows, as this folder's first run found them: an editor's
    choices in prompts must not fall again."""
    path = batch.out / RECORD
    record = {
        "workflow": _sha256(batch.workflow),
        "rows": _sha256(batch.rows),
        "mapping": list(batch.mapping),
        "together": batch.together,
    }
    if path.exists():
        try:
            known = json.loads(read_bytes(path, CONFIG_BYTES))
            known = {name: known[name] for name in (*record, "prompt", "count")}
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"'{path}' is damaged; name another folder with --out, or remove that file if it is"
                " the same batch"
            ) from error
        if other := [name for name in record if known[name] != record[name]]:
            raise UserError(
                f"'{batch.out}' holds a batch whose {' and '.join(other)} are not these; name"
                " another folder with --out"
            )
        return known["prompt"], known["count"]
    prompt, count = _checked(batch)
    write_whole(path, json.dumps({**record, "count": count, "prompt": prompt}).encode())
    return prompt, count


def _sha256(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {cure_of(error)}") from error


def _drive(batch: Batch, prompt: Mapping[str, Any], journal: Journal, progress: Progress) -> Done:
    rows, made, failures = len(journal), journal.done(), 0
    progress(rows, made, failures)
    if made < rows:
        for result in _results(batch, prompt, journal):
            if result.stops:
                raise UserError(f"{result.error}. Mend that and run the command again; it goes on")
            journal.add(result)
            made += result.error is None
            failures += result.error is not None
            progress(rows, made, failures)
            if batch.max_failures is not None and failures > batch.max_failures:
                break
    manifest = journal.write_manifest(batch.manifest)
    try:
        _write_sheet(batch.out, journal)
    except OSError as error:
        warn(f"there is no contact sheet: {cure_of(error)}")
    return Done(rows, made, len(journal.failed), manifest)


def _results(batch: Batch, prompt: Mapping[str, Any], journal: Journal) -> Iterator[Result]:
    """What becomes of each missing row."""
    arguments = (prompt, batch.out.resolve(), batch.pictures.resolve())
    missing = _groups(batch, journal)
    for group, found in spread(missing, Worker, arguments, batch.workers, batch.ray):
        if isinstance(found, Lost):
            found = [Result(job.row, inputs_of(job), error=found.reason) for job in group]
        yield from (result for result in found if not journal.is_done(result.row))


def _groups(batch: Batch, journal: Journal) -> Iterator[tuple[Job, ...]]:
    """Rows that run together, always the same ones, of which one at least is missing."""
    every = jobs(batch.rows, batch.mapping)
    for _, some in itertools.groupby(every, lambda job: job.row // batch.together):
        group = tuple(some)
        if not all(journal.is_done(job.row) for job in group):
            yield group


def _write_sheet(out: Path, journal: Journal) -> None:
    """The first pictures, with what their rows say first."""
    entries = (json.loads(line) for line in journal.lines())
    with_picture = (entry for entry in entries if entry["files"])
    sheet = [
        (next(iter(entry["inputs"].values()), ""), out / entry["files"][0]["path"])
        for entry in itertools.islice(with_picture, SHEET)
        if entry["files"][0]["path"].endswith(".png")
    ]
    if sheet:
        contact_sheet(sheet, out / "contact_sheet.png", columns=8)
