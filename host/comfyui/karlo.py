"""Our networks as the host's own MODEL, CLIP and CLIP_VISION, and back again.

``wrap_*`` makes what native nodes understand: KSampler runs the decoder, CLIPTextEncode and
CLIPVisionEncode run the encoders, LoRA loaders patch them. ``open_*`` is how our own nodes get the
network, with whatever patches native nodes have put on it since.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import comfy.clip_vision
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.sd
import comfy.supported_models_base
import torch
from torch import nn

from ...edges import (
    EdgeError,
    EmbeddingSpace,
    check_image,
    conditioning_to_text,
    image_embeds_of,
    placed,
    text_to_conditioning,
)
from ..prompts import plain_warnings
from .compat import warn
from .memory import (
    Adopted,
    Holder,
    Managed,
    kind_of,
    patcher_of,
    prepare,
    use,
    weight_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...loaders.karlo import LoadedDecoder
    from ...loaders.unclip import ImageEncoder, TextEncoder
    from ...samplers.parts.schedule import UnCLIPSchedule

MADE_BY_NATIVE = "CLIP Vision Encode on a PriorArt image encoder"


# -- the decoder as a MODEL ------------------------------------------------------------------


class PixelSpace(comfy.latent_formats.LatentFormat):
    """A latent that is the picture itself, three channels in [-1, 1]."""

    latent_channels = 3
    scale_factor = 1.0
    # Previews turn [-1, 1] into [0, 1] themselves.
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # noqa: RUF012

    def process_in(self, latent: torch.Tensor) -> torch.Tensor:
        return latent

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        return latent


class KarloConfig(comfy.supported_models_base.BASE):
    """What the host asks a model's configuration."""

    unet_config = {}  # noqa: RUF012
    unet_extra_config = {}  # noqa: RUF012
    latent_format = PixelSpace
    sampling_settings = {}  # noqa: RUF012
    memory_usage_factor = 1.5


