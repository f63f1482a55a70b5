"""Choosing among candidates: CLIP's ranking, and a view of many pictures at once."""

from __future__ import annotations

from functools import partial
from math import ceil, sqrt
from typing import Any

import torch

from ..edges import EdgeError, check_image
from ..host import host, io
from ..loaders import unclip
from ..loaders.clip import tokenize
from ..loaders.rerank import load_reranker
from ..samplers.clip import encode_image, encode_text
from ..samplers.rerank import order, preprocess, rerank_scores
from .node import Node
from .pictures import grid, thumbnails
from .unclip import AT_ONCE
from .widgets import drawn_input, fingerprint, from_json, load_stage, source_inputs

GALLERY = "PRIOR_ART_GALLERY"
"""The type of CLIP Rerank's widget, and of what it shows."""

THUMBNAIL, SHEET = 128, 4096
"""Pixels of the longer side of a candidate in the gallery, and of all candidates together."""


class CLIPRerank(Node):
    """Pictures in the order in which CLIP finds that they fit a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtCLIPRerank",
            display_name="CLIP Rerank",
            category="PriorArt/rerank",
            search_aliases=["clip score", "best of n", "sort images", "pick images"],
            description="Sorts pictures by the cosine between their CLIP embedding and the"
            " prompt's, as minDALL-E publishes it, and keeps the best.",
            has_intermediate_output=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text model, from Load CLIP (Rerank)."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The vision model of the same CLIP, from the same node."
                ),
                io.Image.Input("image", tooltip="The candidates, as one batch."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. More than 77 tokens are cut, with a warning that shows"
                    " what was cut.",
                ),
                io.Int.Input(
                    "keep",
                    default=4,
                    min=0,
                    max=4096,
                    tooltip="How many pictures to keep, the best first. 0 keeps all.",
                ),
                drawn_input(
                    "picked",
                    GALLERY,
                    "The pictures that were picked in the gallery, instead of the best 'keep': a"
                    " JSON list of their places in the batch, from 0, in the order in which they"
                    " come out.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures, the best first."),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The cosine of each kept picture; about 0.3 is a good fit.",
                ),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="The place of each kept picture in the batch, from 0: its seed is the"
                    " first seed plus this.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Any, clip_vision: Any, image: Any, text: str, keep: int, picked: str = ""
    ) -> io.NodeOutput:
        check_image(image, "image")
        chosen = _picked(picked, len(image))
        scores = _scores(clip, clip_vision, image[..., :3], text)
        ranking = order(scores)
        best = torch.tensor(chosen) if chosen else ranking[: keep or None]
        pictures = host.offload(image[best.to(image.device)])
        shown = _candidates(image, scores.tolist(), ranking.tolist())
        return io.NodeOutput(pictures, scores[best].tolist(), best.tolist(), ui=shown)


class ImageGrid(Node):
    """A batch as one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtImageGrid",
            display_name="Image Grid",
            category="PriorArt/rerank",
            search_aliases=["contact sheet", "collage", "montage"],
            description="Lays the pictures of a batch out as one, row by row, for a view of many"
            " candidates.",
            inputs=[
                io.Image.Input("image", tooltip="The batch."),
                io.Int.Input(
                    "columns",
                    default=3,
                    min=1,
                    max=64,
                    tooltip="Pictures in a row; 3 for nine pictures as 3x3.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="One picture of them all.")],
        )

    @classmethod
    def execute(cls, image: Any, columns: int) -> io.NodeOutput:
        check_image(image, "image")
        return io.NodeOutput(host.offload(grid(image, columns)))


def _picked(text: str, count: int) -> list[int]:
    """The places that the gallery's ``text`` names, none where it is empty.

    Raises:
        EdgeError: no list of places in a batch of ``count``, each at most once.
    """
    places = from_json(text, "picked", "a list of places such as [5, 0, 2]")
    if places is None:
        return []
    if not isinstance(places, list) or not all(type(place) is int for place in places):
        raise EdgeError(
            "'picked' is no list of whole numbers; give the places of pictures in the batch, such"
            " as [5, 0, 2], or clear it in the gallery"
        )
    for place in places:
        if not 0 <= place < count:
            raise EdgeError(
                f"'picked' names the picture at place {place}, but 'image' holds {count}, from 0 to"
                f" {count - 1}; pick again in the gallery, or clear it"
            )
    if len({*places}) < len(places):
        raise EdgeError(f"'picked' names a picture twice: {places}; name each once")
    return places


def _candidates(image: torch.Tensor, scores: list[float], ranking: list[int]) -> Any:
    """What the gallery shows: all pictures on one sheet, in the batch's order."""
    columns = ceil(sqrt(len(image)))
    longest = min(THUMBNAIL, SHEET // columns)
    sheet = host.show(lambda: thumbnails(image, columns, longest))
    if sheet is None:
        return None
    return {GALLERY: [{"sheet": sheet, "columns": columns, "scores": scores, "ranking": ranking}]}


def _scores(clip: Any, clip_vision: Any, image: torch.Tensor, text: str) -> torch.Tensor:
    """The cosine ``[B]`` between the prompt and each picture, on the CPU.

    Raises:
        EdgeError: models of two CLIPs.
    """
    text_managed, text_loaded = host.open("text_encoder", clip)
    image_managed, image_loaded = host.open("image_encoder", clip_vision)
    tokenizer, space = text_loaded.tokenizer, text_loaded.space
    preprocess, other = image_loaded.preprocess, image_loaded.space
    if space.name != other.name:
        raise EdgeError(
            f"'clip' is in the embedding space '{space.name}' ({space.encoder}), but 'clip_vision'"
            f" in '{other.name}' ({other.encoder}). Wire both outputs of one 'Load CLIP (Rerank)'"
        )
    ids, mask, cut = tokenize(tokenizer, [text])
    if cut[0]:
        host.warn(f"the prompt has more than {ids.shape[1]} tokens; not seen by CLIP: '{cut[0]}'")
    network, device, dtype = host.use(text_managed)
    prompt = encode_text(network, ids, mask, space, device, dtype).pooled.cpu()
    pixels = preprocess(image)
    network, device, dtype = host.use(image_managed)
    update = host.progress(len(pixels))
    features = []
    for start in range(0, len(pixels), AT_ONCE):
        part = pixels[start : start + AT_ONCE]
        features.append(encode_image(network, part, device, dtype).cpu())
        update(start + len(part))
    return rerank_scores(prompt, torch.cat(features))


class LoadReranker(Node):
    """The text and the vision model of one CLIP, to rank pictures by a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadReranker",
            display_name="Load CLIP (Rerank)",
            category="PriorArt/rerank",
            search_aliases=["clip score", "vit-b-32", "clip loader"],
            description="Loads the text and the vision model of a CLIP for CLIP Rerank: ViT-B/32 as"
            " published with"
            " minDALL-E, or any other in transformers' or OpenAI's layout. Pictures are prepared as"
            " minDALL-E does.",
            inputs=source_inputs("reranker"),
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="The text model, for CLIP Rerank."),
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="The vision model, for CLIP Rerank."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("reranker", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(load_reranker, "reranker", source, dtype)
        prepare = partial(preprocess, size=loaded.size, mean=loaded.mean, std=loaded.std)
        text = unclip.TextEncoder(loaded.network["text"], loaded.tokenizer, loaded.space)
        image = unclip.ImageEncoder(loaded.network["vision"], prepare, loaded.space)
        return io.NodeOutput(host.wrap("text_encoder", text), host.wrap("image_encoder", image))


NODES = [
    LoadReranker,
    CLIPRerank,
    ImageGrid,
]
