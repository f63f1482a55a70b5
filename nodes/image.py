"""CLIP image encode."""

from __future__ import annotations

from typing import Any

from ..edges import check_image
from ..host import host, io
from ..samplers.clip import encode_image, encode_zero_image


class ImageEncode(io.ComfyNode):
    """A picture as an image embedding, preprocessed as published."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtImageEncode",
            display_name="Image Encode (unCLIP)",
            category="PriorArt/encode",
            description="Encodes pictures with the loaded CLIP image tower, preprocessed exactly"
            " as published, into unnormalised image embeddings.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From Load Image Encoder (unCLIP)."),
                io.Image.Input("image", tooltip="One or more pictures of any size."),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="image_embeds",
                    tooltip="For Karlo Decoder or native unCLIPConditioning.",
                )
            ],
        )

    @classmethod
    def execute(cls, clip_vision: Any, image: Any) -> io.NodeOutput:
        check_image(image, "image")
        managed, preprocess, space = host.open_image_encoder(clip_vision)
        pixels = preprocess(image[..., :3])
        network, device, dtype = host.use(managed)
        embeds = host.offload(encode_image(network, pixels, device, dtype))
        return io.NodeOutput(
            host.clip_vision_output(
                embeds, embedding_space=space.name, made_by="Image Encode (unCLIP)"
            )
        )


class ZeroImage(io.ComfyNode):
    """The embedding that Kandinsky's decoders take for nothing, out of the image tower itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtZeroImage",
            display_name="Zero Image Embedding",
            category="PriorArt/encode",
            description="What guidance of Kandinsky's decoders subtracts: the embedding of a"
            " picture of zeros. Kandinsky's own priors give it; other priors and encoded pictures"
            " do not bring it along.",
            inputs=[
                io.ClipVision.Input(
                    "clip_vision", tooltip="The decoder's CLIP, from Load Image Encoder (unCLIP)."
                )
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="negative_image_embeds", tooltip="For Kandinsky's decoders."
                )
            ],
        )

    @classmethod
    def execute(cls, clip_vision: Any) -> io.NodeOutput:
        managed, _, space = host.open_image_encoder(clip_vision)
        network, device, dtype = host.use(managed)
        embeds = host.offload(encode_zero_image(network, device, dtype))
        return io.NodeOutput(
            host.clip_vision_output(
                embeds, embedding_space=space.name, made_by="Zero Image Embedding"
            )
        )
