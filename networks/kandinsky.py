"""Kandinsky's decoder U-Nets over a whole schedule.

Source: diffusers' ``UNet2DConditionModel``, as ai-forever/Kandinsky-2 publishes its decoders in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .unet import Predict, Run, Told, call, embed_times, is_known


@torch.no_grad()
def prepare_latent_decoder(
    unet: nn.Module, conditions: dict[str, Tensor], timesteps: list[int], hidden: Tensor | None
) -> Predict:
    """A Kandinsky decoder's U-Net with its conditioning held fixed.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        conditions: its ``added_cond_kwargs``: ``image_embeds`` ``[R, D]`` and, where the decoder
            has them, ``hint`` ``[R, 3, H, W]`` or ``text_embeds`` ``[R, D]``.
        timesteps: the schedule, first step first.
        hidden: text hidden states ``[R, L, W]`` of Kandinsky 2.1; ``None`` for 2.2.

    Returns:
        ``predict(x [R, C, h, w], step index) -> [R, C', h, w]``.
    """
    if is_known(unet):
        told = _told(unet, conditions, hidden)
        like = conditions["image_embeds"]
        times = embed_times(unet, timesteps, like.device, like.dtype)
        return Run(unet, times, told)

    def predict(x: Tensor, index: int) -> Tensor:
        return unet(x, timesteps[index], hidden, added_cond_kwargs=conditions).sample

    return predict


@torch.no_grad()
def call_latent_decoder(
    unet: nn.Module,
    x: Tensor,
    timesteps: Tensor,
    conditions: dict[str, Tensor],
    hidden: Tensor | None,
) -> Tensor:
    """A Kandinsky decoder's U-Net once, ``[R, C, h, w]`` at ``timesteps`` ``[R]`` ->
    ``[R, C', h, w]``, with the conditioning of :func:`prepare_latent_decoder`."""
    if is_known(unet):
        return call(unet, x, timesteps, _told(unet, conditions, hidden))
    return unet(x, timesteps, hidden, added_cond_kwargs=conditions).sample


def _told(unet: nn.Module, conditions: dict[str, Tensor], hidden: Tensor | None) -> Told:
    extra = unet.get_aug_embed(None, hidden, conditions)
    hint = None
    if unet.config.addition_embed_type == "image_hint":
        extra, hint = extra
    context = unet.process_encoder_hidden_states(hidden, conditions)
    return Told(context, extra=extra, beside=hint)
