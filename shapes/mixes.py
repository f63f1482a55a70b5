"""Chains across systems, from prompts to pictures: one's prior into another's decoder, and so on.

As ``painters``, whose members they are made of: ``paint(scenes, seed) -> uint8 [B, 64, 64, 3]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .grammar import Scene
from .painters import KandinskyPainter, KarloPainter, KoalaPainter, MinDALLEPainter

STRENGTH = 0.5
"""Of image to image: how much of the schedule is run on another system's picture."""


@dataclass(frozen=True)
class PriorToDecoder:
    """The prior of one unCLIP system into the decoder of another."""

    prior: KarloPainter | KandinskyPainter
    decoder: KarloPainter | KandinskyPainter

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt."""
        from ..samplers.parts.noise import Noise

        noise, prompts = Noise.seeded(seed, len(scenes)), [scene.prompt for scene in scenes]
        return self.decoder.decode(self.prior.embeds(prompts, noise), prompts, noise)


@dataclass(frozen=True)
class PriorToKoala:
    """Kandinsky 2.2's prior in the place of KOALA's pooled text embedding, as unCLIPConditioning
    puts it there."""

    prior: KandinskyPainter
    koala: KoalaPainter

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt."""
        from ..samplers.parts.noise import Noise

        prompts = [scene.prompt for scene in scenes]
        embeds = self.prior.embeds(prompts, Noise.seeded(seed, len(scenes)))
        return self.koala.decode(prompts, Noise.seeded(seed, len(scenes)), pooled=embeds)


@dataclass(frozen=True)
class PictureToPicture:
    """minDALL-E's picture on through Kandinsky 2.2's image to image."""

    first: MinDALLEPainter
    second: KandinskyPainter

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt."""
        from ..networks.kandinsky_movq import encode
        from ..samplers.parts.noise import Noise
        from ..samplers.parts.sampling import Start

        noise, prompts = Noise.seeded(seed, len(scenes)), [scene.prompt for scene in scenes]
        start = encode(self.second.movq.network, _as_pictures(self.first.paint(scenes, seed)))
        embeds = self.second.embeds(prompts, noise)
        return self.second.decode(embeds, prompts, noise, start=Start(start, STRENGTH))


@dataclass(frozen=True)
class BestToVariation:
    """The reranker's favourite of minDALL-E's candidates, seen by Karlo's CLIP and painted again by
    Karlo."""

    first: MinDALLEPainter
    second: KarloPainter

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt."""
        from ..loaders.files.catalogue import find_source
        from ..loaders.unclip import load_image_encoder
        from ..samplers.clip import encode_image
        from ..samplers.parts.noise import Noise

        seen = load_image_encoder(find_source("shapes-karlo", "image_encoder", []))
        shown = torch.from_numpy(self.first.paint(scenes, seed)).float() / 255
        embeds = encode_image(seen.network, seen.preprocess(shown), **self.second.place)
        prompts = [scene.prompt for scene in scenes]
        return self.second.decode(embeds, prompts, Noise.seeded(seed, len(scenes)))


def _as_pictures(pixels: np.ndarray) -> torch.Tensor:
    """uint8 ``[B, H, W, 3]`` -> ``[B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


MIXES: dict[str, Callable[[], Any]] = {
    "karlo-to-kandinsky-2-1": lambda: PriorToDecoder(KarloPainter(), KandinskyPainter(mode="2-1")),
    "kandinsky-2-1-to-karlo": lambda: PriorToDecoder(KandinskyPainter(mode="2-1"), KarloPainter()),
    "kandinsky-to-koala": lambda: PriorToKoala(KandinskyPainter(), KoalaPainter()),
    "mindalle-to-kandinsky": lambda: PictureToPicture(MinDALLEPainter(), KandinskyPainter()),
    "mindalle-to-karlo": lambda: BestToVariation(MinDALLEPainter(candidates=16), KarloPainter()),
}
"""Each chain by its name in ``score``."""
