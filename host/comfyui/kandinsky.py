"""Kandinsky's decoders as the host's MODEL, their published sampler as its SAMPLER, MoVQ as VAE.

KSampler and its like run them over MoVQ's latents; image embeddings come as CONDITIONING
``[B, 1, D]``, a depth map beside them. A mask in the LATENT reaches the inpainting decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.samplers
import comfy.supported_models_base
import comfy.utils
import torch
from torch import nn

from ...edges import EdgeError
from ...networks.kandinsky import call_latent_decoder
from ...networks.kandinsky_movq import LatentMoVQ
from ...samplers.kandinsky import Condition, check_places, known_mask, mode_of
from ...samplers.parts.noise import Noise
from ..api import Adapter
from .memory import Adopted, Managed, kind_of, patcher_of, prepare, weight_dtype
from .vae import native_vae, open_vae

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...loaders.kandinsky import LatentDecoder, MoVQ
    from ...samplers.kandinsky_schedule import LatentSchedule


VARIANCE = "prior_art_learned_variance"
"""Where, among the host's transformer options, the network leaves its variance for our sampler."""


class KandinskyConfig(comfy.supported_models_base.BASE):
    """What the host asks a model's configuration."""

    unet_config: ClassVar[dict] = {}
    unet_extra_config: ClassVar[dict] = {}
    latent_format = comfy.latent_formats.LatentFormat
    sampling_settings: ClassVar[dict] = {}
    memory_usage_factor = 2.0


class MoVQLatents(comfy.latent_formats.LatentFormat):
    """A MoVQ's latents as they are; previews need the factors of one MoVQ."""

    latent_channels = 4
    scale_factor = 1.0

    def __init__(self, factors: torch.Tensor | None) -> None:
        if factors is not None:
            self.latent_rgb_factors = factors[:-1].tolist()
            self.latent_rgb_factors_bias = factors[-1].tolist()


class Variance:
    """A sheet of paper that the network writes its variance on: the host copies dicts and lists
    among the options that it passes, but not this."""

    conditional: torch.Tensor | None = None


class LatentNetwork(Adopted):
    """A decoder's U-Net with the signature that the host calls."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, unet)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        hint: torch.Tensor | None = None,
        text_hidden: torch.Tensor | None = None,
        text_pooled: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Predict the noise; the learned variance of the conditional rows goes onto the sheet."""
        if control is not None:
            raise EdgeError(
                "Kandinsky's decoder takes no ControlNet of the host; use its depth decoder"
            )
        check_places(self.network, (x.shape[-2], x.shape[-1]), "latent_image")
        told = Condition(context[:, 0], text_hidden, text_pooled, hint).added()
        out = call_latent_decoder(self.network, x, timesteps, told, text_hidden)
        eps, variance = out.chunk(2, dim=1)
        _note(variance, transformer_options or {})
        return eps


@torch.compiler.disable  # the host's TorchCompileModel takes the options of the first call for all
def _note(variance: torch.Tensor, options: dict) -> None:
    """Write the conditional rows' variance onto the sampler's sheet, where there is one."""
    sheet, sides = options.get(VARIANCE), options.get("cond_or_uncond", [])
    if sheet is not None and 0 in sides:
        sheet.conditional = variance.chunk(len(sides))[sides.index(0)].float()


class KandinskyModel(comfy.model_base.BaseModel):
    """A Kandinsky decoder as the host's model: noise prediction over latents, its own sigmas."""

    def __init__(self, loaded: LatentDecoder, device: torch.device, compute: torch.dtype) -> None:
        stored = weight_dtype(loaded.network)
        config = KandinskyConfig({"disable_unet_model_creation": True})
        config.latent_format = MoVQLatents(loaded.latent_rgb_factors)
        config.set_inference_dtype(stored, None if compute == stored else compute)
        super().__init__(config, comfy.model_base.ModelType.EPS, device=device)
        self.diffusion_model = LatentNetwork(loaded.network)
        self.model_sampling.set_sigmas(loaded.schedule.sigmas())
        self.loaded = loaded

    @property
    def network(self) -> nn.Module:
        """The network as our samplers know it."""
        return self.diffusion_model.network

    def concat_cond(self, **kwargs: Any) -> torch.Tensor | None:
        """The inpainting decoder's further channels: the known part of the latent, and where."""
        if mode_of(self.network) != "inpainting":
            return None
        noise, device = kwargs["noise"], kwargs["device"]
        latent = kwargs.get("concat_latent_image")
        latent = kwargs.get("latent_image") if latent is None else latent
        mask = kwargs.get("concat_mask", kwargs.get("denoise_mask"))
        if latent is None or mask is None:  # nothing is known
            return torch.zeros_like(torch.cat([noise, noise[:, :1]], dim=1), device=device)
        mask = mask.reshape(-1, *mask.shape[-2:]).float()
        known = known_mask(mask, (noise.shape[-2], noise.shape[-1]))
        known = comfy.utils.resize_to_batch_size(known, len(noise)).to(device)
        latent = comfy.utils.resize_to_batch_size(latent, len(noise)).to(device)
        return torch.cat([latent * known, known], dim=1)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """What the network gets beside latent and time, from one CONDITIONING entry."""
        side, noise = kwargs.get("prompt_type", "positive"), kwargs["noise"]
        entry, size = [kwargs.get("cross_attn"), kwargs], (noise.shape[-2], noise.shape[-1])
        told = self.loaded.condition(entry, size, side)
        out = super().extra_conds(**kwargs)
        out["c_crossattn"] = comfy.conds.CONDRegular(told.image_embeds[:, None])
        for name in ("text_hidden", "text_pooled", "hint"):
            part = getattr(told, name)
            if part is not None:
                out[name] = comfy.conds.CONDRegular(part)
        device = kwargs.get("device")
        if device is not None:
            for cond in out.values():
                cond.cond = cond.cond.to(device)
        return out


