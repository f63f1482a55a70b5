"""CLIP's text and vision models as CLIP and CLIP_VISION, and back again."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from ...edges import EdgeError, check_image, text_to_conditioning
from ..api import Adapter
from ..prompts import plain_warnings
from .memory import Managed, manage, offload, use
from .session import warn

if TYPE_CHECKING:
    from ...loaders.unclip import ImageEncoder, ImageNormalizer, TextEncoder


@dataclass(frozen=True)
class Clip:
    """CLIP: a text model, with the two methods that native CLIP Text Encode calls."""

    managed: Managed
    loaded: TextEncoder

    def tokenize(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask; the user is told what was cut or read as plain text."""
        from ...loaders.clip import tokenize

        ids, mask, cut = tokenize(self.loaded.tokenizer, [text])
        for message in plain_warnings(text, cut[0], ids.shape[1]):
            warn(message)
        return ids, mask

    def encode_from_tokens_scheduled(self, tokens: tuple[torch.Tensor, torch.Tensor]) -> list:
        """The tokens' CONDITIONING."""
        from ...samplers.clip import encode_text

        network, device, dtype = use(self.managed)
        space = self.loaded.space
        return text_to_conditioning(encode_text(network, *tokens, space, device, dtype))


@dataclass(frozen=True)
class ClipVision:
    """CLIP_VISION: a vision model, with the method that native CLIP Vision Encode calls."""

    managed: Managed
    loaded: ImageEncoder

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> Any:
        """An IMAGE's CLIP_VISION_OUTPUT, preprocessed as published; without ``crop``, the whole
        picture squeezed square."""
        from ...samplers.clip import encode_image

        check_image(image, "image")
        preprocess = self.loaded.preprocess
        pixels = (preprocess if crop else preprocess.whole())(image[..., :3])
        network, device, dtype = use(self.managed)
        embeds = offload(encode_image(network, pixels, device, dtype))
        return clip_vision_output(
            embeds, embedding_space=self.loaded.space.name, made_by="CLIP Vision Encode"
        )


def wrap_text_encoder(loaded: TextEncoder) -> Clip:
    """A text model as CLIP."""
    return Clip(manage(loaded.network), loaded)


def open_text_encoder(clip: Any) -> tuple[Managed, TextEncoder]:
    """The text model in a CLIP, and what its loader knows about it.

    Raises:
        EdgeError: another kind of CLIP.
    """
    if not isinstance(clip, Clip):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(clip).__name__}); this node needs one"
            " from 'Load Text Encoder (unCLIP)' or 'Load CLIP (Rerank)'"
        )
    return clip.managed, clip.loaded


def wrap_image_encoder(loaded: ImageEncoder) -> ClipVision:
    """A vision model as CLIP_VISION."""
    return ClipVision(manage(loaded.network), loaded)


def open_image_encoder(clip_vision: Any) -> tuple[Managed, ImageEncoder]:
    """The vision model in a CLIP_VISION, and what its loader knows about it.

    Raises:
        EdgeError: another kind of CLIP_VISION.
    """
    if not isinstance(clip_vision, ClipVision):
        raise EdgeError(
            f"'clip_vision' is another kind of image encoder ({type(clip_vision).__name__}); this"
            " node needs one from 'Load Image Encoder (unCLIP)' or 'Load CLIP (Rerank)'"
        )
    return clip_vision.managed, clip_vision.loaded


def clip_vision_output(image_embeds: torch.Tensor, **extra: Any) -> SimpleNamespace:
    """A CLIP_VISION_OUTPUT of unnormalised ``image_embeds`` ``[B, D]`` and further attributes."""
    return SimpleNamespace(image_embeds=image_embeds, **extra)


def with_image_normalizer(loaded: ImageNormalizer, model: Any) -> Any:
    """A Stable Diffusion 2.1 unCLIP, which only ComfyUI has, with these statistics.

    Raises:
        EdgeError: always.
    """
    raise EdgeError(
        f"'model' is {type(model).__name__}, but an image normalizer belongs to a Stable Diffusion"
        " 2.1 unCLIP, which only ComfyUI runs"
    )


ADAPTERS = {
    "text_encoder": Adapter(wrap_text_encoder, open_text_encoder),
    "image_encoder": Adapter(wrap_image_encoder, open_image_encoder),
    "image_normalizer": Adapter(with_image_normalizer),
}
