"""minDALL-E out of a source: the original ``1.3B`` folder, an archive of it, or our own folder.

Both layouts hold the same keys. The original: ``stage1_last.ckpt`` (VQGAN), ``stage2_last.ckpt``
(transformer), ``tokenizer/`` and a ``config.yaml`` that is often missing. Ours, which
`prior-art convert mindalle` writes: ``vqgan.safetensors``, ``transformer.safetensors``,
``tokenizer/`` and a ``config.json`` of what shapes cannot tell. Sizes are read off the shapes, and
the keys tell a text-conditional transformer from a class-conditional and an unconditional one.

Source: kakaobrain/minDALL-E (``dalle/models``, ``configs``).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..edges import EdgeError, reason_of
from ..networks.mindalle import ARConfig, ARTransformer
from .files.archive import Progress, is_archive, unpacked
from .files.catalogue import Source, Stage, System
from .files.checkpoint import (
    AGAIN,
    CheckpointError,
    cast,
    check_bytes,
    check_inside,
    load_strict,
    read_json,
    read_state_dict,
    read_tensors,
)
from .files.libraries import LibraryError, require
from .files.safe import WORDS_BYTES, read_bytes, write_whole
from .mindalle_vqgan import VQGAN, build_vqgan
from .taming import GROUPS

CLASS_NAME = "MinDALLE"
CONFIG, ORIGINAL_CONFIG = "config.json", "config.yaml"
VQGAN_FILES = ("vqgan.safetensors", "stage1_last.ckpt")
TRANSFORMER_FILES = ("transformer.safetensors", "stage2_last.ckpt")
"""Names of weight files: ours, the original's."""

VOCABULARY, MERGES = "tokenizer/bpe-16k-vocab.json", "tokenizer/bpe-16k-merges.txt"
FILES = (CONFIG, ORIGINAL_CONFIG, VOCABULARY, MERGES, *VQGAN_FILES, *TRANSFORMER_FILES)
"""Everything that is ever read out of a folder or an archive."""

LARGEST = 4096
"""A picture's edge, heads or groups; the published ones are 256, 24 and 32."""

YAML_BYTES = 2**18
"""Of a config.yaml; the published one has 2 kB."""

HEAD_DIM = 64
"""Width of an attention head in the published transformers; shapes cannot tell it."""

UNKNOWN, PADDING = "[UNK]", "[PAD]"

SYSTEMS = (
    System(
        name="mindalle",
        title="minDALL-E",
        stages={
            "vqgan": Stage(
                "autoencoder",
                original=VQGAN_FILES[1],
                own=(VQGAN_FILES[0], CLASS_NAME),
                full=True,
            ),
            "ar_transformer": Stage(
                "sampled", original=TRANSFORMER_FILES[1], own=(TRANSFORMER_FILES[0], CLASS_NAME)
            ),
        },
        checkpoints=(
            (
                re.compile(r"(1\.3B|.*min-?dall-?e.*)\.(tar\.gz|tgz|tar|zip)", re.IGNORECASE),
                frozenset({"vqgan", "ar_transformer"}),
            ),
        ),
        embedded=(
            ("shapes-mindalle", "mindalle"),
            ("shapes-mindalle-class", "mindalle-class"),
            ("shapes-mindalle-unconditional", "mindalle-unconditional"),
        ),
        place="Put kakaobrain/minDALL-E's folder 1.3B, or 1.3B.tar.gz, into the model folder",
    ),
)


@dataclass(frozen=True)
class LoadedTransformer:
    """A transformer and, where it reads text, its tokenizer.

    Attributes:
        network: an ``ARTransformer``.
        tokenizer: a ``CharBPETokenizer`` for :func:`tokenize`; ``None`` unless ``kind`` is text.
        config: its sizes.
        name: where it came from, for messages.
    """

    network: ARTransformer
    tokenizer: Any
    config: ARConfig
    name: str

    @property
    def kind(self) -> Literal["text", "class", "unconditional"]:
        """What it is conditioned on."""
        return kind_of(self.config)


