"""Super-resolution: Karlo's 64px picture becomes 256px in 7 steps."""

from __future__ import annotations

from typing import Any

from ..edges import EdgeError, Upscaler, check_image
from ..host import host, io
from ..samplers.karlo import upscale
from ..samplers.parts.noise import generators
from .pictures import from_image, preview, to_image
from .widgets import noise_offset_input, sampling_inputs


class KarloUpscale(io.ComfyNode):
    """Karlo's improved super-resolution, the last step by its own network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKarloUpscale",
            display_name="Karlo Upscale",
            category="PriorArt/sample",
            description="Upscales Karlo's 64px pictures to 256px by diffusion in 7 steps; a"
            " network fine-tuned for detail takes the last one.",
            inputs=[
                io.Custom("UNCLIP_UPSCALER").Input(
                    "upscaler", tooltip="From Load Upscaler (Karlo)."
                ),
                io.Image.Input("image", tooltip="64px pictures, from Karlo Decoder."),
                *sampling_inputs(steps=7, cfg=None),
                noise_offset_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The pictures, 256px.")],
        )

    @classmethod
    def execute(
        cls, upscaler: Upscaler, image: Any, seed: int, steps: int, noise_offset: int = 0
    ) -> io.NodeOutput:
        check_image(image, "image")
        height, width, size = image.shape[1], image.shape[2], upscaler.low_size
        if (height, width) != (size, size):
            raise EdgeError(
                f"'image' is {width}×{height}, but this upscaler was trained on {size}×{size}"
                f" pictures. Wire Karlo Decoder's picture into it, or resize with 'Upscale Image'"
                f" to {size}×{size} first"
            )
        count = len(image)
        network, device, dtype = host.use(
            upscaler.managed, memory_required=count * BYTES_PER_PICTURE
        )
        progress = host.progress(steps)
        pixels = upscale(
            network,
            upscaler.schedule,
            from_image(image),
            num_inference_steps=steps,
            generators=generators(seed, count, noise_offset),
            device=device,
            dtype=dtype,
            callback=lambda step, total, x0: progress(step, preview(x0)),
        )
        return io.NodeOutput(host.offload(to_image(pixels)))


# Activations of one 256px picture in fp32 at published size, an upper estimate for the host's
# memory management.
BYTES_PER_PICTURE = 3 * 2**30
