"""Small tensors that are computed from a source's weights once, and kept on the disk.

A file's name says what it holds and of which files it was made: other weights have another name, so
nothing in it goes stale.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from .checkpoint import CheckpointError, read_state_dict
from .safe import write_whole

Stamps = tuple[tuple[str, int, int], ...]


def stamps(path: Path) -> Stamps:
    """A weight file, or every file below a folder: name, bytes, nanoseconds of the last change.

    Raises:
        OSError: the file is not there.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [(file.relative_to(path).as_posix(), file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def cached(folder: Path, what: str, source: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``make`` computes from the weights in ``source``, computed once.

    A damaged file is made anew; a folder that is not there, or cannot be written, only means that
    it is computed again.

    Args:
        folder: the host's ``cache_folder()``.
        what: the tensor's name, of letters that suit a file's.
        source: the file or folder of the weights.
        make: gives a tensor ``[R, C]``, all of it finite.

    Returns:
        The tensor in fp32, on the CPU.
    """
    print_of = repr((str(source.resolve()), stamps(source))).encode()
    file = folder / f"{what}-{hashlib.sha256(print_of).hexdigest()[:32]}.safetensors"
    # A file that is missing is one of those that cannot be read.
    with contextlib.suppress(CheckpointError, OSError):
        tensors = read_state_dict(file)
        if set(tensors) == {what} and tensors[what].ndim == 2:
            return tensors[what].float()
    made = make().detach().float().cpu().contiguous()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        keep(file, what, made)
    return made


def keep(file: Path, what: str, tensor: torch.Tensor) -> None:
    """Write one tensor as safetensors; a reader sees the old file or the whole new one.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    write_whole(file, save({what: tensor.contiguous()}, {"format": "pt"}))
