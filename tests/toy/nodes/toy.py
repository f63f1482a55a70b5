"""The toy: a loader node and a stage."""

from __future__ import annotations

from typing import Any

from ..host import host, io
from ..loaders import toy
from ..samplers.parts.noise import Noise
from ..samplers.parts.sampling import Sampling
from ..samplers.toy import sample_toy
from .node import Node
from .pictures import preview, to_image
from .widgets import Bar, fingerprint, load_stage, named, sampling_inputs, source_inputs


class LoadToy(Node):
    """The toy's decoder as MODEL."""

    SAMPLED_BY = ("the toy", "Toy Sample")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadToy",
            display_name="Load Toy",
            category="PriorArt/Toy/load",
            description="Loads the toy's decoder.",
            inputs=source_inputs("toy_decoder"),
            outputs=[io.Model.Output(display_name="model", tooltip="For Toy Sample.")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("toy_decoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(toy.load_decoder, "toy_decoder", source, dtype)
        return io.NodeOutput(host.wrap("toy_decoder", loaded))


class ToySample(Node):
    """Pictures of a disc."""

    SIZE = 32

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtToySample",
            display_name="Toy Sample",
            category="PriorArt/Toy/sample",
            description="Samples pictures of 32 pixels with the toy.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Toy."),
                *sampling_inputs(steps=4, cfg=None, least=1),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Pictures."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The pictures.")],
        )

    @classmethod
    def execute(cls, model: Any, seed: int, steps: int, batch_size: int) -> io.NodeOutput:
        managed, _ = host.open("toy_decoder", model)
        network, device, dtype = host.use(managed)
        with named():
            noise = Noise.seeded(seed, batch_size)
            sampling = Sampling(noise, device, dtype, steps, Bar(preview))
            pixels = sample_toy(network, cls.SIZE, sampling)
        return io.NodeOutput(host.offload(to_image(pixels)))


NODES = [LoadToy, ToySample]
