"""Karlo's decoder as the host's MODEL in pixel space, which KSampler runs, and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.supported_models_base
import torch
from torch import nn

from ...edges import (
    EdgeError,
    conditioning_to_text,
    image_embeds_of,
)
from ...networks.karlo import call_decoder
from ..api import Adapter
from .compat import warn
from .memory import Adopted, Managed, kind_of, patcher_of, prepare, weight_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...loaders.karlo import LoadedDecoder


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

    unet_config: ClassVar[dict] = {}
    unet_extra_config: ClassVar[dict] = {}
    latent_format = PixelSpace
    sampling_settings: ClassVar[dict] = {}
    memory_usage_factor = 1.5


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
        text_mask: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Predict the noise; the learned variance is sliced off, native samplers have their own."""
        if control is not None:
            raise EdgeError("Karlo's decoder has no ControlNet; take the ControlNet node out")
        decoder = self.network
        tokens, time_tokens = decoder.text_proj(image_embeds, pooled, context)
        extra = tokens.shape[1] - text_mask.shape[1]
        mask = torch.nn.functional.pad(text_mask, (extra, 0), value=1).bool()
        predicted = call_decoder(decoder.unet, x, timesteps, tokens, time_tokens, mask)
        return predicted[:, : x.shape[1]]


class KarloModel(comfy.model_base.BaseModel):
    """Karlo's decoder as the host's model: noise prediction over pixels, its own sigmas."""

    def __init__(self, loaded: LoadedDecoder, device: torch.device, compute: torch.dtype) -> None:
        stored = weight_dtype(loaded.network)
        config = KarloConfig({"disable_unet_model_creation": True})
        config.set_inference_dtype(stored, None if compute == stored else compute)
        super().__init__(config, comfy.model_base.ModelType.EPS, device=device)
        self.diffusion_model = DecoderNetwork(loaded.network)
        self.model_sampling.set_sigmas(loaded.schedule.sigmas())
        self.loaded = loaded

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
        text = conditioning_to_text(prompt, self.loaded.space, side, self.loaded.space.dim)
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
        embeds = [image_embeds_of(e["clip_vision_output"], self.loaded.space, name) for e in unclip]
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


def open_decoder(model: Any) -> tuple[Managed, LoadedDecoder]:
    """The decoder in a MODEL, with the patches that were put on it since, and its loader's facts.

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
    return Managed(model, compute), inner.loaded


ADAPTERS = {"decoder": Adapter(wrap_decoder, open_decoder)}
