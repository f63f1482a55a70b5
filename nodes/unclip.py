"""Prior sample: a text embedding becomes an image embedding."""

from __future__ import annotations

from typing import Any

from ..edges import EdgeError, Prior, TextEncoding, conditioning_to_text, image_embeds_of
from ..host import host, io
from ..samplers.parts.guidance import spread
from ..samplers.parts.noise import generators
from ..samplers.parts.schedule import draws
from ..samplers.prior import numbers_drawn, sample_prior
from .widgets import noise_offset_input, noise_offset_output, sampling_inputs


class PriorSample(io.ComfyNode):
    """The unCLIP prior's diffusion over image embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtPrior",
            display_name="Prior Sample (unCLIP)",
            category="PriorArt/sample",
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
                    tooltip="For Karlo Decoder or native unCLIPConditioning.",
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
        if batch_size < 1:
            raise EdgeError(f"'batch_size' is {batch_size}; ask for at least one image embedding")
        text = conditioning_to_text(positive, prior.space, "positive", prior.space.dim)
        unconditional = conditioning_to_text(negative, prior.space, "negative", prior.space.dim)
        network, device, dtype = host.use(prior.managed)
        progress = host.progress(steps)
        embeds = sample_prior(
            network,
            prior.schedule,
            text,
            unconditional,
            num_inference_steps=steps,
            guidance_scale=cfg,
            generators=generators(seed, len(text.pooled) * batch_size, noise_offset),
            device=device,
            dtype=dtype,
            callback=lambda step, total, x0: progress(step, None),
        )
        output = host.clip_vision_output(
            host.offload(embeds),
            embedding_space=prior.space.name,
            made_by="Prior Sample (unCLIP)",
        )
        return io.NodeOutput(output, noise_offset + numbers_drawn(prior.space.dim, steps))


ZERO, NEGATIVE = "zero image", "negative prompt"


def _kandinsky_inputs() -> tuple[list, list]:
    """What both of Kandinsky's prior nodes have before and after their own inputs."""
    before = [
        io.Custom("UNCLIP_PRIOR").Input("prior", tooltip="From Load Prior (unCLIP)."),
        io.Conditioning.Input("positive", tooltip="The prompt, from Text Encode (unCLIP)."),
        io.Conditioning.Input(
            "negative",
            tooltip="What to steer away from; an empty prompt, encoded, where there is none.",
        ),
    ]
    after = [
        io.Combo.Input(
            "negative_embeds",
            options=[ZERO, NEGATIVE],
            default=ZERO,
            tooltip="What the decoder shall steer away from. zero image: the embedding of a picture"
            " of zeros, as published without a negative prompt. negative prompt: what the prior"
            " makes of it, as published with one; image i of those uses the seeds behind the"
            " batch's.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=64,
            tooltip="Image embeddings to sample for the prompt.",
        ),
        noise_offset_input(),
        io.Conditioning.Input(
            "negative_decoder_prompt",
            optional=True,
            tooltip="What the decoder shall steer away from, from Text Encode (unCLIP): its"
            " negative image embeddings are then what the prior makes of this prompt. Leave it"
            " unwired for what negative_embeds says.",
        ),
    ]
    return before, after


def _kandinsky_outputs() -> list:
    return [
        io.ClipVisionOutput.Output(
            display_name="image_embeds",
            tooltip="For the Kandinsky Decoder nodes or native unCLIPConditioning.",
        ),
        io.ClipVisionOutput.Output(
            "negative_image_embeds",
            display_name="negative_image_embeds",
            tooltip="For the decoder's negative_image_embeds.",
        ),
        noise_offset_output(),
    ]


