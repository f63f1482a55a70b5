"""Safe reading of weight files, and strict loading of what was read.

Reads safetensors (memory-mapped), torch's own format with ``weights_only`` (memory-mapped where the
file allows), and the tensors of a TorchScript archive. No file can run code here: a pickle that
needs more than tensors is refused, and TorchScript archives are read by an unpickler that knows
tensors and turns every other class into an inert object.

Sources of the formats: PyTorch's serialization notes (docs.pytorch.org, "Serialization semantics")
and ``torch/csrc/jit/serialization/docs/serialization.md``.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

AGAIN = "Download or copy it again"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files in a hub component folder: diffusers', transformers', transformers' old."""


class CheckpointError(ValueError):
    """A file that cannot be loaded; the message names the file, what is wrong and the cure."""


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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing. {AGAIN}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
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
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        if guise := _guise(path):
            raise CheckpointError(f"'{path}' is no checkpoint{guise}. {AGAIN}") from error
        if not zipped and not _head(path).startswith(b"\x80"):
            raise CheckpointError(f"'{path}' is no checkpoint. {AGAIN}") from error
        raise CheckpointError(
            f"'{path}' holds Python objects beside tensors; loading them could run code, so it is"
            f" refused ({_reason(error)}). Use the safetensors of the same model, e.g. from"
            " `prior-art download karlo`, or convert the file to safetensors on a machine where"
            " you trust it"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"'{path}' is truncated or damaged{_guise(path)} ({_reason(error)}). {AGAIN}"
        ) from error


def read_component(
    folder: Path, dtype: torch.dtype, folders: Sequence[Path] = ()
) -> tuple[dict[str, torch.Tensor], str]:
    """Read the weights of one component folder of a hub layout.

    Looks for safetensors before ``.bin``, whole files before shards, and full precision before the
    ``fp16`` variant, or the other way round where ``dtype`` is float16.

    Args:
        folder: e.g. ``karlo-v1-alpha/prior``.
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
        f" their fp16 variants, shards and .bin). {AGAIN}, e.g. with `prior-art download karlo`"
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
    network.load_state_dict(dict(state_dict), strict=True, assign=True)
    _compute_buffers(network, source_name)


def cast(state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in ``dtype``; those that are already stay memory-mapped."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        guise = _guise(path)
        what = f"is no safetensors file{guise}" if guise else "is truncated or no safetensors file"
        raise CheckpointError(f"'{path}' {what} ({_reason(error)}). {AGAIN}") from error


def _read_shards(index: Path, folders: Sequence[Path]) -> dict[str, torch.Tensor]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"'{index}' has no weight_map. {AGAIN}")
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(table.values())):
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(
                f"'{index}' names the shard '{name}', which is no plain file name"
            )
        shard = index.parent / name
        check_inside(shard, folders)
        state.update(read_state_dict(shard))
    lost = [key for key in table if key not in state]
    if lost:
        raise CheckpointError(f"'{index}' promises {_some(lost)}, which no shard holds. {AGAIN}")
    return state


def _refuse_nan(state: Mapping[str, torch.Tensor], path: Path) -> None:
    # One fp32 sum a tensor is the cheap test; only a sum that overflowed needs the exact one.
    for key, tensor in state.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if not bool(torch.isfinite(tensor.sum(dtype=torch.float32))) and not bool(
            torch.isfinite(tensor).all()
        ):
            raise CheckpointError(
                f"'{path}' holds NaN or infinite numbers in '{key}'; the file is damaged or its"
                f" conversion overflowed. {AGAIN}, in fp32 or bf16 if it was an fp16 conversion"
            )


def _some(items: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


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


def write_whole(file: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, and no half stays behind.

    Raises:
        OSError: it cannot be written.
    """
    scratch = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        scratch.write_bytes(data)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


# -- TorchScript archives ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


class _Inert:
    """Stands for any class named in an archive: keeps the attributes, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.attributes: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


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


class _TensorsOnly(pickle.Unpickler):
    """An unpickler that can build tensors and nothing else.

    A pickle can only call what ``find_class`` hands out, and that is: storage types as tokens,
    the tensor rebuilder below, and for every other name :class:`_Inert`.
    """

    def __init__(self, file: Any, tensor: Callable[..., torch.Tensor]) -> None:
        super().__init__(file)
        self._tensor = tensor

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        return _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 3 and isinstance(pid[1], torch.dtype)):
            raise pickle.UnpicklingError(f"unknown storage {str(pid)[:60]}")
        return _Storage(pid[1], str(pid[2]))


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
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}

            def tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
                if not isinstance(storage, _Storage):
                    raise pickle.UnpicklingError("a tensor without storage")
                flat = _map_record(data, records[f"data/{storage.key}"], storage.dtype, archive)
                needed = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
                if offset < 0 or any(s < 0 for s in stride) or any(n < 0 for n in size):
                    raise pickle.UnpicklingError("a tensor of negative size")
                if needed > flat.numel() and 0 not in size:
                    raise pickle.UnpicklingError("a tensor larger than its storage")
                return torch.as_strided(flat, tuple(size), tuple(stride), offset)

            with archive.open(records["data.pkl"]) as stream:
                root = _TensorsOnly(stream, tensor).load()
    except Exception as error:  # a hostile archive may fail in any way, none of them runs code
        raise CheckpointError(
            f"'{path}' is a damaged TorchScript archive ({_reason(error)}). {AGAIN}"
        ) from error
    state: dict[str, torch.Tensor] = {}
    _collect(root, "", state, set())
    return state


def _map_record(
    data: mmap.mmap, info: zipfile.ZipInfo, dtype: torch.dtype, archive: zipfile.ZipFile
) -> torch.Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    count = info.file_size // width
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if info.compress_type != zipfile.ZIP_STORED:
        return torch.frombuffer(bytearray(archive.read(info)), dtype=dtype, count=count)
    # A local file header is 30 bytes, its name, and its extra field (APPNOTE.TXT 4.3.7).
    head = info.header_offset
    name = int.from_bytes(data[head + 26 : head + 28], "little")
    extra = int.from_bytes(data[head + 28 : head + 30], "little")
    return torch.frombuffer(data, dtype=dtype, count=count, offset=head + 30 + name + extra)


def _collect(value: Any, prefix: str, state: dict[str, torch.Tensor], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        state[prefix] = value
    elif isinstance(value, _Inert) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value.attributes, dict):
            for name, attribute in value.attributes.items():
                _collect(attribute, f"{prefix}.{name}" if prefix else str(name), state, seen)
