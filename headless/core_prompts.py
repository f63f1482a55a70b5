"""ComfyUI's nodes for prompts that the headless runner has: the host's names and meaning."""

from __future__ import annotations

from typing import Any

import torch

from ..host.embedded import io as io
from ..host.embedded.door import warn
from ..host.prompts import inversion_refused
from .core_latents import LARGEST
from .workflow import WorkflowError


def _schema(node_id: str, inputs: list) -> io.Schema:
    outputs = [io.Conditioning.Output()]
    return io.Schema(node_id, category="conditioning", inputs=inputs, outputs=outputs)


class CLIPTextEncode(io.ComfyNode):
    """A prompt through whatever text encoder is wired: with weights and in chunks for SDXL's
    two, plain and cut for the others, as in ComfyUI with this pack."""

    EQUAL = "to 1e-4"
    REFUSED = "textual inversions (embedding:name) in a prompt for SDXL's text encoders"
    only_in_comfyui = staticmethod(inversion_refused)

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = io.String.Input("text", multiline=True, dynamic_prompts=True)
        return _schema("CLIPTextEncode", [text, io.Clip.Input("clip")])

    @classmethod
    def execute(cls, text: str, clip: Any) -> io.NodeOutput:
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text)))


class CLIPTextEncodeSDXL(io.ComfyNode):
    """A prompt for each of SDXL's text encoders, with sizes."""

    EQUAL = "to 1e-4"
    REFUSED = "textual inversions (embedding:name); text encoders other than SDXL's two"
    only_in_comfyui = staticmethod(inversion_refused)

    @classmethod
    def define_schema(cls) -> io.Schema:
        def number(name: str, default: int) -> Any:
            return io.Int.Input(name, default=default, min=0, max=LARGEST)

        return _schema(
            "CLIPTextEncodeSDXL",
            [
                io.Clip.Input("clip"),
                number("width", 1024),
                number("height", 1024),
                number("crop_w", 0),
                number("crop_h", 0),
                number("target_width", 1024),
                number("target_height", 1024),
                io.String.Input("text_g", multiline=True, dynamic_prompts=True),
                io.String.Input("text_l", multiline=True, dynamic_prompts=True),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text_g: str, text_l: str, **sizes: int) -> io.NodeOutput:
        if not hasattr(clip, "encode_ids"):
            raise WorkflowError(
                "'clip' is one text encoder, but this node needs SDXL's two together"
            )
        tokens = clip.tokenize(text_l)[0], clip.tokenize(text_g)[1]
        longer = max(map(len, tokens))
        tokens = tuple(
            part + clip.tokenize("")[i] * (longer - len(part)) for i, part in enumerate(tokens)
        )
        [[hidden, extra]] = clip.encode_from_tokens_scheduled(tokens)
        return io.NodeOutput([[hidden, {**extra, **sizes}]])


class CLIPVisionEncode(io.ComfyNode):
    """A picture through whatever image encoder is wired."""

    EQUAL = "to 1e-4, image_embeds only"

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.ClipVision.Input("clip_vision"),
            io.Image.Input("image"),
            io.Combo.Input("crop", options=["center", "none"]),
        ]
        return io.Schema(
            "CLIPVisionEncode",
            category="conditioning",
            inputs=inputs,
            outputs=[io.ClipVisionOutput.Output()],
        )

    @classmethod
    def execute(cls, clip_vision: Any, image: torch.Tensor, crop: str) -> io.NodeOutput:
        return io.NodeOutput(clip_vision.encode_image(image, crop=crop == "center"))


