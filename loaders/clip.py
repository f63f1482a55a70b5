"""What is around CLIP's weights: tokenizer, picture preparation, OpenAI's key layout.

Sources: OpenAI's CLIP repository (model layout and the ``[49406, ..., 49407]`` framing of prompts),
the hub's ``tokenizer`` and ``feature_extractor`` files, transformers' CLIPImageProcessor (order and
precision of the picture arithmetic).
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..edges import EdgeError, reason_of
from ..samplers.parts.resize import longer_side, resize_and_crop
from .files.catalogue import download_of, repository_of
from .files.checkpoint import AGAIN, CheckpointError, check_bytes, check_inside, read_json
from .files.configs import check_config, check_sides, check_tokens
from .files.libraries import require
from .files.safe import WORDS_BYTES

logger = logging.getLogger("prior_art")

CONTEXT = 77
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


# -- tokenizer ---------------------------------------------------------------------------------


def load_tokenizer(folder: Path, folders: Sequence[Path] = (), **overrides: Any) -> Any:
    """The CLIPTokenizer of a hub ``tokenizer`` folder, from local files only.

    Args:
        folder: holds ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.
        folders: the model folders that no link may leave; empty allows everything.
        overrides: passed on, e.g. ``pad_token``.

    Raises:
        CheckpointError: files missing or damaged.
        LibraryError: transformers cannot be imported.
    """
    if not _has_vocabulary(folder):
        raise CheckpointError(
            f"'{folder}' holds no vocab.json and merges.txt (nor a tokenizer.json). {AGAIN}, e.g."
            f" with `{download_of('text_encoder')}`"
        )
    for file in sorted(folder.iterdir()):
        check_inside(file, folders)
        if file.suffix == ".json":
            read_json(file, WORDS_BYTES)
        elif not file.is_dir():
            check_bytes(file, WORDS_BYTES)
    tokenizer_class = require("transformers", "CLIPTokenizer")
    try:
        return tokenizer_class.from_pretrained(str(folder), local_files_only=True, **overrides)
    except Exception as error:
        raise CheckpointError(
            f"'{folder}' is no CLIP tokenizer ({reason_of(error)}). {AGAIN}"
        ) from error


def length_of(tokenizer: Any) -> int:
    """Tokens of a prompt: what the tokenizer says, CLIP's 77 where nothing limits it."""
    length = tokenizer.model_max_length
    return length if 2 <= length <= 100_000 else CONTEXT


def check_tokenizer(tokenizer: Any, network: Any, name: str) -> None:
    """Refuse a tokenizer whose tokens a CLIP's text tower does not have, or longer prompts.

    Raises:
        CheckpointError: names what does not fit.
    """
    config = network.config
    check_tokens(tokenizer, config.vocab_size, config.max_position_embeddings, name)


def find_tokenizer(beside: Path, vocabulary: int, folders: Sequence[Path]) -> Path:
    """A tokenizer folder for an original checkpoint, which brings none along.

    Looks for ``tokenizer/`` beside the file, then anywhere in the model folders, for one with
    exactly ``vocabulary`` entries.

    Raises:
        CheckpointError: none there; says where to put one.
    """
    candidates = [beside.parent / "tokenizer", beside.parent]
    for root in folders:
        candidates += sorted(p.parent for p in root.glob("**/tokenizer/*") if p.name in VOCABULARY)
        candidates += sorted(p.parent for p in root.glob("*/vocab.json"))
    for folder in dict.fromkeys(candidates):
        if _has_vocabulary(folder) and _vocabulary_size(folder, folders) == vocabulary:
            return folder
    raise CheckpointError(
        f"'{beside}' brings no tokenizer along and none with {vocabulary} entries was found. Put"
        f" the `tokenizer` folder of {repository_of('tokenizer')} or openai/clip-vit-large-patch14"
        f" into '{beside.parent}' (`{download_of('text_encoder')}` brings one)"
    )


VOCABULARY = ("vocab.json", "tokenizer.json")


def _has_vocabulary(folder: Path) -> bool:
    slow = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return slow or (folder / "tokenizer.json").is_file()


def _vocabulary_size(folder: Path, folders: Sequence[Path]) -> int:
    try:
        for name in VOCABULARY:
            if (folder / name).is_file():
                check_inside(folder / name, folders)
                value = read_json(folder / name, WORDS_BYTES)
                return len(value) if name == "vocab.json" else len(value["model"]["vocab"])
    except (CheckpointError, KeyError, TypeError):
        pass
    return 0


