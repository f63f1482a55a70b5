"""CLIP as functions: token ids or pixels in, unnormalised embeddings out."""

from __future__ import annotations

import torch
from torch import nn

from ..edges import EmbeddingSpace, TextEncoding


@torch.no_grad()
def encode_text(
    network: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    space: EmbeddingSpace,
    device: torch.device,
    dtype: torch.dtype,
) -> TextEncoding:
    """Encode prompts as unCLIP's pipelines do: CLIP's own text model gets no attention mask.

    Args:
        network: transformers' ``CLIPTextModelWithProjection``, or one that answers as it does.
        ids: ``[B, 77]`` long; mask: ``[B, 77]`` bool, for the prior and the decoder.
        dtype: what the text model computes in. Its token table decides that, here and under a host
            that casts; the argument only mirrors :func:`encode_image`.

    Returns:
        fp32 encoding, ``hidden`` ``[B, 77, W]`` and ``pooled`` ``[B, D]`` on ``device``.
    """
    masked = {"attention_mask": mask.to(device).long()} if hasattr(network, "reads_mask") else {}
    output = network(input_ids=ids.to(device), **masked)
    return TextEncoding(
        output.last_hidden_state.float(), output.text_embeds.float(), mask.to(device), space
    )


@torch.no_grad()
def encode_image(
    network: nn.Module, pixels: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Preprocessed pixels ``[B, 3, S, S]`` -> image_embeds ``[B, D]``, fp32, unnormalised.

    ``network`` is transformers' ``CLIPVisionModelWithProjection``.
    """
    return network(pixel_values=pixels.to(device, dtype)).image_embeds.float()


def encode_zero_image(
    network: nn.Module, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``[1, D]``, fp32: a picture of zeros after preparation, so a grey one, which the guidance
    of some decoders subtracts (``get_zero_embed`` of diffusers' prior pipelines)."""
    side = network.config.image_size
    return encode_image(network, torch.zeros(1, 3, side, side), device, dtype)
