"""ComfyUI's nodes for pictures and masks that the headless runner has: its names and meaning."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..host.embedded import io as io
from ..host.embedded.rows import composite, resized
from ..host.room import check_main_memory
from .core_latents import LARGEST
from .workflow import WorkflowError

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
CHANNELS = ["red", "green", "blue", "alpha"]


def _schema(node_id: str, inputs: list, output: io._Type = io.Image) -> io.Schema:
    return io.Schema(node_id, category="image", inputs=inputs, outputs=[output.Output()])


class ImageBatch(io.ComfyNode):
    """Two pictures, or batches of them, as one batch; the second is cropped and resized."""

    EQUAL = "to 1e-5"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("ImageBatch", [io.Image.Input("image1"), io.Image.Input("image2")])

    @classmethod
    def execute(cls, image1: torch.Tensor, image2: torch.Tensor) -> io.NodeOutput:
        channels = max(image1.shape[-1], image2.shape[-1])
        image1, image2 = (
            F.pad(image, (0, channels - image.shape[-1]), value=1.0) for image in (image1, image2)
        )
        height, width = image1.shape[1:3]
        if image2.shape[1:3] != (height, width):
            image2 = image2.movedim(-1, 1)
            image2 = resized(image2, height, width, "bilinear", "center").movedim(1, -1)
        return io.NodeOutput(torch.cat((image1, image2)))


class RepeatImageBatch(io.ComfyNode):
    """A batch of pictures several times over."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        amount = io.Int.Input("amount", default=1, min=1, max=4096)
        return _schema("RepeatImageBatch", [io.Image.Input("image"), amount])

    @classmethod
    def execute(cls, image: torch.Tensor, amount: int) -> io.NodeOutput:
        check_main_memory(
            amount * image.numel(),
            f"{amount} times a batch of {len(image)} pictures",
            "lower 'amount'",
        )
        return io.NodeOutput(torch.cat([image] * amount))


class GetImageSize(io.ComfyNode):
    """Width, height and number of pictures."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = ("width", "height", "batch_size")
        return io.Schema(
            "GetImageSize",
            category="image",
            inputs=[io.Image.Input("image")],
            outputs=[io.Int.Output(display_name=name) for name in names],
        )

    @classmethod
    def execute(cls, image: torch.Tensor) -> io.NodeOutput:
        return io.NodeOutput(image.shape[2], image.shape[1], image.shape[0])


class ImageCompositeMasked(io.ComfyNode):
    """One picture pasted into another, where a mask says."""

    EQUAL = "to 1e-5"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ImageCompositeMasked",
            [
                io.Image.Input("destination"),
                io.Image.Input("source"),
                io.Int.Input("x", default=0, min=0, max=LARGEST, step=1),
                io.Int.Input("y", default=0, min=0, max=LARGEST, step=1),
                io.Boolean.Input("resize_source", default=False),
                io.Mask.Input("mask", optional=True),
            ],
        )

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
        channels = destination.shape[-1]
        # A picture without alpha is opaque.
        source = F.pad(source, (0, max(0, channels - source.shape[-1])), value=1.0)[..., :channels]
        both = destination.movedim(-1, 1), source.movedim(-1, 1)
        return io.NodeOutput(composite(*both, x, y, resize_source, mask).movedim(1, -1))


class ImageScale(io.ComfyNode):
    """A picture in another size; 0 keeps the proportions."""

    EQUAL = "to 1e-5; lanczos to one level"

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 512, "min": 0, "max": LARGEST, "step": 1}
        return _schema(
            "ImageScale",
            [
                io.Image.Input("image"),
                io.Combo.Input("upscale_method", options=METHODS),
                io.Int.Input("width", **side),
                io.Int.Input("height", **side),
                io.Combo.Input("crop", options=["disabled", "center"]),
            ],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str
    ) -> io.NodeOutput:
        if not width and not height:
            return io.NodeOutput(image)
        high, wide = image.shape[1:3]
        width = width or max(1, round(wide * height / high))
        height = height or max(1, round(high * width / wide))
        rows = resized(image.movedim(-1, 1), height, width, upscale_method, crop)
        return io.NodeOutput(rows.movedim(1, -1))


class ImageScaleBy(io.ComfyNode):
    """A picture so many times as large."""

    EQUAL = ImageScale.EQUAL
    REFUSED = "a factor that leaves nothing"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ImageScaleBy",
            [
                io.Image.Input("image"),
                io.Combo.Input("upscale_method", options=METHODS),
                io.Float.Input("scale_by", default=1.0, min=0.01, max=8.0, step=0.01),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, upscale_method: str, scale_by: float) -> io.NodeOutput:
        size = [round(side * scale_by) for side in image.shape[1:3]]
        if not all(size):
            raise WorkflowError(
                f"'scale_by' is {scale_by}, which leaves nothing of a picture of"
                f" {image.shape[2]}x{image.shape[1]}; take more"
            )
        return io.NodeOutput(
            resized(image.movedim(-1, 1), size[0], size[1], upscale_method).movedim(1, -1)
        )


class ImageInvert(io.ComfyNode):
    """A picture's negative."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("ImageInvert", [io.Image.Input("image")])

    @classmethod
    def execute(cls, image: torch.Tensor) -> io.NodeOutput:
        return io.NodeOutput(1.0 - image)


class SolidMask(io.ComfyNode):
    """A mask of one value."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 512, "min": 1, "max": LARGEST, "step": 1}
        inputs = [
            io.Float.Input("value", default=1.0, min=0.0, max=1.0, step=0.01),
            io.Int.Input("width", **side),
            io.Int.Input("height", **side),
        ]
        return _schema("SolidMask", inputs, io.Mask)

    @classmethod
    def execute(cls, value: float, width: int, height: int) -> io.NodeOutput:
        check_main_memory(
            height * width, f"a mask of {width}x{height}", "lower 'width' or 'height'"
        )
        return io.NodeOutput(torch.full((1, height, width), value))


class InvertMask(io.ComfyNode):
    """The other part of the picture."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("InvertMask", [io.Mask.Input("mask")], io.Mask)

    @classmethod
    def execute(cls, mask: torch.Tensor) -> io.NodeOutput:
        return io.NodeOutput(1.0 - mask)


class MaskToImage(io.ComfyNode):
    """A mask in greys."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("MaskToImage", [io.Mask.Input("mask")])

    @classmethod
    def execute(cls, mask: torch.Tensor) -> io.NodeOutput:
        return io.NodeOutput(mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3))


class ImageToMask(io.ComfyNode):
    """One channel of a picture as a mask."""

    EQUAL = "exactly"
    REFUSED = "'alpha' of a picture without one, on which ComfyUI fails"

    @classmethod
    def define_schema(cls) -> io.Schema:
        channel = io.Combo.Input("channel", options=CHANNELS)
        return _schema("ImageToMask", [io.Image.Input("image"), channel], io.Mask)

    @classmethod
    def execute(cls, image: torch.Tensor, channel: str) -> io.NodeOutput:
        place = CHANNELS.index(channel)
        if place >= image.shape[-1]:
            raise WorkflowError(
                "'channel' is 'alpha', which this picture has not; take the mask of 'Load Image'"
            )
        return io.NodeOutput(image[..., place])


IMAGE_NODES = [
    ImageBatch,
    RepeatImageBatch,
    GetImageSize,
    ImageCompositeMasked,
    ImageScale,
    ImageScaleBy,
    ImageInvert,
    SolidMask,
    InvertMask,
    MaskToImage,
    ImageToMask,
]
