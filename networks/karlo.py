"""What unCLIP needs beside diffusers' U-Nets: the text projection, stages held together, and both
U-Nets over a whole schedule.

Source: unCLIP (Ramesh et al. 2022), section 2.1; parameter names as in Karlo's hub folder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import LayerNorm, Linear

from .unet import Predict, Run, Told, call, embed_times, is_known


class TextProjection(nn.Module):
    """Turns a text and an image embedding into what the decoder's U-Net is conditioned on.

    Args:
        clip_embeddings_dim: width D of the CLIP embeddings.
        time_embed_dim: width T of the U-Net's time embedding.
        cross_attention_dim: width C of the U-Net's cross attention.
        clip_extra_context_tokens: tokens that the image embedding becomes.
    """

    def __init__(
        self,
        clip_embeddings_dim: int,
        time_embed_dim: int,
        cross_attention_dim: int,
        clip_extra_context_tokens: int = 4,
    ) -> None:
        super().__init__()
        self.clip_extra_context_tokens = clip_extra_context_tokens
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(
            torch.zeros(clip_embeddings_dim)
        )
        self.embedding_proj = Linear(clip_embeddings_dim, time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = Linear(
            clip_embeddings_dim, time_embed_dim
        )
        self.clip_extra_context_tokens_proj = Linear(
            clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim
        )
        self.encoder_hidden_states_proj = Linear(clip_embeddings_dim, cross_attention_dim)
        self.text_encoder_hidden_states_norm = LayerNorm(cross_attention_dim)

    def unconditional(self, count: int) -> torch.Tensor:
        """The learned image embedding of the unconditional branch, ``[count, D]``."""
        return self.learned_classifier_free_guidance_embeddings.expand(count, -1)

    def forward(
        self, image_embeds: torch.Tensor, pooled: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[B, D]``, ``[B, D]``, ``[B, L, D]`` -> context ``[B, 4 + L, C]``, labels ``[B, T]``."""
        labels = self.clip_image_embeddings_project_to_time_embeddings(
            image_embeds
        ) + self.embedding_proj(pooled)
        # The published layout keeps the tokens in the fastest dimension.
        tokens = self.clip_extra_context_tokens_proj(image_embeds)
        tokens = tokens.reshape(len(tokens), -1, self.clip_extra_context_tokens).permute(0, 2, 1)
        words = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(hidden))
        return torch.cat([tokens, words], dim=1), labels


class UnCLIPDecoder(nn.Module):
    """Karlo's decoder: diffusers' ``UNet2DConditionModel`` and its :class:`TextProjection`."""

    def __init__(self, unet: nn.Module, text_proj: TextProjection) -> None:
        super().__init__()
        self.unet = unet
        self.text_proj = text_proj


class UnCLIPUpscaler(nn.Module):
    """Karlo's super-resolution: ``first`` takes all steps but the last, ``last`` that one."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.last = last


def prepare_decoder(
    unet: nn.Module,
    context: Tensor,
    class_labels: Tensor,
    mask: Tensor,
    timesteps: list[int],
) -> Predict:
    """Karlo's decoder U-Net with its conditioning held fixed.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        context: ``[R, L, C]``; class_labels: ``[R, T]``; mask: ``[R, L]`` bool.
        timesteps: the schedule, first step first.

    Returns:
        ``predict(x [R, 3, S, S], step index) -> [R, 6, S, S]``.
    """
    if is_known(unet):
        times = embed_times(unet, timesteps, context.device, context.dtype)
        return Run(unet, times, _told(unet, context, class_labels, mask))

    def predict(x: Tensor, index: int) -> Tensor:
        return unet(
            x,
            timesteps[index],
            encoder_hidden_states=context,
            class_labels=class_labels,
            attention_mask=mask,
        ).sample

    return predict


def call_decoder(
    unet: nn.Module,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    class_labels: Tensor,
    mask: Tensor,
) -> Tensor:
    """Karlo's decoder U-Net once, ``[R, 3, S, S]`` at ``timesteps`` ``[R]`` -> ``[R, 6, S, S]``,
    with the conditioning of :func:`prepare_decoder`."""
    if is_known(unet):
        return call(unet, x, timesteps, _told(unet, context, class_labels, mask))
    return unet(
        x,
        timesteps,
        encoder_hidden_states=context,
        class_labels=class_labels,
        attention_mask=mask,
    ).sample


def _told(unet: nn.Module, context: Tensor, class_labels: Tensor, mask: Tensor) -> Told:
    extra = None if unet.class_embedding is None else unet.class_embedding(class_labels)
    return Told(context, mask, extra)


def prepare_upscaler(
    unet: nn.Module, timesteps: list[int], device: torch.device, dtype: torch.dtype
) -> Predict:
    """A super-resolution U-Net over timesteps, where and in what it runs:
    ``predict([B, 6, S, S], index) -> [B, 3, S, S]``."""
    if is_known(unet):
        return Run(unet, embed_times(unet, timesteps, device, dtype))

    def predict(x: Tensor, index: int) -> Tensor:
        return unet(x, timesteps[index]).sample

    return predict
