"""How many numbers a network's activations hold: at the most, for a host's memory management, and
at the least, to refuse what cannot be.

A host multiplies by the size of the dtype that it computes in. The constants are upper estimates
for the published sizes, for each place of what a network makes, guidance's second row included.
"""

from __future__ import annotations

import torch
from torch import nn

DECODER_PIXEL = 38_400
"""unCLIP's pixel decoder: 2 rows, 320 to 1280 channels, skips kept for the way up."""

UPSCALER_PIXEL = 12_288
"""Its super-resolution, for each pixel of the large picture."""

LATENT_PLACE = 65_536
"""A decoder over MoVQ's latents: 2 rows, 384 to 1536 channels, skips kept for the way up."""

SDXL_PLACE = 20_480
"""A U-Net of SDXL's kind: measured on published ones at 1024px."""

ENCODED_PIXEL, DECODED_PIXEL = 1767, 2178
"""An autoencoder's two ways, as ComfyUI reckons for those of this kind."""


def least_of_unet(network: nn.Module, places: int, dtype: torch.dtype) -> int:
    """Bytes that a U-Net holds at the least for so many places of what it reads.

    On its last level, as wide as its first convolution, what was kept from the way down and what
    comes up lie there twice: apart, and joined for the next convolution.
    """
    width = next(len(weight) for weight in network.parameters() if weight.ndim == 4)
    return 4 * width * places * dtype.itemsize
