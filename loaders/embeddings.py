"""Image embeddings as files to keep and to send: safetensors that say which space they live in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ..edges import SPACES, EdgeError, reason_of
from .files.checkpoint import AGAIN, CheckpointError
from .files.safe import Unreadable, cure_of, open_regular, write_whole

FORMAT = "prior-art image embeddings 1"
KEY, LENGTHS = "image_embeds", "lengths"
LARGEST = 2**28
"""Bytes of a file; 50,000 rows of the widest CLIP."""


@dataclass(frozen=True)
class Embedding:
    """What a file holds: ``image_embeds`` ``[B, D]`` fp32, unnormalised; the name of their space;
    the node that made them; what the user noted."""

    image_embeds: torch.Tensor
    space: str
    made_by: str
    note: str


def write_embedding(file: Path, embedding: Embedding, normalise: bool = False) -> None:
    """Writes the file whole or not at all.

    Args:
        normalise: write rows of length 1, as search indexes keep them, and their lengths ``[B, 1]``
            beside, by which reading makes them raw again.

    Raises:
        OSError: it cannot be written.
        EdgeError: a length beyond fp32.
    """
    from safetensors.torch import save

    tensor = embedding.image_embeds.detach().float().cpu().contiguous()
    tensors = {KEY: tensor}
    if normalise:
        # Squares of large numbers need more than fp32.
        lengths = tensor.double().norm(dim=-1, keepdim=True).clamp(min=1e-12)
        tensor = (tensor / lengths).float()
        lengths = lengths.float()
        if not bool(torch.isfinite(lengths).all()):
            raise EdgeError(
                "'image_embeds' are too large to be normalised: their length is infinite. Look at"
                " the node that made them, or switch 'normalise' off"
            )
        tensors = {KEY: tensor, LENGTHS: lengths}
    metadata = {
        "format": FORMAT,
        "space": embedding.space,
        "normalised": str(normalise).lower(),
        "made_by": embedding.made_by,
        "note": embedding.note,
        "fingerprint": fingerprint(tensor),
    }
    if normalise:
        metadata["fingerprint_of_lengths"] = fingerprint(tensors[LENGTHS])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, save(tensors, metadata))


def read_embedding(file: Path) -> Embedding:
    """Reads what :func:`write_embedding` wrote.

    Raises:
        CheckpointError: no safetensors, none of ours, damaged, or an unknown space.
    """
    from safetensors import safe_open

    try:
        open_regular(file, LARGEST).close()
    except Unreadable as error:
        raise CheckpointError(f"'{file.name}' is not read: {error}. Choose another file") from error
    except OSError as error:
        raise CheckpointError(f"'{file.name}' cannot be read: {cure_of(error)}") from error
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            names = set(opened.keys())
            tensor = opened.get_tensor(KEY) if KEY in names else None
            lengths = opened.get_tensor(LENGTHS) if LENGTHS in names else None
    except Exception as error:
        raise CheckpointError(
            f"'{file.name}' is no safetensors file, whatever its name says ({reason_of(error)})."
            " Choose one that 'Save Image Embeddings' wrote"
        ) from error
    if metadata.get("format") != FORMAT or tensor is None or tensor.ndim != 2:
        raise CheckpointError(
            f"'{file.name}' holds no image embeddings of PriorArt. Choose one that 'Save Image"
            " Embeddings' wrote"
        )
    space = metadata.get("space", "")
    known = SPACES.get(space)
    if known is None and not space.startswith("custom-"):
        raise CheckpointError(
            f"'{file.name}' is of the embedding space '{space}', which this version of the pack"
            f" does not know; known are {', '.join(SPACES)}. Update the pack"
        )
    if known is not None and tensor.shape[1] != known.dim:
        raise CheckpointError(
            f"'{file.name}' says '{space}', which has {known.dim} dimensions, but holds"
            f" {tensor.shape[1]}. {AGAIN}"
        )
    if metadata.get("fingerprint") != fingerprint(tensor):
        raise CheckpointError(
            f"'{file.name}' is damaged: its numbers are not those that were saved. {AGAIN}"
        )
    if metadata.get("normalised") == "true":
        if lengths is None or lengths.shape != (len(tensor), 1):
            raise CheckpointError(
                f"'{file.name}' holds normalised embeddings without their lengths, and decoders"
                " read them unnormalised. Save them again, or encode the picture again"
            )
        # Files of version 0.1 have no fingerprint of these.
        known = metadata.get("fingerprint_of_lengths", fingerprint(lengths))
        if known != fingerprint(lengths) or not bool(((lengths > 0) & (lengths < 1e30)).all()):
            raise CheckpointError(
                f"'{file.name}' is damaged: its lengths are not those that were saved. {AGAIN}"
            )
        tensor = tensor * lengths
    return Embedding(tensor, space, metadata.get("made_by", ""), metadata.get("note", ""))


def fingerprint(tensor: torch.Tensor) -> str:
    """A sha256 of an embedding's shape and fp32 numbers."""
    shape = json.dumps(list(tensor.shape)).encode()
    return hashlib.sha256(shape + tensor.float().contiguous().numpy().tobytes()).hexdigest()
