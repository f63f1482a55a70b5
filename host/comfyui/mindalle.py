"""minDALL-E's VQGAN as the host's VAE, and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...networks.mindalle_vqgan import LatentVQGAN
from ..api import Adapter
from .memory import Managed
from .vae import native_vae, open_vae

if TYPE_CHECKING:
    from ...loaders.mindalle_vqgan import VQGAN


class VQGANCoder(LatentVQGAN):
    """A VQGAN in the host's VAE, with what its loader knows about it."""

    def __init__(self, loaded: VQGAN) -> None:
        super().__init__(loaded.network)
        self.facts = loaded


def wrap_vqgan(loaded: VQGAN) -> Any:
    """A VQGAN as the host's VAE, which VAEEncode, VAEDecode and VAEDecodeTiled run."""
    return native_vae(VQGANCoder(loaded), loaded.factor, loaded.channels)


def open_vqgan(vae: Any) -> tuple[Managed, VQGAN]:
    """The VQGAN in a VAE, and what its loader knows about it.

    Raises:
        EdgeError: another kind of VAE.
    """
    return open_vae(vae, VQGANCoder, "Load VQGAN")


ADAPTERS = {"vqgan": Adapter(wrap_vqgan, open_vqgan)}
