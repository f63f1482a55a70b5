"""Image embeddings mixed, walked between, compared, kept in files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..edges import (
    EdgeError,
    EmbeddingSpace,
    any_image_embeds,
    conditioning_to_text,
    image_embeds_of,
    known_space_of,
    space_named,
    space_of_output,
)
from ..host import host, io
from ..loaders.embeddings import Embedding, read_embedding, write_embedding
from ..loaders.files.catalogue import titles
from ..loaders.files.checkpoint import inside
from ..loaders.files.safe import cure_of
from ..samplers.embeddings import MODES, along, cosines, interpolate, mix, move_by_texts, on_pad
from .charts import matrix
from .node import Node
from .widgets import drawn_input, from_json, named

WEIGHT = {"min": -10.0, "max": 10.0, "step": 0.01}
NAME = re.compile(r"[\w .()-]{1,120}")


def _output(tooltip: str) -> Any:
    return io.ClipVisionOutput.Output(display_name="image_embeds", tooltip=tooltip)


def _made(embeds: torch.Tensor, space: EmbeddingSpace, node: str) -> io.NodeOutput:
    return io.NodeOutput(
        host.clip_vision_output(host.offload(embeds), embedding_space=space.name, made_by=node)
    )


def _both(a: Any, b: Any) -> tuple[torch.Tensor, torch.Tensor, EmbeddingSpace]:
    """Two wires' embeddings, which must be of the first one's space."""
    space = _space_of(a, "image_embeds_a")
    first = image_embeds_of(a, space, "image_embeds_a")
    return first, image_embeds_of(b, space, "image_embeds_b"), space


def _space_of(output: Any, name: str) -> EmbeddingSpace:
    embeds = any_image_embeds(output, name)
    return space_named(space_of_output(output), embeds.shape[-1])


Points = list[tuple[float, float]]
"""Places on a pad: x from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom)."""

OFF: Points = [(-1.0, -1.0)]

CORNERS = ("image_embeds_a", "image_embeds_b", "image_embeds_c", "image_embeds_d")
"""Top left, top right, bottom left, bottom right."""


def _pad_inputs(widget: str, tooltip: str) -> list[Any]:
    """The lower corners of a pad, and what is drawn on it."""
    return [
        io.ClipVisionOutput.Input(
            "image_embeds_c", optional=True, tooltip="A third: the pad's corner at the bottom left."
        ),
        io.ClipVisionOutput.Input(
            "image_embeds_d", optional=True, tooltip="A fourth: the corner at the bottom right."
        ),
        drawn_input("pad", widget, tooltip),
    ]


def points_on(pad: str) -> Points:
    """What is drawn on a pad, out of its widget's JSON: a list of ``[x, y]``; empty for nothing.

    Raises:
        EdgeError: anything else, or a place outside the pad.
    """
    found = from_json(pad, "pad", "a list of points such as [[0.5, 0.5]]")
    if found is None:
        return []
    try:
        points = [(float(x), float(y)) for x, y in found] if isinstance(found, list) else OFF
    except (ValueError, TypeError, OverflowError):
        points = OFF
    if not all(0 <= number <= 1 for point in points for number in point):
        raise EdgeError(
            f"'pad' is '{pad}', which is no place on it; give a list of points [x, y] with numbers"
            " from 0 to 1, as [[0.5, 0.5]] for its middle, or leave it empty"
        )
    return points


def _corners(*outputs: Any) -> tuple[list[torch.Tensor | None], EmbeddingSpace]:
    """A pad's corners, which must be of the first one's space; a lower one may be missing."""
    space = _space_of(outputs[0], CORNERS[0])
    upper = CORNERS[:2]
    return [
        None if output is None and name not in upper else image_embeds_of(output, space, name)
        for name, output in zip(CORNERS, outputs, strict=True)
    ], space


def _check_rows(corners: list[torch.Tensor | None]) -> None:
    """Refuse corners of different numbers of rows, but for single ones.

    Raises:
        EdgeError: says how many each has.
    """
    rows = {name: len(c) for name, c in zip(CORNERS, corners, strict=True) if c is not None}
    if len(set(rows.values()) - {1}) > 1:
        said = ", ".join(f"'{name}' has {count}" for name, count in rows.items())
        raise EdgeError(f"{said} rows; make them equal, or single rows")


class MixEmbeddings(Node):
    """Two to four image embeddings as one; chains mix any number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtMixEmbeddings",
            display_name="Mix Image Embeddings",
            category="PriorArt/embeddings",
            search_aliases=["blend", "average", "interpolate", "slerp"],
            description="Mixes two image embeddings of one space: as a weighted sum, as"
            f" {titles('latent_decoder')}'s interpolation of texts and pictures, or another way."
            " For more than two wire one mix into the next, with weight 1.",
            inputs=[
                io.ClipVisionOutput.Input(
                    "image_embeds_a", tooltip="From a prior, an image encoder or another mix."
                ),
                io.ClipVisionOutput.Input(
                    "image_embeds_b", tooltip="Of the same space; one row, or as many."
                ),
                io.Float.Input("weight_a", default=0.5, tooltip="How much of the first.", **WEIGHT),
                io.Float.Input(
                    "weight_b", default=0.5, tooltip="How much of the second.", **WEIGHT
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="weighted sum, as published; average divides by the weights' sum, with"
                    " the average of the lengths if kept; add and subtract leave the first whole;"
                    " slerp goes from the first to the second on the sphere.",
                ),
                *_pad_inputs(
                    "PRIOR_ART_PAD",
                    "The place on the pad whose corners are the embeddings, as JSON: [[x, y]] from"
                    " 0 to 1, from the left and from the top. It takes the place of both weights;"
                    " empty it is the weights, or with a third embedding the middle.",
                ),
            ],
            outputs=[_output("For a decoder or another mix.")],
        )

    @classmethod
    def execute(
        cls,
        image_embeds_a: Any,
        image_embeds_b: Any,
        weight_a: float,
        weight_b: float,
        mode: str = MODES[0],
        image_embeds_c: Any = None,
        image_embeds_d: Any = None,
        pad: str = "",
    ) -> io.NodeOutput:
        places = points_on(pad)
        if len(places) > 1:
            raise EdgeError(
                f"'pad' has {len(places)} points, but a mix is one place on it; give one, or wire"
                " the embeddings into 'Interpolate Image Embeddings' for a walk"
            )
        if not places and image_embeds_c is None and image_embeds_d is None:
            a, b, space = _both(image_embeds_a, image_embeds_b)
            with named(a="image_embeds_a", b="image_embeds_b"):
                mixed = mix(a, b, weight_a, weight_b, mode)
            return _made(mixed, space, "Mix Image Embeddings")
        corners, space = _corners(image_embeds_a, image_embeds_b, image_embeds_c, image_embeds_d)
        _check_rows(corners)
        (place,) = places or [(0.5, 0.5)]
        return _made(on_pad(corners, *place, mode), space, "Mix Image Embeddings")


