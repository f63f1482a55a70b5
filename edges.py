"""What travels on the edges of the graph, and the checks that every stage makes before it starts.

A prompt travels as the host's CONDITIONING, an image embedding as the host's CLIP_VISION_OUTPUT.
Both carry the name of the embedding space they live in; wiring two spaces together is refused
here, in one place, with words instead of a shape mismatch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
"""What terminals obey (ECMA-48): control sequences, titles, single commands."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but tabs and line ends, and those that turn the order of letters."""


_PAGE = 1200
_LONG = re.compile(r"(?<=')[^'\n]{200,}(?=')|[^\s']{200,}")
"""What is quoted, or without a space, and longer than anybody reads."""


def plain(text: str) -> str:
    """A text as it may be shown: names in files, keys and titles may hold what a terminal obeys, or
    pages of anything, of which both ends are left."""
    if len(text) > _PAGE:
        text = f"{text[: _PAGE // 2]}...{text[-_PAGE // 4 :]}"
    text = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", _ESCAPES.sub("", text))
    return _LONG.sub(lambda found: f"{found[0][:100]}...{found[0][-50:]}", text)


def reason_of(error: BaseException, most: int = 160) -> str:
    """What a library's error says, for a message of ours: a line of at most so many characters,
    without the advice that torch gives to developers."""
    text = str(error)
    if found := re.search(r"WeightsUnpickler error: (.+)", text):
        text = found[1]
    line = " ".join(plain(text.strip().partition("\n")[0]).split())
    return line[:most] or type(error).__name__


class UserError(ValueError):
    """What a user can mend; the message says what is wrong, what would fit and what to do.

    The one base of such errors in every room: whatever else is raised is a mistake of ours. There
    are subclasses only where code tells them apart. What the message quotes is made :func:`plain`.
    """

    def __str__(self) -> str:
        return plain(super().__str__())


class EdgeError(UserError):
    """An input that does not fit; the message says what was wired, what fits and what to do."""


@dataclass(frozen=True)
class EmbeddingSpace:
    """One CLIP's joint embedding space.

    Attributes:
        name: what travels on the edge as ``embedding_space``.
        dim: width of ``image_embeds`` and of the pooled text embedding.
        encoder: the CLIP in words, for messages.
        vision_width: width of the vision model's hidden states, which tells apart foreign
            CLIP_VISION_OUTPUTs of equal ``dim``; ``None`` where only the name decides.
    """

    name: str
    dim: int
    encoder: str
    vision_width: int | None = None


SPACES: dict[str, EmbeddingSpace] = {}
"""Every known space by name; the systems' records in ``loaders`` bring theirs."""

Role = Literal["encoder", "prior", "sampled", "autoencoder", "upscaler"]
"""What a network is to the host, which decides device and dtype: text and image encoders, a prior,
a network that samplers call at each step, an autoencoder, an upscaler."""


@dataclass(frozen=True)
class TextEncoding:
    """A prompt as one CLIP text model sees it.

    Attributes:
        hidden: last hidden states ``[B, L, W]``.
        pooled: projected text embedding ``[B, D]``, unnormalised.
        mask: ``[B, L]`` bool, true where a token is not padding.
        space: the embedding space of ``pooled``.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    mask: torch.Tensor
    space: EmbeddingSpace


@dataclass(frozen=True)
class SDXLText:
    """A prompt as SDXL's U-Nets read it.

    Attributes:
        hidden: both encoders' penultimate hidden states ``[B, 77, W]``.
        pooled: the second encoder's projected embedding ``[B, D]``.
        time_ids: ``[B, 6]``, original height and width, crop's top and left, target's height and
            width, in pixels; ``None`` for those of the picture that is made.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor | None = None


@dataclass(frozen=True)
class Prior:
    """UNCLIP_PRIOR: a prior in the host's care, its published ``UnCLIPSchedule``, its space.

    ``zero_image`` is the image encoder's embedding ``[1, D]`` of a picture of zeros, where the
    decoders of the prior's system take it for the negative side.
    """

    managed: Any
    schedule: Any
    space: EmbeddingSpace
    zero_image: torch.Tensor | None = None


