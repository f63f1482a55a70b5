"""The toy out of a folder in the hub's layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..networks.toy import ToyDecoder
from .files.catalogue import Published, Source, Stage, System
from .files.hub import build, expect, fill, read_hub

SYSTEMS = (
    System(
        name="toy",
        title="Toy",
        stages={"toy_decoder": Stage("sampled", ("decoder", "ToyDecoder"))},
        pipelines=frozenset({"ToyPipeline"}),
        embedded=(("shapes-toy", "toy"),),
        published={"toy": Published("toy", {"nobody/toy": ("", "decoder")})},
        download="prior-art download toy",
    ),
)


@dataclass(frozen=True)
class LoadedToy:
    """The decoder and the name of its file, for messages."""

    network: ToyDecoder
    name: str


def load_decoder(source: Source, dtype: torch.dtype) -> LoadedToy:
    """The decoder of a source.

    Raises:
        CheckpointError: its files are missing, damaged, or another class's.
    """
    config, tensors, name = read_hub(source, "decoder", dtype)
    expect(config.get("_class_name", ""), "ToyDecoder", name)
    network = build(lambda: ToyDecoder(config["grain"]), name)
    fill(network, tensors, dtype, name)
    return LoadedToy(network, name)
