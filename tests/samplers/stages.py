"""A Karlo's stages as plain functions, with the devices and dtypes filled in."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prior_art.edges import TextEncoding
from prior_art.loaders import karlo, unclip
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import find_source
from prior_art.samplers.clip import encode_image, encode_text
from prior_art.samplers.karlo import sample_decoder, upscale
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling
from prior_art.samplers.prior import sample_prior

CPU = torch.device("cpu")


class Stages:
    """The stages of one folder, in fp32 on the CPU."""

    dtype = torch.float32

    def __init__(self, folder: Path) -> None:
        def load(loader: Any, stage: str) -> Any:
            return loader(find_source(folder.name, stage, [folder.parent]), torch.float32)

        self.folder = folder
        self.text_encoder = load(unclip.load_text_encoder, "text_encoder")
        self.image_encoder = load(unclip.load_image_encoder, "image_encoder")
        self.loaded_prior = load(unclip.load_prior, "prior")
        self.loaded_decoder = load(karlo.load_decoder, "decoder")
        self.loaded_upscaler = load(karlo.load_upscaler, "upscaler")

    def double(self) -> Stages:
        """The same stages computing in fp64; the samplers' state stays fp32."""
        other = copy.copy(self)
        for name, loaded in vars(self).items():
            if hasattr(loaded, "network"):
                network = copy.deepcopy(loaded.network).double()
                setattr(other, name, replace(loaded, network=network))
        # The pipeline draws noise in the dtype of this output, so on its side it is fp32.
        other.loaded_decoder.network.text_proj.register_forward_hook(
            lambda module, args, out: tuple(x.float().double() for x in out)
        )
        other.dtype = torch.float64
        return other

    def text(self, *prompts: str) -> TextEncoding:
        ids, mask, _ = tokenize(self.text_encoder.tokenizer, prompts)
        encoder = self.text_encoder
        return encode_text(encoder.network, ids, mask, encoder.space, CPU, self.dtype)

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        """``[B, H, W, 3]`` in 0..1 to embeddings ``[B, D]``."""
        pixels = self.image_encoder.preprocess(pixels)
        return encode_image(self.image_encoder.network, pixels, CPU, self.dtype)

    def prior(self, *args: Any, **options: Any) -> torch.Tensor:
        return self._run(sample_prior, self.loaded_prior, *args, **options)

    def decoder(self, *args: Any, **options: Any) -> torch.Tensor:
        return self._run(sample_decoder, self.loaded_decoder, *args, **options)

    def upscaler(self, *args: Any, **options: Any) -> torch.Tensor:
        return self._run(upscale, self.loaded_upscaler, *args, **options)

    def _run(
        self,
        sampler: Any,
        loaded: Any,
        *args: Any,
        steps: int,
        generators: list[torch.Generator] | None = None,
        noise: Noise | None = None,
        dtype: torch.dtype | None = None,
        callback: Any = None,
        **options: Any,
    ) -> Any:
        noise = noise or Noise(generators)
        sampling = Sampling(noise, CPU, dtype or self.dtype, steps, callback)
        return sampler(loaded.network, loaded.schedule, *args, sampling, **options)
