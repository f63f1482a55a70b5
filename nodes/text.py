"""CLIP text encode."""

from __future__ import annotations

from typing import Any

from ..edges import batch_conditioning, text_to_conditioning
from ..host import host, io
from ..loaders.clip import tokenize
from ..samplers.clip import encode_text


class TextEncode(io.ComfyNode):
    """A prompt as the prior and the decoder want it: hidden states, pooled embedding, mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtTextEncode",
            display_name="Text Encode (unCLIP)",
            category="PriorArt/encode",
            description="Encodes a prompt with the loaded text tower, exactly as the published"
            " pipeline does: one chunk of 77 tokens, unnormalised text embedding, padding mask.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Text Encoder (unCLIP)."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. More than 77 tokens are cut, with a warning that shows"
                    " what was cut. Leave it empty for the unconditional (negative) side.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="For Prior Sample and Karlo Decoder."
                )
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        managed, tokenizer, space = host.open_text_encoder(clip)
        ids, mask, cut = tokenize(tokenizer, [text])
        if cut[0]:
            host.warn(
                f"the prompt has more than {ids.shape[1]} tokens; not seen by the model: '{cut[0]}'"
            )
        network, device, dtype = host.use(managed)
        encoding = encode_text(network, ids, mask, space, device, dtype)
        return io.NodeOutput(host.offload(text_to_conditioning(encoding)))


class BatchPrompts(io.ComfyNode):
    """Two prompts, or batches of them, as one batch: a row for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtBatchPrompts",
            display_name="Batch Prompts",
            category="PriorArt/encode",
            description="Puts prompts of one text encoder into one batch, so that each stage runs"
            " all of them at once; with a batch_size every prompt gets so many seeds. For more than"
            " two wire one batch into the next.",
            inputs=[
                io.Conditioning.Input("conditioning_a", tooltip="The first prompt, or a batch."),
                io.Conditioning.Input("conditioning_b", tooltip="The next, of the same encoder."),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="As many rows as both together."
                )
            ],
        )

    @classmethod
    def execute(cls, conditioning_a: list, conditioning_b: list) -> io.NodeOutput:
        return io.NodeOutput(host.offload(batch_conditioning(conditioning_a, conditioning_b)))
