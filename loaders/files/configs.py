"""What a configuration may say: keys, kinds and ranges by the class that it describes.

A configuration is read before its weights are known to fit, and libraries build whatever it says:
a hundred thousand layers, an epsilon of NaN. So it is compared with these tables first, and the
numbers of layers with what the weight file holds. Keys that are not here are the library's own
business: they are switches and words, which it refuses itself.

Sources: the signatures of diffusers' networks and schedulers and of transformers' configurations;
the ranges are generous towards everything published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import AGAIN, CheckpointError, read_json

LEVELS = 16
"""Entries that a list may have, at least one; networks have 3 to 5 levels."""


@dataclass(frozen=True)
class Rule:
    """What one key may hold.

    Attributes:
        kind: "whole" number, "number", "switch", "text".
        low, high: of a number, both included.
        none: null is a value too.
        listed: a list of such, and lists in it, are too.
        length: it is a list of exactly so many.
        tensors: it counts layers, each of which has at least so many tensors.
    """

    kind: str
    low: float = 0
    high: float = 0
    none: bool = False
    listed: bool = False
    length: int | None = None
    tensors: int = 0

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one."""
        if isinstance(value, (list, tuple)):
            if self.length is not None and len(value) != self.length:
                return False
            one = replace(self, length=None)
            allowed = self.listed or self.length is not None
            return allowed and 0 < len(value) <= LEVELS and all(map(one.holds, value))
        if self.length is not None:
            return self.none and value is None
        if value is None:
            return self.none
        if self.kind == "text":
            return isinstance(value, str) and len(value) <= 200
        if self.kind == "switch":
            return isinstance(value, bool)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.kind == "whole" and not isinstance(value, int):
            return False
        return self.low <= value <= self.high  # NaN is not

    def __str__(self) -> str:
        words = {"text": "text", "switch": "true or false"}.get(self.kind)
        if words is None:
            words = "a whole number" if self.kind == "whole" else "a number"
            words += f" from {self.low:g} to {self.high:g}"
        if self.length is not None:
            words = f"a list of {self.length}, each {words}"
        elif self.listed:
            words += ", or a list of such"
        return words + (", or null" if self.none else "")


def _whole(low: int, high: int, **more: Any) -> Rule:
    return Rule("whole", low, high, **more)


def _number(low: float, high: float, **more: Any) -> Rule:
    return Rule("number", low, high, **more)


_TEXT = Rule("text")
_NAMES = Rule("text", none=True, listed=True)
_SWITCH = Rule("switch", none=True)
_WIDTH = _whole(1, 2**16)
_WIDTHS = _whole(1, 2**16, listed=True)
_WIDTH_OR_NOT = _whole(1, 2**20, none=True, listed=True)
_HEADS = _whole(1, 4096)
_EDGE = _whole(1, 8192)
_EPSILON = _number(1e-12, 0.1)
_SHARE = _number(0, 1)
_DEPTH = _whole(1, 10_000, tensors=4)
_DEPTHS = _whole(0, 10_000, listed=True, tensors=4)
_TOKEN = _whole(0, 2**24, none=True)

