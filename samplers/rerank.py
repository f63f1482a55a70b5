"""CLIP reranking as minDALL-E publishes it: candidates in the order of their cosine to the prompt.

Source: ``clip_score`` of minDALL-E (Kim et al. 2021) with OpenAI CLIP's picture preparation.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..edges import EdgeError
from .parts.resize import resize_and_crop

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(
    images: torch.Tensor,
    size: int = 224,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> torch.Tensor:
    """Pictures as CLIP sees them, bit for bit as published.

    Truncated to 8 bits, not rounded; resized by Pillow's bicubic filter so that the shorter side is
    ``size``; the centre cut out. Other resizers differ by several of the 256 levels.

    Args:
        images: ``[B, H, W, 3]`` in [0, 1]; numbers outside are clamped.
        size: edge of the picture that the CLIP reads, in pixels.
        mean, std: per channel, CLIP's own by default.

    Returns:
        ``[B, 3, size, size]``, fp32, on the CPU.

    Raises:
        EdgeError: another shape, or NaN.
    """
    if images.dim() != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise EdgeError(
            f"'images' has the shape {list(images.shape)}, but reranking needs RGB pictures"
            " [B, H, W, 3] without transparency"
        )
    images = images.detach().float().cpu()
    if not bool(torch.isfinite(images).all()):
        raise EdgeError("'images' holds NaN or infinite numbers; decode the pictures in fp32")
    pixels = (images.clamp(0, 1).numpy() * 255).astype(np.uint8)
    ready = np.stack([resize_and_crop(Image.fromarray(picture), size) for picture in pixels])
    x = torch.from_numpy(ready).permute(0, 3, 1, 2).float() / 255
    return ((x - _per_channel(mean)) / _per_channel(std)).contiguous()


def rerank_scores(text_features: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
    """Cosine between a prompt and each picture, without CLIP's logit scale.

    Args:
        text_features: ``[1, D]``, unnormalised or not; image_features: ``[B, D]``.

    Returns:
        ``[B]`` in [-1, 1], fp32: half precision would make neighbours equal.

    Raises:
        EdgeError: more than one prompt, features of two CLIPs, or NaN.
    """
    if text_features.dim() != 2 or len(text_features) != 1 or image_features.dim() != 2:
        raise EdgeError(
            f"reranking compares one prompt with pictures, but got {list(text_features.shape)} and"
            f" {list(image_features.shape)}; encode one prompt"
        )
    if text_features.shape[1] != image_features.shape[1]:
        raise EdgeError(
            f"the prompt's embedding has {text_features.shape[1]} dimensions and the pictures'"
            f" {image_features.shape[1]}; encode both with one CLIP"
        )
    scores = F.cosine_similarity(image_features.float(), text_features.float(), dim=-1)
    if not bool(torch.isfinite(scores).all()):
        raise EdgeError("a CLIP embedding holds NaN or infinite numbers; load the CLIP as fp32")
    return scores


def order(scores: torch.Tensor) -> torch.Tensor:
    """Indices of ``scores`` ``[B]``, best first; equals stay in their order."""
    return torch.argsort(scores, descending=True, stable=True)


def _per_channel(numbers: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(numbers)[:, None, None]