@dataclass(frozen=True)
class Upscaler:
    """UNCLIP_UPSCALER: super-resolution networks, their schedule and picture sizes."""

    managed: Any
    schedule: Any
    low_size: int
    high_size: int


@dataclass(frozen=True)
class Transformer:
    """AR_TRANSFORMER: minDALL-E's transformer in the host's care.

    Attributes:
        managed: the network.
        tokenizer: of prompts; ``None`` for a class-conditional or unconditional transformer.
        config: its ``ARConfig``.
        name: where it came from, for messages.
        compiled: whether its blocks run by torch.compile.
    """

    managed: Any
    tokenizer: Any
    config: Any
    name: str
    compiled: bool = False


def check_text(text: Any, name: str) -> None:
    """Refuse what is no text, or none that an encoding can write.

    Raises:
        EdgeError: names the input.
    """
    if not isinstance(text, str):
        shown = f"{text!r}" if text is None or isinstance(text, (int, float)) else type(text)
        raise EdgeError(f"'{name}' is {shown!s:.60}, which is no text; put it in quotes")
    lone = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
    if lone is not None:
        raise EdgeError(
            f"'{name}' holds half a character (U+{ord(lone):04X} at {text.index(lone)}), which no"
            " encoding can write; delete it or write the whole"
        )


def placed(value: Any, device: torch.device | str) -> Any:
    """What travels on an edge with every tensor in it on ``device``.

    Reaches into what CONDITIONING and LATENT are made of: lists, tuples, dicts, and a prompt that
    lies beside an embedding. Nothing is changed in place; what holds no tensor comes back as it is.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(placed(part, device) for part in value)
    if isinstance(value, dict):
        return {key: placed(part, device) for key, part in value.items()}
    if isinstance(value, TextEncoding):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **placed(parts, device))
    return value


def text_to_conditioning(text: TextEncoding) -> list:
    """Wrap a :class:`TextEncoding` as the host's CONDITIONING (one entry, batch in the tensor)."""
    return [
        [
            text.hidden,
            {
                "pooled_output": text.pooled,
                "attention_mask": text.mask,
                "embedding_space": text.space.name,
            },
        ]
    ]


def conditioning_to_text(
    conditioning: list, wanted: EmbeddingSpace, name: str, width: int | None = None
) -> TextEncoding:
    """Unwrap a CONDITIONING for a stage that speaks ``wanted``.

    Args:
        conditioning: the host's CONDITIONING.
        wanted: the space that the consuming network was trained in.
        name: the consuming input, for messages.
        width: of the hidden states that it reads; ``None`` takes any.

    Raises:
        EdgeError: empty or combined conditioning, a foreign text encoder, hidden states, pooled
            embedding and mask that do not belong together, NaN.
    """
    hidden, extra = _only_prompt(conditioning, name, AVERAGE)
    space, pooled = extra.get("embedding_space"), extra.get("pooled_output")
    if space is None or pooled is None or hidden is None:
        found = "no pooled text embedding" if pooled is None else f"{pooled.shape[-1]} dimensions"
        raise EdgeError(
            f"'{name}' got a prompt from another kind of text encoder ({found}); it needs"
            f" {wanted.encoder}. Encode the prompt with PriorArt's 'Text Encode' and the text"
            " encoder that belongs to this stage"
        )
    if space != wanted.name:
        other = SPACES.get(space)
        raise EdgeError(
            f"'{name}' got a prompt in the embedding space '{space}'"
            f"{f' ({other.encoder})' if other else ''}, but needs '{wanted.name}'"
            f" ({wanted.encoder}). Encode the prompt with that text encoder"
        )
    _check_prompt(hidden, pooled, name)
    if pooled.shape[1] != wanted.dim or width not in (None, hidden.shape[2]):
        raise EdgeError(
            f"'{name}' got a prompt of {hidden.shape[2]} dimensions with a pooled embedding of"
            f" {pooled.shape[1]}, but this stage reads {width or hidden.shape[2]} and {wanted.dim}."
            f" Encode it again with {wanted.encoder}"
        )
    mask = extra.get("attention_mask")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    if not isinstance(mask, torch.Tensor):
        raise EdgeError(
            f"'{name}' got a prompt whose mask is a {type(mask).__name__}; encode it again with a"
            " Text Encode node"
        )
    if mask.ndim != 2 or mask.shape[1] != hidden.shape[1] or len(mask) not in (1, len(hidden)):
        raise EdgeError(
            f"'{name}' got a prompt of {hidden.shape[1]} tokens with a mask of shape"
            f" {list(mask.shape)}; this stage reads prompts as one Text Encode makes them. Write"
            " both into one prompt, or mix them with 'Conditioning (Average)' instead of"
            " 'Conditioning (Concat)'"
        )
    return TextEncoding(hidden, pooled, mask.bool().expand(len(hidden), -1), wanted)


