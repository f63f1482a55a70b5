"""The few nodes of ComfyUI's own that the headless runner has: the host's names and meaning."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import embedded_io as io
from .core_latents import LatentBatch, LatentBlend, LatentComposite
from .core_pictures import read_picture
from .core_sampling import KSampler, SamplerCustom
from .embedded import session
from .workflow import WorkflowError

LARGEST = 16384
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class PixelSpaceVAE:
    """VAE "pixel_space": the latent is the picture itself, in [-1, 1]."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """``[B, 3, H, W]`` in [-1, 1] → IMAGE ``[B, H, W, 3]``."""
        return (samples.float() * 0.5 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """IMAGE ``[B, H, W, 3]`` → ``[B, 3, H, W]`` in [-1, 1]."""
        return pixels.movedim(-1, 1) * 2 - 1


def _schema(node_id: str, category: str, inputs: list, outputs: list, **more: Any) -> io.Schema:
    return io.Schema(node_id, category=category, inputs=inputs, outputs=outputs, **more)


class LoadImage(io.ComfyNode):
    """A picture from the input folder, and its alpha channel as a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = session.input_folder
        names = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICTURES)
        return _schema(
            "LoadImage",
            "image",
            [io.Combo.Input("image", options=names, upload=True)],
            [io.Image.Output(), io.Mask.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, image: str) -> tuple:
        stat = cls._path(image).stat()
        return stat.st_size, stat.st_mtime_ns

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        return io.NodeOutput(*read_picture(cls._path(image)))

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        try:
            cls._path(image)
        except WorkflowError as error:
            return str(error)
        return True

    @staticmethod
    def _path(name: str) -> Path:
        marked = re.fullmatch(r"(.*?)\s*\[(input|output)\]", name)
        folder = session.input_folder
        if marked:
            name = marked[1]
            folder = session.output_folder if marked[2] == "output" else folder
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise WorkflowError(f"'image' is '{name}', which lies outside the input folder")
        if not path.is_file():
            raise WorkflowError(
                f"'image' is '{name}', but there is no such file in the input folder"
                f" '{folder}'; put it there or name the folder with --input"
            )
        return path


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
    target = (folder / prefix).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise WorkflowError(
            f"'filename_prefix' is '{prefix}', which leads out of the output folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    taken = re.compile(re.escape(target.name) + r"_(\d+)_\.png")
    numbers = [
        int(m[1]) for m in map(taken.fullmatch, (p.name for p in target.parent.iterdir())) if m
    ]
    start = max(numbers, default=0) + 1
    notes = PngInfo()
    if session.prompt is not None:
        notes.add_text("prompt", json.dumps(session.prompt))
    if session.workflow is not None:
        notes.add_text("workflow", json.dumps(session.workflow))
    saved = []
    for number, image in enumerate(images, start):
        levels = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
        path = target.with_name(f"{target.name}_{number:05}_.png")
        Image.fromarray(levels).save(path, pnginfo=notes, compress_level=4)
        saved.append(path)
    return {"images": saved}


class SaveImage(io.ComfyNode):
    """Pictures into the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "SaveImage",
            "image",
            [io.Image.Input("images"), io.String.Input("filename_prefix", default="ComfyUI")],
            [],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: torch.Tensor, filename_prefix: str) -> io.NodeOutput:
        return io.NodeOutput(ui=_save(images, filename_prefix, session.output_folder))


class PreviewImage(io.ComfyNode):
    """Pictures into the output folder's ``previews``."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("images")]
        return _schema("PreviewImage", "image", inputs, [], is_output_node=True)

    @classmethod
    def execute(cls, images: torch.Tensor) -> io.NodeOutput:
        return io.NodeOutput(ui=_save(images, "preview", session.output_folder / "previews"))


class PreviewAny(io.ComfyNode):
    """A value as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.AnyType.Input("source")]
        return _schema("PreviewAny", "utils", inputs, [], is_output_node=True)

    @classmethod
    def execute(cls, source: Any) -> io.NodeOutput:
        if isinstance(source, (str, int, float)):
            return io.NodeOutput(ui={"text": [str(source)]})
        try:
            return io.NodeOutput(ui={"text": [json.dumps(source)]})
        except (TypeError, ValueError):
            return io.NodeOutput(ui={"text": [str(source)]})


class EmptyLatentImage(io.ComfyNode):
    """Zeros of a latent diffusion model's size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 512, "min": 16, "max": LARGEST}
        return _schema(
            "EmptyLatentImage",
            "latent",
            [
                io.Int.Input("width", **side),
                io.Int.Input("height", **side),
                io.Int.Input("batch_size", default=1, min=1, max=4096),
            ],
            [io.Latent.Output()],
        )

    @classmethod
    def execute(cls, width: int, height: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)})


