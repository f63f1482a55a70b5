"""The few nodes of ComfyUI's own that the headless runner has: the host's names and meaning."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..edges import EdgeError
from ..host.embedded import io as io
from ..host.embedded.door import session
from ..loaders.files.safe import cure_of, written
from .checking import check_bounds
from .core_images import IMAGE_NODES
from .core_latents import LATENT_NODES
from .core_pictures import read_picture
from .core_prompts import PROMPT_NODES
from .core_sampling import SAMPLING_NODES
from .workflow import WorkflowError

LARGEST = 16384
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class PixelSpaceVAE:
    """VAE "pixel_space": the latent is the picture itself, in [-1, 1]."""

    factor = 1

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """``[B, 3, H, W]`` in [-1, 1] -> IMAGE ``[B, H, W, 3]``."""
        return (samples.float() * 0.5 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """IMAGE ``[B, H, W, 3]`` -> ``[B, 3, H, W]`` in [-1, 1]."""
        return pixels[..., :3].movedim(-1, 1) * 2 - 1

    def decode_tiled(self, samples: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        """Tiles change nothing here."""
        return self.decode(samples)

    def encode_tiled(self, pixels: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        """Tiles change nothing here."""
        return self.encode(pixels)


def _schema(node_id: str, category: str, inputs: list, outputs: list, **more: Any) -> io.Schema:
    return io.Schema(node_id, category=category, inputs=inputs, outputs=outputs, **more)


class LoadImage(io.ComfyNode):
    """A picture from the input folder, and its alpha channel as a mask."""

    EQUAL = (
        "PNG, APNG, TIFF, BMP and GIF of 8 bits and 16 bits of grey to 0.2 of a level; colours of"
        " 16 bits to 1.1; WebP to 1.5; JPEG to 3, sampled 4:2:2 to 5; cut off files included"
    )
    REFUSED = (
        "cut off GIFs and progressive JPEGs, GIFs without durations, BMPs of 32 bits, TIFFs that"
        " are to be mirrored or hold JPEG, JPEGs sampled other than 4:4:4, 4:2:2 and 4:2:0, lossy"
        " WebPs of odd sizes, other kinds of pictures than these, PPM and JPEG 2000; video"
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [io.Image.Output(), io.Mask.Output()]
        return _schema("LoadImage", "image", [_picture_input()], outputs)

    @classmethod
    def fingerprint_inputs(cls, image: str) -> tuple:
        return _fingerprint(image)

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        return _readable(image)

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        return io.NodeOutput(*read_picture(_picture_path(image)))


class LoadImageMask(io.ComfyNode):
    """One channel of a picture from the input folder."""

    EQUAL = "as LoadImage"
    REFUSED = LoadImage.REFUSED

    @classmethod
    def define_schema(cls) -> io.Schema:
        channel = io.Combo.Input("channel", options=["alpha", "red", "green", "blue"])
        return _schema("LoadImageMask", "mask", [_picture_input(), channel], [io.Mask.Output()])

    @classmethod
    def fingerprint_inputs(cls, image: str, channel: str) -> tuple:
        return _fingerprint(image)

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        return _readable(image)

    @classmethod
    def execute(cls, image: str, channel: str) -> io.NodeOutput:
        picture, mask = read_picture(_picture_path(image))
        if channel == "alpha":
            return io.NodeOutput(mask)
        return io.NodeOutput(picture[..., ("red", "green", "blue").index(channel)])


def _picture_input() -> Any:
    folder = session.input_folder
    names = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    return io.Combo.Input("image", options=names, upload=True)


def _picture_path(name: str) -> Path:
    marked = re.fullmatch(r"(.*?)\s*\[(input|output)\]", name)
    folder = session.input_folder
    if marked:
        name = marked[1]
        folder = session.output_folder if marked[2] == "output" else folder
    try:
        path = (folder / name).resolve()
        there = path.is_file()
    except (OSError, ValueError) as error:  # ValueError: a character that no file's name may have
        said = cure_of(error) if isinstance(error, OSError) else error
        raise WorkflowError(f"'image' is '{name}': {said}. Choose a file's name") from error
    if not path.is_relative_to(folder.resolve()):
        raise WorkflowError(f"'image' is '{name}', which lies outside the input folder")
    if not there:
        raise WorkflowError(
            f"'image' is '{name}', but there is no such file in the input folder"
            f" '{folder}'; put it there or name the folder with --input"
        )
    return path


def _fingerprint(name: str) -> tuple:
    stat = _picture_path(name).stat()
    return stat.st_size, stat.st_mtime_ns


def _readable(name: str) -> bool | str:
    """Whether a picture can be read, before anything runs."""
    try:
        read_picture(_picture_path(name))
    except WorkflowError as error:
        return str(error)
    return True


def _save(images: torch.Tensor, prefix: str, folder: Path) -> dict[str, Any]:
    """Write pictures as the host's SaveImage does, with the workflow in the PNG."""
    now = time.localtime()
    fields = {
        "year": "%Y",
        "month": "%m",
        "day": "%d",
        "hour": "%H",
        "minute": "%M",
        "second": "%S",
    }
    for name, code in fields.items():
        prefix = prefix.replace(f"%{name}%", time.strftime(code, now))
    prefix = prefix.replace("%width%", str(images.shape[2]))
    prefix = prefix.replace("%height%", str(images.shape[1]))
    try:
        return {"images": _pictures(images, prefix, folder)}
    except (OSError, ValueError) as error:  # ValueError: a character that no file's name may have
        if isinstance(error, WorkflowError):
            raise
        said = cure_of(error) if isinstance(error, OSError) else error
        raise WorkflowError(
            f"'{folder / prefix}' cannot be written: {said}. 'filename_prefix' names the file,"
            " --out the folder"
        ) from error


