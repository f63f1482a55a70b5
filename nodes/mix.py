"""Image embeddings mixed."""

from __future__ import annotations

import math
from typing import Any

from ..edges import EdgeError, image_embeds_of, space_named, space_of_output
from ..host import host, io


class MixEmbeddings(io.ComfyNode):
    """A weighted sum of two image embeddings; chains mix any number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight = {"min": -10.0, "max": 10.0, "step": 0.01}
        return io.Schema(
            node_id="PriorArtMixEmbeddings",
            display_name="Mix Image Embeddings",
            category="PriorArt/mix",
            description="The weighted sum of two image embeddings of one space, as Kandinsky's"
            " interpolation of texts and pictures. For more than two wire one mix into the next,"
            " with weight 1.",
            inputs=[
                io.ClipVisionOutput.Input(
                    "image_embeds_a", tooltip="From a prior, an image encoder or another mix."
                ),
                io.ClipVisionOutput.Input(
                    "image_embeds_b", tooltip="Of the same space; one row, or as many."
                ),
                io.Float.Input("weight_a", default=0.5, tooltip="How much of the first.", **weight),
                io.Float.Input(
                    "weight_b", default=0.5, tooltip="How much of the second.", **weight
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="image_embeds", tooltip="For a decoder or another mix."
                )
            ],
        )

    @classmethod
    def execute(
        cls, image_embeds_a: Any, image_embeds_b: Any, weight_a: float, weight_b: float
    ) -> io.NodeOutput:
        for name, weight in (("weight_a", weight_a), ("weight_b", weight_b)):
            if not math.isfinite(weight):
                raise EdgeError(f"'{name}' is {weight}; give a finite number")
        if getattr(image_embeds_a, "image_embeds", None) is None:
            raise EdgeError("'image_embeds_a' has no image_embeds; sample a prior or encode one")
        space = space_named(space_of_output(image_embeds_a), image_embeds_a.image_embeds.shape[-1])
        a = image_embeds_of(image_embeds_a, space, "image_embeds_a")
        b = image_embeds_of(image_embeds_b, space, "image_embeds_b")
        if len(a) != len(b) and 1 not in (len(a), len(b)):
            raise EdgeError(
                f"'image_embeds_a' has {len(a)} rows and 'image_embeds_b' {len(b)}; make them"
                " equal, or one of them a single row"
            )
        mixed = weight_a * a.float() + weight_b * b.float().to(a.device)
        return io.NodeOutput(
            host.clip_vision_output(
                mixed, embedding_space=space.name, made_by="Mix Image Embeddings"
            )
        )
