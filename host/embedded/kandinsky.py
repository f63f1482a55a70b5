"""Kandinsky's decoders as MODEL, their published sampler as SAMPLER, MoVQ as VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...edges import EdgeError
from ...networks.kandinsky import prepare_latent_decoder
from ...networks.kandinsky_movq import LatentMoVQ
from ...samplers.kandinsky import check_places, join, known_mask, mode_of
from ...samplers.parts.noise import Noise
from ..api import Adapter
from .memory import Managed, manage, use
from .rows import fitted
from .sampling import Prepared, Prompt, check_latents
from .vae import Vae, open_vae

if TYPE_CHECKING:
    from ...loaders.kandinsky import LatentDecoder, MoVQ


@dataclass(frozen=True)
class LatentModel:
    """MODEL: a Kandinsky decoder."""

    managed: Managed
    loaded: LatentDecoder
    scale = 1.0

    def sigmas(self) -> torch.Tensor:
        """Noise over signal at every training timestep, ascending, fp32."""
        return self.loaded.schedule.sigmas().float()

    def prepare(
        self,
        prompts: list[Prompt],
        start: torch.Tensor,
        mask: torch.Tensor | None,
        times: list[int],
        seed: int,
    ) -> Prepared:
        """A Kandinsky decoder, of whatever mode."""
        loaded = self.loaded
        network, device, dtype = use(self.managed)
        check_latents(network, start, dtype)
        count, size = len(start), (start.shape[2], start.shape[3])
        check_places(network, size, "latent_image")
        sides = [(name, loaded.condition(entry, size, name)) for name, entry in prompts]
        told = join(sides, lambda part, name: fitted(part, count).to(device, dtype))
        beside: tuple[torch.Tensor, ...] = ()
        if mode_of(network) == "inpainting":
            seen = torch.zeros_like(start[:, :1])
            if mask is not None:
                seen = known_mask(mask[:, 0], size)
            beside = tuple(torch.cat([p.to(device)] * len(prompts)) for p in (start * seen, seen))
        predict = prepare_latent_decoder(network, told.added(), times, told.text_hidden)
        return Prepared(predict, device, dtype, beside)


def wrap_latent_decoder(loaded: LatentDecoder) -> LatentModel:
    """A Kandinsky decoder as MODEL."""
    return LatentModel(manage(loaded.network), loaded)


def open_latent_decoder(model: Any) -> tuple[Managed, LatentDecoder]:
    """The decoder in a MODEL, and its loader's facts.

    Raises:
        EdgeError: another kind of MODEL.
    """
    if not isinstance(model, LatentModel):
        raise EdgeError(
            f"'model' is another kind of MODEL ({type(model).__name__}); this node needs a"
            " Kandinsky decoder from 'Load Decoder (Kandinsky)'"
        )
    return model.managed, model.loaded


@dataclass(frozen=True)
class AncestralSampler:
    """SAMPLER: the published learned-range DDPM.

    Picture i of a batch draws from seed + 1 + i: the host begins with the seed itself.

    Attributes:
        ancestral: ``samplers.kandinsky.sample_from_sigmas``.
    """

    ancestral: Callable[..., torch.Tensor]

    def check(self, model: Any) -> None:
        """Refuse another MODEL.

        Raises:
            EdgeError: says what fits.
        """
        if not isinstance(model, LatentModel):
            raise EdgeError(
                "'sampler' is 'Kandinsky DDPM', which needs a MODEL from 'Load Decoder"
                " (Kandinsky)'; choose another with 'KSamplerSelect'"
            )

    def sample(
        self,
        model: LatentModel,
        denoise: Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]],
        x: torch.Tensor,
        sigmas: list[float],
        seed: int,
        report: Callable[[int, torch.Tensor], None],
    ) -> torch.Tensor:
        """``x`` ``[B, 4, h, w]`` from the first sigma to the last.

        Args:
            denoise: ``(x, sigma)`` -> x0 and the learned variance.
            report: called with (steps done, x0).
        """
        own, noise = model.loaded.schedule, Noise.seeded(seed + 1, len(x))

        def ranged(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor | None]:
            x0, variance = denoise(x, sigma)
            return x0, variance if own.learned_range else None

        return self.ancestral(
            ranged,
            own,
            x,
            sigmas,
            lambda: noise.normal(tuple(x.shape[1:]), x.device),
            lambda i, x0, x: report(i + 1, x0),
        )


def wrap_movq(loaded: MoVQ) -> Vae:
    """A MoVQ as VAE."""
    return Vae(manage(loaded.network), LatentMoVQ(loaded.network), loaded.factor, loaded)


def open_movq(vae: Any) -> tuple[Managed, MoVQ]:
    """The MoVQ in a VAE, and what its loader knows about it.

    Raises:
        EdgeError: another kind of VAE.
    """
    return open_vae(vae, LatentMoVQ, "Load MoVQ")


ADAPTERS = {
    "latent_decoder": Adapter(wrap_latent_decoder, open_latent_decoder),
    "latent_sampler": Adapter(AncestralSampler),
    "movq": Adapter(wrap_movq, open_movq),
}
