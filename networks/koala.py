"""KOALA's and SDXL's U-Nets over a whole schedule.

Source: diffusers' ``UNet2DConditionModel``; SDXL's sizes beside a prompt (Podell et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .unet import Predict, Run, Told, embed_times, is_known


@torch.no_grad()
def prepare_sdxl(
    unet: nn.Module,
    hidden: Tensor,
    pooled: Tensor,
    time_ids: Tensor,
    timesteps: Sequence[float],
) -> Predict:
    """An SDXL or KOALA U-Net with its conditioning held fixed.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        hidden: ``[R, L, W]``; pooled: ``[R, D]``; time_ids: ``[R, 6]``, SDXL's sizes and crop.
        timesteps: the schedule, first step first.

    Returns:
        ``predict(x [R, 4, h, w], step index) -> [R, 4, h, w]``.
    """
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    if is_known(unet):
        # Its sizes come as fp32 cosines whatever the network computes in.
        sizes = unet.add_time_proj(time_ids.flatten()).reshape(len(pooled), -1)
        extra = unet.add_embedding(torch.cat([pooled, sizes.to(pooled.dtype)], dim=-1))
        times = embed_times(unet, timesteps, hidden.device, hidden.dtype)
        return Run(unet, times, Told(hidden, extra=extra))

    def predict(x: Tensor, index: int) -> Tensor:
        return unet(x, timesteps[index], hidden, added_cond_kwargs=conditions).sample

    return predict