def conditioning_to_any_text(conditioning: list, name: str) -> TextEncoding:
    """Unwrap a prompt of whatever encoder: which one fits, only a later stage knows.

    Raises:
        EdgeError: as :func:`conditioning_to_text`.
    """
    _, extra = _only_prompt(conditioning, name, AVERAGE)
    dim = (*getattr(extra.get("pooled_output"), "shape", ()), 0, 0)[1]
    wanted = space_named(extra.get("embedding_space", "none"), dim)
    return conditioning_to_text(conditioning, wanted, name)


AVERAGE = "Mix them with 'Conditioning (Average)' instead of 'Conditioning (Combine)'"


def _only_prompt(conditioning: Any, name: str, cure: str) -> tuple[Any, dict[str, Any]]:
    """The one entry of a CONDITIONING."""
    if not isinstance(conditioning, list) or not all(
        isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], dict)
        for entry in conditioning
    ):
        raise EdgeError(
            f"'{name}' got {type(conditioning).__name__}, which is no CONDITIONING; wire a Text"
            " Encode node into it"
        )
    if not conditioning:
        raise EdgeError(f"'{name}' got an empty CONDITIONING; wire a Text Encode node into it")
    if len(conditioning) > 1:
        raise EdgeError(
            f"'{name}' got {len(conditioning)} combined prompts; this node reads one prompt at a"
            f" time. {cure}"
        )
    hidden, extra = conditioning[0]
    space = extra.get("embedding_space", "")
    if not isinstance(hidden, torch.Tensor | None) or not isinstance(space, str):
        raise EdgeError(
            f"'{name}' got a CONDITIONING of no text encoder (hidden states: a"
            f" {type(hidden).__name__}, embedding space: {space!r}); wire a Text Encode node"
            " into it"
        )
    return hidden, extra


def _check_prompt(hidden: Any, pooled: Any, name: str) -> None:
    """Refuse what is no prompt ``[B, L, W]`` with a pooled embedding ``[B, D]``."""
    shapes = [
        list(part.shape) if isinstance(part, torch.Tensor) else [] for part in (hidden, pooled)
    ]
    ranks = tuple(len(shape) for shape in shapes)
    if ranks != (3, 2) or 0 in (*shapes[0], *shapes[1]) or shapes[0][0] != shapes[1][0]:
        raise EdgeError(
            f"'{name}' got a prompt of shape {shapes[0]} with a pooled embedding of shape"
            f" {shapes[1]}, but a prompt is [rows, tokens, width] with [rows, width] beside; encode"
            " it again with a Text Encode node"
        )
    _refuse_nan(hidden, name)
    _refuse_nan(pooled, name)


