"""Autoencoders that the host does not know as its own VAE.

The host's constructor builds what it recognises by its keys. Ours starts as the VAE that does
nothing, whose network, sizes and memory needs are then replaced: everything else, tiles and
batches by free memory, is the host's.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as memory
import comfy.sd
import torch
from torch import nn

from ...edges import EdgeError, cut_to_asked
from ...networks.memory import DECODED_PIXEL, ENCODED_PIXEL
from .memory import Managed, patcher_of, prepare


class CuttingVAE(comfy.sd.VAE):
    """The host's VAE, whose pictures have the size that their latents ask for."""

    def decode(self, samples_in: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Latent -> IMAGE."""
        return cut_to_asked(super().decode(samples_in, *args, **kwargs), samples_in)

    def decode_tiled(self, samples: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Latent -> IMAGE, tile by tile."""
        return cut_to_asked(super().decode_tiled(samples, *args, **kwargs), samples)

    def get_sd(self) -> dict[str, torch.Tensor]:
        """The network's tensors, as a file holds them: in the order of their places."""
        return {name: tensor.contiguous() for name, tensor in super().get_sd().items()}


def native_vae(coder: nn.Module, factor: int, channels: int) -> Any:
    """An autoencoder as the host's VAE.

    Args:
        coder: has the network as ``network``, and ``encode`` and ``decode`` between pictures in
            [-1, 1] and latents.
        factor: pixels of a latent's place.
        channels: of the latent.
    """
    vae = CuttingVAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    dtype = prepare(coder.network, vae.device)
    vae.first_stage_model = coder.eval()
    vae.patcher = patcher_of(coder, vae.device, memory.vae_offload_device())
    vae.vae_dtype, vae.working_dtypes = dtype, [dtype]
    vae.upscale_ratio = vae.downscale_ratio = factor
    vae.latent_channels = channels
    vae.disable_offload = False

    def encoding(shape: Any, dtype: torch.dtype) -> int:
        return ENCODED_PIXEL * shape[2] * shape[3] * memory.dtype_size(dtype)

    def decoding(shape: Any, dtype: torch.dtype) -> int:
        return DECODED_PIXEL * shape[2] * shape[3] * factor**2 * memory.dtype_size(dtype)

    vae.memory_used_encode, vae.memory_used_decode = encoding, decoding
    return vae


def open_vae(vae: Any, wanted: type[Any], loader: str) -> tuple[Managed, Any]:
    """The autoencoder in a VAE, and what its loader knows about it (its coder's ``facts``).

    Args:
        wanted: the class of coder; loader: the node that makes such a VAE.

    Raises:
        EdgeError: another kind of VAE.
    """
    coder: Any = getattr(vae, "first_stage_model", None)
    if not isinstance(coder, wanted):
        raise EdgeError(
            f"'vae' is another kind of VAE ({type(coder).__name__}); this node needs one from"
            f" '{loader}'"
        )
    return Managed(vae.patcher, vae.vae_dtype), coder.facts
