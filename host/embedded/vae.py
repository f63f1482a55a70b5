"""VAE: an autoencoder, with the methods that native nodes call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...edges import EdgeError, cut_to_asked
from ..room import check_main_memory
from .memory import Managed, offload, use
from .rows import tiled
from .session import stop_if_asked


@dataclass(frozen=True)
class Vae:
    """VAE: an autoencoder, with the methods that native nodes call.

    Attributes:
        managed: the network.
        coder: its ``encode`` and ``decode``, pictures in [-1, 1].
        factor: pixels of a latent's place.
        facts: what the loader knows about it.
    """

    managed: Managed
    coder: Any
    factor: int
    facts: Any

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """IMAGE ``[B, H, W, 3]`` -> latent, cut to multiples of the factor as native VAEs do."""
        return self._each("encode", self._cut(pixels))

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """The middle of an IMAGE as the network sees it ``[B, 3, H, W]``.

        Raises:
            EdgeError: nothing is left.
        """
        high, wide = (side - side % self.factor for side in pixels.shape[1:3])
        if not high or not wide:
            raise EdgeError(
                f"a picture of {pixels.shape[2]}x{pixels.shape[1]} is smaller than one place of"
                f" this VAE's latent, {self.factor} pixels; wire a larger one"
            )
        top, left = (pixels.shape[1] - high) // 2, (pixels.shape[2] - wide) // 2
        return pixels[:, top : top + high, left : left + wide, :3].movedim(-1, 1) * 2 - 1

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Latent -> IMAGE ``[B, H, W, 3]``."""
        count, _, high, wide = samples.shape
        high, wide = self.factor * high, self.factor * wide
        check_main_memory(
            3 * count * high * wide,
            f"{count} pictures of {wide}x{high}",
            "wire fewer or smaller latents into 'samples'",
        )
        pixels = (self._each("decode", samples) * 0.5 + 0.5).clamp(0, 1).movedim(1, -1)
        return cut_to_asked(pixels, samples)

    def decode_tiled(self, samples: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        """Latent -> IMAGE in tiles of so many places, as native VAEs do it."""
        pixels = self._tiles("decode", samples, tile, overlap, self.factor)
        return (pixels * 0.5 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode_tiled(self, pixels: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        """IMAGE -> latent in tiles of so many pixels, as native VAEs do it."""
        return self._tiles("encode", self._cut(pixels), tile, overlap, 1 / self.factor)

    def _tiles(
        self, method: str, rows: torch.Tensor, tile: int, overlap: int, scale: float
    ) -> torch.Tensor:
        """The mean over tiles that are high, wide and square."""
        shapes = (tile * 2, tile // 2), (tile // 2, tile * 2), (tile, tile)

        def run(part: torch.Tensor) -> torch.Tensor:
            return self._each(method, part)

        return torch.cat(
            [sum(tiled(row[None], run, s, overlap, scale) for s in shapes) / 3 for row in rows]
        )

    def _each(self, method: str, rows: torch.Tensor) -> torch.Tensor:
        """One row after another, so that memory suffices for any batch."""
        _, device, dtype = use(self.managed)
        run = getattr(self.coder, method)
        made = []
        for row in rows:
            stop_if_asked()
            made.append(offload(run(row[None].to(device, dtype)).float()))
        return torch.cat(made)


def open_vae(vae: Any, coder: type, loader: str) -> tuple[Managed, Any]:
    """The autoencoder in a VAE, and what its loader knows about it.

    Args:
        coder: the class that runs it; loader: the node that makes such a VAE.

    Raises:
        EdgeError: another kind of VAE.
    """
    if not isinstance(getattr(vae, "coder", None), coder):
        raise EdgeError(
            f"'vae' is another kind of VAE ({type(vae).__name__}); this node needs one from"
            f" '{loader}'"
        )
    return vae.managed, vae.facts