def batch_conditioning(first: list, second: list) -> list:
    """Two CONDITIONINGs of one prompt, or one batch of prompts, each, as one of all their rows.

    Raises:
        EdgeError: none or several prompts in one of them, or two that differ in more than their
            words: other encoders, other things beside the prompt.
    """
    sides = []
    for name, side in (("conditioning_a", first), ("conditioning_b", second)):
        if isinstance(side, list) and len(side) != 1:
            raise EdgeError(f"'{name}' holds {len(side)} prompts; batch them before combining them")
        hidden, extra = _only_prompt(side, name, "")
        pooled = extra.get("pooled_output")
        # Some prompts, as those of image embeddings, have none.
        some = pooled is not None or hidden is None or hidden.ndim < 2
        _check_prompt(hidden, pooled if some else hidden[:, 0], name)
        for value in extra.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                _refuse_nan(value, name)
        sides.append((hidden, extra))
    (hidden, extra), (other, more) = sides
    shapes, theirs = _shapes(hidden, extra), _shapes(other, more)
    if shapes != theirs:
        raise EdgeError(
            f"'conditioning_a' is of {_said(shapes)} and 'conditioning_b' of {_said(theirs)}; a"
            " batch needs prompts of one text encoder, equally long"
        )
    joined: dict[str, Any] = {}
    for key, value in extra.items():
        if isinstance(value, torch.Tensor):
            joined[key] = torch.cat([value, more[key].to(value)])
        elif isinstance(value, TextEncoding) and value.space == more[key].space:
            parts = {p: (getattr(value, p), getattr(more[key], p)) for p in _ROWS}
            rows = {p: torch.cat([a, b.to(a)]) for p, (a, b) in parts.items()}
            joined[key] = TextEncoding(**rows, space=value.space)
        elif value == more[key]:
            joined[key] = value
        else:
            raise EdgeError(
                f"'{key}' is {value} beside 'conditioning_a' and {more[key]} beside"
                " 'conditioning_b'; one batch has one"
            )
    return [[torch.cat([hidden, other.to(hidden)]), joined]]


def _shapes(hidden: torch.Tensor, extra: dict[str, Any]) -> dict[str, Any]:
    """What each row of a prompt, and of what is beside it, measures."""
    beside = {key: getattr(value, "shape", ())[1:] for key, value in sorted(extra.items())}
    return {"": hidden.shape[1:], **beside}


def _said(shapes: dict[str, Any]) -> str:
    beside = ", ".join(f"{key} {tuple(shape)}" if shape else key for key, shape in shapes.items())
    return f"{tuple(shapes[''])} with {beside.removeprefix(', ').partition(', ')[2]}"


_ROWS = ("hidden", "pooled", "mask")
"""Of a :class:`TextEncoding`, what has a row for each prompt."""


SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
"""Where the host keeps SDXL's sizes beside a prompt, in the network's order."""


def sizes_beside(extra: Mapping[str, Any], size: tuple[int, int]) -> list[float]:
    """SDXL's six sizes from what is beside a prompt, in the network's order.

    What it does not name is that of the picture: ``size``, its height and width in pixels; no crop,
    and the target is the original.
    """
    height, width = extra.get("height", size[0]), extra.get("width", size[1])
    default = dict(zip(SIZES, (height, width, 0, 0, height, width), strict=True))
    return [float(extra.get(key, default[key])) for key in SIZES]


def sdxl_to_conditioning(text: SDXLText) -> list:
    """Wrap an :class:`SDXLText` as the host's CONDITIONING; its sizes are the first row's."""
    extra: dict[str, Any] = {"pooled_output": text.pooled}
    if text.time_ids is not None:
        extra |= dict(zip(SIZES, text.time_ids[0].tolist(), strict=True))
    return [[text.hidden, extra]]


def conditioning_to_sdxl(conditioning: list, widths: tuple[int, int], name: str) -> SDXLText:
    """Unwrap a CONDITIONING for a U-Net of SDXL's kind, of whatever node.

    Args:
        widths: of the hidden states and of the pooled embedding that the U-Net reads.
        name: the consuming input, for messages.

    Raises:
        EdgeError: empty or combined conditioning, another text encoder's, hidden states and pooled
            embedding that do not belong together, NaN.
    """
    hidden, extra = _only_prompt(conditioning, name, "Use the native KSampler for combined ones")
    pooled = extra.get("pooled_output")
    found = tuple((*getattr(part, "shape", ()), 0)[-2:][0] for part in (hidden, pooled))
    if found != widths:
        raise EdgeError(
            f"'{name}' got a prompt of {found[0]} dimensions with a pooled embedding of {found[1]},"
            f" but 'model' reads {widths[0]} and {widths[1]}: both of SDXL's text encoders. Encode"
            " the prompt with the clip of the node that loaded 'model'"
        )
    if any(key in extra for key in ("control", "area", "mask", "unclip_conditioning")):
        raise EdgeError(
            f"'{name}' carries a ControlNet, an area, a mask or an image embedding, which this node"
            " does not know; use the native KSampler, which runs the same model"
        )
    _check_prompt(hidden, pooled, name)
    sizes = None
    if "width" in extra and "height" in extra:
        known = sizes_beside(extra, (extra["height"], extra["width"]))
        sizes = torch.tensor([known]).expand(len(hidden), -1)
    return SDXLText(hidden, pooled, sizes)


