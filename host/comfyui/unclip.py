"""CLIP's text and vision models as the host's CLIP and CLIP_VISION, and back again.

``wrap_*`` makes what native nodes understand: CLIPTextEncode and CLIPVisionEncode run the encoders,
LoRA loaders patch them. ``open_*`` is how our own nodes get the network, with whatever patches
native nodes have put on it since.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import comfy.clip_vision
import comfy.model_base
import comfy.model_management as memory
import comfy.sd
import torch
from torch import nn

from ...edges import EdgeError, check_image, placed, text_to_conditioning
from ..api import Adapter
from ..prompts import plain_warnings
from .compat import warn
from .memory import Holder, Managed, kind_of, patcher_of, prepare, use, weight_dtype

if TYPE_CHECKING:
    from ...loaders.unclip import ImageEncoder, ImageNormalizer, TextEncoder

MADE_BY_NATIVE = "CLIP Vision Encode on a PriorArt image encoder"


# -- the text model as a CLIP ----------------------------------------------------------------


class Tokenizer:
    """The published tokenizer with the methods that the host's CLIP calls."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, list]:
        """One chunk of tokens, all of weight 1: the published encoder knows no emphasis."""
        from ...loaders.clip import tokenize

        ids, _, cut = tokenize(self.tokenizer, [text])
        for message in plain_warnings(text, cut[0], ids.shape[1]):
            warn(message)
        if return_word_ids:
            return {"l": [[(token, 1.0, 0) for token in row] for row in ids.tolist()]}
        return {"l": [[(token, 1.0) for token in row] for row in ids.tolist()]}

    def untokenize(self, token_weight_pair: list) -> list:
        """Pairs of a token and its text."""
        words = self.tokenizer.convert_ids_to_tokens([pair[0] for pair in token_weight_pair])
        return list(zip(token_weight_pair, words, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {}


class TextModel(nn.Module):
    """A text model with the methods that the host's CLIP calls on its ``cond_stage_model``.

    It sits at ``clip_l.transformer``, where LoRA loaders look for it.
    """

    def __init__(self, loaded: TextEncoder, compute: torch.dtype) -> None:
        super().__init__()
        self.clip_l = nn.Module()
        self.clip_l.transformer = loaded.network
        self.dtypes = {weight_dtype(loaded.network)}
        self.compute_dtype = compute
        self.loaded = loaded
        self.space = loaded.space
        self.end_token = loaded.tokenizer.eos_token_id
        self.device: torch.device | None = None  # the host's patcher writes it

    @property
    def network(self) -> nn.Module:
        """The text model itself."""
        return self.clip_l.transformer

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """The host's options; leaving out layers would take the prompt out of the space."""
        if options.get("layer") not in (None, -1):
            warn("CLIP Set Last Layer has no effect here: unCLIP was trained on the last layer")

    def reset_clip_options(self) -> None:
        """Nothing is kept from one prompt to the next."""

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple:
        """Hidden states, pooled text embedding and what else belongs on the CONDITIONING."""
        from ...samplers.clip import encode_text

        ids = torch.tensor([[pair[0] for pair in row] for row in tokens["l"]], dtype=torch.long)
        # The first end token closes the prompt; what follows is padding, whatever its id.
        ended = (ids == self.end_token).int().cumsum(1)
        before = torch.nn.functional.pad(ended, (1, 0))[:, :-1]
        text = encode_text(
            self.network, ids, before == 0, self.space, self.device, self.compute_dtype
        )
        ((hidden, extra),) = placed(text_to_conditioning(text), memory.intermediate_device())
        return hidden, extra.pop("pooled_output"), extra

    def load_sd(self, sd: dict[str, torch.Tensor]) -> Any:
        return self.load_state_dict(sd, strict=False)


def wrap_text_encoder(loaded: TextEncoder) -> Any:
    """A text model as the host's CLIP, which CLIPTextEncode encodes prompts with."""
    device = memory.text_encoder_device()
    model = TextModel(loaded, prepare(loaded.network, device))
    target = SimpleNamespace(
        params={}, clip=lambda **_: model, tokenizer=lambda **_: Tokenizer(loaded.tokenizer)
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    return comfy.sd.CLIP(target, parameters=size)


def open_text_encoder(clip: Any) -> tuple[Managed, TextEncoder]:
    """The text model in a CLIP, and what its loader knows about it.

    Raises:
        EdgeError: another kind of CLIP.
    """
    model = getattr(clip, "cond_stage_model", None)
    if not isinstance(model, TextModel):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(model).__name__}); this node needs"
            " one from 'Load Text Encoder (unCLIP)' or 'Load CLIP (Rerank)'"
        )
    return Managed(clip.patcher, model.compute_dtype), model.loaded


