"""Prior sample: a text embedding becomes an image embedding."""

from __future__ import annotations

from typing import Any

import torch

from ..edges import (
    Prior,
    batch_conditioning,
    check_image,
    conditioning_to_text,
    text_to_conditioning,
)
from ..host import host, io
from ..loaders import unclip
from ..loaders.clip import tokenize
from ..loaders.files.cache import cached
from ..loaders.files.catalogue import SYSTEMS, Source, find_source, list_sources, titles
from ..samplers.clip import encode_image, encode_text, encode_zero_image
from ..samplers.parts.sampling import Sampling
from ..samplers.prior import sample_prior
from .charts import cosine_to
from .node import Node
from .widgets import (
    Bar,
    fingerprint,
    load_stage,
    named,
    noise_offset_input,
    noise_offset_output,
    sampling_inputs,
    seeded,
    source_inputs,
)

FOR_DECODERS = f"For {titles('decoder')} Decoder or native unCLIPConditioning."
LATENT = titles("latent_decoder")
"""Whose decoders work on latents: they read image embeddings, and a negative one."""


class PriorSample(Node):
    """The unCLIP prior's diffusion over image embeddings."""

    ROW_BY_ROW = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtPrior",
            display_name="Prior Sample (unCLIP)",
            category="PriorArt/unCLIP/sample",
            search_aliases=["diffusion prior", "text to image embedding", "dalle 2", "karlo"],
            description="Samples image embeddings for a prompt with the unCLIP prior. Image i of"
            " the batch uses seed + i, so each can be made again alone.",
            inputs=[
                io.Custom("UNCLIP_PRIOR").Input("prior", tooltip="From Load Prior (unCLIP)."),
                io.Conditioning.Input("positive", tooltip="The prompt, from Text Encode (unCLIP)."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What to steer away from. The published pipeline encodes an empty"
                    " prompt here.",
                ),
                *sampling_inputs(steps=25, cfg=4.0),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Image embeddings to sample for the prompt.",
                ),
                noise_offset_input(),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="image_embeds",
                    tooltip=FOR_DECODERS,
                ),
                noise_offset_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        prior: Prior,
        positive: list,
        negative: list,
        seed: int,
        steps: int,
        cfg: float,
        batch_size: int,
        noise_offset: int = 0,
    ) -> io.NodeOutput:
        text = conditioning_to_text(positive, prior.space, "positive", prior.space.dim)
        unconditional = conditioning_to_text(negative, prior.space, "negative", prior.space.dim)
        network, device, dtype = host.use(prior.managed)
        with named(text="positive"):
            noise = seeded(seed, len(text.pooled) * batch_size, noise_offset)
            bar = Bar(cosine_to(text.pooled))
            sampling = Sampling(noise, device, dtype, steps, bar)
            embeds = sample_prior(network, prior.schedule, text, unconditional, sampling, cfg)
        output = host.clip_vision_output(
            host.offload(embeds),
            embedding_space=prior.space.name,
            made_by="Prior Sample (unCLIP)",
        )
        return io.NodeOutput(output, noise_offset + noise.drawn)