def cosine_sigmas(timesteps: int) -> torch.Tensor:
    """Noise over signal at each timestep of the squared-cosine schedule, in float64."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((i + 1) / timesteps) / alpha_bar(i / timesteps), 0.999)
        for i in range(timesteps)
    ]
    alphas = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0)
    return ((1 - alphas) / alphas).sqrt()


class DecoderNetwork(Adopted):
    """Karlo's decoder with the signature that the host calls: the U-Net's children, and
    ``text_proj`` beside them."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__(decoder, decoder.unet)
        self.text_proj = decoder.text_proj

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict | None = None,
        image_embeds: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Predict the noise; the learned variance is sliced off, native samplers have their own."""
        if control is not None:
            raise EdgeError("Karlo's decoder has no ControlNet; take the ControlNet node out")
        decoder = self.network
        tokens, time_tokens = decoder.text_proj(image_embeds, pooled, context)
        extra = tokens.shape[1] - text_mask.shape[1]
        mask = torch.nn.functional.pad(text_mask, (extra, 0), value=1).bool()
        predicted = decoder.unet(
            x,
            timesteps,
            encoder_hidden_states=tokens,
            class_labels=time_tokens,
            attention_mask=mask,
            return_dict=False,
        )[0]
        return predicted[:, : x.shape[1]]


class KarloModel(comfy.model_base.BaseModel):
    """Karlo's decoder as the host's model: noise prediction over pixels, its own sigmas."""

    def __init__(self, loaded: LoadedDecoder, device: torch.device, compute: torch.dtype) -> None:
        stored = weight_dtype(loaded.network)
        config = KarloConfig({"disable_unet_model_creation": True})
        config.set_inference_dtype(stored, None if compute == stored else compute)
        super().__init__(config, comfy.model_base.ModelType.EPS, device=device)
        self.diffusion_model = DecoderNetwork(loaded.network)
        self.model_sampling.set_sigmas(cosine_sigmas(loaded.schedule.num_train_timesteps))
        self.schedule: UnCLIPSchedule = loaded.schedule
        self.space: EmbeddingSpace = loaded.space

    @property
    def network(self) -> nn.Module:
        """The network as our samplers know it."""
        return self.diffusion_model.network

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """What the network gets beside the picture and the time, from one CONDITIONING entry."""
        out = super().extra_conds(**kwargs)
        side = kwargs.get("prompt_type", "positive")
        hidden, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        if hidden is not None and mask is not None:
            # Conditioning (Concat) leaves the mask as it was: the network reads what it added.
            longer = max(0, hidden.shape[1] - mask.shape[1])
            mask = torch.nn.functional.pad(mask[:, : hidden.shape[1]], (0, longer), value=1)
        prompt = [[hidden, {**kwargs, "attention_mask": mask}]]
        text = conditioning_to_text(prompt, self.space, side, self.space.dim)
        embeds = self._image_embeds(kwargs.get("unclip_conditioning") or [], side)
        # Plain conds are only batched together where shapes agree. The host would stretch a
        # cross-attention cond to fit the other side, and the mask would no longer belong to it.
        out["c_crossattn"] = comfy.conds.CONDRegular(text.hidden)
        out["pooled"] = comfy.conds.CONDRegular(text.pooled)
        out["text_mask"] = comfy.conds.CONDRegular(text.mask.int())
        out["image_embeds"] = comfy.conds.CONDRegular(embeds)
        device = kwargs.get("device")
        if device is not None:
            for cond in out.values():
                cond.cond = cond.cond.to(device)
        return out

    def _image_embeds(self, unclip: list[dict[str, Any]], side: str) -> torch.Tensor:
        """The image embedding that one side of the guidance is conditioned on.

        None at all is the decoder's learned unconditional embedding, and ``strength`` leads from
        there (0) to the embedding (1). Several are averaged by their strengths.
        """
        learned = self.diffusion_model.text_proj.learned_classifier_free_guidance_embeddings
        learned = learned.detach().float().reshape(1, -1)
        if not unclip:
            if side == "positive":
                _warn_no_image()
            return learned
        name = f"{side} (unCLIPConditioning)"
        embeds = [image_embeds_of(e["clip_vision_output"], self.space, name) for e in unclip]
        rows = {len(rows) for rows in embeds} - {1}
        if len(rows) > 1:
            raise EdgeError(
                f"'{name}' mixes batches of {sorted(rows)} image embeddings; make them equal, or"
                " all but one of them a single embedding"
            )
        strengths = [float(entry["strength"]) for entry in unclip]
        if len(strengths) > 1:
            share = max(1.0, sum(abs(strength) for strength in strengths))
            strengths = [strength / share for strength in strengths]
        mixed = learned * (1.0 - sum(strengths))
        for strength, rows in zip(strengths, embeds, strict=True):
            mixed = mixed + strength * rows.float().to(learned.device)
        return mixed


def _warn_no_image() -> None:
    warn(
        "the positive prompt carries no image embedding: the decoder samples without one. Put"
        " unCLIPConditioning between the prompt and KSampler, with the prior's or an image"
        " encoder's output"
    )


def _clamp(limit: float) -> Callable[[dict[str, Any]], torch.Tensor]:
    def clamp(args: dict[str, Any]) -> torch.Tensor:
        return args["denoised"].clamp(-limit, limit)

    return clamp


def wrap_decoder(loaded: LoadedDecoder) -> Any:
    """A decoder as the host's MODEL, which KSampler samples in pixel space.

    The first sigma is about 20,000: a prediction of the picture from there is only good for
    its sign, so it is clamped as the published schedule does.
    """
    device, offload = memory.get_torch_device(), memory.unet_offload_device()
    model = KarloModel(loaded, offload, prepare(loaded.network, device))
    patcher = patcher_of(model, device, offload)
    patcher.set_model_sampler_post_cfg_function(_clamp(float(loaded.schedule.clip_range or 1.0)))
    return patcher


def open_decoder(model: Any) -> tuple[Managed, UnCLIPSchedule, EmbeddingSpace]:
    """The decoder in a MODEL, with the patches that were put on it since it was loaded.

    Raises:
        EdgeError: another kind of MODEL; says which.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, KarloModel):
        raise EdgeError(
            f"'model' is {kind_of(inner, model)}, but this stage samples Karlo's decoder; load it"
            " with 'Load Decoder (unCLIP)'"
        )
    compute = inner.manual_cast_dtype or inner.get_dtype()
    return Managed(model, compute), inner.schedule, inner.space


