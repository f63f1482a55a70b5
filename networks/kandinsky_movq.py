"""Kandinsky's MoVQ: latents to pictures and back, without the codebook, as its decoders use it.

The network is diffusers' ``VQModel`` with spatial norms: every norm of the decoder is scaled and
shifted by two 1x1 convolutions of the latent, which diffusers first enlarges to the size of the
features. A 1x1 convolution and nearest enlargement change places exactly, so here both are run at
latent size and each of their values serves a whole cell of pixels.

Source: MoVQ (Zheng et al. 2022); ai-forever/Kandinsky-2, diffusers ``VQModel``.
"""

from __future__ import annotations

import torch
from torch import nn

from . import autoencoder, fused


class LatentSizedNorm(nn.Module):
    """diffusers' ``SpatialNorm``, with its parameters and names, evaluated at latent size."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y, norm.conv_b

    def forward(
        self,
        features: torch.Tensor,
        latent: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        silu: bool = False,
    ) -> torch.Tensor:
        """``[B, C, H, W]`` of features; H and W are multiples of the latent's ``[B, c, h, w]``.

        Args:
            bias: ``[C]``, still to be added to the features.
            silu: whether the result goes through SiLU.
        """
        scale, shift = self.conv_y(latent), self.conv_b(latent)
        return fused.spatial_norm(self.norm_layer, features, scale, shift, bias=bias, silu=silu)


def at_latent_size(network: nn.Module) -> nn.Module:
    """Puts :class:`LatentSizedNorm` in the place of every ``SpatialNorm``, and returns ``network``.

    The network's keys stay the same.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            # By name: importing the class would import diffusers' attention with this module.
            if type(child).__name__ == "SpatialNorm":
                setattr(module, name, LatentSizedNorm(child))
    return network


@torch.no_grad()
def encode(network: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, 4, H/8, W/8]`` of pictures ``[B, 3, H, W]`` in -1..1, not quantised.

    The pipelines sample between such latents, which have no scale factor.
    """
    return network.quant_conv(network.encoder(pictures))


@torch.no_grad()
def decode(network: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Pictures ``[B, 3, H, W]``, about -1..1, of latents ``[B, 4, H/8, W/8]`` as they are."""
    return autoencoder.decode(network.decoder, network.post_quant_conv(latents), latents)


class LatentMoVQ(nn.Module):
    """A MoVQ with the two methods that a host's VAE calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """:func:`encode`."""
        return encode(self.network, pictures)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """:func:`decode`."""
        return decode(self.network, latent)
