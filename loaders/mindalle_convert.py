"""``prior-art convert mindalle``: any checkpoint of minDALL-E into a folder of safetensors.

Reads the original folder, an archive of it, or one Lightning checkpoint of the published transfer
learning, which holds both networks under ``stage1.`` and ``stage2.`` and Python objects beside
them. None of those objects is ever made (:mod:`.unpickle`). The folder is loaded once before it
gets its name, so what a conversion leaves behind works.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..edges import EdgeError
from . import mindalle
from .files.archive import Progress, is_archive, made, unpack
from .files.catalogue import Source
from .files.checkpoint import CheckpointError, Unpickled, read_state_dict, read_tensors
from .mindalle import FILES, MERGES, TRANSFORMER_FILES, VOCABULARY, VQGAN_FILES

BLOCK = 2**24
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls dtypes."""


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        path: the new folder.
        ignored: names of classes and functions that the checkpoints mention and that were never
            touched; a foreign one such as ``posix.system`` is a warning about where it came from.
    """

    path: Path
    ignored: tuple[str, ...]


def convert(source: Path, target: Path, progress: Progress | None = None) -> Converted:
    """Write the weights in ``source`` as our own folder ``target``.

    Args:
        source: a folder, an archive, or one checkpoint file. A checkpoint's ``tokenizer/`` and
            config are taken from beside it.
        target: the folder to make; must not exist.
        progress: told about every file as it is unpacked and written.

    Raises:
        CheckpointError: nothing to convert, damaged or foreign weights, NaN, ``target`` exists, or
            a full disk. Nothing is left behind.
        EdgeError: the tokenizer has another number of entries than the transformer.
    """
    if not source.exists():
        raise CheckpointError(f"'{source}' does not exist. Name minDALL-E's folder, or its archive")
    if target.exists():
        raise CheckpointError(
            f"'{target}' exists already. Name another folder, or remove it; nothing is overwritten"
        )
    with made(target) as folder:
        original = folder / "original"
        if source.is_file() and is_archive(source):
            original.mkdir()
            unpack(source, original, FILES, progress)
            files = _weight_files(original)
        elif source.is_file():
            original, files = source.parent, [source]
        else:
            original, files = source, _weight_files(source)
        ignored = _convert(original, files, folder, progress)
        if original.is_relative_to(folder):
            shutil.rmtree(original)
        try:
            _check(folder)
        except (CheckpointError, EdgeError) as error:
            raise type(error)(f"'{source}' cannot be converted: {error}") from error
    return Converted(target, ignored)


def _weight_files(folder: Path) -> list[Path]:
    files = []
    for names in (VQGAN_FILES, TRANSFORMER_FILES):
        files += [folder / name for name in names if (folder / name).is_file()][:1]
    if not files:
        raise CheckpointError(
            f"'{folder}' holds none of {', '.join((*VQGAN_FILES, *TRANSFORMER_FILES))}. Name a"
            " folder with minDALL-E's checkpoints, or a checkpoint file"
        )
    return files


def _convert(
    original: Path, files: list[Path], folder: Path, progress: Progress | None
) -> tuple[str, ...]:
    settings = mindalle.read_settings(original)
    ignored: set[str] = set()
    for path in files:
        read = _read(path)
        ignored.update(read.ignored)
        vqgan, transformer = _split(read.state, path)
        if vqgan:
            write_safetensors(vqgan, folder / VQGAN_FILES[0], progress)
        if transformer:
            write_safetensors(transformer, folder / TRANSFORMER_FILES[0], progress)
            config = mindalle.config_of(transformer, str(path), settings.heads)
            settings = replace(settings, heads=config.heads)
    for name in (VOCABULARY, MERGES):
        if (original / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(original / name, folder / name)
    mindalle.write_settings(folder, settings)
    if progress is not None:
        written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        progress("", written, written)
    return tuple(sorted(ignored))


def _read(path: Path) -> Unpickled:
    # What is no zip archive (safetensors, torch's old format) holds tensors only, or is refused.
    return read_tensors(path) if zipfile.is_zipfile(path) else Unpickled(read_state_dict(path), ())


def _split(
    state: Mapping[str, torch.Tensor], path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The VQGAN's and the transformer's tensors of one checkpoint, either possibly empty."""
    first, second = (
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for prefix in ("stage1.", "stage2.")
    )
    if first or second:
        return first, second
    if "quantize.embedding.weight" in state:
        return dict(state), {}
    if "tok_emb_img.weight" in state:
        return {}, dict(state)
    shown = ", ".join(list(state)[:4])
    raise CheckpointError(
        f"'{path}' is no checkpoint of minDALL-E: it holds {shown}, ... Name the folder with"
        " stage1_last.ckpt and stage2_last.ckpt"
    )


def _check(folder: Path) -> None:
    """Load what was written."""
    source = Source(folder.name, "folder", folder, "mindalle", frozenset())
    if (folder / VQGAN_FILES[0]).is_file():
        mindalle.load_vqgan(source)
    if (folder / TRANSFORMER_FILES[0]).is_file():
        mindalle.load_transformer(source)


def write_safetensors(
    state: Mapping[str, torch.Tensor], path: Path, progress: Progress | None = None
) -> None:
    """Write tensors piece by piece.

    The safetensors library writes a file in one call, from a copy of everything (5 GB here) and
    without progress. The format: the header's length in 8 bytes, the header in JSON, the bytes.

    Args:
        state: tensors, which may be memory-mapped and of any strides.
        path: the file to make.
        progress: told about the bytes written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    total = 0
    for key, tensor in state.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"'{key}' is {tensor.dtype}, which is not converted. Use fp32")
        size = tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [total, total + size],
        }
        total += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    done = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            data = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
            for start in range(0, len(data), BLOCK):
                done += file.write(data[start : start + BLOCK])
                if progress is not None:
                    progress(path.name, done, total)