def embeds_to_conditioning(
    embeds: torch.Tensor,
    space: str,
    depth: torch.Tensor | None = None,
    text: TextEncoding | None = None,
) -> list:
    """Image embeddings ``[B, D]`` as CONDITIONING ``[B, 1, D]`` for a native sampler, so that
    native nodes combine and average them. ``depth`` ``[B, 3, H, W]`` in 0..1 and the
    prompt that some decoders read too go beside."""
    extra: dict[str, Any] = {"embedding_space": space, "prior_art": "image_embeds"}
    if depth is not None:
        extra["depth_hint"] = depth
    if text is not None:
        extra["text_encoding"] = text
    return [[embeds[:, None], extra]]


def text_beside(extra: dict, wanted: EmbeddingSpace, name: str, node: str) -> TextEncoding:
    """The prompt that travels beside image embeddings, for a decoder that reads both.

    Args:
        extra: what is beside the embeddings in CONDITIONING.
        wanted: the space of the prompt that the decoder reads.
        name: the consuming input, and node: the one that puts the prompt there, for messages.

    Raises:
        EdgeError: there is none, or another encoder's.
    """
    text = extra.get("text_encoding")
    if text is None or text.space.name != wanted.name:
        found = "no prompt" if text is None else f"a prompt in the space '{text.space.name}'"
        raise EdgeError(
            f"'{name}' carries {found}, but this decoder reads one of {wanted.encoder}; wire Text"
            f" Encode with that encoder into '{node}'"
        )
    return text


def depth_beside(
    extra: Mapping[str, Any], size: tuple[int, int], name: str, node: str
) -> torch.Tensor:
    """The depth map ``[B, 3, 8h, 8w]`` beside image embeddings, for latents of ``size`` (h, w).

    ``name``, the consuming input, and ``node``, which puts the map there, are for messages.

    Raises:
        EdgeError: there is none.
    """
    depth = extra.get("depth_hint")
    if depth is None:
        raise EdgeError(
            f"'{name}' has no depth map, but 'model' is a depth decoder; wire a picture into"
            f" 'depth' of '{node}'"
        )
    pixels = (8 * size[0], 8 * size[1])
    return torch.nn.functional.interpolate(depth, pixels, mode="bilinear", antialias=True)


def conditioning_to_embeds(
    conditioning: list, wanted: EmbeddingSpace, name: str, node: str
) -> torch.Tensor:
    """The image embeddings ``[B, D]`` in a CONDITIONING for a decoder that speaks ``wanted``.

    ``name``, the consuming input, and ``node``, which makes such a CONDITIONING, are for messages.

    Raises:
        EdgeError: a text prompt, another space, NaN.
    """
    embeds, extra = conditioning[0]
    if embeds is None or extra.get("prior_art") != "image_embeds":
        raise EdgeError(
            f"'{name}' is a text prompt, but this decoder reads image embeddings; wire a prior's"
            f" or an image encoder's output through '{node}'"
        )
    if embeds.ndim != 3 or embeds.shape[1] != 1:
        raise EdgeError(
            f"'{name}' has the shape {list(embeds.shape)}, but this decoder reads one image"
            " embedding a row; mix them with 'Mix Image Embeddings' or 'Conditioning (Average)'"
            " instead of 'Conditioning (Concat)'"
        )
    if extra["embedding_space"] != wanted.name or embeds.shape[2] != wanted.dim:
        raise EdgeError(
            f"'{name}' is an image embedding in the space '{extra['embedding_space']}',"
            f" {embeds.shape[2]} dimensions, but this decoder needs '{wanted.name}'"
            f" ({wanted.encoder}). No conversion exists: sample its own prior, or encode the"
            " picture again"
        )
    _refuse_nan(embeds, name)
    return embeds[:, 0]


