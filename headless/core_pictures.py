"""Picture files as ComfyUI's LoadImage reads them since it decodes with FFmpeg, by Pillow alone.

FFmpeg hands some pixel formats over as bytes and others as floats whose white is 65280 of 65535;
it keeps a JPEG's halved colours as they are where the height is even, and turns pictures by EXIF
without mirroring them. What Pillow cannot read as FFmpeg does is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFile, ImageOps, ImageSequence, JpegImagePlugin, PngImagePlugin
from PIL.Image import Image as Picture

from ..edges import EdgeError, reason_of
from ..host.room import check_main_memory
from ..loaders.files.safe import PICTURE_BYTES, open_picture, read_bytes
from .workflow import WorkflowError

BYTES, WIDE = 1 / 255, 256 / 65535
"""What a level of 8 bits is worth: as it is, and as FFmpeg widens it on the way to floats."""

NO_MASK = 64
"""Edge of the mask of zeros that the host gives for a picture without alpha."""

_QUARTERS = {2: 2, 3: 2, 5: 3, 6: 3, 7: 1, 8: 1}
"""EXIF's orientations as quarter turns to the left. FFmpeg's angle says nothing of the mirrored
ones (2, 4, 5, 7), which the host turns like their neighbours."""

_ORIENTATION = 0x0112
_FULL, _HALF_WIDTH, _HALF = 0, 1, 2
"""How a JPEG's colours are sampled, in Pillow's numbers: 4:4:4, 4:2:2, 4:2:0."""

Frame = tuple[np.ndarray, np.ndarray | None]
"""A frame's colours ``[H, W, 3]`` and its mask ``[H, W]``, float32."""


