"""Running the decoder of diffusers' autoencoders with its norms, activations and sums fused.

Every leaf is called as it is, and where nothing is fused the result is the library's to the last
bit. A decoder built of other blocks is called itself.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused

_BLOCKS = {"UNetMidBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"}
_RESNETS = {"ResnetBlock2D", "ResnetBlockCondNorm2D"}
_NORMS = {"GroupNorm", "LatentSizedNorm"}


@torch.no_grad()
def decode(decoder: nn.Module, x: Tensor, latent: Tensor | None = None) -> Tensor:
    """Pictures ``[B, 3, H, W]`` of ``[B, C, h, w]``.

    Args:
        decoder: diffusers' ``Decoder``.
        latent: ``[B, c, h, w]`` by which MoVQ's norms scale and shift.
    """
    given = [] if latent is None else [latent]
    if not _is_known(decoder):
        return decoder(x, *given)
    if fused.fuses(x):
        x, *given = (each.contiguous(memory_format=torch.channels_last) for each in (x, *given))
    x = decoder.conv_in(x)
    for block in (decoder.mid_block, *decoder.up_blocks):
        for layer in _layers(block):
            x = (_resnet if _is_resnet(layer) else _attend)(layer, x, *given)
        for upsampler in getattr(block, "upsamplers", None) or ():
            x = fused.upsample(upsampler, x)
    return decoder.conv_out(_normalise(decoder.conv_norm_out, x, *given))


def _layers(block: nn.Module) -> list[nn.Module]:
    """Residual blocks and attentions in the order in which they are run."""
    attentions = getattr(block, "attentions", None) or ()
    if type(block).__name__ == "UNetMidBlock2D":  # begins and ends with a residual block
        pairs = itertools.zip_longest((None, *attentions), block.resnets)
    else:
        pairs = itertools.zip_longest(block.resnets, attentions)
    return [layer for pair in pairs for layer in pair if layer is not None]


def _is_known(decoder: nn.Module) -> bool:
    """Whether a decoder is of the blocks, and only those, that :func:`decode` knows."""
    if type(decoder).__name__ != "Decoder" or decoder.training:
        return False
    blocks = [decoder.mid_block, *decoder.up_blocks]
    layers = [layer for block in blocks for layer in _layers(block)]
    return (
        all(type(block).__name__ in _BLOCKS for block in blocks)
        and all(_is_resnet(layer) or _is_attention(layer) for layer in layers)
        and type(decoder.conv_norm_out).__name__ in _NORMS
        and type(decoder.conv_act) is nn.SiLU
    )


def _is_resnet(block: nn.Module) -> bool:
    return (
        type(block).__name__ in _RESNETS
        and {type(block.norm1).__name__, type(block.norm2).__name__} <= _NORMS
        and getattr(block, "time_emb_proj", None) is None
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and type(block.nonlinearity) is nn.SiLU
    )


def _is_attention(attention: nn.Module) -> bool:
    return (
        type(attention).__name__ == "Attention"
        and type(attention.processor).__name__ == "AttnProcessor2_0"
        and (attention.group_norm is None) != (attention.spatial_norm is None)
        and type(attention.group_norm or attention.spatial_norm).__name__ in _NORMS
        and not (attention.norm_q or attention.norm_k or attention.norm_cross)
        and attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def _normalise(
    norm: nn.Module,
    x: Tensor,
    latent: Tensor | None = None,
    bias: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    if latent is None:
        return fused.group_norm(norm, x, bias=bias, silu=silu)
    return norm(x, latent, bias=bias, silu=silu)


def _resnet(block: nn.Module, x: Tensor, latent: Tensor | None = None) -> Tensor:
    hidden, bias = fused.convolve(block.conv1, _normalise(block.norm1, x, latent))
    hidden = _normalise(block.norm2, hidden, latent, bias)
    hidden, bias = fused.convolve(block.conv2, hidden)
    if block.conv_shortcut is not None:
        x, other = fused.convolve(block.conv_shortcut, x)
        if other is not None:
            bias = other if bias is None else bias + other
    return fused.add(x, hidden, bias)


def _attend(attention: nn.Module, x: Tensor, latent: Tensor | None = None) -> Tensor:
    if latent is None:
        normed = _normalise(attention.group_norm, x.flatten(2), silu=False)
    else:
        normed = _normalise(attention.spatial_norm, x, latent, silu=False).flatten(2)
    tokens = normed.transpose(1, 2)
    query, key, value = (
        project(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    out = F.scaled_dot_product_attention(query, key, value)
    out = attention.to_out[0](out.transpose(1, 2).flatten(2))
    return fused.add(out.transpose(1, 2).unflatten(2, x.shape[2:]), x)
