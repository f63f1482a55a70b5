"""Safe reading of weight files, and strict loading of what was read.

Reads safetensors (memory-mapped), torch's own format with ``weights_only`` (memory-mapped where the
file allows), and the tensors of TorchScript archives and of checkpoints that hold more. No file can
run code here: ``weights_only`` refuses it, and :class:`_Unpickler` knows tensors and turns every
other class into an inert object.

Sources of the formats: PyTorch's serialization notes (docs.pytorch.org, "Serialization semantics"),
``torch/serialization.py`` (``data.pkl`` and one stored record per storage in a zip archive),
``torch/csrc/jit/serialization/docs/serialization.md``, APPNOTE.TXT of zip, ``pickletools``.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import math
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ...edges import UserError, reason_of
from .safe import CONFIG_BYTES, Unreadable, open_regular, read_bytes

AGAIN = "Download or copy it again"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files in a hub component folder: diffusers', transformers', transformers' old."""


PIECE = 2**24
"""Bytes, or numbers of a tensor, that are read at once."""

_between: ContextVar[Callable[[], None]] = ContextVar("between", default=lambda: None)


class CheckpointError(UserError):
    """A file that cannot be loaded; the message names the file, what is wrong and the cure."""


@contextlib.contextmanager
def asking(between: Callable[[], None]) -> Iterator[None]:
    """Weight files that are read inside are read piece by piece.

    Args:
        between: called before each piece; what it raises ends the reading.
    """
    token = _between.set(between)
    try:
        yield
    finally:
        _between.reset(token)


def inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether ``path``, with all links resolved, lies in one of ``folders``."""
    real = path.resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders)


def check_inside(path: Path, folders: Sequence[Path]) -> None:
    """Refuse a file that a link leads out of the model folders.

    Raises:
        CheckpointError: names the link and its target. An empty ``folders`` allows everything.
    """
    if folders and not inside(path, folders):
        raise CheckpointError(
            f"'{path}' leads out of the model folders to '{path.resolve()}'. Move the files into"
            " the model folder, or register their folder with the host (extra_model_paths.yaml)"
        )


def check_bytes(path: Path, most: int) -> None:
    """Refuse what a library shall not be given to read.

    Raises:
        CheckpointError: no regular file, or one of more than ``most`` bytes.
    """
    try:
        open_regular(path, most).close()
    except OSError as error:
        raise CheckpointError(f"'{path}' is not read: {error}. {AGAIN}") from error


def read_json(path: Path, most: int = CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most ``most`` bytes.

    Raises:
        CheckpointError: the file is missing, too large, no regular file, no JSON, or no object.
    """
    try:
        value = json.loads(read_bytes(path, most).decode())
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing. {AGAIN}") from None
    except Unreadable as error:
        raise CheckpointError(f"'{path}' is not read: {error}. {AGAIN}") from error
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits too
        raise CheckpointError(f"'{path}' is not JSON ({error}){_guise(path)}. {AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' holds no JSON object. {AGAIN}")
    return value


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of one weight file.

    Args:
        path: ``.safetensors``; or torch's format under any other name, bare, under
            ``["state_dict"]``, or as a TorchScript archive.

    Returns:
        Tensors by key. Memory-mapped where the format allows, checked to be finite.

    Raises:
        CheckpointError: missing, truncated, another format, a pickle that holds more than tensors,
            no tensors, NaN or infinite numbers.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing. {AGAIN}")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif _is_torchscript(path):
        state = _read_torchscript(path)
    else:
        if _head(path).startswith(b"\x80"):  # torch's old format, which it reads in one go
            _read_ahead(path)
        value = read_object(path)
        if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
            value = value["state_dict"]
        if not isinstance(value, Mapping):
            raise CheckpointError(
                f"'{path}' holds a {type(value).__name__}, not the weights of a network."
                " Choose another file"
            )
        state = {str(k): v.detach() for k, v in value.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise CheckpointError(f"'{path}' holds no tensors. Choose another file")
    _refuse_nan(state, path)
    return state


def read_object(path: Path) -> Any:
    """``torch.load`` with ``weights_only``: tensors in plain containers, nothing that runs.

    Raises:
        CheckpointError: missing, truncated, another format, or a pickle that needs more.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing. {AGAIN}")
    zipped = zipfile.is_zipfile(path)
    if not zipped and _head(path)[:2] == b"PK":
        raise CheckpointError(f"'{path}' is truncated: its end is missing. {AGAIN}")
    try:
        _check_pickles(path, zipped)
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
        _check_sizes(value, path.stat().st_size)
        return value
    except _Bomb as error:
        raise CheckpointError(f"'{path}' is damaged ({reason_of(error)}). {AGAIN}") from error
    except pickle.UnpicklingError as error:
        if guise := _guise(path):
            raise CheckpointError(f"'{path}' is no checkpoint{guise}. {AGAIN}") from error
        if not zipped and not _head(path).startswith(b"\x80"):
            raise CheckpointError(f"'{path}' is no checkpoint. {AGAIN}") from error
        raise CheckpointError(
            f"'{path}' holds Python objects beside tensors; loading them could run code, so it is"
            f" refused ({reason_of(error)}). Use the safetensors of the same model, e.g. from"
            " `prior-art download`, or convert the file to safetensors on a machine where"
            " you trust it"
        ) from error
    except Exception as error:  # a hostile file may fail in any way, none of them runs code
        raise CheckpointError(
            f"'{path}' is truncated or damaged{_guise(path)} ({reason_of(error)}). {AGAIN}"
        ) from error


def read_component(
    folder: Path, dtype: torch.dtype, folders: Sequence[Path] = ()
) -> tuple[dict[str, torch.Tensor], str]:
    """Read the weights of one component folder of a hub layout.

    Looks for safetensors before ``.bin``, whole files before shards, and full precision before the
    ``fp16`` variant, or the other way round where ``dtype`` is float16.

    Args:
        folder: e.g. ``<model>/prior``.
        dtype: the storage dtype that will be asked for; chooses the variant.
        folders: the model folders that no link may leave; empty allows everything.

    Returns:
        Tensors by key, and the name of what was read, for messages.

    Raises:
        CheckpointError: no weights in the folder, a shard missing, or as
            :func:`read_state_dict`.
    """
    infixes = (".fp16", "") if dtype == torch.float16 else ("", ".fp16")
    for kind in ("safetensors", "bin"):
        for infix in infixes:
            for stem in STEMS:
                whole = folder / f"{stem}{infix}.{kind}"
                if whole.is_file():
                    check_inside(whole, folders)
                    return read_state_dict(whole), str(whole)
                for index in (
                    folder / f"{stem}{infix}.{kind}.index.json",
                    folder / f"{stem}.{kind}.index{infix}.json",
                ):
                    if index.is_file():
                        return _read_shards(index, folders), str(index)
    raise CheckpointError(
        f"'{folder}' holds no weights (looked for {STEMS[0]}.safetensors, {STEMS[1]}.safetensors,"
        f" their fp16 variants, shards and .bin). {AGAIN}, e.g. with `prior-art download`"
    )


def load_strict(
    network: nn.Module, state_dict: Mapping[str, torch.Tensor], source_name: str
) -> None:
    """Assign ``state_dict`` to ``network``, which may live on the meta device, key by key.

    Buffers that no file holds (position ids, the prior's causal mask) are computed.

    Args:
        network: gets the very tensors of ``state_dict``: nothing is copied.
        state_dict: one tensor per parameter and persistent buffer.
        source_name: file or folder, for messages.

    Raises:
        CheckpointError: keys missing or left over, or shapes that differ; names some of them.
    """
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state_dict]
    unexpected = [key for key in state_dict if key not in wanted]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"lacks {_some(missing)}")
        if unexpected:
            parts.append(f"holds unknown {_some(unexpected)}")
        raise CheckpointError(
            f"'{source_name}' is not a {type(network).__name__} of this size: it"
            f" {' and '.join(parts)}. It belongs to another model, or its config.json does;"
            " choose another source or download it again"
        )
    wrong = [
        f"{key} {list(state_dict[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if state_dict[key].shape != wanted[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"'{source_name}' does not fit its config: {_some(wrong)}. Weights and config.json"
            " come from different models; download both again"
        )
    strange = [
        f"{key} in {str(state_dict[key].dtype).removeprefix('torch.')}"
        for key in wanted
        if wanted[key].is_floating_point() and not state_dict[key].is_floating_point()
    ]
    if strange:
        raise CheckpointError(
            f"'{source_name}' holds weights that are no plain numbers: {_some(strange)}. Quantised"
            " files are not read; use the fp32, fp16 or bf16 ones"
        )
    network.load_state_dict(dict(state_dict), strict=True, assign=True)
    _compute_buffers(network, source_name)


def cast(state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in ``dtype``; those that are already stay memory-mapped."""
    made = {}
    for key, tensor in state_dict.items():
        _between.get()()
        made[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return made


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        guise = _guise(path)
        what = f"is no safetensors file{guise}" if guise else "is truncated or no safetensors file"
        raise CheckpointError(f"'{path}' {what} ({reason_of(error)}). {AGAIN}") from error


def _read_shards(index: Path, folders: Sequence[Path]) -> dict[str, torch.Tensor]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"'{index}' has no weight_map. {AGAIN}")
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(table.values())):
        if Path(name).name != name or "\\" in name or not name.isprintable() or name in ("", ".."):
            raise CheckpointError(
                f"'{index}' names the shard {name!r}, which is no plain file name. {AGAIN}"
            )
        shard = index.parent / name
        check_inside(shard, folders)
        state.update(read_state_dict(shard))
    lost = [key for key in table if key not in state]
    if lost:
        raise CheckpointError(f"'{index}' promises {_some(lost)}, which no shard holds. {AGAIN}")
    return state


def _refuse_nan(state: Mapping[str, torch.Tensor], path: Path) -> None:
    for key, tensor in state.items():
        if tensor.is_floating_point() and not all(map(_is_finite, _pieces(tensor))):
            raise CheckpointError(
                f"'{path}' holds NaN or infinite numbers in '{key}'; the file is damaged or its"
                f" conversion overflowed. {AGAIN}, in fp32 or bf16 if it was an fp16 conversion"
            )


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor's rows, so many at once as make a piece; what is memory-mapped is read with them."""
    rows = torch.atleast_1d(tensor)
    for piece in rows.split(max(1, PIECE * len(rows) // max(1, rows.numel()))):
        _between.get()()
        yield piece


def _is_finite(tensor: torch.Tensor) -> bool:
    # One fp32 sum is the cheap test; only a sum that overflowed needs the exact one.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(tensor).all())


def _read_ahead(path: Path) -> None:
    """Bring a file into the system's memory, where who reads it next finds it."""
    with path.open("rb") as file:
        while file.read(PIECE):
            _between.get()()


def _some(items: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _guise(path: Path) -> str:
    """What a file that does not parse really is, for messages; empty if that is unknown."""
    head = _head(path)
    if not head:
        return ": it is empty"
    if head.startswith(b"version https://git-lfs"):
        return ": it is a git-lfs pointer (run `git lfs pull` where it came from)"
    if head.lstrip()[:1] == b"<":
        return ": it is a web page"
    if head.startswith(b"PK") and path.suffix == ".safetensors":
        return ": it is a torch checkpoint under another name (rename it to .ckpt)"
    if head.startswith(b"GGUF"):
        return ": it is a GGUF file"
    if len(head) > 9 and head[8:9] == b"{" and path.suffix != ".safetensors":
        return ": it is a safetensors file under another name (rename it to .safetensors)"
    return ""


# -- buffers that no checkpoint holds ----------------------------------------------------------


def _position_ids(buffer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(buffer.shape[-1]).expand(buffer.shape)


def _causal_mask(buffer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # PriorTransformer's own constant: -10000 above the diagonal.
    return torch.full(tuple(buffer.shape), -10000.0, dtype=dtype).triu_(1)


def _token_types(buffer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(tuple(buffer.shape), dtype=torch.long)


BUFFERS: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "position_ids": _position_ids,
    "token_type_ids": _token_types,
    "causal_attention_mask": _causal_mask,
}


def _compute_buffers(network: nn.Module, source_name: str) -> None:
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                continue
            if name not in BUFFERS:
                raise CheckpointError(
                    f"'{source_name}': the installed library has a buffer '{name}' that this"
                    " version of the pack does not know. Update the pack"
                )
            setattr(module, name, BUFFERS[name](buffer, dtype))


# -- pickles that hold more than tensors -------------------------------------------------------

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
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
        """Whatever it is made with."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Called with anything."""
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


class Scripted(Inert):
    """A module of a TorchScript archive: keeps its attributes, does nothing."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


@dataclass(frozen=True, eq=False)
class _View:
    """A tensor to be, as the pickle describes it: nothing in it is checked yet."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Unpickler(pickle.Unpickler):
    """Hands out tensors and plain containers only.

    A pickle can only call what :meth:`find_class` hands out: storage types as tokens, what
    describes a tensor, and for every other name ``foreign``. So nothing is imported, constructed or
    called, whatever the pickle asks for.
    """

    def __init__(self, file: IO[bytes], foreign: type[Inert]) -> None:
        super().__init__(file)
        self.foreign = foreign
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
        return self.foreign

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 3 and isinstance(pid[1], torch.dtype):
            return _Storage(pid[1], str(pid[2]))
        raise pickle.UnpicklingError(f"unknown storage {str(pid)[:60]}")


def read_tensors(path: Path) -> Unpickled:
    """The tensors of a torch checkpoint that may hold more, without running any of it.

    A Lightning checkpoint keeps callbacks, hyper-parameters (OmegaConf) and the like beside its
    ``state_dict``, which ``weights_only`` refuses. Those of the ``state_dict``, where there is one.

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
    root, ignored, tensor = _unpickled(path, Inert, "checkpoint")
    found = root["state_dict"] if _has_state(root) else root
    items = dict.items(found) if isinstance(found, dict) else ()
    views = {k: v for k, v in items if isinstance(k, str) and isinstance(v, _View)}
    state = _mapped(path, views, tensor, "checkpoint")
    if not state:
        named = f" beside {', '.join(ignored[:4])}" if ignored else ""
        raise CheckpointError(f"'{path}' holds no tensors{named}. Choose another file")
    return Unpickled(state, ignored)


def _has_state(root: Any) -> bool:
    return isinstance(root, dict) and isinstance(dict.get(root, "state_dict"), Mapping)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a TorchScript archive, memory-mapped, without running it."""
    what = "TorchScript archive"
    root, _, tensor = _unpickled(path, Scripted, what)
    views: dict[str, _View] = {}
    _collect(root, "", views, set())
    return _mapped(path, views, tensor, what)


def _collect(value: Any, prefix: str, views: dict[str, _View], seen: set[int]) -> None:
    if isinstance(value, _View):
        views[prefix] = value
    elif isinstance(value, Scripted) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value.attributes, dict):
            for name, attribute in value.attributes.items():
                _collect(attribute, f"{prefix}.{name}" if prefix else str(name), views, seen)


def _unpickled(
    path: Path, foreign: type[Inert], what: str
) -> tuple[Any, tuple[str, ...], Callable[[_View], torch.Tensor]]:
    """The root object of an archive, what stayed inert in it, and what maps its tensors."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            read = {name: r for name, r in records.items() if name.startswith("data")}
            _refuse_packed(read.values())
            if "data.pkl" not in records:
                raise pickle.UnpicklingError("it holds no data.pkl")
            pickled = archive.read(records["data.pkl"])
            check_pickle(pickled)
            unpickler = _Unpickler(io.BytesIO(pickled), foreign)
            root = unpickler.load()
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except Exception as error:  # a hostile file may fail in any way, none of them runs code
        raise _damaged(path, what, error) from error
    return root, tuple(sorted(unpickler.ignored)), lambda view: _tensor(view, data, records)


def _mapped(
    path: Path, views: Mapping[str, _View], tensor: Callable[[_View], torch.Tensor], what: str
) -> dict[str, torch.Tensor]:
    try:
        state = {key: tensor(view) for key, view in views.items()}
        _check_sizes(state, path.stat().st_size)
        return state
    except Exception as error:  # whatever numbers a hostile file holds
        raise _damaged(path, what, error) from error


def _damaged(path: Path, what: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"'{path}' is a damaged {what} ({reason_of(error)}). {AGAIN}")


def _tensor(view: _View, data: mmap.mmap, records: Mapping[str, zipfile.ZipInfo]) -> torch.Tensor:
    numbers = [view.offset, *view.size, *view.stride]
    if not isinstance(view.storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor that torch would not write")
    dtype = view.storage.dtype
    info = records[f"data/{view.storage.key}"]
    count = info.file_size // torch.empty(0, dtype=dtype).element_size()
    steps = zip(view.size, view.stride, strict=True)
    needed = view.offset + sum((n - 1) * step for n, step in steps) + 1
    if 0 in view.size:
        return torch.empty(tuple(view.size), dtype=dtype)
    # A repeated (stride 0) tensor could be of any size.
    if max(needed, math.prod(view.size)) > count:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    # A local file header is 30 bytes, its name, and its extra field (APPNOTE.TXT 4.3.7).
    head = info.header_offset
    name = int.from_bytes(data[head + 26 : head + 28], "little")
    extra = int.from_bytes(data[head + 28 : head + 30], "little")
    flat = torch.frombuffer(data, dtype=dtype, count=count, offset=head + 30 + name + extra)
    return torch.as_strided(flat, tuple(view.size), tuple(view.stride), view.offset)


class _Bomb(pickle.UnpicklingError):
    """What would cost more than its size to read."""


def _refuse_packed(records: Iterable[zipfile.ZipInfo]) -> None:
    """Torch never packs; a small file could claim to be a huge one."""
    packed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _Bomb(f"'{packed[0]}' is compressed")


def _check_pickles(path: Path, zipped: bool) -> None:
    """:func:`check_pickle` for what torch itself is to read: an archive, or torch's old format of
    several pickles in a row."""
    if zipped:
        with zipfile.ZipFile(path) as archive:
            _refuse_packed(archive.infolist())
            for info in archive.infolist():
                if info.filename.endswith(".pkl"):
                    check_pickle(archive.read(info))
    elif _head(path).startswith(b"\x80"):
        with path.open("rb") as file:
            for _ in range(4):  # a magic number, a version, the system, what was saved
                check_pickle(file)
    # Another beginning is no checkpoint, which torch says.


REPEATED = 16
"""How many times the bytes of a file its tensors may have: weights that are tied lie there once."""


def _check_sizes(value: Any, size: int) -> None:
    """Refuse tensors larger than their storage, which repeat it, and many of one storage.

    Args:
        value: tensors in plain containers.
        size: bytes of the file.

    Raises:
        _Bomb: such tensors.
    """
    total, waiting, seen = 0, [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.is_quantized or item.is_meta:
                raise _Bomb("a tensor of another kind than weights")
            needed = item.numel() * item.element_size()
            if needed > item.untyped_storage().nbytes():
                raise _Bomb("a tensor larger than its storage")
            total += needed
            if total > REPEATED * max(size, 2**20):
                raise _Bomb("tensors that are far larger than the file")
        elif isinstance(item, (Mapping, list, tuple, set)) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, Mapping) else item


DEEPEST = 10_000
"""Leaves of a tuple that a checkpoint may hold; torch's have a handful."""


def check_pickle(pickled: bytes | IO[bytes]) -> None:
    """Refuse what would cost more than its size to unpickle.

    A tuple of tuples of tuples is hashed leaf by leaf wherever it is a key, in time that doubles
    with each level; a memo index of a billion makes room for a billion. Both fit into a few hundred
    bytes. So the operations are read first, with a stack of each item's number of leaves.

    Raises:
        pickle.UnpicklingError: such a pickle, or none at all.
    """
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}
    put = 0
    argument: Any
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name == "MEMOIZE":
            argument, put = len(memo), put + 1
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            put += 1
            if int(argument) > put:
                raise _Bomb(f"memo place {argument} after {put} items")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[int(argument)] = stack[-1] or 1 if stack else 1
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(argument), 1))
            continue
        if name == "MARK":
            stack.append(None)
            continue
        taken = _take(stack, operation)
        leaves = 1
        if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"):
            leaves = 1 + sum(taken)
            if leaves > DEEPEST:
                raise _Bomb("tuples in tuples that no checkpoint has")
        elif name == "DUP":
            stack.append(taken[0] if taken else 1)
            leaves = taken[0] if taken else 1
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
            stack.append(taken[0] if taken else 1)  # the container stays
            continue
        if operation.stack_after:
            stack.append(leaves)


def _take(stack: list[int | None], operation: Any) -> list[int]:
    """What an operation takes off the stack, the deepest first."""
    taken: list[int] = []
    before = operation.stack_before
    if pickletools.markobject in before:
        while stack and stack[-1] is not None:
            taken.append(stack.pop() or 1)
        if stack:
            stack.pop()
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        if stack and stack[-1] is not None:
            taken.append(stack.pop() or 1)
    return taken[::-1]
