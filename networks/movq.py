"""Kandinsky's MoVQ: latents to pictures and back, without the codebook, as its decoders use it.

The network is diffusers' ``VQModel`` with spatial norms: every norm of the decoder is scaled and
shifted by two 1x1 convolutions of the latent, which diffusers first enlarges to the size of the
features. A 1x1 convolution and nearest enlargement change places exactly, so here both are run at
latent size and each of their values serves a whole cell of pixels.

Source: MoVQ (Zheng et al. 2022); ai-forever/Kandinsky-2, diffusers ``VQModel``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .colours import fit_colours
from .convolution import TILE, Workspace, conv1x1, conv3x3, is_conv, norm_affine
from .leaf import is_plain


class LatentSizedNorm(nn.Module):
    """diffusers' ``SpatialNorm``, with its parameters and names, evaluated at latent size."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y, norm.conv_b

    def forward(self, features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """``[B, C, H, W]`` of features; H and W are multiples of the latent's ``[B, c, h, w]``."""
        scale, shift = self.conv_y(latent), self.conv_b(latent)
        high, wide = latent.shape[2:]
        cells = self.norm_layer(features).unflatten(3, (wide, -1)).unflatten(2, (high, -1))
        cells = cells * scale[:, :, :, None, :, None] + shift[:, :, :, None, :, None]
        return cells.flatten(4, 5).flatten(2, 3)


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
    """Pictures ``[B, 3, H, W]``, about -1..1, of latents ``[B, 4, H/8, W/8]`` as they are.

    On a CPU in fp32 the 3x3 convolutions run through ``convolution``.
    """
    if _is_fast(network, latents):
        return _Decoding(network.decoder, latents).run(network.post_quant_conv(latents))
    return network.decoder(network.post_quant_conv(latents), latents)


def _is_fast(network: nn.Module, latents: torch.Tensor) -> bool:
    """Whether every parameter is there to be used on the CPU, and the sides fit the tiles."""
    decoder = network.decoder
    blocks = [decoder.mid_block, *decoder.up_blocks]
    resnets = [r for block in blocks for r in block.resnets]
    ups = [u.conv for block in decoder.up_blocks for u in block.upsamplers or ()]
    return (
        latents.device.type == "cpu"
        and latents.dtype == torch.float32
        and not any(side % TILE for side in latents.shape[2:])
        and all(is_conv(conv, 3) for r in resnets for conv in (r.conv1, r.conv2))
        and all(r.conv_shortcut is None or is_conv(r.conv_shortcut, 1) for r in resnets)
        and all(is_conv(conv, 3) for conv in ups)
        and all(
            isinstance(norm, LatentSizedNorm) and is_plain(norm.norm_layer, nn.GroupNorm)
            for norm in (decoder.conv_norm_out, *(n for r in resnets for n in (r.norm1, r.norm2)))
        )
    )


class _Decoding:
    """One decoding with activations laid out [batch, height, width, channels]."""

    def __init__(self, decoder: nn.Module, latent: torch.Tensor) -> None:
        self.decoder, self.latent, self.workspace = decoder, latent, Workspace()

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """The decoder on its first input ``[B, 4, h, w]``."""
        decoder = self.decoder
        x = decoder.conv_in(x).permute(0, 2, 3, 1).contiguous()
        first, *rest = decoder.mid_block.resnets
        x = self._resnet(first, x)
        for resnet, attention in zip(rest, decoder.mid_block.attentions, strict=True):
            x = self._resnet(resnet, self._attend(attention, x))
        for block in decoder.up_blocks:
            attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                x = self._attend(attention, self._resnet(resnet, x))
            for upsampler in block.upsamplers or ():
                batch, height, width, _ = x.shape
                out = x.new_empty(batch, 2 * height, 2 * width, upsampler.conv.out_channels)
                x = conv3x3([x], upsampler.conv, out, self.workspace, up=True)
        x = self._activated(decoder.conv_norm_out, x, "hidden")
        return decoder.conv_out(x.permute(0, 3, 1, 2)).contiguous()

    def _resnet(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:3], block.out_channels)
        hidden = self.workspace.take("middle", *shape)
        conv3x3([self._activated(block.norm1, x, "hidden")], block.conv1, hidden, self.workspace)
        out = residual = x
        if block.conv_shortcut is not None:
            out = residual = conv1x1([x], block.conv_shortcut, x.new_empty(shape))
        hidden = self._activated(block.norm2, hidden, "hidden")
        return conv3x3([hidden], block.conv2, out, self.workspace, residual=residual)

    def _activated(self, norm: LatentSizedNorm, x: torch.Tensor, buffer: str) -> torch.Tensor:
        """silu(norm(x)): group norm and the latent's modulation as one scale and shift a cell."""
        scale, shift = (a[:, None, None] for a in norm_affine(norm.norm_layer, [x]))
        latent_scale = norm.conv_y(self.latent).permute(0, 2, 3, 1)
        latent_shift = norm.conv_b(self.latent).permute(0, 2, 3, 1)
        scale, shift = scale * latent_scale, torch.addcmul(latent_shift, shift, latent_scale)
        high, wide = scale.shape[1:3]
        out = self.workspace.take(buffer, *x.shape)
        for rows in range(high):  # a row of cells at a time stays in the cache
            source, target = (
                t.unflatten(2, (wide, -1)).unflatten(1, (high, -1))[:, rows] for t in (x, out)
            )
            part = (t[:, rows, None, :, None] for t in (shift, scale))
            torch.addcmul(next(part), source, next(part), out=target)
            F.silu(target, inplace=True)
        return out

    def _attend(self, attention: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
        if attention is None:
            return x
        return attention(x.permute(0, 3, 1, 2), temb=self.latent).permute(0, 2, 3, 1).contiguous()


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


def colours_of(network: nn.Module) -> torch.Tensor:
    """The colours of its latents: see :func:`~.colours.fit_colours`."""
    weight = next(network.parameters())
    channels = network.config.latent_channels
    return fit_colours(lambda latents: decode(network, latents), channels, weight, 1.0)