@dataclass(frozen=True)
class Settings:
    """What a config says and shapes do not.

    Attributes:
        image_size: edge of the pictures; ``None`` where nothing says it.
        heads: of an attention layer; ``None`` where nothing says it.
        groups: of the VQGAN's GroupNorms.
    """

    image_size: int | None = None
    heads: int | None = None
    groups: int = GROUPS


@dataclass(frozen=True)
class Tokens:
    """Prompts as the transformer reads them.

    Attributes:
        ids: ``[B, L]`` long, padded with [PAD], which is attended like any token.
        cut: per prompt the text that did not fit, ``""`` if everything did.
        unknown: per prompt the characters that became [UNK], in order, each once.
    """

    ids: torch.Tensor
    cut: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def load_vqgan(
    source: Source, dtype: torch.dtype = torch.float32, progress: Progress | None = None
) -> VQGAN:
    """Load the VQGAN.

    Args:
        source: from :func:`~.files.catalogue.find_source`. An archive is unpacked beside itself,
            once.
        dtype: storage dtype; half precision changes codes.
        progress: told about unpacking.

    Raises:
        CheckpointError: a file is missing, damaged or foreign, or holds Python objects.
        LibraryError: diffusers cannot be imported.
    """
    folder = _folder(source, progress)
    settings = read_settings(folder, source.folders)
    state, name = _read_weights(folder, VQGAN_FILES, source)
    return build_vqgan(state, name, dtype, settings.image_size, settings.groups)


def load_transformer(
    source: Source, dtype: torch.dtype = torch.float32, progress: Progress | None = None
) -> LoadedTransformer:
    """Load the transformer, and its tokenizer if it reads text.

    Args:
        source: from :func:`~.files.catalogue.find_source`. An archive is unpacked beside itself,
            once.
        dtype: storage dtype.
        progress: told about unpacking.

    Raises:
        CheckpointError: a file is missing, damaged or foreign, or holds Python objects.
        EdgeError: the tokenizer has another number of entries than the transformer.
        LibraryError: tokenizers cannot be imported.
    """
    folder = _folder(source, progress)
    settings = read_settings(folder, source.folders)
    state, name = _read_weights(folder, TRANSFORMER_FILES, source)
    config = config_of(state, name, settings.heads)
    with torch.device("meta"):
        network = ARTransformer(config)
    load_strict(network, cast(state, dtype), name)
    network.eval().requires_grad_(False)
    tokenizer = None
    if config.text_vocab is not None:
        tokenizer = load_tokenizer(folder, source.folders)
        check_vocabulary(tokenizer, config, name)
    return LoadedTransformer(network, tokenizer, config, name)


# -- config ------------------------------------------------------------------------------------


def kind_of(config: ARConfig) -> Literal["text", "class", "unconditional"]:
    """What a transformer of this config is conditioned on."""
    if config.text_vocab is not None:
        return "text"
    return "unconditional" if config.classes is None else "class"


def config_of(state: Mapping[str, torch.Tensor], name: str, heads: int | None = None) -> ARConfig:
    """The sizes of a transformer, read off its keys and shapes.

    Args:
        state: keys of ``Transformer1d`` or ``iGPT``, as published.
        name: the file, for messages.
        heads: of an attention layer; ``None`` means 64 wide ones, as published.

    Raises:
        CheckpointError: a key that tells a size is missing, or ``heads`` does not divide the width.
    """

    def size(key: str, dimension: int) -> int:
        if key not in state or state[key].ndim < 2:
            shown = ", ".join(list(state)[:4])
            raise CheckpointError(
                f"'{name}' is no minDALL-E transformer: it lacks {key} (it holds {shown}, ...). Use"
                " minDALL-E's stage2_last.ckpt"
            )
        return state[key].shape[dimension]

    width = size("tok_emb_img.weight", 1)
    heads = max(1, width // HEAD_DIM) if heads is None else heads
    if width % heads:
        raise CheckpointError(
            f"'{name}' is {width} wide, which {heads} attention heads do not divide. The config"
            " beside it belongs to another model, or it lacks one that tells the heads"
        )
    blocks = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))]
    sizes = {
        "layers": len(set(blocks)),
        "width": width,
        "heads": heads,
        "image_vocab": size("tok_emb_img.weight", 0),
        "image_tokens": size("pos_emb_img.weight", 0),
    }
    if "sos.weight" in state:
        return ARConfig(**sizes, text_vocab=None, classes=size("sos.weight", 0))
    if "sos" in state:
        return ARConfig(**sizes, text_vocab=None)
    return ARConfig(
        **sizes,
        text_vocab=size("tok_emb_txt.weight", 0),
        text_tokens=size("pos_emb_txt.weight", 0),
    )


