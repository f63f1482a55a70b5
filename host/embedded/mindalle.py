"""minDALL-E's VQGAN as VAE, and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...networks.mindalle_vqgan import LatentVQGAN
from ..api import Adapter
from .memory import Managed, manage
from .vae import Vae, open_vae

if TYPE_CHECKING:
    from ...loaders.mindalle_vqgan import VQGAN


def wrap_vqgan(loaded: VQGAN) -> Vae:
    """A VQGAN as VAE."""
    return Vae(manage(loaded.network), LatentVQGAN(loaded.network), loaded.factor, loaded)


def open_vqgan(vae: Any) -> tuple[Managed, VQGAN]:
    """The VQGAN in a VAE, and what its loader knows about it.

    Raises:
        EdgeError: another kind of VAE.
    """
    return open_vae(vae, LatentVQGAN, "Load VQGAN")


ADAPTERS = {"vqgan": Adapter(wrap_vqgan, open_vqgan)}
