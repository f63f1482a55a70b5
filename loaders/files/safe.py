"""Files that others may have made, and moments at which a process may end.

What is read is a regular file of a bounded size: no pipe, no device, nothing that a link makes
endless. Pictures are decoded by the formats that are named and by no other: Pillow hands some kinds
to programs outside. What is written gets its name when it is whole. What was left behind by a
process that was killed is told by its name and by a lock that nobody holds any more.

Sources: PIL's ``Image.open`` (``formats``); ``flock(2)``, whose locks end with their process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CONFIG_BYTES = 2**22
"""Of a JSON or YAML file that says how a network is built; parsed it takes thirty times as much."""

WORDS_BYTES = 2**25
"""Of a tokenizer's JSON; XLM-R's has 17 MB."""

PICTURE_BYTES = 2**28
PIXELS = 2**26
"""Of a picture, all frames together: 8192x8192. A picture of float32 with alpha takes 1 GB then."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the kinds that are opened. None of their decoders starts a program."""

_MOVING = ("PNG", "GIF", "WEBP", "AVIF")
"""Kinds that are read frame by frame."""

PART = "part"


class Unreadable(OSError):
    """A file that is not opened or not read to its end; the message is a reason for others'."""


class NoPicture(Unreadable):
    """A file that is no picture of a kind that is read."""


def cure_of(error: OSError) -> str:
    """What an error of the operating system says, and what a user can do about it."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"{said}; free some space and run it again"
    if error.errno == errno.ENAMETOOLONG:
        return f"{said}; give a shorter one"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{said}; give yourself the right to it, or name another place"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP):
        return f"{said}; look at each folder on the way, or name another place"
    return f"{said}; mend that or name another place, and run it again"


def open_regular(path: Path, most: int) -> IO[bytes]:
    """Open a regular file of at most ``most`` bytes; to be closed by the caller.

    Raises:
        OSError: it cannot be read.
        Unreadable: it is a pipe, a device or a folder, or is larger.
    """
    # A pipe without a writer would wait at being opened.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_size <= most:
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISREG(found.st_mode):
        raise Unreadable(
            f"it has {_megabytes(found.st_size)}, but at most {_megabytes(most)} are read"
        )
    raise Unreadable("it is a pipe, a device or a folder, no regular file")


def digest_of(path: Path, digest: Any = None) -> str:
    """A regular file's checksum, hexadecimal.

    Args:
        digest: hashlib's, begun; a new sha256, if not given.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = digest or hashlib.sha256()
    with open_regular(path, 2**50) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: Path, most: int) -> bytes:
    """All of a regular file.

    Raises:
        OSError: as :func:`open_regular`, or it grew meanwhile.
    """
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Unreadable(f"it has more than {_megabytes(most)}")
    return data


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextlib.contextmanager
def open_picture(
    path: Path, formats: Sequence[str] = FORMATS, pixels: int = PIXELS
) -> Iterator[Picture]:
    """A picture file by Pillow, of a named kind and a bounded size; nothing is decoded yet.

    Args:
        path: followed where it is a link.
        formats: Pillow's names, some of :data:`FORMATS`.
        pixels: that all its frames may have together.

    Raises:
        OSError: no regular file, no picture of these kinds, or one that is too large.
    """
    from PIL import Image

    Image.init()
    known = [name for name in formats if name in Image.OPEN]
    with open_regular(path, PICTURE_BYTES) as file:
        try:
            picture = Image.open(file, formats=known)
        except Image.UnidentifiedImageError:
            raise NoPicture(f"it is none of {', '.join(known)}") from None
        except (Image.DecompressionBombError, ValueError, SyntaxError, TypeError) as error:
            raise Unreadable(str(error)) from error
        with picture:
            frames = _frames(picture)
            wide, high = picture.size
            if wide * high * frames > pixels:
                raise Unreadable(
                    f"it has {frames} x {wide} x {high} pixels, but at most {pixels:,} are read;"
                    " make it smaller"
                )
            yield picture


def _frames(picture: Picture) -> int:
    if picture.format not in _MOVING:
        return 1
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:  # a broken animation, which decoding will name
        return 1


# -- writing -----------------------------------------------------------------------------------


@contextlib.contextmanager
def written(file: Path) -> Iterator[Path]:
    """A name beside ``file`` to write to, which becomes ``file`` if all goes well.

    A reader sees the old file or the new one, whenever the process ends. What an earlier process
    left half written for the same file is removed.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    remove_left(file.parent, file.name)
    scratch = file.with_name(f"{file.name}.{os.getpid()}.{PART}")
    # Not through a link that somebody put there.
    scratch.unlink(missing_ok=True)
    handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _lock(handle)
        yield scratch
        _on_disk(scratch)
        if os.name == "nt":
            os.close(handle)
            handle = -1
        scratch.replace(file)
    finally:
        if handle >= 0:
            os.close(handle)
        scratch.unlink(missing_ok=True)


def write_whole(file: Path, data: bytes) -> None:
    """Writes a file whole or not at all, see :func:`written`.

    Raises:
        OSError: it cannot be written.
    """
    with written(file) as scratch:
        scratch.write_bytes(data)


def remove_left(folder: Path, name: str) -> None:
    """Remove what processes that have ended left half written for ``folder/name``."""
    ours = re.compile(re.escape(name) + rf"\.\d+\.{PART}")
    try:
        left = [Path(entry.path) for entry in os.scandir(folder) if ours.fullmatch(entry.name)]
    except OSError:
        return
    for path in left:
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_file():
                continue
            handle = os.open(path, os.O_RDWR)
            try:
                over = _lock(handle)
            finally:
                os.close(handle)
            if over:
                path.unlink()


def _on_disk(path: Path) -> None:
    """Some file systems say only now that the disk is full."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# -- one process at a time -----------------------------------------------------------------------


class Busy(OSError):
    """Another process, or another thread of this one, is at work on the same files."""


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Be the only one who makes ``target``; a file ``.<name>.lock`` beside it says so.

    The lock ends with its process, however that ends. Where the folder cannot be written or its
    file system knows no locks, there is none.

    Raises:
        Busy: somebody else is.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError:
        yield
        return
    try:
        # Who had it may have removed the file between our opening and our locking it.
        if not _lock(handle) or not _is(path, handle):
            raise Busy(
                f"another process is at work on '{target}'; wait until it has ended and run this"
                " again"
            )
        try:
            yield
        finally:
            if os.name != "nt":
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return os.name == "nt" or os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def _lock(handle: int) -> bool:
    """Whether an open file is locked by us now; true also where there are no locks."""
    try:
        fcntl: Any = __import__("fcntl")
    except ImportError:
        return _lock_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _lock_on_windows(handle: int) -> bool:
    msvcrt: Any = __import__("msvcrt")
    place = os.lseek(handle, 0, os.SEEK_CUR)
    try:
        os.lseek(handle, 2**40, os.SEEK_SET)  # a byte that nobody writes
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(handle, place, os.SEEK_SET)
    return True
