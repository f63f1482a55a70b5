"""Known files out of an archive: a tar (packed or not) or a zip of one model folder.

A member's own name never becomes a path: it is only compared with the names that are wanted, and
what is written gets its name from here. Links and devices are not looked at. Files arrive in a
folder ``<name>.partial``, which no loader lists and which is removed whatever goes wrong, unless
it was somebody else's before; the finished folder gets its name in one step.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ...edges import reason_of
from .checkpoint import AGAIN, CheckpointError, read_json
from .safe import Busy, cure_of, locked

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
MAKING = ".prior-art-making"
"""In a folder that is being made: it is ours, and unfinished."""

MARK = "prior-art.json"
"""Tells, inside an unpacked folder, which archive it is the content of."""

BLOCK = 2**22
MARGIN = 256 * 2**20
"""Bytes that stay free on the disk."""

Progress = Callable[[str, int, int], None]
"""Called with (file name, its bytes done, its bytes in total) as they are written, and with "" at
the end."""


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is an archive that can be read here."""
    return path.name.lower().endswith(SUFFIXES)


def unpacked(path: Path, wanted: Sequence[str], progress: Progress | None = None) -> Path:
    """The folder with an archive's files, beside it and named like it; unpacked once.

    Args:
        path: e.g. ``1.3B.tar.gz``, whose folder is ``1.3B``.
        wanted: as in :func:`unpack`.
        progress: told about every file.

    Raises:
        CheckpointError: the archive is damaged or holds nothing wanted; another folder of that
            name is in the way; the disk is full or cannot be written.
    """
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    target = path.with_name(path.name[: -len(suffix)])
    stat = path.stat()
    mark = {"archive": path.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if target.exists():
        if (target / MARK).is_file() and read_json(target / MARK) == mark:
            return target
        raise CheckpointError(
            f"'{target}' is in the way of unpacking '{path}' and was not unpacked from it. Choose"
            " that folder as the source, or rename one of the two"
        )
    with made(target) as partial:
        unpack(path, partial, wanted, progress)
        (partial / MARK).write_text(json.dumps(mark), encoding="utf-8")
    return target


@contextlib.contextmanager
def made(target: Path) -> Iterator[Path]:
    """A folder to write into, ``<target>.partial``, that becomes ``target`` if all goes well.

    While it is written it holds the file :data:`MAKING`: only a folder with that file, which a
    killed run left behind, is ever removed.

    Raises:
        CheckpointError: a folder of that name that is not ours, or another process at work; or
            instead of an OSError within: the disk is full or cannot be written.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            _clear(partial)
            partial.mkdir()
            try:
                (partial / MAKING).touch()
                yield partial
                partial.rename(target)
                (target / MAKING).unlink(missing_ok=True)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Busy as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"'{target}' cannot be written: {cure_of(error)}") from error


def _clear(partial: Path) -> None:
    """Remove what a killed run of :func:`made` left behind.

    Raises:
        CheckpointError: something else has that name.
    """
    if not os.path.lexists(partial):
        return
    if not partial.is_symlink() and (partial / MAKING).is_file():
        shutil.rmtree(partial)
    elif partial.is_symlink() or not partial.is_dir() or any(partial.iterdir()):
        raise CheckpointError(
            f"'{partial}' is in the way and was not made by this command, so it is left as it is."
            " Rename it, and run it again"
        )
    else:  # empty: killed before the mark was made, or nothing lost
        partial.rmdir()


def unpack(
    path: Path, folder: Path, wanted: Sequence[str], progress: Progress | None = None
) -> None:
    """Write those members of an archive that end with a wanted name into ``folder``.

    Args:
        path: the archive.
        folder: exists.
        wanted: relative names such as ``tokenizer/bpe-16k-vocab.json``; a member
            ``1.3B/tokenizer/bpe-16k-vocab.json`` is that one.
        progress: told about every file.

    Raises:
        CheckpointError: damaged, truncated, a wanted name twice, or none of them there.
    """
    tell = progress or (lambda name, done, total: None)
    reader = _zip if path.name.lower().endswith(".zip") else _tar
    taken: dict[str, int] = {}
    try:
        for member, size, stream in reader(path):
            name = _wanted(member, wanted)
            if name is None:
                continue
            if name in taken:
                raise CheckpointError(
                    f"'{path}' holds '{name}' twice. Unpack it by hand and choose one of the"
                    " folders"
                )
            taken[name] = size
            free = shutil.disk_usage(folder).free
            if size + MARGIN > free:
                raise CheckpointError(
                    f"'{path}' cannot be unpacked: '{name}' has {size / 1e9:.2f} GB and"
                    f" '{folder.parent}' has {free / 1e9:.2f} GB free. Free some space"
                )
            target = folder.joinpath(*name.split("/"))
            target.parent.mkdir(exist_ok=True)
            with target.open("wb") as out:
                while block := stream.read(BLOCK):
                    out.write(block)
                    tell(name, out.tell(), size)
            if target.stat().st_size != size:
                raise EOFError(f"'{member}' ends early")
    except (
        # The last two are zipfile's: a compression that it does not know, an encrypted member.
        *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error),
        *(EOFError, NotImplementedError, RuntimeError),
    ) as error:
        raise CheckpointError(
            f"'{path}' is truncated, damaged or no archive ({reason_of(error)}). {AGAIN}"
        ) from error
    if not taken:
        raise CheckpointError(
            f"'{path}' holds none of {', '.join(wanted)}. Choose another archive, or unpack it by"
            " hand"
        )
    written = sum(taken.values())
    tell("", written, written)


def _wanted(member: str, wanted: Sequence[str]) -> str | None:
    parts = PurePosixPath(member.replace("\\", "/")).parts
    if ".." in parts:
        return None
    for name in wanted:
        own = tuple(name.split("/"))
        if parts[-len(own) :] == own:
            return name
    return None


Member = tuple[str, int, IO[bytes]]
"""A regular file's name, size and content."""


def _zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as stream:
                    yield info.filename, info.file_size, stream


def _tar(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if packed else file
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                content = archive.extractfile(info) if info.isreg() else None
                if content is not None:
                    yield info.name, info.size, content
        while stream.read(BLOCK):  # to the end, where gzip checks its sum
            pass
