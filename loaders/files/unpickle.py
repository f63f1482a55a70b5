"""Tensors out of a torch checkpoint that holds more than tensors, without running any of it.

A Lightning checkpoint keeps callbacks, hyper-parameters (OmegaConf) and the like beside its
``state_dict``, which ``weights_only`` refuses. Here a pickle is read by an unpickler that hands out
tensors and plain containers only. Every other name in it becomes an :class:`Inert`, so nothing
foreign is imported, constructed or called, whatever the pickle asks for.

Sources of the format: ``torch.save`` (``torch/serialization.py``: ``data.pkl`` and one stored
record per storage in a zip archive), APPNOTE.TXT of zip, ``pickletools``.
"""

from __future__ import annotations

import collections
import math
import mmap
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from .checkpoint import AGAIN, STORAGES, CheckpointError

CONTAINERS = {"dict": dict, "list": list, "set": set, "frozenset": frozenset, "tuple": tuple}


@dataclass(frozen=True)
class Unpickled:
    """What was read, and the names of what was not.

    Attributes:
        state: tensors by key, memory-mapped.
        ignored: every class and function that the pickle names and that stayed inert, sorted.
    """

    state: dict[str, torch.Tensor]
    ignored: tuple[str, ...]


class Inert:
    """Stands for anything foreign: takes whatever a pickle does to an object, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As of a list."""

    def extend(self, values: Any) -> None:
        """As of a list."""

    def add(self, value: Any) -> None:
        """As of a set."""


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


@dataclass(frozen=True)
class _View:
    """A tensor to be, as the pickle describes it: nothing in it is checked yet."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Unpickler(pickle.Unpickler):
    """A pickle can only call what :meth:`find_class` hands out; see the module's words."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.ignored: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return lambda storage, offset, size, stride, *_: _View(storage, offset, size, stride)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("builtins", "__builtin__") and name in CONTAINERS:
            return CONTAINERS[name]
        self.ignored.add(f"{module}.{name}")
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 3 and isinstance(pid[1], torch.dtype):
            return _Storage(pid[1], str(pid[2]))
        raise pickle.UnpicklingError(f"unknown storage {str(pid)[:60]}")


def read_tensors(path: Path) -> Unpickled:
    """The tensors of a torch checkpoint, those of its ``state_dict`` where it has one.

    Args:
        path: a file of ``torch.save`` since torch 1.6.

    Raises:
        CheckpointError: missing, truncated, damaged, another format, or no tensors in it.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing. {AGAIN}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"'{path}' is truncated, or no checkpoint of torch 1.6 or newer. {AGAIN}, or save it"
            " again with a newer torch"
        )
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            packed = [r.filename for r in records.values() if r.compress_type != zipfile.ZIP_STORED]
            if packed:  # torch never does; a small file could claim to be a huge one
                raise pickle.UnpicklingError(f"'{packed[0]}' is compressed")
            if "data.pkl" not in records:
                raise pickle.UnpicklingError("it holds no data.pkl")
            with archive.open(records["data.pkl"]) as stream:
                unpickler = _Unpickler(stream)
                root = unpickler.load()
            found = root["state_dict"] if _has_state(root) else root
            items = dict.items(found) if isinstance(found, dict) else ()
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            state = {
                key: _tensor(view, data, records)
                for key, view in items
                if isinstance(key, str) and isinstance(view, _View)
            }
    except Exception as error:  # a hostile file may fail in any way, none of them runs code
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"'{path}' is a damaged checkpoint ({reason[0][:160] if reason else error!r}). {AGAIN}"
        ) from error
    ignored = tuple(sorted(unpickler.ignored))
    if not state:
        named = f" beside {', '.join(ignored[:4])}" if ignored else ""
        raise CheckpointError(f"'{path}' holds no tensors{named}. Choose another file")
    return Unpickled(state, ignored)


def _has_state(root: Any) -> bool:
    return isinstance(root, dict) and isinstance(dict.get(root, "state_dict"), Mapping)


def _tensor(view: _View, data: mmap.mmap, records: Mapping[str, zipfile.ZipInfo]) -> torch.Tensor:
    numbers = [view.offset, *view.size, *view.stride]
    if not isinstance(view.storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor that torch would not write")
    dtype = view.storage.dtype
    info = records[f"data/{view.storage.key}"]
    count = info.file_size // torch.empty(0, dtype=dtype).element_size()
    steps = zip(view.size, view.stride, strict=True)
    needed = view.offset + sum((n - 1) * step for n, step in steps) + 1
    # A repeated (stride 0) tensor could be of any size.
    if 0 in view.size:
        return torch.empty(tuple(view.size), dtype=dtype)
    if max(needed, math.prod(view.size)) > count:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    # A local file header is 30 bytes, its name, and its extra field (APPNOTE.TXT 4.3.7).
    head = info.header_offset
    name = int.from_bytes(data[head + 26 : head + 28], "little")
    extra = int.from_bytes(data[head + 28 : head + 30], "little")
    flat = torch.frombuffer(data, dtype=dtype, count=count, offset=head + 30 + name + extra)
    return torch.as_strided(flat, tuple(view.size), tuple(view.stride), view.offset)