def tokenize(
    tokenizer: Any, prompts: Sequence[str], cleaned: bool = True
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Token ids as the published pipelines make them, and what did not fit.

    Args:
        tokenizer: a CLIPTokenizer, or mCLIP's XLM-R tokenizer, whose original cleans nothing.
        prompts: any text; ``""`` is fine.
        cleaned: read a prompt as OpenAI's code does (:func:`clean`), which unCLIP
            systems and the reranker were published with. SDXL's pipelines and ComfyUI leave it to
            transformers, which neither mends characters nor knows entities.

    Returns:
        ``(ids [B, L] long, mask [B, L] bool, cut)``: padded or truncated to the model's length (77)
        with the tokenizer's own padding token; ``cut`` holds the text that was left out of each
        prompt, ``""`` if nothing was.

    Raises:
        TypeError: a prompt that is no string.
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt must be text, not {type(prompt).__name__}")
    length = length_of(tokenizer)
    if cleaned and tokenizer.bos_token == START:
        words = [_encode_cleaned(tokenizer, prompt) for prompt in prompts]
    else:
        rows = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        words = [row[1:-1] for row in rows]
    ids = torch.full((len(words), length), tokenizer.pad_token_id)
    mask = torch.zeros(len(words), length, dtype=torch.bool)
    cut = []
    for i, found in enumerate(words):
        row = [tokenizer.bos_token_id, *found[: length - 2], tokenizer.eos_token_id]
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
        cut.append(tokenizer.decode(found[length - 2 :]) if len(found) > length - 2 else "")
    return ids, mask, cut


START = "<|startoftext|>"
"""How a prompt begins for CLIP's tokenizer, and for no other."""

OTHERS = r"[^\s\p{L}\p{N}]+"
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|" + OTHERS
"""What OpenAI's tokenizer takes for a word, whatever its case."""


def clean(text: str) -> str:
    """A prompt as OpenAI's tokenizer reads it (``simple_tokenizer.py``): characters mended by ftfy
    (curly quotes, ligatures, full-width letters, control characters), HTML's entities resolved
    twice, white space collapsed, lower case.

    Without ftfy, what it mends stays as it is, with a warning where there may be such.
    """
    try:
        from ftfy import fix_text
    except Exception:  # not installed, or broken
        if not (text.isascii() and all(c.isprintable() or c in "\t\n" for c in text)):
            logger.warning(
                "ftfy is not installed, so the prompt is not cleaned as CLIP's own tokenizer does:"
                " its unusual characters may be read as others. Cure: pip install ftfy"
            )
    else:
        text = fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return require("regex").sub(r"\s+", " ", text).strip().lower()


def _encode_cleaned(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt's words. transformers' own split is left out: from one version to the
    next it is another, and none of them is OpenAI's for every letter."""
    pattern, specials = WORD, tokenizer.all_special_tokens
    if "!" in specials:  # a hub folder's padding: a token of its own wherever it stands
        pattern = "!|" + WORD.replace(OTHERS, OTHERS.replace("^", "^!"))
    ids: list[int] = []
    for word in require("regex").findall(pattern, clean(prompt), re.IGNORECASE):
        if word in specials:
            ids.append(tokenizer.convert_tokens_to_ids(word))
            continue
        symbols = "".join(BYTES[byte] for byte in word.encode(errors="surrogatepass"))
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is not None:
            ids += [token.id for token in fast.model.tokenize(symbols)]
        else:  # transformers 4
            ids += tokenizer.convert_tokens_to_ids(tokenizer.bpe(symbols).split(" "))
    return ids


def _byte_symbols() -> list[str]:
    """A printable character for each byte: itself, or one from 256 on."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


BYTES = _byte_symbols()


# -- pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocess:
    """IMAGE ``[B, H, W, 3]`` in 0..1 to CLIP's normalised pixels ``[B, 3, S, S]``, through Pillow.

    The same numbers as transformers' CLIPImageProcessor on its PIL backend: round to 8 bits,
    bicubic resize, centre crop, divide by 255, normalise.

    Attributes:
        size: edge of the picture that the vision model sees.
        resize: the short edge goes to this before the crop; equal to ``size`` in published CLIPs.
        squash: resize both edges to ``size`` instead, as some original code does.
        openai: resize and crop as OpenAI's own preparation does, which rounds half a place
            otherwise; ``resize`` is then ``size``.
        mean: subtracted per channel.
        std: divided by per channel.
        resample: Pillow's filter; 3 is bicubic.
        scale: multiplies the 8-bit values.
    """

    size: int = 224
    resize: int = 224
    squash: bool = False
    openai: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    resample: int = 3
    scale: float = 1 / 255

    def whole(self) -> Preprocess:
        """The same, but pictures are squeezed square instead of cropped."""
        return replace(self, squash=True)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Prepare a batch.

        Raises:
            EdgeError: no ``[B, H, W, 3 or 4]`` batch, an empty one, or NaN.
        """
        if images.ndim != 4 or images.shape[-1] < 3 or 0 in images.shape:
            raise EdgeError(
                f"a picture for CLIP must be an IMAGE [B, H, W, 3], not {list(images.shape)}"
            )
        if not bool(torch.isfinite(images).all()):
            raise EdgeError("the picture for CLIP holds NaN; the node that made it overflowed")
        eight = (images[..., :3].detach().float().cpu() * 255).round().clamp(0, 255)
        rows = [self._one(row) for row in eight.to(torch.uint8).numpy()]
        return torch.from_numpy(np.stack(rows))

    def _one(self, pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(pixels)
        if self.squash:
            array = np.asarray(picture.resize((self.size, self.size), resample=self.resample))
        elif self.openai:
            array = resize_and_crop(picture, self.size)
        else:
            array = self._cropped(picture)
        scaled = (array.astype(np.float64) * self.scale).astype(np.float32)
        mean, std = (np.array(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
        return ((scaled - mean) / std).transpose(2, 0, 1)

    def _cropped(self, picture: Image.Image) -> np.ndarray:
        width, height = picture.size
        edge = longer_side(picture, self.resize)
        target = (self.resize, edge) if width <= height else (edge, self.resize)
        array = np.asarray(picture.resize(target, resample=self.resample))
        top = (array.shape[0] - self.size) // 2
        left = (array.shape[1] - self.size) // 2
        return array[top : top + self.size, left : left + self.size]


def preprocess_from_config(
    config: Mapping[str, Any], image_size: int, name: str = "preprocessor_config.json"
) -> Preprocess:
    """The picture preparation that a ``preprocessor_config.json`` describes.

    Args:
        config: its contents, of old (``size: 224``) or new (``size: {"shortest_edge": 224}``) form;
            ``{}`` where there is none: CLIP's own numbers.
        name: the file, for messages.
        image_size: edge of the picture that the vision model's own config asks for.

    Raises:
        CheckpointError: the vision model sees another size than the preparation makes.
    """
    check_config("preprocessor", config, name, None)
    check_sides(config, name)
    size = config.get("size", image_size)
    crop = config.get("crop_size", image_size)
    squash = False
    if isinstance(size, Mapping):
        squash = "height" in size
        size = size.get("shortest_edge", size.get("height", image_size))
    if isinstance(crop, Mapping):
        crop = crop.get("height", image_size)
    if config.get("do_center_crop", True) is False:
        crop = size
    if int(crop) != image_size or int(size) < int(crop):
        raise CheckpointError(
            f"'{name}' makes pictures of {crop} pixels, resized to {size} first, but the image"
            f" encoder sees {image_size}. Download feature_extractor and image_encoder of one model"
        )
    return Preprocess(
        size=int(crop),
        resize=int(size),
        squash=squash,
        mean=tuple(config.get("image_mean", MEAN)),
        std=tuple(config.get("image_std", STD)),
        resample=int(config.get("resample", 3)),
        scale=float(config.get("rescale_factor", 1 / 255)),
    )


# -- OpenAI's layout ---------------------------------------------------------------------------

OPENAI_VIT_L = (
    re.compile(r"ViT-L-14\.(pt|pth|safetensors)", re.IGNORECASE),
    frozenset({"text_encoder", "image_encoder"}),
)
"""OpenAI's file, which other originals read too, each in its own way."""

Split = Callable[[torch.Tensor], dict[str, torch.Tensor]]

BLOCK = (
    (r"ln_1\.(weight|bias)", r"layer_norm1.\1"),
    (r"ln_2\.(weight|bias)", r"layer_norm2.\1"),
    (r"mlp\.c_fc\.(weight|bias)", r"mlp.fc1.\1"),
    (r"mlp\.c_proj\.(weight|bias)", r"mlp.fc2.\1"),
    (r"attn\.out_proj\.(weight|bias)", r"self_attn.out_proj.\1"),
)
"""One transformer block. ``attn.in_proj_weight|bias`` is q, k, v stacked; see :func:`_rename`."""

TEXT = (
    (r"token_embedding\.weight", r"text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", r"text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.(weight|bias)", r"text_model.final_layer_norm.\1"),
    (r"text_projection", r"text_projection.weight^T"),
)
TEXT_BLOCKS = (r"transformer\.resblocks\.(\d+)\.", r"text_model.encoder.layers.\1.")

VISION = (
    (r"visual\.class_embedding", r"vision_model.embeddings.class_embedding"),
    (r"visual\.conv1\.weight", r"vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.positional_embedding", r"vision_model.embeddings.position_embedding.weight"),
    # transformers spells it so
    (r"visual\.ln_pre\.(weight|bias)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"visual\.proj", r"visual_projection.weight^T"),
)
VISION_BLOCKS = (r"visual\.transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1.")

IGNORED = frozenset({"input_resolution", "context_length", "vocab_size", "logit_scale"})


def is_openai_clip(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict has the keys of OpenAI's CLIP with a ViT."""
    return {"text_projection", "visual.proj", "visual.conv1.weight"} <= set(state)


def openai_text(
    state: Mapping[str, torch.Tensor], name: str, head_dim: int = 64
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and keys of the text model for transformers' CLIPTextModelWithProjection.

    Args:
        state: OpenAI's layout, text and vision model.
        name: the file, for messages.
        head_dim: width of an attention head; 64 in every published CLIP.

    Raises:
        CheckpointError: another layout; names some keys.
    """
    own = {k: v for k, v in state.items() if not k.startswith("visual.") and k not in IGNORED}
    renamed = _rename(own, TEXT, TEXT_BLOCKS, name)
    vocabulary, width = state["token_embedding.weight"].shape
    config = {
        **_geometry(renamed, "text_model.", width, head_dim),
        "vocab_size": vocabulary,
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "projection_dim": state["text_projection"].shape[1],
        # transformers' old value: pool at the highest id, which is how OpenAI's code pools.
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    return config, renamed


def openai_vision(
    state: Mapping[str, torch.Tensor], name: str, head_dim: int = 64
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and keys of the vision model for transformers' CLIPVisionModelWithProjection.

    Raises:
        CheckpointError: another layout; names some keys.
    """
    own = {k: v for k, v in state.items() if k.startswith("visual.")}
    renamed = _rename(own, VISION, VISION_BLOCKS, name)
    width, channels, patch, _ = state["visual.conv1.weight"].shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    config = {
        **_geometry(renamed, "vision_model.", width, head_dim),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * grid,
        "projection_dim": state["visual.proj"].shape[1],
    }
    return config, renamed


def _geometry(
    renamed: Mapping[str, torch.Tensor], prefix: str, width: int, head_dim: int
) -> dict[str, Any]:
    layers = {m[1] for k in renamed if (m := re.match(rf"{prefix}encoder\.layers\.(\d+)\.", k))}
    return {
        "hidden_size": width,
        "intermediate_size": renamed[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // head_dim),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _rename(
    state: Mapping[str, torch.Tensor],
    rows: Sequence[tuple[str, str]],
    blocks: tuple[str, str],
    name: str,
) -> dict[str, torch.Tensor]:
    old, new = blocks
    table = [*rows, *((old + left, _shift(new, right)) for left, right in BLOCK)]
    in_proj = re.compile(old + r"attn\.in_proj_(weight|bias)")
    out: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if match := in_proj.fullmatch(key):
            layer = match.expand(new)
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}self_attn.{letter}_proj.{match[2]}"] = part
            continue
        for pattern, target in table:
            if match := re.fullmatch(pattern, key):
                renamed = match.expand(target)
                if renamed.endswith("^T"):
                    renamed, tensor = renamed[:-2], tensor.T
                out[renamed] = tensor
                break
        else:
            unknown.append(key)
    if unknown or len(out) < len(rows):
        raise CheckpointError(
            f"'{name}' is not in OpenAI's CLIP layout"
            f" (unknown: {', '.join(unknown[:4]) or 'none'}). Use OpenAI's ViT-L-14.pt"
        )
    return out


def _shift(prefix: str, target: str) -> str:
    """Join a block prefix that uses group 1 with a row whose own groups start at 1."""
    return prefix + re.sub(r"\\(\d)", lambda match: f"\\{int(match[1]) + 1}", target)