class KandinskyPrior(io.ComfyNode):
    """Kandinsky's prior: the embedding of a picture, and of what it shall not be."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        before, after = _kandinsky_inputs()
        return io.Schema(
            node_id="PriorArtKandinskyPrior",
            display_name="Prior Sample (Kandinsky)",
            category="PriorArt/sample",
            description="Samples image embeddings for a prompt with Kandinsky's prior, and the"
            " negative ones that its decoder subtracts. Image i of the batch uses seed + i.",
            inputs=[*before, *sampling_inputs(steps=25, cfg=4.0), *after],
            outputs=_kandinsky_outputs(),
        )

    @classmethod
    def execute(cls, prior: Prior, **sampling: Any) -> io.NodeOutput:
        return _sample_kandinsky(prior, {}, **sampling)


class KandinskyPriorImage(io.ComfyNode):
    """Kandinsky's image-to-image prior: a picture's embedding, led towards a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        before, after = _kandinsky_inputs()
        return io.Schema(
            node_id="PriorArtKandinskyPriorImage",
            display_name="Prior Image to Image (Kandinsky)",
            category="PriorArt/sample",
            description="Begins with a picture's embedding instead of noise and leads it towards"
            " the prompt with Kandinsky's prior.",
            inputs=[
                *before,
                io.ClipVisionOutput.Input(
                    "image_embeds", tooltip="Of the picture, from Image Encode or another prior."
                ),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the steps is run: 0 leaves the embedding as it is, 1"
                    " begins at noise. Published with 0.3.",
                ),
                *sampling_inputs(steps=25, cfg=4.0),
                *after,
            ],
            outputs=_kandinsky_outputs(),
        )

    @classmethod
    def execute(
        cls, prior: Prior, image_embeds: Any, strength: float, **sampling: Any
    ) -> io.NodeOutput:
        start = image_embeds_of(image_embeds, prior.space, "image_embeds")
        return _sample_kandinsky(prior, {"start": start, "strength": strength}, **sampling)


def _sample_kandinsky(
    prior: Prior,
    start: dict[str, Any],
    *,
    positive: list,
    negative: list,
    seed: int,
    steps: int,
    cfg: float,
    negative_embeds: str,
    batch_size: int,
    noise_offset: int = 0,
    negative_decoder_prompt: list | None = None,
) -> io.NodeOutput:
    """Both embeddings, and the stream's position after them; ``start`` is what
    ``sample_prior`` begins with, if not with noise."""
    if batch_size < 1:
        raise EdgeError(f"'batch_size' is {batch_size}; ask for at least one image embedding")
    if negative_embeds not in (ZERO, NEGATIVE):
        raise EdgeError(
            f"'negative_embeds' is '{negative_embeds}'; choose '{ZERO}' or '{NEGATIVE}'"
        )
    if negative_embeds == NEGATIVE and negative_decoder_prompt is not None:
        raise EdgeError(
            f"'negative_decoder_prompt' is wired and 'negative_embeds' is '{NEGATIVE}': both say"
            f" what the decoder shall steer away from. Take the wire out, or choose '{ZERO}'"
        )
    if negative_embeds == ZERO and prior.zero_image is None and negative_decoder_prompt is None:
        raise EdgeError(
            "this prior has no embedding of a picture of zeros: it is Karlo's, or the folder"
            " 'image_encoder' is missing beside it. Use 'Prior Sample (unCLIP)' for Karlo, put the"
            f" folder there, or set 'negative_embeds' to '{NEGATIVE}'"
        )
    text = conditioning_to_text(positive, prior.space, "positive", prior.space.dim)
    unconditional = conditioning_to_text(negative, prior.space, "negative", prior.space.dim)
    count = max(len(text.pooled), len(start.get("start", ()))) * batch_size
    away = None
    if negative_decoder_prompt is not None:
        away = conditioning_to_text(negative_decoder_prompt, prior.space, "negative_decoder_prompt")
        spread(away.mask, count, "negative_decoder_prompt")
    both = negative_embeds == NEGATIVE
    streams = generators(seed, 2 * count if both or away else count, noise_offset)
    network, device, dtype = host.use(prior.managed)
    run, _ = prior.schedule.noised(steps, start.get("strength", 1.0))
    ahead = steps if away else 0
    progress = host.progress(max(1, len(run) + ahead))

    def sample(text: TextEncoding, streams: list, done: int, **more: Any) -> Any:
        return sample_prior(
            network,
            prior.schedule,
            text,
            unconditional,
            num_inference_steps=steps,
            guidance_scale=cfg,
            generators=streams,
            device=device,
            dtype=dtype,
            callback=lambda step, total, x0: progress(done + step, None),
            **more,
        )

    if away:
        # From noise, whatever picture the prompt's own embedding begins with.
        found = host.offload(sample(away, streams[count:], 0))
    more = {"negative_generators": streams[count:]} if both else {}
    embeds = host.offload(sample(text, streams[:count], ahead, **more, **start))
    if both:
        found = embeds[count:]
    elif not away:
        found = host.offload(prior.zero_image).expand(count, -1)
    drawn = prior.space.dim * draws(run)
    made = [
        host.clip_vision_output(
            part, embedding_space=prior.space.name, made_by="Prior Sample (Kandinsky)"
        )
        for part in (embeds[:count], found.clone())
    ]
    return io.NodeOutput(*made, noise_offset + drawn)
