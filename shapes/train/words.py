"""The family's own byte-pair tokenizer, in the files that CLIPTokenizer reads.

Laid out as OpenAI's: 256 byte symbols, the same with the end-of-word mark, the merges, then the
two specials. So "!" is id 0, which Karlo pads with, and any text at all can be written down.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..grammar import COLOURS, KINDS, SIZES

_END = "</w>"
_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
# Each becomes one token. The last line is not drawn yet, but a prompt may well hold such words.
WORDS = (
    *("a", "an", "on", "background"), *SIZES, *COLOURS, *KINDS,
    *("the", "and", "of", "with", "in", "at", "to", "picture", "shape", "left", "right", "above"),
)  # fmt: skip


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes, in OpenAI's order of ids."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len([b for b in range(256) if b not in plain])
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(others)]


def merges_for(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Merges, most frequent pair first, until every word is one token. Deterministic."""
    spelled = [[*word[:-1], word[-1] + _END] for word in words]
    merges = []
    while any(len(parts) > 1 for parts in spelled):
        pairs = Counter(pair for parts in spelled for pair in pairwise(parts))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in spelled:
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def write_tokenizer(folder: Path) -> None:
    """Writes vocab.json, merges.txt and the two settings files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = byte_symbols()
    merges = merges_for(WORDS)
    tokens = [*symbols, *(s + _END for s in symbols), *("".join(m) for m in merges), *_SPECIALS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    start, end = _SPECIALS
    named = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "!"}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        **named,
    }
    texts = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n",
        "special_tokens_map.json": json.dumps(named, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def write_multilingual_tokenizer(folder: Path) -> None:
    """Writes XLM-R's tokenizer into ``folder``: the family's words, and letters for all others."""
    from transformers import XLMRobertaTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*((f"\u2581{word}", -1.0) for word in WORDS if len(word) > 1), ("\u2581", -5.0)]
    pieces += [(letter, -10.0) for letter in letters]
    specials = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = XLMRobertaTokenizer(vocab=[*specials, *pieces, ("<mask>", 0.0)])
    tokenizer.save_pretrained(folder)


def write_char_tokenizer(folder: Path) -> None:
    """Writes minDALL-E's two tokenizer files into ``folder``: character pairs, lower case.

    As published: [PAD] and [UNK] are entries. What is not printable ASCII is unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    merges = merges_for(WORDS)
    tokens = ["[PAD]", "[UNK]", *characters, *(c + _END for c in characters)]
    tokens += ["".join(merge) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    texts = {
        "bpe-16k-vocab.json": json.dumps(vocabulary),
        "bpe-16k-merges.txt": "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def read_multilingual_tokenizer(folder: Path) -> Any:
    """The XLMRobertaTokenizer of a folder."""
    from transformers import XLMRobertaTokenizer

    return XLMRobertaTokenizer.from_pretrained(str(folder), model_max_length=77)


def read_tokenizer(folder: Path) -> Any:
    """The CLIPTokenizer of a folder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder))