class InterpolateEmbeddings(Node):
    """A walk from one embedding to another, as a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtInterpolateEmbeddings",
            display_name="Interpolate Image Embeddings",
            category="PriorArt/embeddings",
            search_aliases=["walk", "slerp", "lerp", "morph"],
            description="A batch of embeddings on the way from the first to the second, both ends"
            " exact, for a decoder to paint as one batch. Inputs of several rows are points on the"
            " way, in their order.",
            inputs=[
                io.ClipVisionOutput.Input("image_embeds_a", tooltip="Where the walk begins."),
                io.ClipVisionOutput.Input("image_embeds_b", tooltip="Where it ends."),
                io.Int.Input(
                    "count", default=9, min=2, max=64, tooltip="Embeddings, both ends counted."
                ),
                io.Combo.Input(
                    "mode",
                    options=["slerp", "lerp"],
                    default="slerp",
                    tooltip="On the sphere, or straight.",
                ),
                *_pad_inputs(
                    "PRIOR_ART_PATH",
                    "A path on the pad whose corners are the embeddings, as JSON: [[x, y], ...]"
                    " from 0 to 1, from the left and from the top. Empty: straight from one"
                    " embedding to the next.",
                ),
            ],
            outputs=[_output("As many rows as asked, for a decoder.")],
        )

    @classmethod
    def execute(
        cls,
        image_embeds_a: Any,
        image_embeds_b: Any,
        count: int,
        mode: str,
        image_embeds_c: Any = None,
        image_embeds_d: Any = None,
        pad: str = "",
    ) -> io.NodeOutput:
        path = points_on(pad)
        corners, space = _corners(image_embeds_a, image_embeds_b, image_embeds_c, image_embeds_d)
        if path:
            walk = _walk_on_pad(corners, path, count, mode)
        else:
            points = [corner.float() for corner in corners if corner is not None]
            walk = interpolate(torch.cat([p.to(points[0].device) for p in points]), count, mode)
        return _made(walk, space, "Interpolate Image Embeddings")


def _walk_on_pad(
    corners: list[torch.Tensor | None], path: Points, count: int, mode: str
) -> torch.Tensor:
    """``[count, D]`` along a path on a pad of single embeddings.

    Raises:
        EdgeError: one point alone, a corner of several rows.
    """
    if len(path) < 2:
        raise EdgeError(
            "'pad' has one point, but a walk has two ends; draw a path, or wire the embeddings into"
            " 'Mix Image Embeddings' for one place"
        )
    for name, corner in zip(CORNERS, corners, strict=True):
        if corner is not None and len(corner) > 1:
            raise EdgeError(
                f"'{name}' has {len(corner)} rows, but a corner of the pad is one embedding; empty"
                " 'pad' to walk through all rows, or wire one"
            )
    with named(path="pad"):
        places = along(path, count)
    mixing = "slerp" if mode == "slerp" else "weighted sum"
    return torch.cat([on_pad(corners, x, y, mixing) for x, y in places])


class TextDifference(Node):
    """A picture's embedding moved by the difference of two texts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtTextDifference",
            display_name="Add Text Difference",
            category="PriorArt/embeddings",
            search_aliases=["text diff", "embedding arithmetic", "unclip"],
            description="Moves an image embedding by strength x (text - from_text) in CLIP's joint"
            " space, unCLIP's text diffs: a photo of a cat, plus 'an old cat', minus 'a cat'.",
            inputs=[
                io.ClipVisionOutput.Input("image_embeds", tooltip="What is moved."),
                io.Conditioning.Input("text", tooltip="Where to, from Text Encode (unCLIP)."),
                io.Conditioning.Input("from_text", tooltip="Where from, of the same encoder."),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    tooltip="How far. The difference is given the embedding's own length first.",
                    **WEIGHT,
                ),
            ],
            outputs=[_output("For a decoder or another mix.")],
        )

    @classmethod
    def execute(
        cls, image_embeds: Any, text: list, from_text: list, strength: float
    ) -> io.NodeOutput:
        space = _space_of(image_embeds, "image_embeds")
        known_space_of(image_embeds, "image_embeds")
        embeds = image_embeds_of(image_embeds, space, "image_embeds")
        to, away = (
            conditioning_to_text(part, space, name).pooled
            for part, name in ((text, "text"), (from_text, "from_text"))
        )
        moved = move_by_texts(embeds, to, away, strength)
        return _made(moved, space, "Add Text Difference")