# -- the vision model as a CLIP_VISION --------------------------------------------------------


class ClipVision:
    """A vision model with what native nodes use of the host's CLIP_VISION."""

    def __init__(self, loaded: ImageEncoder) -> None:
        self.load_device = memory.text_encoder_device()
        offload = memory.text_encoder_offload_device()
        compute = prepare(loaded.network, self.load_device)
        self.model = Holder(loaded.network)
        self.patcher = patcher_of(self.model, self.load_device, offload)
        self.managed = Managed(self.patcher, compute)
        self.dtype = weight_dtype(loaded.network)
        self.loaded = loaded
        self.preprocess = loaded.preprocess
        self.space = loaded.space
        self.image_size = loaded.network.config.image_size

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> Any:
        """Encode an IMAGE as published; without ``crop``, the whole picture squeezed square."""
        check_image(image, "image")
        image = image[..., :3].float()
        preprocess = self.preprocess if crop else self.preprocess.whole()
        network, device, dtype = use(self.managed)
        pixels = preprocess(image).to(device, dtype)
        out = network(pixel_values=pixels, output_hidden_states=True)
        place = memory.intermediate_device()
        return clip_vision_output(
            out.image_embeds.float().to(place),
            embedding_space=self.space.name,
            made_by=MADE_BY_NATIVE,
            last_hidden_state=out.last_hidden_state.float().to(place),
            penultimate_hidden_states=out.hidden_states[-2].float().to(place),
        )

    def get_sd(self) -> dict[str, torch.Tensor]:
        return self.model.network.state_dict()

    def load_sd(self, sd: dict[str, torch.Tensor]) -> Any:
        return self.model.network.load_state_dict(sd, strict=False)


def wrap_image_encoder(loaded: ImageEncoder) -> ClipVision:
    """A vision model as the host's CLIP_VISION, which CLIPVisionEncode runs."""
    return ClipVision(loaded)


def open_image_encoder(clip_vision: Any) -> tuple[Managed, ImageEncoder]:
    """The vision model in a CLIP_VISION, and what its loader knows about it.

    Raises:
        EdgeError: another kind of CLIP_VISION.
    """
    if not isinstance(clip_vision, ClipVision):
        raise EdgeError(
            f"'clip_vision' is the host's own image encoder ({type(clip_vision).__name__}); encode"
            " with native 'CLIP Vision Encode', or load one with 'Load Image Encoder (unCLIP)' or"
            " 'Load CLIP (Rerank)'"
        )
    return clip_vision.managed, clip_vision.loaded


def clip_vision_output(image_embeds: torch.Tensor, **extra: Any) -> Any:
    """A CLIP_VISION_OUTPUT of unnormalised ``image_embeds`` ``[B, D]`` and further attributes."""
    output = comfy.clip_vision.Output()
    output["image_embeds"] = image_embeds
    for name, value in {"mm_projected": None, **extra}.items():
        output[name] = value
    return output


# -- other systems' models that read image embeddings ----------------------------------------


def with_image_normalizer(loaded: ImageNormalizer, model: Any) -> Any:
    """A clone of a Stable Diffusion 2.1 unCLIP whose image embeddings are noised in the statistics
    ``[1, D]`` of its training; the host leaves them at 0 and 1.

    Raises:
        EdgeError: another kind of MODEL, or of another width.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, comfy.model_base.SD21UNCLIP):
        raise EdgeError(
            f"'model' is {kind_of(inner, model)}, but an image normalizer belongs to a Stable"
            " Diffusion 2.1 unCLIP; load one with native unCLIPCheckpointLoader"
        )
    width = inner.noise_augmentor.data_mean.shape[-1]
    if loaded.mean.shape[-1] != width:
        raise EdgeError(
            f"'source' is of {loaded.mean.shape[-1]} dimensions, but 'model' reads embeddings of"
            f" {width}; CLIP ViT-L (768) belongs to sd21-unclip-l, ViT-H (1024) to sd21-unclip-h"
        )
    augmentor = copy.deepcopy(inner.noise_augmentor)
    augmentor.data_mean, augmentor.data_std = loaded.mean, loaded.std
    clone = model.clone()
    clone.add_object_patch("noise_augmentor", augmentor)
    return clone


ADAPTERS = {
    "text_encoder": Adapter(wrap_text_encoder, open_text_encoder),
    "image_encoder": Adapter(wrap_image_encoder, open_image_encoder),
    "image_normalizer": Adapter(with_image_normalizer),
}