def read_settings(folder: Path, folders: Sequence[Path] = ()) -> Settings:
    """What ``config.json`` or ``config.yaml`` says, or the published defaults without either.

    Args:
        folder: of the weights.
        folders: the model folders that no link may leave; empty allows everything.

    Raises:
        CheckpointError: a config that is damaged, or describes a network that this is not.
    """
    own, original = folder / CONFIG, folder / ORIGINAL_CONFIG
    if own.is_file():
        check_inside(own, folders)
        values: Mapping[str, Any] = read_json(own)
        if values.get("_class_name") != CLASS_NAME:  # of something else beside a checkpoint
            return Settings()
        found = [values.get(key) for key in ("image_size", "heads", "norm_num_groups")]
        path = own
    elif original.is_file():
        check_inside(original, folders)
        values = _read_yaml(original)
        stage1, stage2 = (_part(_part(values, stage), "hparams") for stage in ("stage1", "stage2"))
        if stage2.get("gelu_use_approx"):
            raise CheckpointError(
                f"'{original}' asks for the approximate GELU, which no published minDALL-E uses and"
                " this pack does not have. Choose another source"
            )
        found = [stage1.get("resolution"), stage2.get("n_heads"), None]
        path = original
    else:
        return Settings()
    size, heads, groups = (_positive(value, path) for value in found)
    return Settings(size, heads, groups or GROUPS)


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the ``config.json`` of our own layout, which :func:`read_settings` reads."""
    values = {
        "_class_name": CLASS_NAME,
        "image_size": settings.image_size,
        "heads": settings.heads,
        "norm_num_groups": settings.groups,
    }
    text = json.dumps({k: v for k, v in values.items() if v is not None}, indent=2) + "\n"
    write_whole(folder / CONFIG, text.encode())


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        safe_load = require("yaml", "safe_load")
    except LibraryError:
        # Diffusers' and transformers' own dependency; without it the published sizes are assumed.
        return {}
    try:
        text = read_bytes(path, YAML_BYTES).decode()
        if "<<" in text:  # mappings merged into mappings double at every line
            raise ValueError("it merges mappings, which no published one does")
        value = safe_load(text)
    except Exception as error:  # yaml's errors share no base with what decoding raises
        raise CheckpointError(
            f"'{path}' is not YAML ({reason_of(error)}). {AGAIN}, or remove it"
        ) from error
    return value if isinstance(value, Mapping) else {}


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _positive(value: Any, path: Path) -> int | None:
    if value is None or (type(value) is int and 0 < value <= LARGEST):
        return value
    raise CheckpointError(
        f"'{path}' says {repr(value)[:60]} where a positive whole number belongs, up to {LARGEST}."
        f" {AGAIN}"
    )


# -- weights -----------------------------------------------------------------------------------


def _folder(source: Source, progress: Progress | None) -> Path:
    check_inside(source.path, source.folders)
    if source.path.is_dir():
        return source.path
    if is_archive(source.path):
        return unpacked(source.path, FILES, progress)
    raise CheckpointError(f"'{source.path}' is missing, or no folder or archive. {AGAIN}")


def _read_weights(
    folder: Path, names: Sequence[str], source: Source
) -> tuple[dict[str, torch.Tensor], str]:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"'{source.path}' holds neither {' nor '.join(names)}. Copy one of them there, or"
            " choose another source"
        )
    check_inside(path, source.folders)
    try:
        return read_state_dict(path), str(path)
    except CheckpointError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        try:
            ignored = read_tensors(path).ignored
        except CheckpointError:
            raise error from None
        raise CheckpointError(
            f"'{path}' holds Python objects beside its tensors ({_some(ignored)}); loading them"
            " could run code, so it is refused. Write its tensors into a new folder, which runs"
            f" nothing: prior-art convert mindalle '{folder}' '{folder}-safe'"
        ) from error


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- tokenizer ---------------------------------------------------------------------------------


def load_tokenizer(folder: Path, folders: Sequence[Path] = ()) -> Any:
    """The ``CharBPETokenizer`` of a model folder, lower-casing, with [PAD], as published.

    Padding and cutting are :func:`tokenize`'s.

    Args:
        folder: holds ``tokenizer/bpe-16k-vocab.json`` and ``tokenizer/bpe-16k-merges.txt``.
        folders: the model folders that no link may leave; empty allows everything.

    Raises:
        CheckpointError: a file is missing or damaged.
        LibraryError: tokenizers cannot be imported.
    """
    vocabulary, merges = folder / VOCABULARY, folder / MERGES
    for file in (vocabulary, merges):
        if not file.is_file():
            raise CheckpointError(
                f"'{file}' is missing. Copy the folder 'tokenizer' of the published 1.3B folder"
                " there"
            )
        check_inside(file, folders)
        check_bytes(file, WORDS_BYTES)
    ids = read_json(vocabulary)
    if UNKNOWN not in ids or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise CheckpointError(
            f"'{vocabulary}' is no vocabulary of minDALL-E: it lacks {UNKNOWN}, or its numbers are"
            f" not 0 to {len(ids) - 1}. {AGAIN}"
        )
    tokenizer_class = require("tokenizers", "CharBPETokenizer")
    try:
        tokenizer = tokenizer_class.from_file(
            str(vocabulary), str(merges), unk_token=UNKNOWN, lowercase=True
        )
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"'{merges}' is damaged ({reason_of(error)}). {AGAIN}") from error
    tokenizer.add_special_tokens([PADDING])
    return tokenizer


def check_vocabulary(tokenizer: Any, config: ARConfig, name: str) -> None:
    """Refuse a tokenizer that a transformer was not trained with.

    Raises:
        EdgeError: their numbers of entries differ.
    """
    size = tokenizer.get_vocab_size()
    if size != config.text_vocab:
        raise EdgeError(
            f"the tokenizer has {size} entries, but '{name}' was trained with {config.text_vocab}."
            " They come from different models; copy the folder 'tokenizer' from where the"
            " transformer came from"
        )


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int) -> Tokens:
    """Token ids as published: no start or end token, [PAD] at the end, cut at ``length``.

    Args:
        tokenizer: from :func:`load_tokenizer`.
        prompts: any text; ``""`` is all [PAD].
        length: the transformer's ``text_tokens``.

    Raises:
        TypeError: a prompt that is no string.
    """
    pad, unknown = tokenizer.token_to_id(PADDING), tokenizer.token_to_id(UNKNOWN)
    tokens = Tokens(torch.full((len(prompts), length), pad))
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt must be text, not {type(prompt).__name__}")
        encoding = tokenizer.encode(prompt)
        ids = encoding.ids[:length]
        tokens.ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        cut = len(encoding.ids) > length
        tokens.cut.append(prompt[encoding.offsets[length][0] :].strip() if cut else "")
        strange = [
            prompt[start:end]
            for token, (start, end) in zip(ids, encoding.offsets, strict=False)
            if token == unknown
        ]
        tokens.unknown.append("".join(dict.fromkeys(strange)))
    return tokens