def image_embeds_of(output: Any, wanted: EmbeddingSpace, name: str) -> torch.Tensor:
    """The unnormalised ``image_embeds`` ``[B, D]`` of a CLIP_VISION_OUTPUT, checked for a stage.

    A foreign output (native CLIPVisionEncode) carries no space: it is inferred from the width of
    the embedding and of the vision model's hidden states.

    Raises:
        EdgeError: another space (both are named, with the node that made it), NaN, no rows.
    """
    embeds = any_image_embeds(output, name, f"encode a picture with {wanted.encoder}")
    space = space_of_output(output)
    if space != wanted.name or embeds.shape[-1] != wanted.dim:
        other = SPACES.get(space)
        made_by = getattr(output, "made_by", None) or "native CLIP Vision Encode"
        raise EdgeError(
            f"'{name}' got an image embedding in the space '{space}'"
            f"{f' ({other.encoder})' if other else ''} made by {made_by}, {embeds.shape[-1]}"
            f" dimensions, but this stage needs '{wanted.name}' ({wanted.encoder}), {wanted.dim}"
            f" dimensions. No conversion exists: encode the picture again with {wanted.encoder}"
        )
    return embeds


def any_image_embeds(output: Any, name: str, cure: str = "encode a picture") -> torch.Tensor:
    """The ``image_embeds`` ``[B, D]`` of a CLIP_VISION_OUTPUT in whatever space.

    Raises:
        EdgeError: there are none, of another shape, no rows, NaN.
    """
    embeds = getattr(output, "image_embeds", None)
    if not isinstance(embeds, torch.Tensor):
        raise EdgeError(
            f"'{name}' got a CLIP_VISION_OUTPUT without image_embeds; {cure}, or sample a prior"
        )
    if embeds.ndim != 2 or 0 in embeds.shape:
        raise EdgeError(
            f"'{name}' got an image embedding of shape {list(embeds.shape)}, which has no rows of"
            f" numbers, [rows, width]; {cure}, or sample a prior"
        )
    _refuse_nan(embeds, name)
    return embeds


def check_pooled(output: Any, width: int) -> torch.Tensor:
    """The ``image_embeds`` ``[B, D]`` of a CLIP_VISION_OUTPUT that is to take the place of SDXL's
    pooled text embedding, as unCLIPConditioning has it.

    Raises:
        EdgeError: of another width: it is of another CLIP than the second text encoder; NaN.
    """
    embeds = any_image_embeds(output, "clip_vision_output")
    if embeds.shape[-1] != width:
        made_by = getattr(output, "made_by", None) or "native CLIP Vision Encode"
        fitting = [space.encoder for space in SPACES.values() if space.dim == width]
        raise EdgeError(
            f"the image embedding on the prompt (space '{space_of_output(output)}', made by"
            f" {made_by}) has {embeds.shape[-1]} dimensions, but 'model' reads {width}: the CLIP of"
            f" its second text encoder{f', {fitting[0]}' if fitting else ''}. Sample a prior of"
            " that CLIP, or encode the picture again with it"
        )
    return embeds


LOWEST, HIGHEST = -0.5, 1.5
"""What a picture's or a mask's numbers may be: 0 to 1, and what resizing and sharpening make of the
brightest and darkest edges."""


def check_image(image: Any, name: str) -> None:
    """Refuse what is no IMAGE ``[B, H, W, 3 or 4]`` of numbers in 0..1, in whatever precision.

    Raises:
        EdgeError: another shape, no pictures, whole numbers, NaN, another range; names the input.
    """
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape:
        raise EdgeError(
            f"'{name}' must be an IMAGE of one or more RGB pictures, but has the shape {shape}"
        )
    _check_range(image, name, "an IMAGE's")