class ConditioningAverage(io.ComfyNode):
    """Two prompts mixed: hidden states and pooled embeddings."""

    EQUAL = "to 1e-6"
    REFUSED = "prompts of different text encoders, on which ComfyUI fails"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ConditioningAverage",
            [
                io.Conditioning.Input("conditioning_to"),
                io.Conditioning.Input("conditioning_from"),
                io.Float.Input("conditioning_to_strength", default=1.0, min=0, max=1, step=0.01),
            ],
        )

    @classmethod
    def execute(
        cls, conditioning_to: list, conditioning_from: list, conditioning_to_strength: float
    ) -> io.NodeOutput:
        strength = conditioning_to_strength
        if len(conditioning_from) > 1:
            warn("'conditioning_from' holds several prompts; only the first one is mixed in")
        other, other_extra = conditioning_from[0]
        pooled_other = other_extra.get("pooled_output")
        mixed = []
        for hidden, extra in conditioning_to:
            if hidden.shape[2] != other.shape[2] or len({len(hidden), len(other)} - {1}) > 1:
                raise _misfit(hidden, other)
            length = hidden.shape[1]
            padding = (0, 0, 0, max(0, length - other.shape[1]))
            part = torch.nn.functional.pad(other[:, :length], padding)
            extra = dict(extra)
            if pooled_other is not None:
                pooled = extra.get("pooled_output", pooled_other)
                extra["pooled_output"] = pooled * strength + pooled_other * (1 - strength)
            mixed.append([hidden * strength + part * (1 - strength), extra])
        return io.NodeOutput(mixed)


def _misfit(first: torch.Tensor, second: torch.Tensor) -> WorkflowError:
    return WorkflowError(
        f"prompts of {tuple(first.shape)} and {tuple(second.shape)} cannot be mixed; encode both"
        " with the same text encoder, and equally many"
    )


class ConditioningCombine(io.ComfyNode):
    """Two prompts side by side: a native sampler takes the mean of what they predict."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = ("conditioning_1", "conditioning_2")
        return _schema("ConditioningCombine", [io.Conditioning.Input(name) for name in names])

    @classmethod
    def execute(cls, conditioning_1: list, conditioning_2: list) -> io.NodeOutput:
        return io.NodeOutput(conditioning_1 + conditioning_2)


class ConditioningConcat(io.ComfyNode):
    """One prompt's tokens behind another's."""

    EQUAL = "exactly"
    REFUSED = ConditioningAverage.REFUSED

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = ("conditioning_to", "conditioning_from")
        return _schema("ConditioningConcat", [io.Conditioning.Input(name) for name in names])

    @classmethod
    def execute(cls, conditioning_to: list, conditioning_from: list) -> io.NodeOutput:
        if len(conditioning_from) > 1:
            warn("'conditioning_from' holds several prompts; only the first one is added")
        other, made = conditioning_from[0][0], []
        for hidden, extra in conditioning_to:
            if len(hidden) != len(other) or hidden.shape[2] != other.shape[2]:
                raise _misfit(hidden, other)
            made.append([torch.cat((hidden, other), 1), dict(extra)])
        return io.NodeOutput(made)


class ConditioningZeroOut(io.ComfyNode):
    """A prompt of zeros."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("ConditioningZeroOut", [io.Conditioning.Input("conditioning")])

    @classmethod
    def execute(cls, conditioning: list) -> io.NodeOutput:
        made = []
        for hidden, extra in conditioning:
            extra = dict(extra)
            if extra.get("pooled_output") is not None:
                extra["pooled_output"] = torch.zeros_like(extra["pooled_output"])
            made.append([torch.zeros_like(hidden), extra])
        return io.NodeOutput(made)


class UnCLIPConditioning(io.ComfyNode):
    """A prompt that carries an image embedding, for native samplers."""

    EQUAL = "exactly"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "unCLIPConditioning",
            [
                io.Conditioning.Input("conditioning"),
                io.ClipVisionOutput.Input("clip_vision_output"),
                io.Float.Input("strength", default=1.0, min=-10, max=10, step=0.01),
                io.Float.Input("noise_augmentation", default=0.0, min=0, max=1, step=0.01),
            ],
        )

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
        made = []
        for hidden, extra in conditioning:
            carried = [*extra.get("unclip_conditioning", []), entry]
            made.append([hidden, {**extra, "unclip_conditioning": carried}])
        return io.NodeOutput(made)


PROMPT_NODES = [
    CLIPTextEncode,
    CLIPTextEncodeSDXL,
    CLIPVisionEncode,
    ConditioningAverage,
    ConditioningCombine,
    ConditioningConcat,
    ConditioningZeroOut,
    UnCLIPConditioning,
]