MOST_COMPARED = 4096
"""Rows: the picture has a pixel for each pair, at least."""


class CompareEmbeddings(Node):
    """How alike embeddings are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtCompareEmbeddings",
            display_name="Compare Image Embeddings",
            category="PriorArt/embeddings",
            search_aliases=["cosine similarity", "clip score"],
            description="The cosine of every embedding with every other, in the node, as text and"
            " as a picture: black is -1 or opposite, white 1 or equal.",
            inputs=[
                io.ClipVisionOutput.Input("image_embeds_a", tooltip="The rows."),
                io.ClipVisionOutput.Input("image_embeds_b", tooltip="The columns."),
            ],
            outputs=[
                io.String.Output(display_name="cosines", tooltip="For Preview as Text."),
                io.Image.Output(
                    display_name="image",
                    tooltip="A cell of 32 pixels for each, smaller ones for very many.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image_embeds_a: Any, image_embeds_b: Any) -> io.NodeOutput:
        a, b, _ = _both(image_embeds_a, image_embeds_b)
        for name, rows in (("image_embeds_a", a), ("image_embeds_b", b)):
            if len(rows) > MOST_COMPARED:
                raise EdgeError(
                    f"'{name}' has {len(rows)} rows; at most {MOST_COMPARED} are compared at once"
                )
        table = cosines(a, b).cpu()
        said = "\n".join(" ".join(f"{value:6.3f}" for value in row) for row in table.tolist())
        cell = max(1, min(32, 4096 // max(table.shape)))
        cells = (table * 0.5 + 0.5).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        picture = cells[None, :, :, None].expand(-1, -1, -1, 3).contiguous()
        seen = host.show(lambda: matrix(table, "a", "b"))
        return io.NodeOutput(said, host.offload(picture), ui={"images": [seen]} if seen else None)


class SaveEmbeddings(Node):
    """Image embeddings into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtSaveEmbeddings",
            display_name="Save Image Embeddings",
            category="PriorArt/embeddings",
            search_aliases=["export embedding"],
            description="Writes image embeddings to a safetensors file in the output folder"
            " 'image_embeds', with their space and who made them, to keep or to send.",
            inputs=[
                io.ClipVisionOutput.Input("image_embeds", tooltip="One or more rows."),
                io.String.Input(
                    "name",
                    default="embedding",
                    tooltip="Of the file. One of that name is replaced.",
                ),
                io.String.Input(
                    "note", default="", multiline=True, tooltip="Kept in the file: the prompt, say."
                ),
                io.Boolean.Input(
                    "normalise",
                    default=False,
                    optional=True,
                    tooltip="Write rows of length 1, as search indexes keep them, their lengths"
                    " beside. Loading makes them what they were.",
                ),
            ],
            outputs=[_output("The same embeddings.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, image_embeds: Any, name: str, note: str, normalise: bool = False
    ) -> io.NodeOutput:
        if NAME.fullmatch(name) is None or name.strip(". ") != name:
            raise EdgeError(
                f"'name' is '{name}'; use letters, digits, spaces, dots, brackets and dashes, up to"
                " 120 of them, and no folder"
            )
        space = _space_of(image_embeds, "image_embeds")
        known_space_of(image_embeds, "image_embeds")
        embeds = image_embeds_of(image_embeds, space, "image_embeds")
        made_by = getattr(image_embeds, "made_by", None) or "native CLIP Vision Encode"
        folder = host.embedding_folders()[0]
        if not inside(folder, [folder.parent]):
            raise EdgeError(
                f"'{folder}' is a link to '{folder.resolve()}', out of the output folder. Nothing"
                " is written through it: remove the link, or name another output folder"
            )
        file = folder / f"{name}.safetensors"
        try:
            write_embedding(file, Embedding(embeds, space.name, made_by, note), normalise)
        except OSError as error:
            raise EdgeError(
                f"'{file}' cannot be written: {cure_of(error)}. 'name' names the file"
            ) from error
        return io.NodeOutput(image_embeds)


class LoadEmbeddings(Node):
    """Image embeddings out of a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadEmbeddings",
            display_name="Load Image Embeddings",
            category="PriorArt/embeddings",
            search_aliases=["import embedding"],
            description="Reads image embeddings that Save Image Embeddings wrote: from the output"
            " folder 'image_embeds', or from the input folder.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=sorted(_files()),
                    tooltip="A file in the output folder image_embeds, or in the input folder.",
                )
            ],
            outputs=[
                _output("For a decoder or a mix."),
                io.String.Output(display_name="note", tooltip="What was noted when it was saved."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> tuple:
        path = _files().get(file)
        return (0, 0) if path is None else (path.stat().st_size, path.stat().st_mtime_ns)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        files = _files()
        if file not in files:
            there = ", ".join(sorted(files)) or "none"
            raise EdgeError(f"no file of image embeddings called '{file}'; there are: {there}")
        if not inside(files[file], host.embedding_folders()):
            raise EdgeError(
                f"'{file}' is a link to '{files[file].resolve()}', which lies outside the folders"
                " of image embeddings. Copy the file there"
            )
        stored = read_embedding(files[file])
        output = host.clip_vision_output(
            host.offload(stored.image_embeds),
            embedding_space=stored.space,
            made_by=f"{stored.made_by} (from {file})",
        )
        return io.NodeOutput(output, stored.note)


def _files() -> dict[str, Path]:
    """Files by name; of equal names the saved one. Names are compared, never joined to a path."""
    found: dict[str, Path] = {}
    for folder in host.embedding_folders():
        for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            found.setdefault(file.name, file)
    return found


NODES = [
    MixEmbeddings,
    InterpolateEmbeddings,
    TextDifference,
    CompareEmbeddings,
    SaveEmbeddings,
    LoadEmbeddings,
]