def check_mask(mask: Any, name: str) -> torch.Tensor:
    """A MASK as ``[B, H, W]``; one without a batch is one mask.

    Raises:
        EdgeError: another shape, whole numbers, NaN, numbers outside of 0..1; names the input.
    """
    shape = tuple(getattr(mask, "shape", ()))
    if len(shape) not in (2, 3) or 0 in shape:
        raise EdgeError(f"'{name}' must be a MASK [B, H, W], but has the shape {shape}")
    mask = mask.float() if mask.dtype == torch.bool else mask
    _check_range(mask, name, "a MASK's")
    return mask[None] if mask.ndim == 2 else mask


def _check_range(values: torch.Tensor, name: str, whose: str) -> None:
    if values.is_meta or values.layout != torch.strided:
        raise EdgeError(f"'{name}' holds no numbers, or not all; look at the node that made it")
    if not values.is_floating_point():
        raise EdgeError(
            f"'{name}' holds {str(values.dtype).removeprefix('torch.')}, but {whose} numbers are"
            " fractions from 0 to 1; convert it to float and, if it goes to 255, divide by 255"
        )
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise EdgeError(f"'{name}' holds NaN or infinite numbers; look at the node that made it")
    if low < LOWEST or high > HIGHEST:
        raise EdgeError(
            f"'{name}' holds numbers from {low:.4g} to {high:.4g}, but {whose} go from 0 to 1;"
            " divide numbers up to 255 by 255, turn those from -1 to 1 into x / 2 + 0.5, and clamp"
            " what is left"
        )


def latent_of(latent: Any, name: str) -> torch.Tensor:
    """The ``samples`` of a LATENT.

    Raises:
        EdgeError: there are none, or NaN among them.
    """
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, torch.Tensor) or 0 in samples.shape or samples.ndim != 4:
        raise EdgeError(
            f"'{name}' got a LATENT without samples [B, D, h, w]; wire 'VQGAN Encode' into it"
        )
    _refuse_nan(samples, name)
    return samples


def ask_size(latents: torch.Tensor, height: int, width: int) -> None:
    """Note on latents ``[B, C, h, w]`` the size in pixels that their picture is cut to by whatever
    VAE of ours decodes this very tensor. Nodes that make new latents of them drop the note."""
    latents.prior_art_size = (height, width)


def cut_to_asked(pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, 3]`` decoded of these latents, without what :func:`ask_size` leaves out on
    the right and below."""
    height, width = getattr(latents, "prior_art_size", pixels.shape[1:3])
    return pixels[:, :height, :width]


def space_of_output(output: Any) -> str:
    """The name of the space of a CLIP_VISION_OUTPUT's ``image_embeds``; a foreign one's is told by
    its widths."""
    return getattr(output, "embedding_space", None) or _infer_space(output, output.image_embeds)


def known_space_of(output: Any, name: str) -> str:
    """The same for what needs to know which it is.

    Raises:
        EdgeError: it is another CLIP's than the pack knows.
    """
    space = space_of_output(output)
    if space.startswith("unknown"):
        raise EdgeError(
            f"'{name}' is of a CLIP that is not known here ({space}); encode the picture with"
            " Image Encode (unCLIP)"
        )
    return space


def space_named(name: str, dim: int) -> EmbeddingSpace:
    """The space of this name; one that no table lists is taken at its word."""
    return SPACES.get(name) or EmbeddingSpace(name, dim, f"a {dim}-dimensional CLIP")


def _infer_space(output: Any, embeds: torch.Tensor) -> str:
    hidden = getattr(output, "last_hidden_state", None)
    width = None if hidden is None else hidden.shape[-1]
    for space in SPACES.values():
        if space.dim == embeds.shape[-1] and width in (None, space.vision_width):
            return space.name
    return f"unknown, {embeds.shape[-1]}-d"


def _refuse_nan(tensor: torch.Tensor, name: str) -> None:
    if not tensor.is_floating_point() or tensor.is_meta:
        raise EdgeError(
            f"'{name}' holds {str(tensor.dtype).removeprefix('torch.')}, but numbers with fractions"
            " are read here; look at the node that made it"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise EdgeError(
            f"'{name}' holds NaN or infinite numbers; the network that made it overflowed or its"
            " weights are damaged. Load that network as fp32 or bf16, or download it again"
        )