_UNET = {
    "sample_size": replace(_EDGE, none=True, listed=True),
    "in_channels": _WIDTH,
    "out_channels": _WIDTH,
    "block_out_channels": _WIDTHS,
    "down_block_types": replace(_NAMES, none=False),
    "up_block_types": replace(_NAMES, none=False),
    "layers_per_block": _DEPTHS,
    "transformer_layers_per_block": _DEPTHS,
    "reverse_transformer_layers_per_block": replace(_DEPTHS, none=True),
    "attention_head_dim": replace(_HEADS, none=True, listed=True),
    "num_attention_heads": replace(_HEADS, none=True, listed=True),
    "cross_attention_dim": _WIDTH_OR_NOT,
    "encoder_hid_dim": _WIDTH_OR_NOT,
    "encoder_hid_dim_type": replace(_TEXT, none=True),
    "addition_embed_type": replace(_TEXT, none=True),
    "addition_embed_type_num_heads": replace(_HEADS, none=True),
    "addition_time_embed_dim": _WIDTH_OR_NOT,
    "projection_class_embeddings_input_dim": _WIDTH_OR_NOT,
    "num_class_embeds": _WIDTH_OR_NOT,
    "time_embedding_dim": _WIDTH_OR_NOT,
    "time_cond_proj_dim": _WIDTH_OR_NOT,
    "norm_num_groups": replace(_HEADS, none=True),
    "norm_eps": _EPSILON,
    "dropout": _SHARE,
    "freq_shift": _number(-1000, 1000),
    "conv_in_kernel": _whole(1, 15),
    "conv_out_kernel": _whole(1, 15),
    "downsample_padding": _whole(0, 8, none=True),
    "mid_block_scale_factor": _number(1e-6, 1e6),
    "resnet_out_scale_factor": _number(1e-6, 1e6),
    "flip_sin_to_cos": _SWITCH,
    "act_fn": _TEXT,
    "mid_block_type": replace(_TEXT, none=True),
}
_VAE = {
    "in_channels": _WIDTH,
    "out_channels": _WIDTH,
    "block_out_channels": _WIDTHS,
    "down_block_types": replace(_NAMES, none=False),
    "up_block_types": replace(_NAMES, none=False),
    "layers_per_block": _DEPTH,
    "latent_channels": _WIDTH,
    "norm_num_groups": _HEADS,
    "sample_size": replace(_EDGE, none=True, listed=True),
    "num_vq_embeddings": _whole(1, 2**24),
    "vq_embed_dim": _WIDTH_OR_NOT,
    "scaling_factor": _number(1e-6, 1e6),
    "shift_factor": _number(-1e6, 1e6, none=True),
    "norm_type": replace(_TEXT, none=True),
    "act_fn": _TEXT,
    "force_upcast": _SWITCH,
}
_TOWER = {
    "architectures": _NAMES,
    "hidden_size": _WIDTH,
    "intermediate_size": _whole(1, 2**20),
    "projection_dim": _WIDTH,
    "num_hidden_layers": _DEPTH,
    "num_attention_heads": _HEADS,
    "hidden_act": _TEXT,
    "layer_norm_eps": _EPSILON,
    "attention_dropout": _SHARE,
    "initializer_factor": _number(0, 1e6),
    "initializer_range": _number(0, 1e6),
}
_WORDS = {
    "vocab_size": _whole(1, 2**24),
    "max_position_embeddings": _whole(2, 10**5),
    "bos_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
    "pad_token_id": _TOKEN,
}
_SCHEDULER = {
    "num_train_timesteps": _whole(2, 10_000),
    "beta_start": _number(1e-9, 0.999),
    "beta_end": _number(1e-9, 0.999),
    "beta_schedule": _TEXT,
    "prediction_type": _TEXT,
    "variance_type": replace(_TEXT, none=True),
    "timestep_spacing": _TEXT,
    "steps_offset": _whole(0, 1000),
    "clip_sample": _SWITCH,
    "clip_sample_range": _number(1e-6, 1e6, none=True),
    "thresholding": _SWITCH,
    "dynamic_thresholding_ratio": _SHARE,
    "sample_max_value": _number(1e-6, 1e6),
    "set_alpha_to_one": _SWITCH,
}

TABLES: dict[str, Mapping[str, Rule]] = {
    "UNet2DConditionModel": _UNET,
    "UNet2DModel": _UNET,
    "VQModel": _VAE,
    "AutoencoderKL": _VAE,
    "PriorTransformer": {
        "num_layers": _DEPTH,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEADS,
        "embedding_dim": _WIDTH,
        "num_embeddings": _whole(1, 10**4),
        "additional_embeddings": _whole(0, 1000),
        "dropout": _SHARE,
        "time_embed_dim": _WIDTH_OR_NOT,
        "embedding_proj_dim": _WIDTH_OR_NOT,
        "clip_embed_dim": _WIDTH_OR_NOT,
        "time_embed_act_fn": _TEXT,
    },
    "UnCLIPTextProjModel": {
        "clip_embeddings_dim": _WIDTH,
        "time_embed_dim": _WIDTH,
        "cross_attention_dim": _WIDTH,
        "clip_extra_context_tokens": _whole(1, 1000),
    },
    "CLIPTextConfig": _TOWER | _WORDS | {"eos_token_id": replace(_TOKEN, none=False)},
    "CLIPVisionConfig": _TOWER
    | {"image_size": _EDGE, "patch_size": _whole(1, 1024), "num_channels": _whole(1, 64)},
    "XLMRobertaConfig": _TOWER
    | _WORDS
    | {
        "pad_token_id": replace(_TOKEN, none=False),  # positions are counted from behind it
        "type_vocab_size": _whole(1, 1000),
        "hidden_dropout_prob": _SHARE,
        "attention_probs_dropout_prob": _SHARE,
    },
    "scheduler": _SCHEDULER,
    "preprocessor": {
        "image_mean": _number(-10, 10, length=3),
        "image_std": _number(1e-6, 100, length=3),
        "resample": _whole(0, 5),
        "rescale_factor": _number(1e-6, 1),
        "do_center_crop": _SWITCH,
    },
}
"""By the class of a network or of its configuration; all schedulers and all picture preparations
have one table each."""

