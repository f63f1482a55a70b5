"""The family's members from loaded weights to pictures, at the published defaults.

Each has ``paint(scenes, seed) -> uint8 [B, 64, 64, 3]``: picture i's noise is of the seed ``seed +
i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .grammar import COLOURS, KINDS, SIZES, Scene
from .pictures import draw

if TYPE_CHECKING:
    from ..samplers.kandinsky import Condition, Known
    from ..samplers.parts.noise import Noise
    from ..samplers.parts.sampling import Start

_STAGES = ("text_encoder", "prior", "decoder", "upscaler")


class KarloPainter:
    """Karlo's whole chain, from loaded weights to pictures."""

    def __init__(self, weights: Path | None = None, device: str = "cpu"):
        from ..loaders import karlo, unclip
        from ..loaders.files.catalogue import Source, find_source

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
        self.place = {"device": self.device, "dtype": self.dtype}

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt: uint8 ``[B, 64, 64, 3]``."""
        from ..samplers.parts.noise import Noise

        # One stream a picture runs through all stages, as in the published pipeline.
        noise = Noise.seeded(seed, len(scenes))
        prompts = [scene.prompt for scene in scenes]
        return self.decode(self.embeds(prompts, noise), prompts, noise)

    def embeds(self, prompts: Sequence[str], noise: Noise) -> torch.Tensor:
        """What the prior makes of the prompts ``[B, D]``."""
        return _sampled(self, prompts, noise)

    def decode(self, embeds: torch.Tensor, prompts: Sequence[str], noise: Noise) -> np.ndarray:
        """Pictures of embeddings: uint8 ``[B, 64, 64, 3]``."""
        from ..samplers.karlo import sample_decoder, upscale
        from ..samplers.parts.sampling import Sampling

        small = sample_decoder(
            self.decoder.network,
            self.decoder.schedule,
            embeds,
            _encoded(self.text, prompts, self.place),
            _encoded(self.text, [""], self.place),
            Sampling(noise, **self.place, num_inference_steps=25),
        )
        sampling = Sampling(noise, **self.place, num_inference_steps=7)
        large = upscale(self.upscaler.network, self.upscaler.schedule, small, sampling)
        return _pixels(large)


def _encoded(loaded: Any, prompts: Sequence[str], place: dict[str, Any]) -> Any:
    from ..loaders.clip import tokenize
    from ..samplers.clip import encode_text

    ids, mask, _ = tokenize(loaded.tokenizer, list(prompts))
    return encode_text(loaded.network, ids, mask, loaded.space, **place)


def _sampled(painter: Any, prompts: Sequence[str], noise: Noise) -> torch.Tensor:
    """What the prior of a painter makes of the prompts ``[B, D]``."""
    from ..samplers.parts.sampling import Sampling
    from ..samplers.prior import sample_prior

    return sample_prior(
        painter.prior.network,
        painter.prior.schedule,
        _encoded(painter.text, prompts, painter.place),
        _encoded(painter.text, [""], painter.place),
        Sampling(noise, **painter.place, num_inference_steps=25),
    )


def _pixels(pictures: torch.Tensor) -> np.ndarray:
    """``[B, 3, H, W]`` in -1..1 -> uint8 ``[B, H, W, 3]``."""
    pixels = ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


class MinDALLEPainter:
    """minDALL-E's whole chain, from loaded weights to the reranker's favourites."""

    def __init__(self, weights: Path | None = None, device: str = "cpu", candidates: int = 1):
        from ..loaders import mindalle
        from ..loaders.files.catalogue import Source, find_source
        from ..loaders.rerank import load_reranker

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
        from ..networks.mindalle_vqgan import decode
        from ..samplers.mindalle import Draw, sample_tokens
        from ..samplers.parts.noise import Noise

        network, config = self.transformer.network, self.transformer.config
        context = tokenize(self.transformer.tokenizer, [prompt], config.text_tokens).ids
        drawn = Draw(Noise.seeded(seed, self.candidates), **self.place)
        tokens = sample_tokens(network, context, drawn)
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
    """Kandinsky's whole chain: text to image, or one of the other decoders' ways.

    ``mode`` "inpaint" repaints the middle of a picture of another scene on the prompt's
    background; ``outside`` then holds the largest change of a latent outside the mask. "depth"
    follows the silhouette of the prompt's shape as a depth map. "2-1" is Kandinsky 2.1, all others
    are 2.2.
    """

    def __init__(self, weights: Path | None = None, device: str = "cpu", mode: str = "decoder"):
        from ..loaders import kandinsky, unclip
        from ..loaders.files.catalogue import EMBEDDED_ROOT, Source, find_source

        root = (weights or EMBEDDED_ROOT / "kandinsky").resolve()

        def source(part: str, system: str) -> Source:
            return Source(part, "embedded", root / part, system, frozenset())

        self.place = {"device": torch.device(device), "dtype": torch.float32}
        self.mode, self.outside = mode, 0.0
        old = mode == "2-1"
        prior = source("2-1-prior" if old else "prior", "kandinsky-prior")
        self.text = unclip.load_text_encoder(
            find_source("shapes-karlo", "text_encoder", []) if old else prior
        )
        self.prior, self.zero = unclip.load_prior(prior), unclip.stored_zero_image(prior)
        self.decoder = kandinsky.load_latent_decoder(source(mode, "kandinsky"))
        self.mclip = kandinsky.load_mclip(source(mode, "kandinsky")) if old else None
        self.movq = kandinsky.load_movq(source("decoder", "kandinsky"))
        for part in (self.text, self.prior, self.decoder, self.movq, self.mclip):
            if part is not None:
                part.network.to(device)

    def paint(self, scenes: Sequence[Scene], seed: int) -> np.ndarray:
        """One picture a scene's prompt: uint8 ``[B, 64, 64, 3]``."""
        from ..samplers.parts.noise import Noise

        # One stream a picture runs through both stages, as in the published pipelines.
        noise = Noise.seeded(seed, len(scenes))
        prompts = [scene.prompt for scene in scenes]
        hint = known = None
        if self.mode == "depth":
            hint = torch.stack([_silhouette(scene, seed) for scene in scenes])
        elif self.mode == "inpaint":
            known = self._known(scenes, seed)
        embeds = self.embeds(prompts, noise)
        return self.decode(embeds, prompts, noise, known=known, hint=hint)

    def decode(
        self,
        embeds: torch.Tensor,
        prompts: Sequence[str],
        noise: Noise,
        start: Start | None = None,
        known: Known | None = None,
        hint: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Pictures of embeddings: uint8 ``[B, 64, 64, 3]``."""
        from ..networks.kandinsky_movq import decode
        from ..samplers.kandinsky import Canvas, sample_latents
        from ..samplers.parts.sampling import Sampling

        latents = sample_latents(
            self.decoder.network,
            self.decoder.schedule,
            self._condition(embeds, prompts, hint),
            self._condition(self.zero, [""], hint),
            Canvas((8, 8), start, known),
            Sampling(noise, **self.place, num_inference_steps=100),
        )
        if known is not None:
            change = ((latents.cpu() - known.latents.cpu()) * known.mask.cpu()).abs().max()
            self.outside = max(self.outside, float(change))
        return _pixels(decode(self.movq.network, latents))

    def embeds(self, prompts: Sequence[str], noise: Noise) -> torch.Tensor:
        """What the prior makes of the prompts ``[B, D]``."""
        return _sampled(self, prompts, noise)

    def _condition(
        self, embeds: torch.Tensor, prompts: Sequence[str], hint: torch.Tensor | None
    ) -> Condition:
        from ..samplers.kandinsky import Condition

        if self.mclip is None:
            return Condition(embeds, hint=hint)
        encoded = _encoded(self.mclip, prompts, self.place)
        return Condition(embeds, encoded.hidden, encoded.pooled)

    def _known(self, scenes: Sequence[Scene], seed: int) -> Known:
        """Pictures of other scenes on the same backgrounds, and a box in the middle to repaint."""
        from ..networks.kandinsky_movq import encode
        from ..samplers.kandinsky import Known, known_mask

        before = [np.asarray(draw(_other(scene), seed)) for scene in scenes]
        pixels = torch.from_numpy(np.stack(before)).permute(0, 3, 1, 2).float() / 127.5 - 1
        mask = torch.zeros(1, 64, 64)
        mask[:, 12:52, 12:52] = 1
        latents = encode(self.movq.network, pixels.to(self.place["device"]))
        return Known(latents, known_mask(mask, (8, 8)).expand(len(scenes), -1, -1, -1))


class KoalaPainter:
    """KOALA's whole chain; ``variant`` is "700m" or "1b". The empty prompt is what guidance
    subtracts."""

    def __init__(
        self, weights: Path | None = None, device: str = "cpu", variant: str = "700m"
    ) -> None:
        from ..loaders import koala
        from ..loaders.files.catalogue import EMBEDDED_ROOT, Source

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
        from ..samplers.parts.noise import Noise

        return self.decode([scene.prompt for scene in scenes], Noise.seeded(seed, len(scenes)))

    def decode(
        self,
        prompts: Sequence[str],
        noise: Noise,
        pooled: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Pictures of prompts: uint8 ``[B, 64, 64, 3]``; ``pooled`` ``[B, D]`` in the place of the
        prompts' own pooled embedding."""
        from ..networks.koala import prepare_sdxl
        from ..networks.koala_vae import LatentKL
        from ..samplers.koala import sample_koala
        from ..samplers.parts.sampling import Sampling

        text = self._encode(list(prompts))
        latents = sample_koala(
            partial(prepare_sdxl, self.unet.network),
            self.unet.schedule,
            text if pooled is None else replace(text, pooled=pooled),
            self._encode([""]),
            (8, 8),
            Sampling(noise, **self.place, num_inference_steps=25),
        )
        return _pixels(LatentKL(self.vae.network).decode(latents))

    def _encode(self, prompts: list[str]) -> Any:
        from ..loaders.clip import tokenize
        from ..samplers.koala import encode_text_pair

        ids = (
            tokenize(tokenizer, prompts, cleaned=False)[0].to(self.place["device"])
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