def _pictures(images: torch.Tensor, prefix: str, folder: Path) -> list[Path]:
    # As in the host, the last part of the normalised prefix is a file's name, even "." of "".
    below, name = os.path.split(os.path.normpath(prefix))
    target = (folder / below).resolve()
    if not target.is_relative_to(session.output_folder.resolve()) or name == "..":
        raise WorkflowError(
            f"'filename_prefix' is '{prefix}', which leads out of the output folder"
            f" ('{session.output_folder}'), to '{target}'"
        )
    target.mkdir(parents=True, exist_ok=True)
    taken = re.compile(re.escape(name) + r"_(\d+)_\.png")
    numbers = [int(m[1]) for m in map(taken.fullmatch, (p.name for p in target.iterdir())) if m]
    start = max(numbers, default=0) + 1
    notes = PngInfo()
    if session.prompt is not None:
        notes.add_text("prompt", json.dumps(session.prompt))
    if session.workflow is not None:
        notes.add_text("workflow", json.dumps(session.workflow))
    saved = []
    if not bool(torch.isfinite(images).all()):
        raise WorkflowError(
            "'images' holds NaN or infinite numbers, which ComfyUI would save as black; look at the"
            " node that made it, or load its network as fp32 or bf16"
        )
    for number, image in enumerate(images, start):
        levels = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
        path = target / f"{name}_{number:05}_.png"
        with written(path) as scratch:
            Image.fromarray(levels).save(scratch, "PNG", pnginfo=notes, compress_level=4)
        saved.append(path)
    return saved


class SaveImage(io.ComfyNode):
    """Pictures into the output folder."""

    EQUAL = "exactly, text in the PNG included"
    REFUSED = "pictures of NaN, which ComfyUI saves as black"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "SaveImage",
            "image",
            [io.Image.Input("images"), io.String.Input("filename_prefix", default="ComfyUI")],
            [io.Image.Output(display_name="images")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: torch.Tensor, filename_prefix: str) -> io.NodeOutput:
        return io.NodeOutput(images, ui=_save(images, filename_prefix, session.output_folder))


class PreviewImage(io.ComfyNode):
    """Pictures into the output folder's ``previews``."""

    EQUAL = "exactly, but for the file's name and place"
    REFUSED = SaveImage.REFUSED

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("images")]
        outputs = [io.Image.Output(display_name="images")]
        return _schema("PreviewImage", "image", inputs, outputs, is_output_node=True)

    @classmethod
    def execute(cls, images: torch.Tensor) -> io.NodeOutput:
        folder = session.output_folder / "previews"
        return io.NodeOutput(images, ui=_save(images, "preview", folder))


class PreviewAny(io.ComfyNode):
    """A value as text."""

    EQUAL = "exactly, but for objects of the host's own"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.AnyType.Input("source")]
        return _schema("PreviewAny", "utils", inputs, [io.String.Output()], is_output_node=True)

    @classmethod
    def execute(cls, source: Any) -> io.NodeOutput:
        # The host's node shows twice as much of a tensor's edges as torch does by itself.
        torch.set_printoptions(edgeitems=6)
        try:
            text = str(source)
        finally:
            torch.set_printoptions(edgeitems=3)
        if source is not None and not isinstance(source, (str, int, float)):
            with contextlib.suppress(TypeError, ValueError):
                text = json.dumps(source, indent=4, ensure_ascii=False)
        return io.NodeOutput(text, ui={"text": [text]})


class VAELoader(io.ComfyNode):
    """The VAE that does nothing, for pixel-space latents."""

    EQUAL = "exactly"
    REFUSED = "VAE files: load them with the PriorArt loader of their system"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("vae_name", options=["pixel_space"])]
        return _schema("VAELoader", "loaders", inputs, [io.Vae.Output()])

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(PixelSpaceVAE())


class VAEDecode(io.ComfyNode):
    """A latent's picture."""

    EQUAL = "to one level"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples"), io.Vae.Input("vae")]
        return _schema("VAEDecode", "latent", inputs, [io.Image.Output()])

    @classmethod
    def execute(cls, samples: dict, vae: Any) -> io.NodeOutput:
        return io.NodeOutput(vae.decode(samples["samples"]))


