"""How many numbers a network's activations hold at the most, for a host's memory management.

A host multiplies by the size of the dtype that it computes in. Upper estimates for the published
sizes, for each place of what a network makes, guidance's second row included.
"""

from __future__ import annotations

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
