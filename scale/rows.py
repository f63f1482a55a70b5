"""Tables of rows, and how their columns go into a workflow's inputs.

A table is JSON Lines, CSV or Parquet and is read row by row, so that its length costs no memory.
``NODE.INPUT={column}`` says where a column goes; whether every row fits is looked at before
anything runs.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edges import UserError
from ..headless.checking import check_inputs
from ..headless.workflow import Unsupported, WorkflowError, assign, unknown_node
from ..loaders.files.libraries import LibraryError, require
from ..loaders.files.safe import cure_of

KINDS = (".jsonl", ".csv", ".parquet")
ROW = "row"
SHOWN = 3
"""Rows that an error quotes; the others are counted."""

_COLUMN = re.compile(r"\{([^{}|]+)\}")


class RowError(UserError):
    """A row that does not fit; the message names the column or the input and the cure."""


@dataclass(frozen=True)
class Job:
    """One row's changes to the workflow.

    Attributes:
        row: its number, from 0.
        settings: ``NODE.INPUT=VALUE`` each, as ``assign`` takes them.
    """

    row: int
    settings: tuple[str, ...]


def scale_library(package: str, *names: str) -> Any:
    """Import what ``pip install ".[scale]"`` brings, see :func:`require`.

    Raises:
        LibraryError: it is not installed.
    """
    try:
        return require(package, *names)
    except LibraryError as error:
        raise LibraryError(f'{error}. It comes with pip install ".[scale]"') from error


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, one after the other.

    Raises:
        UserError: another kind of file, one that cannot be read, or a line that is no row.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UserError(f"'{path}' is no table of rows; give a file {', '.join(KINDS)}")
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[kind]
    try:
        yield from read(path)
    except OSError as error:
        raise UserError(f"the rows '{path}' cannot be read: {cure_of(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the rows '{path}' are no UTF-8: {error}; save them as UTF-8") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number} of '{path}' is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(
                    f"line {number} of '{path}' is no row; each line is an object of columns, as"
                    ' {"caption": "a red circle", "seed": 7}'
                )
            yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = list(reader.fieldnames or ())
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"'{path}' names {', '.join(map(repr, twice))} twice; rename one")
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"line {reader.line_num} of '{path}' has not as many fields as its first"
                        " line names; quote fields that hold commas"
                    )
                yield row
        except csv.Error as error:
            line = reader.line_num + 1
            raise UserError(f"line {line} of '{path}' is no CSV: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    parquet, arrow = scale_library("pyarrow.parquet"), scale_library("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            for part in file.iter_batches(1024):
                yield from part.to_pylist()
    except arrow.ArrowInvalid as error:
        raise UserError(f"'{path}' is no Parquet: {error}") from error


def job_of(number: int, row: Mapping[str, Any], mapping: Sequence[str]) -> Job:
    """A row's settings.

    Args:
        number: the row's, which ``{row}`` stands for where no column has that name.
        mapping: ``NODE.INPUT=VALUE`` each, with ``{column}`` in the value.

    Raises:
        RowError: a column is missing, empty, or no text, number or switch.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in row and name != ROW:
            raise RowError(f"there is no column '{name}'; this row has {', '.join(map(str, row))}")
        return _text(name, row.get(name, number))

    settings = []
    for one in mapping:
        target, equals, template = one.partition("=")
        settings.append(f"{target}{equals}{_COLUMN.sub(value, template)}")
    return Job(number, tuple(settings))


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise RowError(
        f"column '{name}' is {f'{value!r}'[:60]}; give each row a text, a number or a switch"
    )


def jobs(path: Path, mapping: Sequence[str]) -> Iterator[Job]:
    """Every row's settings, in order; the rows are those that :func:`check_rows` looked at.

    Raises:
        UserError: see :func:`read_rows` and :func:`job_of`.
    """
    for number, row in enumerate(read_rows(path)):
        yield job_of(number, row, mapping)


def check_rows(
    path: Path, mapping: Sequence[str], prompt: Mapping[str, Any], nodes: Mapping[str, Any]
) -> int:
    """Look at every row before anything runs, and count them.

    Args:
        path: the table; mapping: as :func:`job_of` takes it.
        prompt: the workflow in API format; nodes: classes by name.

    Raises:
        UserError: no rows, or some that do not fit, with how many and why the first ones do not.
        Unsupported: the workflow has a node that is not in ``nodes``.
    """
    schemas = {}
    for key, node in prompt.items():
        if node["class_type"] not in nodes:
            raise Unsupported(unknown_node(key, node["class_type"]))
        schemas[key] = nodes[node["class_type"]].define_schema()
    count, bad = 0, 0
    reasons: dict[str, int] = {}
    for number, row in enumerate(read_rows(path)):
        count += 1
        try:
            changed, keys = apply(prompt, job_of(number, row, mapping).settings)
            for key in keys:
                check_inputs(key, changed, schemas, nodes)
        except (RowError, WorkflowError) as error:
            bad += 1
            if len(reasons) < SHOWN:
                reasons.setdefault(str(error), number)
    if not count:
        raise UserError(f"'{path}' has no rows")
    if bad:
        said = "; ".join(f"row {number}: {reason}" for reason, number in reasons.items())
        raise UserError(f"{bad} of {count} rows of '{path}' do not fit, nothing was run. {said}")
    return count


def apply(
    prompt: Mapping[str, Any], settings: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """A copy of a prompt with settings made, and the ids of the nodes that they change.

    Raises:
        WorkflowError: no such node or input, or a value of another kind.
    """
    changed = {key: {**node, "inputs": dict(node["inputs"])} for key, node in prompt.items()}
    return changed, {assign(changed, setting)[0] for setting in settings}