class VAEDecodeTiled(io.ComfyNode):
    """A latent's picture, in tiles with soft seams."""

    EQUAL = "to one level"
    REFUSED = "video: the temporal settings have no effect"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples"), io.Vae.Input("vae"), *_tiles(step=32)]
        return _schema("VAEDecodeTiled", "_for_testing", inputs, [io.Image.Output()])

    @classmethod
    def execute(
        cls,
        samples: dict,
        vae: Any,
        tile_size: int = 512,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> io.NodeOutput:
        overlap = min(overlap, tile_size // 4)
        tile, overlap = tile_size // vae.factor, overlap // vae.factor
        return io.NodeOutput(vae.decode_tiled(samples["samples"], tile, overlap))


class VAEEncode(io.ComfyNode):
    """A picture's latent."""

    EQUAL = "to 1e-4"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("pixels"), io.Vae.Input("vae")]
        return _schema("VAEEncode", "latent", inputs, [io.Latent.Output()])

    @classmethod
    def execute(cls, pixels: torch.Tensor, vae: Any) -> io.NodeOutput:
        return io.NodeOutput({"samples": vae.encode(pixels)})


class VAEEncodeTiled(io.ComfyNode):
    """A picture's latent, in tiles with soft seams."""

    EQUAL = "to 1e-4"
    REFUSED = "an overlap of half a tile or more; video"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("pixels"), io.Vae.Input("vae"), *_tiles(step=64)]
        return _schema("VAEEncodeTiled", "_for_testing", inputs, [io.Latent.Output()])

    @classmethod
    def validate_inputs(
        cls, tile_size: int | None = None, overlap: int | None = None
    ) -> bool | str:
        """``None`` is wired: its value comes later."""
        # A node that looks at values itself is not asked about their bounds.
        for socket, value in zip(_tiles(step=64), (tile_size, overlap), strict=False):
            try:
                if value is not None:
                    check_bounds(socket, value)
            except EdgeError as error:
                return str(error)
        if tile_size is not None and overlap is not None and overlap >= tile_size // 2:
            return (
                f"'overlap' is {overlap}, which is not less than half of 'tile_size', {tile_size};"
                " ComfyUI makes no picture of that either. Take less"
            )
        return True

    @classmethod
    def execute(
        cls,
        pixels: torch.Tensor,
        vae: Any,
        tile_size: int = 512,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> io.NodeOutput:
        said = cls.validate_inputs(tile_size, overlap)
        if said is not True:
            raise WorkflowError(str(said))
        return io.NodeOutput({"samples": vae.encode_tiled(pixels, tile_size, overlap)})


def _tiles(step: int) -> list:
    """Widgets of the tiled nodes; the temporal ones are for video."""
    return [
        io.Int.Input("tile_size", default=512, min=64, max=4096, step=step),
        io.Int.Input("overlap", default=64, min=0, max=4096, step=32),
        io.Int.Input("temporal_size", default=64, min=8, max=4096, step=4),
        io.Int.Input("temporal_overlap", default=8, min=4, max=4096, step=4),
    ]


def _primitive(node_id: str, title: str, kind: Any, **options: Any) -> type[io.ComfyNode]:
    """A node that hands a value on."""

    class Primitive(io.ComfyNode):
        EQUAL = "exactly"

        @classmethod
        def define_schema(cls) -> io.Schema:
            inputs = [kind.Input("value", **options)]
            return _schema(node_id, "utils/primitive", inputs, [kind.Output()])

        @classmethod
        def execute(cls, value: Any) -> io.NodeOutput:
            return io.NodeOutput(value)

    Primitive.__name__, Primitive.__doc__ = node_id, title
    return Primitive


_CONTROLLED = {"control_after_generate": True}
_WIDE = {"min": -sys.maxsize, "max": sys.maxsize}
PRIMITIVES = [
    _primitive(
        "PrimitiveInt", "A number for several nodes.", io.Int, control_after_generate=True, **_WIDE
    ),
    _primitive("PrimitiveFloat", "A number for several nodes.", io.Float, step=0.1, **_WIDE),
    _primitive("PrimitiveString", "A line of text for several nodes.", io.String),
    _primitive("PrimitiveStringMultiline", "Text for several nodes.", io.String, multiline=True),
    _primitive("PrimitiveBoolean", "A switch for several nodes.", io.Boolean),
]

CORE_NODES: list[type[Any]] = [
    LoadImage,
    LoadImageMask,
    SaveImage,
    PreviewImage,
    PreviewAny,
    VAELoader,
    VAEDecode,
    VAEDecodeTiled,
    VAEEncode,
    VAEEncodeTiled,
    *PROMPT_NODES,
    *IMAGE_NODES,
    *LATENT_NODES,
    *SAMPLING_NODES,
    *PRIMITIVES,
]