LENGTH = _whole(2, 100_000)
"""Of a tokenizer's prompts; a larger one means that nothing limits them, and CLIP's is taken."""

CONTEXT = 77

SIDE = _whole(1, 4096)
"""Of a picture in a preparation, which says it as a number or by the names of its sides."""


def check_config(kind: str, config: Mapping[str, Any], name: str, tensors: int | None) -> None:
    """Refuse a configuration that nothing sound can be built of.

    Args:
        kind: a key of :data:`TABLES`.
        config: what a JSON file holds.
        name: the file, for messages.
        tensors: how many the weight file beside it has; ``None`` where there is none.

    Raises:
        CheckpointError: names the key, its value, what it may be, and the cure.
    """
    for key, rule in TABLES[kind].items():
        if key not in config:
            continue
        value = config[key]
        if not rule.holds(value):
            raise _wrong(name, key, value, str(rule))
        layers = _sum(value) * rule.tensors
        if tensors is not None and layers > max(tensors, 64):
            raise _wrong(name, key, value, f"less: its weights are {tensors} tensors")


def sizes_of(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers is to be told: of all that its configurations may hold (a number of labels,
    say, of which it makes as many words) only what its table here has. Some versions take 0 for no
    number with a point."""
    own = {k: config[k] for k in TABLES[kind] if k in config and k != "architectures"}
    whole = {k: v for k, v in own.items() if TABLES[kind][k].kind == "number" and v is not None}
    return own | {k: float(v) for k, v in whole.items()}


def nested(config: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """A tower's part of a configuration of several, or all of it where it has none.

    Raises:
        CheckpointError: something else than an object is there.
    """
    own = config.get(key, config)
    if not isinstance(own, dict):
        raise _wrong(name, key, own, "an object")
    return own


def read_schedule_config(file: Path) -> dict[str, Any]:
    """A ``scheduler_config.json``, checked.

    Raises:
        CheckpointError: it is missing or damaged, or says what no schedule can be.
    """
    config = read_json(file)
    check_config("scheduler", config, str(file), None)
    if not isinstance(config.get("_class_name", ""), str):
        raise _wrong(str(file), "_class_name", config["_class_name"], str(_TEXT))
    return config


def check_sides(config: Mapping[str, Any], name: str) -> None:
    """Refuse sizes of pictures that are none.

    Raises:
        CheckpointError: as :func:`check_config`.
    """
    for key in ("size", "crop_size"):
        value = config.get(key)
        sides = list(value.values()) if isinstance(value, Mapping) else [value]
        if key in config and not (sides and all(SIDE.holds(side) for side in sides)):
            raise _wrong(name, key, value, str(SIDE))


def _sum(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_sum, value))
    return value if isinstance(value, int) else 0


def _wrong(name: str, key: str, value: Any, allowed: str) -> CheckpointError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return CheckpointError(
        f"the configuration of '{name}' says {key} {shown}, but it must be {allowed}. {AGAIN}"
    )


def check_tokens(tokenizer: Any, rows: int, places: int | None, name: str) -> None:
    """Refuse a tokenizer whose ids a text encoder has no rows for.

    Args:
        tokenizer: transformers'.
        rows: of the encoder's table of tokens.
        places: of its table of positions; ``None`` where it has room for any prompt.
        name: where it came from, for messages.

    Raises:
        CheckpointError: names what does not fit.
    """
    length = tokenizer.model_max_length
    # Where nothing limits it transformers says 10**30.
    if not (LENGTH.holds(length) or _number(LENGTH.high, 1e300).holds(length)):
        raise _wrong(name, "model_max_length", length, str(LENGTH))
    if places is not None and (length if length <= LENGTH.high else CONTEXT) > places:
        raise _wrong(name, "model_max_length", length, f"at most the encoder's {places} positions")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not _whole(0, rows - 1).holds(getattr(tokenizer, key)):
            raise _wrong(name, key, getattr(tokenizer, key), f"one of the encoder's {rows} tokens")
    highest: Sequence[int] = [*tokenizer.get_vocab().values(), 0]
    if max(highest) >= rows:
        raise _wrong(name, "a token's id", max(highest), f"one of the encoder's {rows} tokens")