def wrap_latent_decoder(loaded: LatentDecoder) -> Any:
    """A Kandinsky decoder as the host's MODEL, which KSampler samples over MoVQ's latents."""
    device, offload = memory.get_torch_device(), memory.unet_offload_device()
    model = KandinskyModel(loaded, offload, prepare(loaded.network, device))
    return patcher_of(model, device, offload)


def open_latent_decoder(model: Any) -> tuple[Managed, LatentDecoder]:
    """The decoder in a MODEL, with the patches that were put on it since, and its loader's facts.

    Raises:
        EdgeError: another kind of MODEL; says which.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, KandinskyModel):
        raise EdgeError(
            f"'model' is {kind_of(inner, model)}, but this stage samples a Kandinsky decoder; load"
            " one with 'Load Decoder (Kandinsky)'"
        )
    compute = inner.manual_cast_dtype or inner.get_dtype()
    return Managed(model, compute), inner.loaded


def latent_sampler(ancestral: Callable[..., torch.Tensor]) -> Any:
    """The published learned-range DDPM, ``samplers.kandinsky.sample_from_sigmas``, as the host's
    SAMPLER for SamplerCustom.

    Picture i of a batch draws from seed + 1 + i: the host begins with the seed itself.
    """

    def sample(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
    ) -> torch.Tensor:
        arguments = dict(extra_args or {})
        inner = model.inner_model.inner_model
        if not isinstance(inner, KandinskyModel):
            raise EdgeError(
                "the sampler 'Kandinsky DDPM' needs a MODEL from 'Load Decoder (Kandinsky)'; choose"
                " another sampler for this one"
            )
        schedule: LatentSchedule = inner.loaded.schedule
        sheet = Variance()
        options = dict(arguments.get("model_options", {}))
        options["transformer_options"] = {**options.get("transformer_options", {}), VARIANCE: sheet}
        arguments["model_options"] = options
        noise = Noise.seeded(int(arguments.get("seed") or 0) + 1, len(x))
        ones = x.new_ones([len(x)])

        def denoise(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor | None]:
            denoised = model(x, ones * sigma, **arguments)
            return denoised, sheet.conditional if schedule.learned_range else None

        def report(i: int, denoised: torch.Tensor, x: torch.Tensor) -> None:
            if callback is not None:
                callback({"i": i, "denoised": denoised, "x": x, "sigma": sigmas[i]})

        return ancestral(
            denoise,
            schedule,
            x,
            sigmas.tolist(),
            lambda: noise.normal(tuple(x.shape[1:]), x.device),
            report,
        )

    return comfy.samplers.KSAMPLER(sample)


class MoVQCoder(LatentMoVQ):
    """A MoVQ in the host's VAE, with what its loader knows about it."""

    def __init__(self, loaded: MoVQ) -> None:
        super().__init__(loaded.network)
        self.facts = loaded


def wrap_movq(loaded: MoVQ) -> Any:
    """A MoVQ as the host's VAE, which VAEEncode, VAEDecode and VAEDecodeTiled run."""
    return native_vae(MoVQCoder(loaded), loaded.factor, loaded.channels)


def open_movq(vae: Any) -> tuple[Managed, MoVQ]:
    """The MoVQ in a VAE, and what its loader knows about it.

    Raises:
        EdgeError: another kind of VAE.
    """
    return open_vae(vae, MoVQCoder, "Load MoVQ")


ADAPTERS = {
    "latent_decoder": Adapter(wrap_latent_decoder, open_latent_decoder),
    "latent_sampler": Adapter(latent_sampler),
    "movq": Adapter(wrap_movq, open_movq),
}