def read_picture(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A file as IMAGE ``[B, H, W, 3]`` and MASK: ``1 - alpha`` ``[B, H, W]``, or zeros
    ``[B, 64, 64]`` for a kind of picture that has no alpha channel.

    Raises:
        WorkflowError: no picture, or one that only ComfyUI can read.
    """
    with _patience():
        try:
            with open_picture(path) as picture:
                wide, high = picture.size
                # Its levels as fp32, and a copy that lies beside the others of its batch.
                check_main_memory(
                    6 * wide * high,
                    f"'image' is '{path.name}' of {wide}x{high} pixels, which",
                    "choose a smaller one",
                )
                frames = _frames(picture, path)
        except (WorkflowError, EdgeError):
            raise
        except Exception as error:  # Pillow's decoders raise many kinds
            raise WorkflowError(
                f"'image' is '{path.name}', which is no picture: {reason_of(error)}"
            ) from None
    colours, masks = zip(*frames, strict=True)
    none = np.zeros((NO_MASK, NO_MASK), dtype=np.float32)
    # Of an animation only some frames may have alpha: those without are seen whole.
    if any(mask is not None for mask in masks):
        none = np.zeros(colours[0].shape[:2], dtype=np.float32)
    stacked = [np.stack(rows) for rows in (colours, [none if m is None else m for m in masks])]
    image, mask = (torch.from_numpy(rows) for rows in stacked)
    return image, mask


@contextmanager
def _patience() -> Iterator[None]:
    """Let Pillow read what is cut off, and pass over text and profiles that are very long."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_MEMORY
    ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_MEMORY = True, 2**31
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_MEMORY = before


def _frames(picture: Picture, path: Path) -> list[Frame]:
    kind = picture.format
    if kind == "WEBP" and getattr(picture, "is_animated", False):
        return _by_pillow(picture)  # FFmpeg reads none
    if kind == "PNG" and _is_cut_off(path):
        return _by_pillow(picture)  # FFmpeg gives up, and the host falls back on Pillow
    quarters = _QUARTERS.get(picture.getexif().get(_ORIENTATION, 1), 0)
    if kind == "TIFF":
        quarters = 0  # Pillow has turned it
    if kind in ("JPEG", "MPO"):
        frames = [_jpeg(picture, path)]
    elif kind == "GIF":
        frames = _gif(picture, path)
    elif kind == "PNG":
        frames = [_png(frame) for frame in ImageSequence.Iterator(picture)]
    elif kind == "TIFF":
        frames = [_tiff(picture, path)]
    elif kind == "BMP":
        frames = [_bmp(picture, path)]
    elif kind == "WEBP":
        frames = [_webp(picture, path)]
    elif kind in ("PPM", "JPEG2000") and picture.mode == "RGB":
        frames = [_levels(picture, BYTES)]
    else:
        raise _only_comfyui(path, f"a picture of the kind {kind} in the mode {picture.mode}")
    if quarters:
        frames = [
            (np.rot90(levels, quarters), None if mask is None else np.rot90(mask, quarters))
            for levels, mask in frames
        ]
    return frames


def _only_comfyui(path: Path, what: str) -> WorkflowError:
    return WorkflowError(
        f"'image' is '{path.name}', {what}; only ComfyUI reads that exactly. Save it as PNG"
    )


def _by_pillow(picture: Picture) -> list[Frame]:
    """The host's second way: every frame by Pillow."""
    frames = (ImageOps.exif_transpose(frame) for frame in ImageSequence.Iterator(picture))
    return [_levels(frame, BYTES) for frame in frames]


def _levels(picture: Picture, worth: float, *, alpha: bool = False) -> Frame:
    """A frame of 8 bits a channel; ``alpha`` says that its kind has a mask, all seen or not."""
    if "transparency" in picture.info or "A" in picture.getbands() or alpha:
        levels = np.asarray(picture.convert("RGBA"), dtype=np.float32) * np.float32(worth)
        return levels[..., :3], 1 - levels[..., 3]
    return np.asarray(picture.convert("RGB"), dtype=np.float32) * np.float32(worth), None


def _sixteen_bits(picture: Picture) -> Frame:
    grey = np.asarray(picture).astype(np.float32) / 65535
    return np.repeat(grey[..., None], 3, axis=-1), None


def _is_cut_off(path: Path) -> bool:
    """Whether pixels are missing at the end of a file."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with open_picture(path) as picture:
            picture.load()
    except OSError:
        return True
    except ValueError:  # long text or a long profile
        return False
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
    return False


def _png(picture: Picture) -> Frame:
    if picture.mode.startswith("I"):
        return _sixteen_bits(picture)
    if picture.mode == "P":
        return _levels(picture, BYTES, alpha=True)
    return _levels(picture, BYTES if picture.mode in ("RGB", "RGBA") else WIDE)


def _bmp(picture: Picture, path: Path) -> Frame:
    with path.open("rb") as file:
        header = file.read(30)
    if picture.mode == "RGB" and header[28:30] == b"\x20\x00":
        raise _only_comfyui(path, "a BMP with 32 bits a pixel")
    if picture.mode in ("P", "L", "1"):
        return _levels(picture, BYTES, alpha=True)
    return _levels(picture, WIDE)


def _tiff(picture: Picture, path: Path) -> Frame:
    """A file's first page: FFmpeg reads no other."""
    if picture.getexif().get(_ORIENTATION) in (2, 4, 5, 7):
        raise _only_comfyui(path, "a TIFF that is to be mirrored")
    if "jpeg" in picture.info.get("compression", ""):
        raise _only_comfyui(path, "a TIFF with JPEG inside")
    if picture.mode.startswith("I;16"):
        return _sixteen_bits(picture)
    if picture.mode == "P":
        return _levels(picture, BYTES, alpha=True)
    return _levels(picture, BYTES if picture.mode in ("RGB", "RGBA") else WIDE)


def _gif(picture: Picture, path: Path) -> list[Frame]:
    if _is_cut_off(path):
        raise _only_comfyui(path, "a GIF that is cut off")
    several = getattr(picture, "is_animated", False)
    frames: list[Frame] = []
    for frame in ImageSequence.Iterator(picture):
        if several and not frame.info.get("duration"):
            raise _only_comfyui(path, "a GIF whose frames have no duration")
        levels = np.array(frame.convert("RGBA"), dtype=np.float32)
        levels[levels[..., 3] == 0, :3] = 255  # FFmpeg's colour of what is transparent
        levels *= np.float32(WIDE)
        frames.append((levels[..., :3], 1 - levels[..., 3]))
    return frames


def _webp(picture: Picture, path: Path) -> Frame:
    wide, high = picture.size
    lossless = _is_lossless(path)
    # FFmpeg's way of halved colours over the edge is another than Pillow's.
    if not lossless and (wide % 2 or (high % 2 and wide % 32 == 0)):
        raise _only_comfyui(path, f"a lossy WebP of an odd size, {wide}x{high}")
    return _levels(picture, WIDE, alpha=lossless)


def _is_lossless(path: Path) -> bool:
    """Whether a WebP's picture is of the lossless kind, which always has alpha."""
    data = read_bytes(path, PICTURE_BYTES)
    place = 12
    while place + 8 <= len(data):
        if data[place : place + 4] in (b"VP8L", b"VP8 "):
            return data[place : place + 4] == b"VP8L"
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return False


# -- JPEG --------------------------------------------------------------------------------------


def _jpeg(picture: Picture, path: Path) -> Frame:
    cut = _is_cut_off(path)
    if cut and picture.info.get("progressive"):
        raise _only_comfyui(path, "a progressive JPEG that is cut off")
    if picture.mode == "CMYK":
        inks = 255 - np.asarray(picture, dtype=np.int64)
        levels = (inks[..., :3] * inks[..., 3:] * 257) >> 16
        colours = levels.astype(np.float32) * np.float32(WIDE)
        return colours, np.full(colours.shape[:2], 1 - 255 * WIDE, dtype=np.float32)
    if picture.mode == "L":
        grey = np.array(picture, dtype=np.int64)
        if cut:
            _blacken([grey], [(8, 8)])
        return np.repeat(grey[..., None].astype(np.float32) * np.float32(WIDE), 3, -1), None
    if picture.info.get("adobe_transform") == 0:
        return _levels(picture, WIDE)
    sampling = JpegImagePlugin.get_sampling(picture)
    if sampling not in (_FULL, _HALF_WIDTH, _HALF):
        raise _only_comfyui(path, "a JPEG with colours sampled other than 4:4:4, 4:2:2 or 4:2:0")
    planes = _planes(path, sampling)
    if cut:
        luma = (8 if sampling != _HALF else 16, 8 if sampling == _FULL else 16)
        _blacken(planes, [luma, (8, 8), (8, 8)], slack=2 if sampling == _HALF_WIDTH else 0)
    return _from_luma(*planes).astype(np.float32) * np.float32(BYTES), None


def _blacken(planes: list[np.ndarray], sizes: list[tuple[int, int]], slack: int = 0) -> None:
    """Set the blocks that a cut off JPEG lacks, at the end and 128 in all planes, to FFmpeg's 0.

    Args:
        planes: changed in place; sizes: height and width of one block in each.
        slack: how far from 128 an empty block may be.
    """
    (high, wide), (rows, columns) = planes[0].shape, sizes[0]
    for top in reversed(range(-(-high // rows))):
        for left in reversed(range(-(-wide // columns))):
            blocks = [
                plane[top * h : (top + 1) * h, left * w : (left + 1) * w]
                for plane, (h, w) in zip(planes, sizes, strict=True)
            ]
            if any((abs(block - 128) > slack).any() for block in blocks):
                return
            for block in blocks:
                block[:] = 0


def _planes(path: Path, sampling: int) -> list[np.ndarray]:
    """Luma ``[H, W]`` and the two colours as the file holds them, not yet stretched."""
    with open_picture(path) as picture:
        picture.draft("YCbCr", picture.size)
        whole = np.array(picture, dtype=np.int64)
    high, wide = whole.shape[:2]
    if sampling == _FULL:
        return list(np.moveaxis(whole, -1, 0))
    if sampling == _HALF_WIDTH:
        return [whole[..., 0], *(_unstretched(whole[..., i]) for i in (1, 2))]
    with open_picture(path) as picture:
        # At half the size the JPEG library takes these colours as they are.
        picture.draft("YCbCr", (max(1, wide // 2), max(1, high // 2)))
        half = np.array(picture, dtype=np.int64)
    if half.shape[:2] != (-(-high // 2), -(-wide // 2)):  # too small for that
        half = whole[::2, ::2].copy()
    return [whole[..., 0], half[..., 1], half[..., 2]]


def _unstretched(plane: np.ndarray) -> np.ndarray:
    """The colours ``[H, ceil(W / 2)]`` that the JPEG library stretched: every second one of
    ``plane`` is three quarters of its own and a quarter of the one before, rounded."""
    own = np.empty((plane.shape[0], -(-plane.shape[1] // 2)), dtype=np.int64)
    own[:, 0] = plane[:, 0]
    for i in range(1, own.shape[1]):
        own[:, i] = np.rint((4 * plane[:, 2 * i] + 0.5 - own[:, i - 1]) / 3)
    return own.clip(0, 255)


def _from_luma(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Levels ``[H, W, 3]`` as FFmpeg's swscale makes them of a full-range picture.

    Where colours are halved and the height is even it takes a shortcut: each colour serves its
    block and products are rounded down. Otherwise it interpolates, along a row only where the
    width is odd as well.
    """
    high, wide = luma.shape
    factors = [round(factor * 8192) / 8192 for factor in (1.402, -0.344136, -0.714136, 1.772)]
    shortcut = high % 2 == 0 and blue.shape[1] < wide
    rounding = np.floor if shortcut else np.asarray
    if not shortcut:
        blue, red = (_interpolated(plane, high) for plane in (blue, red))
        if wide % 2:
            blue, red = (_interpolated(plane.T, wide).T for plane in (blue, red))
    rows, columns = -(-high // blue.shape[0]), -(-wide // blue.shape[1])
    blue, red = (
        plane.repeat(rows, 0).repeat(columns, 1)[:high, :wide] - 128 for plane in (blue, red)
    )
    parts = [
        luma + rounding(red * factors[0]),
        luma + rounding(blue * factors[1]) + rounding(red * factors[2]),
        luma + rounding(blue * factors[3]),
    ]
    return np.rint(np.stack(parts, axis=-1)).clip(0, 255)


def _interpolated(plane: np.ndarray, length: int) -> np.ndarray:
    """A plane with ``length`` rows, between the centres of its own."""
    if len(plane) == length:
        return plane
    places = (np.arange(length) + 0.5) * (len(plane) / length) - 0.5
    below = np.floor(places).astype(np.int64)
    share = (places - below)[:, None]
    low, high = (plane[np.clip(i, 0, len(plane) - 1)] for i in (below, below + 1))
    return low * (1 - share) + high * share
