"""A folder of pictures as VQGAN codes, encoded once and kept.

A cached row counts as long as its file has the same size and time and the VQGAN the same weights;
only other pictures are encoded anew. A picture of 256 codes takes 512 bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ..edges import UserError
from ..loaders.files.checkpoint import CheckpointError, read_object
from ..loaders.mindalle_vqgan import VQGAN
from ..networks.mindalle_vqgan import encode
from .state import Unfinished, save_atomically

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for pictures."""

_AT_ONCE = 16
_SAVE_EVERY = 16384  # pictures
_READERS = 4  # threads

Row = tuple[tuple[int, int], np.ndarray]
"""(bytes, nanoseconds of the last change) of a picture file, and its codes."""


def find_pictures(folder: Path) -> list[str]:
    """Names of all picture files below ``folder``, relative, with ``/``, sorted.

    Links are followed, as ImageFolder does, but each folder is entered once, by its own name where
    it has one here; what is hidden is not looked at.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder. Name the folder with the pictures")
    names: list[str] = []
    entered: set[str] = set()
    roots = [folder]
    for root in roots:  # grows by the links that are found
        for where, folders, files in os.walk(root):
            real = os.path.realpath(where)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [Path(where) / name for name in folders if (Path(where) / name).is_symlink()]
            names += [
                (Path(where) / name).relative_to(folder).as_posix()
                for name in files
                if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            ]
    if not names:
        raise UserError(
            f"'{folder}' holds no pictures ({', '.join(SUFFIXES)}). Name the folder that does"
        )
    return sorted(names)


def read_picture(path: Path, size: int) -> np.ndarray:
    """A picture as the published validation reads it: ``[size, size, 3]``, 8 bits.

    Its shorter side is resized to ``size`` by Pillow's bilinear filter and the centre cut out. (The
    published training cut out a random part, for which every epoch had to encode anew.)
    """
    from PIL import Image, ImageOps

    from ..loaders.files.safe import open_picture
    from ..samplers.parts.resize import resize_and_crop

    with open_picture(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    return resize_and_crop(picture, size, Image.Resampling.BILINEAR)


def coded(
    folder: Path,
    names: Sequence[str],
    vqgan: VQGAN,
    cache: Path,
    device: torch.device,
    *,
    stopped: Callable[[], bool],
    warn: Callable[[str], None],
) -> tuple[list[str], torch.Tensor]:
    """The codes of pictures; those that cannot be read are left out with a warning.

    Args:
        names: from :func:`find_pictures`.
        vqgan: in fp32: half precision changes codes.
        cache: the file that remembers codes; a damaged one is made anew.
        stopped: asked between batches.

    Returns:
        The names of the readable pictures and their codes, int16 ``[N, grid * grid]``, raster.

    Raises:
        UserError: no picture can be read.
        Unfinished: ``stopped``; the codes so far are kept.
    """
    from tqdm import tqdm

    print_of = f"{digest(vqgan.network.state_dict())} {vqgan.image_size}"
    rows = _read(cache, print_of)
    stamps = _stamps(folder, names, warn)
    names = list(stamps)
    missing = [name for name in names if name not in rows or rows[name][0] != stamps[name]]
    network = vqgan.network.to(device)
    unsaved = 0
    try:
        with tqdm(total=len(missing), desc="codes", unit="picture", disable=not missing) as bar:
            for batch, pictures in _read_pictures(folder, missing, vqgan.image_size, warn):
                if stopped():
                    raise Unfinished(
                        f"stopped after the codes of {bar.n} of {len(missing)} pictures, which are"
                        " kept; the same command goes on from there"
                    )
                if batch:
                    x = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)
                    codes = encode(network, x.float() / 127.5 - 1).flatten(1).to(torch.int16)
                    found = zip(batch, codes.cpu().numpy(), strict=True)
                    rows |= {name: (stamps[name], row) for name, row in found}
                unsaved += len(batch)
                if unsaved >= _SAVE_EVERY:
                    _write(cache, print_of, rows)
                    unsaved = 0
                bar.update(min(_AT_ONCE, len(missing) - bar.n))
    finally:
        if unsaved:
            _write(cache, print_of, rows)
    readable = [name for name in names if name in rows and rows[name][0] == stamps[name]]
    if not readable:
        raise UserError(f"no picture in '{folder}' can be read. Name another folder")
    return readable, torch.from_numpy(np.stack([rows[name][1] for name in readable]))


def _stamps(
    folder: Path, names: Sequence[str], warn: Callable[[str], None]
) -> dict[str, tuple[int, int]]:
    """What tells whether a picture has changed, of each that is there."""
    stamps = {}
    for name in names:
        try:
            stamps[name] = _stamp(folder / name)
        except OSError as error:
            warn(f"'{folder / name}' cannot be read ({error.strerror}) and is left out")
    return stamps


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the bytes of tensors and their names."""
    total = hashlib.sha256()
    for name, tensor in state.items():
        total.update(name.encode())
        total.update(memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def _read_pictures(
    folder: Path, names: Sequence[str], size: int, warn: Callable[[str], None]
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Names and pictures, some at once; broken ones are named in a warning and left out."""

    def read(name: str) -> np.ndarray | Exception:
        try:
            return read_picture(folder / name, size)
        except Exception as error:  # Pillow's decoders raise many kinds
            return error

    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(names), _AT_ONCE):
            batch = names[start : start + _AT_ONCE]
            found = dict(zip(batch, readers.map(read, batch), strict=True))
            good = {n: p for n, p in found.items() if not isinstance(p, Exception)}
            for name in found.keys() - good.keys():
                reason = (str(found[name]) or type(found[name]).__name__)[:160]
                warn(f"'{folder / name}' cannot be read ({reason}) and is left out")
            yield list(good), list(good.values())


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _read(cache: Path, print_of: str) -> dict[str, Row]:
    if not cache.is_file():
        return {}
    try:
        state = read_object(cache)
        if state["vqgan"] != print_of:
            return {}
        stamps = [tuple(pair) for pair in state["stamps"].tolist()]
        # A copy: the file may be mapped, and is replaced later.
        rows = zip(stamps, state["codes"].clone().numpy(), strict=True)
        return dict(zip(state["names"], rows, strict=True))
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _write(cache: Path, print_of: str, rows: Mapping[str, Row]) -> None:
    state = {
        "vqgan": print_of,
        "names": list(rows),
        "stamps": torch.tensor([stamp for stamp, _ in rows.values()]),
        "codes": torch.from_numpy(np.stack([codes for _, codes in rows.values()])),
    }
    save_atomically(state, cache)
