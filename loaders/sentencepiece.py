"""XLM-RoBERTa's tokenizer out of its ``sentencepiece.bpe.model`` alone.

transformers would need the packages sentencepiece and protobuf to read that file. It is a protocol
buffer whose few fields are read here; the tokenizer is then the library's own.

Sources: google/sentencepiece's ``sentencepiece_model.proto`` for the fields; fairseq's XLM-R for
the four ids that stand before the pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files.checkpoint import AGAIN, CheckpointError
from .files.libraries import require

FILE = "sentencepiece.bpe.model"
LARGEST = 2**26
"""Bytes; XLM-R's 250,000 pieces are 5 MB."""

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""fairseq's first ids. The file's own first three pieces are the same without the padding."""


def read_xlmr_tokenizer(file: Path) -> Any:
    """The tokenizer of a sentencepiece model of XLM-R, as transformers' fast tokenizer.

    Raises:
        CheckpointError: the file is damaged, too large or another kind of model.
        LibraryError: tokenizers or transformers cannot be imported.
    """
    if file.stat().st_size > LARGEST:
        raise CheckpointError(f"'{file}' is larger than any vocabulary of XLM-R. {AGAIN}")
    try:
        pieces, charsmap = _read(file.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"'{file}' is no sentencepiece model ({error}). {AGAIN}") from error
    if [name for name, _ in pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise CheckpointError(
            f"'{file}' does not begin with XLM-R's pieces <unk>, <s> and </s>. {AGAIN}"
        )
    vocabulary = [*((name, 0.0) for name in SPECIALS), *pieces[3:], ("<mask>", 0.0)]
    tokenizer, added = require("tokenizers", "Tokenizer", "AddedToken")
    unigram = require("tokenizers.models", "Unigram")
    precompiled = require("tokenizers.normalizers", "Precompiled")
    split, metaspace, sequence = require(
        "tokenizers.pre_tokenizers", "WhitespaceSplit", "Metaspace", "Sequence"
    )
    template = require("tokenizers.processors", "TemplateProcessing")
    decoder = require("tokenizers.decoders", "Metaspace")
    fast = require("transformers", "PreTrainedTokenizerFast")
    try:
        backend = tokenizer(unigram(vocabulary, unk_id=3, byte_fallback=False))
        if charsmap:
            backend.normalizer = precompiled(charsmap)
    except Exception as error:
        raise CheckpointError(f"'{file}' is no XLM-R tokenizer ({error}). {AGAIN}") from error
    backend.pre_tokenizer = sequence([split(), metaspace("\u2581", "always")])
    backend.decoder = decoder("\u2581", "always")
    backend.post_processor = template(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return fast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token=added("<mask>", lstrip=True, special=True),
    )


def _read(data: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces with their scores, and the normalizer's table of characters."""
    pieces, charsmap = [], b""
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            name, score = _bytes(piece.get(1, b"")), _bytes(piece.get(2, b"\0" * 4))
            pieces.append((name.decode("utf-8"), struct.unpack("<f", score)[0]))
        elif number == 3:
            charsmap = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    return pieces, charsmap


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where text belongs")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer's message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"an unknown kind of field, {kind}")
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            length, place = _varint(data, place)
        if place + length > len(data):
            raise ValueError("it ends too early")
        yield tag >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a number without an end")
