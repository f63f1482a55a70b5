"""Prior sample: a text embedding becomes an image embedding."""

from __future__ import annotations

from ..edges import EdgeError, Prior, conditioning_to_text
from ..host import host, io
from ..samplers.noise import generators
from ..samplers.prior import numbers_drawn, sample_prior
from .sampling import noise_offset_input, noise_offset_output, sampling_inputs


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
        text = conditioning_to_text(positive, prior.space, "positive")
        unconditional = conditioning_to_text(negative, prior.space, "negative")
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
