"""What a batch has done, on the disk: a journal that grows by a line a row, and a manifest of it.

A process that is killed leaves at most half a line, which the next one cuts off. The driver keeps
eight bytes a row in memory, where its line begins, so that ten million rows take 80 MB.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..edges import UserError
from ..loaders.files.safe import cure_of, written
from .rows import scale_library
from .worker import Result

JOURNAL = "rows.jsonl"
NOWHERE = -1
PART = 1024
"""Rows that are turned into Parquet together."""

ON_DISK_SECONDS = 1.0
"""How much a power cut may cost; a process that is killed loses nothing that it wrote."""


class Journal:
    """The results of ``count`` rows, each written once it is there; to be closed.

    Attributes:
        failed: rows whose newest line is an error.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.path = folder / JOURNAL
        self._places = array("q", [NOWHERE]) * count
        self.failed: set[int] = set()
        self._synced = time.monotonic()
        with self._telling():
            # Unbuffered, so that nothing of a line that failed is written later.
            self._file = self.path.open("ab", buffering=0)
            self._end = self._read()
            os.truncate(self.path, self._end)

    def _read(self) -> int:
        """Note the lines that are there; where they end."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    files = [self.path.parent / file["path"] for file in entry["files"]]
                    gone = None if all(map(Path.is_file, files)) else "its file is gone"
                    self._note(entry["row"], entry["error"] or gone, end)
                except (ValueError, LookupError, TypeError) as error:
                    raise UserError(
                        f"line {number} of '{self.path}' is damaged; remove that line and run this"
                        " again, which makes its row anew"
                    ) from error
                end += len(line)
        return end

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"'{self.path}' cannot be written: {cure_of(error)}; it goes on where it stopped"
            ) from error

    def _note(self, row: int, error: str | None, place: int) -> None:
        self._places[row] = place
        (self.failed.discard if error is None else self.failed.add)(row)

    def __len__(self) -> int:
        """How many rows the batch has."""
        return len(self._places)

    def is_done(self, row: int) -> bool:
        """Whether a row has its files; one that failed is tried again."""
        return self._places[row] != NOWHERE and row not in self.failed

    def done(self) -> int:
        """How many rows have their files."""
        return sum(place != NOWHERE for place in self._places) - len(self.failed)

    def add(self, result: Result) -> None:
        """Write one row's line.

        Raises:
            UserError: the disk is full or broken; the journal is what it was before.
        """
        entry = asdict(result)
        del entry["stops"]
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._telling():
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if time.monotonic() - self._synced > ON_DISK_SECONDS:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError:
                os.truncate(self.path, self._end)
                raise
        self._note(result.row, result.error, self._end)
        self._end += len(line)

    def lines(self) -> Iterator[bytes]:
        """The newest line of each row that has one, in the order of the rows."""
        with self.path.open("rb") as file:
            for place in self._places:
                if place != NOWHERE:
                    file.seek(place)
                    yield file.readline()

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def write_manifest(self, kind: str) -> Path:
        """Write ``manifest.jsonl`` or ``manifest.parquet`` in one step.

        Raises:
            UserError: it cannot be written; an older one is still there.
            LibraryError: Parquet, and pyarrow is not installed.
        """
        path = self.path.with_name(f"manifest.{kind}")
        with self._telling():
            os.fsync(self._file.fileno())
            with written(path) as scratch:
                if kind == "parquet":
                    self._write_parquet(scratch)
                else:
                    with scratch.open("wb") as file:
                        file.writelines(self.lines())
        return path

    def _write_parquet(self, path: Path) -> None:
        arrow, parquet = scale_library("pyarrow"), scale_library("pyarrow.parquet")
        schema = _schema(arrow)
        with parquet.ParquetWriter(path, schema) as writer:
            rows: list[dict[str, Any]] = []
            for line in self.lines():
                rows.append(json.loads(line))
                if len(rows) == PART:
                    writer.write_table(arrow.Table.from_pylist(_columns(rows), schema))
                    rows.clear()
            if rows:
                writer.write_table(arrow.Table.from_pylist(_columns(rows), schema))


def _columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mappings as Arrow takes them, lists of pairs."""
    maps = ("inputs", "seconds")
    return [{**row, **{name: list(row[name].items()) for name in maps}} for row in rows]


def _schema(arrow: Any) -> Any:
    text = arrow.string()
    return arrow.schema(
        [
            ("row", arrow.int64()),
            ("inputs", arrow.map_(text, text)),
            ("seed", arrow.uint64()),
            ("files", arrow.list_(arrow.struct([("path", text), ("sha256", text)]))),
            ("seconds", arrow.map_(text, arrow.float64())),
            ("worker", text),
            ("warnings", arrow.list_(text)),
            ("error", text),
        ]
    )
