"""The family's members from loaded weights to pictures, at the published defaults.

Each has ``paint(scenes, seed) -> uint8 [B, 64, 64, 3]``: picture i's noise is of the seed ``seed +
i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .grammar import COLOURS, KINDS, SIZES, Scene
from .pictures import draw

_STAGES = ("text_encoder", "prior", "decoder", "upscaler")


class KarloPainter:
    """Karlo's whole chain, from loaded weights to pictures."""

    def __init__(self, weights: Path | None = None, device: str = "cpu"):
        from ..loaders import karlo, unclip
        from ..loaders.sources import Source, find_source

        if weights is None:
            sources = {stage: find_source("shapes-karlo", stage, []) for stage in _STAGES}
        else:
            here = weights.resolve()
            one = Source(here.name, "folder", here, "karlo", frozenset(_STAGES), (here,))
            sources = dict.fromkeys(_STAGES, one)
        self.device, self.dtype = torch.device(device), torch.float32
        self.text = unclip.load_text_encoder(sources["text_encoder"], self.dtype)
        self.prior = unclip.load_prior(sources["prior"], self.dtype)
        self.decoder = karlo.load_decoder(sources["decoder"], self.dtype)
        self.upscaler = karlo.load_upscaler(sources["upscaler"], self.dtype)
        for part in (self.text, self.prior, self.decoder, self.upscaler):
            part.network.to(self.device)

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt: uint8 ``[B, 64, 64, 3]``."""
        from ..loaders.clip import tokenize
        from ..samplers.clip import encode_text
        from ..samplers.noise import generators
        from ..samplers.prior import sample_prior
        from ..samplers.unclip import sample_decoder, upscale

        place = {"device": self.device, "dtype": self.dtype}

        def encode(texts: list[str]):
            ids, mask, _ = tokenize(self.text.tokenizer, texts)
            return encode_text(self.text.network, ids, mask, self.text.space, **place)

        # One stream a picture runs through all stages, as in the published pipeline.
        streams = generators(seed, len(scenes))
        text, empty = encode([scene.prompt for scene in scenes]), encode([""])
        image = sample_prior(
            self.prior.network, self.prior.schedule, text, empty, generators=streams, **place
        )
        small = sample_decoder(
            self.decoder.network,
            self.decoder.schedule,
            image,
            text,
            empty,
            generators=streams,
            **place,
        )
        large = upscale(
            self.upscaler.network, self.upscaler.schedule, small, generators=streams, **place
        )
        pixels = ((large + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()


class MinDALLEPainter:
    """minDALL-E's whole chain, from loaded weights to the reranker's favourites."""

    def __init__(self, weights: Path | None = None, device: str = "cpu", candidates: int = 1):
        from ..loaders import mindalle
        from ..loaders.reranker import load_reranker
        from ..loaders.sources import Source, find_source

        if weights is None:
            source = find_source("shapes-mindalle", "ar_transformer", [])
        else:
            source = Source(weights.name, "folder", weights.resolve(), "mindalle", frozenset())
        self.place = {"device": torch.device(device), "dtype": torch.float32}
        self.candidates = candidates
        self.vqgan = mindalle.load_vqgan(source).network.to(device)
        self.transformer = mindalle.load_transformer(source)
        self.transformer.network.to(device)
        if candidates > 1:
            self.reranker = load_reranker(find_source("shapes-clip", "reranker", []))
            self.reranker.network.to(device)

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt: uint8 ``[B, 64, 64, 3]``. Prompt i's first seed is
        ``seed + i * candidates``."""
        painted = []
        for i, scene in enumerate(scenes):
            prompt = scene.prompt
            pictures = self._candidates(prompt, seed + i * self.candidates)
            best = self._best(prompt, pictures) if self.candidates > 1 else 0
            painted.append((pictures[best] * 255).round().to(torch.uint8).cpu().numpy())
        return np.stack(painted)

    def _candidates(self, prompt: str, seed: int) -> torch.Tensor:
        from ..loaders.mindalle import tokenize
        from ..networks.vqgan import decode
        from ..samplers.autoregressive import sample_tokens
        from ..samplers.noise import generators

        network, config = self.transformer.network, self.transformer.config
        context = tokenize(self.transformer.tokenizer, [prompt], config.text_tokens).ids
        streams = generators(seed, self.candidates)
        tokens = sample_tokens(network, context, generators=streams, **self.place)
        side = round(config.image_tokens**0.5)
        codes = tokens.view(-1, side, side).to(self.place["device"])
        return (decode(self.vqgan, codes) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def _best(self, prompt: str, pictures: torch.Tensor) -> int:
        from ..loaders.clip import tokenize
        from ..samplers.clip import encode_image, encode_text
        from ..samplers.rerank import order, preprocess, rerank_scores

        clip = self.reranker
        ids, mask, _ = tokenize(clip.tokenizer, [prompt])
        text = encode_text(clip.network["text"], ids, mask, clip.space, **self.place).pooled
        seen = preprocess(pictures, clip.size, clip.mean, clip.std)
        image = encode_image(clip.network["vision"], seen, **self.place)
        return int(order(rerank_scores(text, image))[0])


class KandinskyPainter:
    """Kandinsky 2.2's whole chain: text to image, or one of the other decoders' ways.

    ``mode`` "inpaint" repaints the middle of a picture of another scene on the prompt's
    background; ``outside`` then holds the largest change of a latent outside the mask. "depth"
    follows the silhouette of the prompt's shape as a depth map.
    """

    def __init__(self, weights: Path | None = None, device: str = "cpu", mode: str = "decoder"):
        from ..loaders import kandinsky, unclip
        from ..loaders.sources import EMBEDDED_ROOT, Source

        root = (weights or EMBEDDED_ROOT / "kandinsky").resolve()

        def source(part: str, system: str) -> Source:
            return Source(part, "embedded", root / part, system, frozenset())

        self.place = {"device": torch.device(device), "dtype": torch.float32}
        self.mode, self.outside = mode, 0.0
        towers = source("prior", "kandinsky-prior")
        self.text, self.prior = unclip.load_text_encoder(towers), unclip.load_prior(towers)
        self.zero = kandinsky.zero_image(towers)
        self.decoder = kandinsky.load_latent_decoder(source(mode, "kandinsky"))
        self.movq = kandinsky.load_movq(source("decoder", "kandinsky"))
        for part in (self.text, self.prior, self.decoder, self.movq):
            part.network.to(device)

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt: uint8 ``[B, 64, 64, 3]``."""
        from ..networks.movq import decode
        from ..samplers.latent import sample_latents
        from ..samplers.noise import generators

        # One stream a picture runs through both stages, as in the published pipelines.
        streams = generators(seed, len(scenes))
        embeds = self.embeds([scene.prompt for scene in scenes], streams)
        extra: dict[str, Any] = {}
        if self.mode == "depth":
            extra["hint"] = torch.stack([_silhouette(scene, seed) for scene in scenes])
        elif self.mode == "inpaint":
            extra["kept"] = self._kept(scenes, seed)
        latents = sample_latents(
            self.decoder.network,
            self.decoder.schedule,
            embeds,
            self.zero,
            size=(8, 8),
            generators=streams,
            **extra,
            **self.place,
        )
        if "kept" in extra:
            kept = extra["kept"]
            change = ((latents.cpu() - kept.latents.cpu()) * kept.keep.cpu()).abs().max()
            self.outside = max(self.outside, float(change))
        made = decode(self.movq.network, latents).float()
        pixels = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def embeds(self, prompts: Sequence[str], streams: list[torch.Generator]) -> torch.Tensor:
        """What the prior makes of the prompts ``[B, D]``."""
        from ..loaders.clip import tokenize
        from ..samplers.clip import encode_text
        from ..samplers.prior import sample_prior

        def encode(texts: list[str]) -> Any:
            ids, mask, _ = tokenize(self.text.tokenizer, texts)
            return encode_text(self.text.network, ids, mask, self.text.space, **self.place)

        return sample_prior(
            self.prior.network,
            self.prior.schedule,
            encode(list(prompts)),
            encode([""]),
            generators=streams,
            **self.place,
        )

    def _kept(self, scenes: Sequence[Scene], seed: int) -> Any:
        """Pictures of other scenes on the same backgrounds, and a box in the middle to repaint."""
        from ..networks.movq import encode
        from ..samplers.latent import Kept, keep_mask

        before = [np.asarray(draw(_other(scene), seed)) for scene in scenes]
        pixels = torch.from_numpy(np.stack(before)).permute(0, 3, 1, 2).float() / 127.5 - 1
        mask = torch.zeros(1, 64, 64)
        mask[:, 12:52, 12:52] = 1
        latents = encode(self.movq.network, pixels.to(self.place["device"]))
        return Kept(latents, keep_mask(mask, (8, 8)).expand(len(scenes), -1, -1, -1))


class KoalaPainter:
    """KOALA's whole chain; ``variant`` is "700m" or "1b". The empty prompt is what guidance
    subtracts."""

    def __init__(
        self, weights: Path | None = None, device: str = "cpu", variant: str = "700m"
    ) -> None:
        from ..loaders import koala
        from ..loaders.sources import EMBEDDED_ROOT, Source

        folder = ((weights or EMBEDDED_ROOT / "koala") / variant).resolve()
        source = Source(variant, "embedded", folder, "koala", frozenset())
        self.place = {"device": torch.device(device), "dtype": torch.float32}
        self.text, self.unet = koala.load_text_encoders(source), koala.load_unet(source)
        self.vae = koala.load_vae(source)
        text = self.text.first, self.text.second
        for network in (*text, self.unet.network, self.vae.network):
            network.to(device)

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt: uint8 ``[B, 64, 64, 3]``."""
        from functools import partial

        from ..networks.kl import LatentKL
        from ..networks.unet import prepare_sdxl
        from ..samplers.koala import sample_koala
        from ..samplers.noise import generators

        latents = sample_koala(
            partial(prepare_sdxl, self.unet.network),
            self.unet.schedule,
            self._encode([scene.prompt for scene in scenes]),
            self._encode([""]),
            size=(8, 8),
            generators=generators(seed, len(scenes)),
            **self.place,
        )
        made = LatentKL(self.vae.network).decode(latents).float()
        pixels = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def _encode(self, prompts: list[str]) -> Any:
        from ..loaders.clip import tokenize
        from ..samplers.koala import encode_text_pair

        ids = (
            tokenize(tokenizer, prompts)[0].to(self.place["device"])
            for tokenizer in (self.text.tokenizer, self.text.second_tokenizer)
        )
        return encode_text_pair(self.text.first, self.text.second, *ids)


def _other(scene: Scene) -> Scene:
    """A small scene of another colour and kind on the same background: a mask in the middle covers
    it."""
    colours = [name for name in COLOURS if name not in (scene.colour, scene.background)]
    kinds = [kind for kind in KINDS if kind != scene.kind]
    number = sum(map(ord, scene.prompt))
    return Scene(
        colours[number % len(colours)], kinds[number % len(kinds)], scene.background, "small"
    )


def _silhouette(scene: Scene, seed: int) -> torch.Tensor:
    """A depth map of the scene's shape, near is white: ``[3, 64, 64]`` in 0..1."""
    plain = Scene("white", scene.kind, "black", scene.size or next(iter(SIZES)))
    grey = np.asarray(draw(plain, seed).convert("L"), np.float32) / 255
    low, high = grey.min(), grey.max()
    return torch.from_numpy((grey - low) / (high - low)).expand(3, -1, -1)
