"""SDXL's VAE (diffusers' ``AutoencoderKL``) with the two methods that a host's VAE calls."""

from __future__ import annotations

import torch
from torch import nn

from . import autoencoder


class LatentKL(nn.Module):
    """Latents as the VAE makes them, not scaled for the U-Net: the host's LATENT."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """The likeliest latents ``[B, 4, H/8, W/8]`` of pictures ``[B, 3, H, W]`` in -1..1."""
        moments = self.network.quant_conv(self.network.encoder(pictures))
        return moments.chunk(2, dim=1)[0]

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pictures ``[B, 3, H, W]``, about -1..1, of latents ``[B, 4, H/8, W/8]``."""
        return autoencoder.decode(self.network.decoder, self.network.post_quant_conv(latent))
