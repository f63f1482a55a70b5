"""Kandinsky's stages out of hub folders.

Sources: kandinsky-community/kandinsky-2-2-decoder, -decoder-inpaint and -controlnet-depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..networks.movq import at_latent_size
from .checkpoint import CheckpointError
from .hub import build_diffusers, fill, read_hub
from .sources import Source


@dataclass(frozen=True)
class MoVQ:
    """A MoVQ ready to use; its functions are in ``networks/movq.py``.

    Attributes:
        network: diffusers' ``VQModel``, its spatial norms evaluated at latent size.
        factor: how many pixels wide a latent's place is.
        channels: of a latent.
        name: where it came from, for messages.
    """

    network: nn.Module
    factor: int
    channels: int
    name: str


def load_movq(source: Source, dtype: torch.dtype = torch.float32) -> MoVQ:
    """Load the MoVQ.

    Args:
        source: from :func:`~.sources.find_source` for the stage ``movq``.
        dtype: storage dtype.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    config, tensors, name = read_hub(source, "movq", dtype)
    network = build_diffusers("VQModel", config, name)
    if network.config.norm_type != "spatial":
        raise CheckpointError(
            f"'{name}' is a VQModel without spatial norms, so no MoVQ. Choose the folder of a"
            " Kandinsky decoder"
        )
    fill(network, tensors, dtype, name)
    factor = 2 ** (len(network.config.block_out_channels) - 1)
    return MoVQ(at_latent_size(network), factor, network.config.latent_channels, name)