class SetLatentNoiseMask(io.ComfyNode):
    """A latent with the region to be repainted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples"), io.Mask.Input("mask")]
        return _schema("SetLatentNoiseMask", "latent", inputs, [io.Latent.Output()])

    @classmethod
    def execute(cls, samples: dict, mask: torch.Tensor) -> io.NodeOutput:
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        return io.NodeOutput({**samples, "noise_mask": mask})


class VAELoader(io.ComfyNode):
    """The VAE that does nothing, for pixel-space latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("vae_name", options=["pixel_space"])]
        return _schema("VAELoader", "loaders", inputs, [io.Vae.Output()])

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(PixelSpaceVAE())


class VAEDecode(io.ComfyNode):
    """A latent's picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples"), io.Vae.Input("vae")]
        return _schema("VAEDecode", "latent", inputs, [io.Image.Output()])

    @classmethod
    def execute(cls, samples: dict, vae: Any) -> io.NodeOutput:
        return io.NodeOutput(vae.decode(samples["samples"]))


class VAEDecodeTiled(io.ComfyNode):
    """A latent's picture. Tiles only save memory, at the price of seams: here there are none."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("samples"),
            io.Vae.Input("vae"),
            io.Int.Input("tile_size", default=512, min=64, max=4096),
            io.Int.Input("overlap", default=64, min=0, max=4096),
            io.Int.Input("temporal_size", default=64, min=8, max=4096),
            io.Int.Input("temporal_overlap", default=8, min=4, max=4096),
        ]
        return _schema("VAEDecodeTiled", "_for_testing", inputs, [io.Image.Output()])

    @classmethod
    def execute(cls, samples: dict, vae: Any, **tiles: int) -> io.NodeOutput:
        return io.NodeOutput(vae.decode(samples["samples"]))


class VAEEncode(io.ComfyNode):
    """A picture's latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("pixels"), io.Vae.Input("vae")]
        return _schema("VAEEncode", "latent", inputs, [io.Latent.Output()])

    @classmethod
    def execute(cls, pixels: torch.Tensor, vae: Any) -> io.NodeOutput:
        return io.NodeOutput({"samples": vae.encode(pixels[..., :3])})


class CLIPTextEncode(io.ComfyNode):
    """A prompt through whatever text encoder is wired."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = io.String.Input("text", multiline=True, dynamic_prompts=True)
        inputs = [text, io.Clip.Input("clip")]
        return _schema("CLIPTextEncode", "conditioning", inputs, [io.Conditioning.Output()])

    @classmethod
    def execute(cls, text: str, clip: Any) -> io.NodeOutput:
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text)))


class CLIPVisionEncode(io.ComfyNode):
    """A picture through whatever image encoder is wired."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.ClipVision.Input("clip_vision"),
            io.Image.Input("image"),
            io.Combo.Input("crop", options=["center", "none"], default="center"),
        ]
        outputs = [io.ClipVisionOutput.Output()]
        return _schema("CLIPVisionEncode", "conditioning", inputs, outputs)

    @classmethod
    def execute(cls, clip_vision: Any, image: torch.Tensor, crop: str) -> io.NodeOutput:
        return io.NodeOutput(clip_vision.encode_image(image, crop=crop == "center"))


class ConditioningAverage(io.ComfyNode):
    """Two prompts mixed: hidden states and pooled embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Conditioning.Input("conditioning_to"),
            io.Conditioning.Input("conditioning_from"),
            io.Float.Input("conditioning_to_strength", default=1.0, min=0, max=1, step=0.01),
        ]
        return _schema("ConditioningAverage", "conditioning", inputs, [io.Conditioning.Output()])

    @classmethod
    def execute(
        cls, conditioning_to: list, conditioning_from: list, conditioning_to_strength: float
    ) -> io.NodeOutput:
        strength = conditioning_to_strength
        other, other_extra = conditioning_from[0]
        pooled_other = other_extra.get("pooled_output")
        mixed = []
        for hidden, extra in conditioning_to:
            length = hidden.shape[1]
            padding = (0, 0, 0, max(0, length - other.shape[1]))
            fitted = torch.nn.functional.pad(other[:, :length], padding)
            extra = dict(extra)
            if pooled_other is not None:
                pooled = extra.get("pooled_output", pooled_other)
                extra["pooled_output"] = pooled * strength + pooled_other * (1 - strength)
            mixed.append([hidden * strength + fitted * (1 - strength), extra])
        return io.NodeOutput(mixed)


