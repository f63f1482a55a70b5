r"""Prompt syntax as ComfyUI's own text encoders read it, and what ours say about it.

``(red)`` weighs 1.1 times what is around it, ``(red:1.6)`` weighs 1.6, ``\(`` is a bracket; more
tokens than a text encoder takes are several chunks. Numbers and order are those of
``comfy/sd1_clip.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..edges import EdgeError

LENGTH = 77
EMPHASIS = 1.1
"""What a pair of brackets without a number weighs."""

DEEPEST = 100
"""Brackets within each other."""

_LONG_WORD = 8
"""From so many tokens on a piece is broken at a chunk's end; a shorter one moves to the next."""

_WEIGHTED = re.compile(r"\([^()]+:\s*-?[\d.]+\)")
_EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:\S*")
_ESCAPED = ((r"\)", "\0\1"), (r"\(", "\0\2"))

Chunk = list[tuple[int, float]]
"""77 tokens with their weights."""


def plain_warnings(text: str, cut: str, length: int) -> list[str]:
    """What a user is told of a prompt for a published encoder, which knows no such syntax.

    Args:
        cut: the text that did not fit into ``length`` tokens, or ``""``.
    """
    said = []
    if cut:
        said.append(f"the prompt is longer than {length} tokens; not seen: '{cut}'")
    if _WEIGHTED.search(text):
        said.append("emphasis like (word:1.2) is read as plain text by this text encoder")
    return said


def chunks(tokenizer: Any, text: str) -> list[Chunk]:
    """A prompt's tokens and weights for one text encoder, whose tokenizer this is.

    Raises:
        EdgeError: an embedding file is named, which only ComfyUI loads; a weight is not finite; too
            many brackets within each other.
    """
    begin, end = tokenizer("")["input_ids"][:2]
    made: list[Chunk] = [[(begin, 1.0)]]
    for old, new in _ESCAPED:
        text = text.replace(old, new)
    for piece, weight in _weighed(text, 1.0):
        for old, new in _ESCAPED:
            piece = piece.replace(new, old[1:])
        if found := _EMBEDDING.search(piece):
            raise EdgeError(_inversion(found[0]))
        if not piece:
            continue
        group = [(token, weight) for token in tokenizer(piece, verbose=False)["input_ids"][1:-1]]
        breakable = len(group) >= _LONG_WORD
        while group:
            room = LENGTH - 1 - len(made[-1])
            if len(group) <= room:
                made[-1] += group
                break
            if breakable:
                made[-1] += group[:room]
                group = group[room:]
            made.append([(begin, 1.0)])
    padding = (tokenizer.pad_token_id, 1.0)
    return [chunk + [(end, 1.0)] + [padding] * (LENGTH - 1 - len(chunk)) for chunk in made]


SYNTAX_LOADERS: set[str] = set()
"""Classes of the nodes whose CLIP reads such prompts; the embedded door's adapters add theirs."""


def inversion_refused(values: Mapping[str, Any], sources: Mapping[str, str]) -> str | None:
    """Why a prompt for such a CLIP is not encoded, known before anything runs.

    Args:
        values: the node's widgets.
        sources: classes of the nodes that are wired to it, by input.
    """
    if sources.get("clip") not in SYNTAX_LOADERS:
        return None
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    for name, text in texts.items():
        if found := _EMBEDDING.search(re.sub(r"[()]", " ", text)):
            return f"'{name}': {_inversion(found[0])}"
    return None


def _inversion(name: str) -> str:
    return (
        f"the prompt names '{name}', a textual inversion; only ComfyUI loads those. Take it out,"
        " or run this in ComfyUI"
    )


def empty_chunk(tokenizer: Any) -> list[int]:
    """The tokens that weights are measured from: a prompt without words."""
    begin, end = tokenizer("")["input_ids"][:2]
    return [begin, end] + [tokenizer.pad_token_id] * (LENGTH - 2)


def weigh(hidden: torch.Tensor, empty: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Hidden states ``[B, 77, W]`` moved away from (over 1) or towards (under 1) those of an empty
    prompt ``[77, W]`` by their weights ``[B, 77]``."""
    share = weights[..., None].to(hidden)
    return torch.where(share == 1, hidden, (hidden - empty) * share + empty)


def _weighed(text: str, weight: float, depth: int = 0) -> list[tuple[str, float]]:
    """Pieces of a prompt with their weights, brackets resolved; ``depth`` of them are around it."""
    if depth > DEEPEST:
        raise EdgeError(
            f"the prompt has brackets within each other more than {DEEPEST} deep; take some out, or"
            " put \\ before those that are no weights"
        )
    made = []
    for piece in _bracketed(text):
        if not (len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")"):
            made.append((piece, weight))
            continue
        inside, inner = piece[1:-1], weight * EMPHASIS
        colon = inside.rfind(":")
        if colon > 0:
            try:
                inner = float(inside[colon + 1 :])
            except ValueError:
                pass  # no number: a colon like any other
            else:
                if not math.isfinite(inner):
                    raise EdgeError(
                        f"the prompt weighs '{inside[:colon]}' by {inner}, which makes no picture;"
                        " give a finite number, or put \\ before the brackets"
                    )
                inside = inside[:colon]
        made += _weighed(inside, inner, depth + 1)
    return made


def _bracketed(text: str) -> list[str]:
    """Outermost brackets, and what is between them, each by itself."""
    made, piece, depth = [], "", 0
    for char in text:
        if char == "(" and depth == 0:
            made.append(piece)
            piece = ""
        piece += char
        depth += (char == "(") - (char == ")")
        if char == ")" and depth == 0:
            made.append(piece)
            piece = ""
    return [piece for piece in [*made, piece] if piece]