class LoadTextEncoder(Node):
    """The text model of an unCLIP system as the host's CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadTextEncoder",
            display_name="Load Text Encoder (unCLIP)",
            category="PriorArt/unCLIP/load",
            search_aliases=["clip loader", "unclip", "dalle 2", "karlo", "kandinsky"],
            description=f"Loads the CLIP text model of {titles('text_encoder')}, with its"
            " tokenizer. Native CLIP Text Encode works on it too.",
            inputs=source_inputs("text_encoder"),
            outputs=[io.Clip.Output(display_name="clip", tooltip="For Text Encode (unCLIP).")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("text_encoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(unclip.load_text_encoder, "text_encoder", source, dtype)
        return io.NodeOutput(host.wrap("text_encoder", loaded))


class LoadImageEncoder(Node):
    """The vision model of an unCLIP system as the host's CLIP_VISION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadImageEncoder",
            display_name="Load Image Encoder (unCLIP)",
            category="PriorArt/unCLIP/load",
            search_aliases=["clip vision loader", "image variation", "karlo", "kandinsky"],
            description=f"Loads the CLIP vision model of {titles('image_encoder')}, to vary"
            " and mix pictures. Native CLIP Vision Encode works on it too.",
            inputs=source_inputs("image_encoder"),
            outputs=[
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="For Image Encode (unCLIP)."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("image_encoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(unclip.load_image_encoder, "image_encoder", source, dtype)
        return io.NodeOutput(host.wrap("image_encoder", loaded))


class LoadPrior(Node):
    """The diffusion prior: text embedding in, image embedding out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadPrior",
            display_name="Load Prior (unCLIP)",
            category="PriorArt/unCLIP/load",
            search_aliases=["unclip prior", "diffusion prior", "dalle 2", "karlo", "kandinsky"],
            description="Loads the unCLIP prior, the network that turns a text embedding into an"
            " image embedding.",
            inputs=source_inputs("prior"),
            outputs=[
                io.Custom("UNCLIP_PRIOR").Output(
                    display_name="prior", tooltip=f"For Prior Sample (unCLIP) or ({LATENT})."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("prior", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(unclip.load_prior, "prior", source, dtype)
        found = find_source(source, "prior", host.model_folders())
        managed = host.manage(loaded.network)
        return io.NodeOutput(Prior(managed, loaded.schedule, loaded.space, _zero_image(found)))


def _zero_image(source: Source) -> torch.Tensor | None:
    """``[1, D]``: what the image encoder beside a prior makes of a picture of zeros. It is computed
    once. ``None`` where the system's decoders do not ask for it, or the encoder is not there."""
    if not SYSTEMS[source.system].zero_image:
        return None
    stored, folder = unclip.stored_zero_image(source), source.folder("image_encoder")
    if stored is not None or not folder.is_dir():
        return stored

    def encode() -> torch.Tensor:
        encoder = host.wrap("image_encoder", unclip.load_image_encoder(source))
        network, device, dtype = host.use(host.open("image_encoder", encoder)[0])
        return encode_zero_image(network, device, dtype)

    return cached(host.cache_folder(), unclip.ZERO_IMAGE, folder, encode)


class LoadImageNormalizer(Node):
    """Stable unCLIP's statistics of image embeddings, put into its MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [s.name for s in list_sources("image_normalizer", host.model_folders())]
        return io.Schema(
            node_id="PriorArtLoadImageNormalizer",
            display_name="Load Image Normalizer (Stable unCLIP)",
            category="PriorArt/unCLIP/load",
            search_aliases=["sd21-unclip", "stable unclip", "noise augmentation"],
            is_experimental=True,
            description="ComfyUI noises the image embeddings of a Stable Diffusion 2.1 unCLIP"
            " checkpoint without the statistics that it was trained with. This puts them in, so"
            " that unCLIPConditioning does what diffusers' StableUnCLIPPipeline does: for"
            f" {titles('decoder')}'s prior in front of sd21-unclip-l.",
            inputs=[
                io.Model.Input("model", tooltip="From native unCLIPCheckpointLoader."),
                io.Combo.Input(
                    "source",
                    options=names,
                    tooltip="A folder with an image_normalizer, as that of"
                    " stabilityai/stable-diffusion-2-1-unclip-small, under models/prior_art.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For KSampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **others: Any) -> tuple:
        return fingerprint("image_normalizer", source)

    @classmethod
    def execute(cls, model: Any, source: str) -> io.NodeOutput:
        found = find_source(source, "image_normalizer", host.model_folders())
        return io.NodeOutput(
            host.wrap("image_normalizer", unclip.load_image_normalizer(found), model=model)
        )


class TextEncode(Node):
    """A prompt as the prior and the decoder want it: hidden states, pooled embedding, mask."""

    ROW_BY_ROW = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtTextEncode",
            display_name="Text Encode (unCLIP)",
            category="PriorArt/unCLIP/encode",
            search_aliases=["clip text encode", "prompt", "unclip", "mclip"],
            description="Encodes a prompt with the loaded text model, exactly as the published"
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
                    display_name="conditioning",
                    tooltip=f"For Prior Sample and {titles('decoder')} Decoder.",
                )
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        managed, loaded = host.open("text_encoder", clip)
        space = loaded.space
        ids, mask, cut = tokenize(loaded.tokenizer, [text])
        if cut[0]:
            host.warn(
                f"the prompt has more than {ids.shape[1]} tokens; not seen by the model: '{cut[0]}'"
            )
        network, device, dtype = host.use(managed)
        encoding = encode_text(network, ids, mask, space, device, dtype)
        return io.NodeOutput(host.offload(text_to_conditioning(encoding)))


class BatchPrompts(Node):
    """Two prompts, or batches of them, as one batch: a row for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtBatchPrompts",
            display_name="Batch Prompts",
            category="PriorArt/unCLIP/encode",
            search_aliases=["prompt batch", "conditioning batch"],
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


AT_ONCE = 32
"""Pictures that are embedded together."""


class ImageEncode(Node):
    """A picture as an image embedding, preprocessed as published."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtImageEncode",
            display_name="Image Encode (unCLIP)",
            category="PriorArt/unCLIP/encode",
            search_aliases=["clip vision encode", "image embedding", "image variation", "unclip"],
            description="Encodes pictures with the loaded CLIP vision model, preprocessed exactly"
            " as published, into unnormalised image embeddings.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From Load Image Encoder (unCLIP)."),
                io.Image.Input("image", tooltip="One or more pictures of any size."),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="image_embeds",
                    tooltip=FOR_DECODERS,
                )
            ],
        )

    @classmethod
    def execute(cls, clip_vision: Any, image: Any) -> io.NodeOutput:
        check_image(image, "image")
        managed, loaded = host.open("image_encoder", clip_vision)
        space = loaded.space
        pixels = loaded.preprocess(image[..., :3])
        network, device, dtype = host.use(managed)
        rows = []
        for part in pixels.split(AT_ONCE):
            host.stop_if_asked()
            rows.append(encode_image(network, part, device, dtype))
        embeds = host.offload(torch.cat(rows))
        return io.NodeOutput(
            host.clip_vision_output(
                embeds, embedding_space=space.name, made_by="Image Encode (unCLIP)"
            )
        )


class ZeroImage(Node):
    """The embedding that some decoders take for nothing, out of the vision model itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtZeroImage",
            display_name="Zero Image Embedding",
            category="PriorArt/unCLIP/encode",
            search_aliases=["negative embedding", "unconditional embedding"],
            description=f"What guidance of {LATENT}'s decoders subtracts: the embedding of a"
            f" picture of zeros. {LATENT}'s own priors give it; other priors and encoded pictures"
            " do not bring it along.",
            inputs=[
                io.ClipVision.Input(
                    "clip_vision", tooltip="The decoder's CLIP, from Load Image Encoder (unCLIP)."
                )
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="negative_image_embeds", tooltip=f"For {LATENT}'s decoders."
                )
            ],
        )

    @classmethod
    def execute(cls, clip_vision: Any) -> io.NodeOutput:
        managed, loaded = host.open("image_encoder", clip_vision)
        space = loaded.space
        network, device, dtype = host.use(managed)
        embeds = host.offload(encode_zero_image(network, device, dtype))
        return io.NodeOutput(
            host.clip_vision_output(
                embeds, embedding_space=space.name, made_by="Zero Image Embedding"
            )
        )


NODES = [
    LoadTextEncoder,
    LoadImageEncoder,
    LoadPrior,
    LoadImageNormalizer,
    TextEncode,
    BatchPrompts,
    ImageEncode,
    ZeroImage,
    PriorSample,
]