class UnCLIPConditioning(io.ComfyNode):
    """A prompt that carries an image embedding, for native samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Conditioning.Input("conditioning"),
            io.ClipVisionOutput.Input("clip_vision_output"),
            io.Float.Input("strength", default=1.0, min=-10, max=10, step=0.01),
            io.Float.Input("noise_augmentation", default=0.0, min=0, max=1, step=0.01),
        ]
        return _schema("unCLIPConditioning", "conditioning", inputs, [io.Conditioning.Output()])

    @classmethod
    def execute(
        cls, conditioning: list, clip_vision_output: Any, strength: float, noise_augmentation: float
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(conditioning)
        entry = {
            "clip_vision_output": clip_vision_output,
            "strength": strength,
            "noise_augmentation": noise_augmentation,
        }
        return io.NodeOutput(
            [
                [hidden, {**extra, "unclip_conditioning": [*_carried(extra), entry]}]
                for hidden, extra in conditioning
            ]
        )


def _carried(extra: dict) -> list:
    return extra.get("unclip_conditioning", [])


class ImageBatch(io.ComfyNode):
    """Two pictures, or batches of them, as one batch; the second is cropped and resized."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("image1"), io.Image.Input("image2")]
        return _schema("ImageBatch", "image", inputs, [io.Image.Output()])

    @classmethod
    def execute(cls, image1: torch.Tensor, image2: torch.Tensor) -> io.NodeOutput:
        height, width = image1.shape[1:3]
        if image2.shape[1:3] != (height, width):
            high, wide = image2.shape[1:3]
            top = max(0, round((high - wide * height / width) / 2))
            left = max(0, round((wide - high * width / height) / 2))
            part = image2[:, top : high - top, left : wide - left].movedim(-1, 1)
            image2 = torch.nn.functional.interpolate(part, (height, width), mode="bilinear")
            image2 = image2.movedim(1, -1)
        return io.NodeOutput(torch.cat((image1, image2)))


class ImageCompositeMasked(io.ComfyNode):
    """One picture pasted into another, where a mask says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Image.Input("destination"),
            io.Image.Input("source"),
            io.Int.Input("x", default=0, min=0, max=LARGEST),
            io.Int.Input("y", default=0, min=0, max=LARGEST),
            io.Boolean.Input("resize_source", default=False),
            io.Mask.Input("mask", optional=True),
        ]
        return _schema("ImageCompositeMasked", "image", inputs, [io.Image.Output()])

    @classmethod
    def execute(
        cls,
        destination: torch.Tensor,
        source: torch.Tensor,
        x: int,
        y: int,
        resize_source: bool,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        height, width = destination.shape[1:3]

        def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            return torch.nn.functional.interpolate(pixels, size, mode="bilinear")

        def as_many(rows: torch.Tensor) -> torch.Tensor:
            return rows.repeat(-(-len(destination) // len(rows)), 1, 1, 1)[: len(destination)]

        if resize_source:
            source = resized(source.movedim(-1, 1), (height, width)).movedim(1, -1)
        source = as_many(source)
        high, wide = min(source.shape[1], height - y), min(source.shape[2], width - x)
        share = torch.ones(1, high, wide, 1)
        if mask is not None:
            mask = resized(mask.reshape(-1, 1, *mask.shape[-2:]), tuple(source.shape[1:3]))
            share = as_many(mask[:, 0, :high, :wide, None])
        out = destination.clone()
        old, new = out[:, y : y + high, x : x + wide, :3], source[:, :high, :wide, :3]
        out[:, y : y + high, x : x + wide, :3] = new * share + old * (1 - share)
        return io.NodeOutput(out)


class PrimitiveInt(io.ComfyNode):
    """A number for several nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Int.Input(
                "value", default=0, min=-sys.maxsize, max=sys.maxsize, control_after_generate=True
            )
        ]
        return _schema("PrimitiveInt", "utils/primitive", inputs, [io.Int.Output()])

    @classmethod
    def execute(cls, value: int) -> io.NodeOutput:
        return io.NodeOutput(value)


CORE_NODES = [
    LoadImage,
    SaveImage,
    PreviewImage,
    PreviewAny,
    EmptyLatentImage,
    SetLatentNoiseMask,
    VAELoader,
    VAEDecode,
    VAEDecodeTiled,
    VAEEncode,
    CLIPTextEncode,
    CLIPVisionEncode,
    ConditioningAverage,
    UnCLIPConditioning,
    ImageBatch,
    ImageCompositeMasked,
    LatentBlend,
    LatentComposite,
    LatentBatch,
    PrimitiveInt,
    KSampler,
    SamplerCustom,
]
