"""Linear factors from latents to RGB, for previews while they are sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch


@torch.no_grad()
def fit_rgb_factors(
    decode: Callable[[torch.Tensor], torch.Tensor], channels: int = 4, spread: float = 1.0
) -> torch.Tensor:
    """``latent_rgb_factors`` ``[c + 1, 3]``: rows that the channels of a latent are multiplied by,
    and one that is added; the sum is its colour, roughly, in -1..1.

    Fitted to what a decoder makes of plain latents of many values.

    Args:
        decode: latents ``[B, c, 4, 4]`` in fp32 on the CPU to pictures ``[B, 3, H, W]`` in -1..1.
        channels: of a latent, c.
        spread: the latents' standard deviation.
    """
    values = torch.randn(24, channels, generator=torch.Generator().manual_seed(0)) * spread
    plain = values[:, :, None, None].repeat(1, 1, 4, 4)
    made = torch.cat([decode(part) for part in plain.split(8)]).float()
    edge = made.shape[2] // 4  # where the picture's end shows
    made = made[:, :, edge:-edge, edge:-edge].mean(dim=(2, 3))
    known = torch.cat([values, torch.ones(len(values), 1)], dim=1)
    return torch.linalg.lstsq(known, made.clamp(-1, 1).cpu()).solution