# -- the text tower as a CLIP ----------------------------------------------------------------


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
    """A text tower with the methods that the host's CLIP calls on its ``cond_stage_model``.

    The tower sits at ``clip_l.transformer``, where LoRA loaders look for it.
    """

    def __init__(self, loaded: TextEncoder, compute: torch.dtype) -> None:
        super().__init__()
        self.clip_l = nn.Module()
        self.clip_l.transformer = loaded.network
        self.dtypes = {weight_dtype(loaded.network)}
        self.compute_dtype = compute
        self.space = loaded.space
        self.end_token = loaded.tokenizer.eos_token_id
        self.device: torch.device | None = None  # the host's patcher writes it

    @property
    def network(self) -> nn.Module:
        """The tower itself."""
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
    """A text tower as the host's CLIP, which CLIPTextEncode encodes prompts with."""
    device = memory.text_encoder_device()
    model = TextModel(loaded, prepare(loaded.network, device))
    target = SimpleNamespace(
        params={}, clip=lambda **_: model, tokenizer=lambda **_: Tokenizer(loaded.tokenizer)
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    return comfy.sd.CLIP(target, parameters=size)


def open_text_encoder(clip: Any) -> tuple[Managed, Any, EmbeddingSpace]:
    """The text tower in a CLIP, its tokenizer and its space.

    Raises:
        EdgeError: another kind of CLIP.
    """
    model = getattr(clip, "cond_stage_model", None)
    if not isinstance(model, TextModel):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(model).__name__}); this node needs"
            " one from 'Load Text Encoder (unCLIP)' or 'Load CLIP (Rerank)'"
        )
    managed = Managed(clip.patcher, model.compute_dtype)
    return managed, clip.tokenizer.tokenizer, model.space


# -- the image tower as a CLIP_VISION --------------------------------------------------------


class ClipVision:
    """An image tower with what native nodes use of the host's CLIP_VISION."""

    def __init__(self, loaded: ImageEncoder) -> None:
        self.load_device = memory.text_encoder_device()
        offload = memory.text_encoder_offload_device()
        compute = prepare(loaded.network, self.load_device)
        self.model = Holder(loaded.network)
        self.patcher = patcher_of(self.model, self.load_device, offload)
        self.managed = Managed(self.patcher, compute)
        self.dtype = weight_dtype(loaded.network)
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
    """An image tower as the host's CLIP_VISION, which CLIPVisionEncode runs."""
    return ClipVision(loaded)


def open_image_encoder(clip_vision: Any) -> tuple[Managed, Any, EmbeddingSpace]:
    """The image tower in a CLIP_VISION, its preprocessing and its space.

    Raises:
        EdgeError: another kind of CLIP_VISION.
    """
    if not isinstance(clip_vision, ClipVision):
        raise EdgeError(
            f"'clip_vision' is the host's own image encoder ({type(clip_vision).__name__}); encode"
            " with native 'CLIP Vision Encode', or load one with 'Load Image Encoder (unCLIP)' or"
            " 'Load CLIP (Rerank)'"
        )
    return clip_vision.managed, clip_vision.preprocess, clip_vision.space


def clip_vision_output(image_embeds: torch.Tensor, **extra: Any) -> Any:
    """A CLIP_VISION_OUTPUT of unnormalised ``image_embeds`` ``[B, D]`` and further attributes."""
    output = comfy.clip_vision.Output()
    output["image_embeds"] = image_embeds
    for name, value in {"mm_projected": None, **extra}.items():
        output[name] = value
    return output


# -- other systems' models that read image embeddings ----------------------------------------


def with_image_normalizer(model: Any, mean: torch.Tensor, std: torch.Tensor) -> Any:
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
    if mean.shape[-1] != width:
        raise EdgeError(
            f"'source' is of {mean.shape[-1]} dimensions, but 'model' reads embeddings of {width};"
            " Karlo's CLIP (768) belongs to sd21-unclip-l, ViT-H (1024) to sd21-unclip-h"
        )
    augmentor = copy.deepcopy(inner.noise_augmentor)
    augmentor.data_mean, augmentor.data_std = mean, std
    clone = model.clone()
    clone.add_object_patch("noise_augmentor", augmentor)
    return clone
