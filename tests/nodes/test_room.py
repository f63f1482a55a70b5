"""Nodes that can be told large sizes say so before they take memory that is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prior_art.edges import EdgeError
from prior_art.headless import core_images, core_latents
from prior_art.headless.core_nodes import VAEDecode
from prior_art.headless.core_pictures import read_picture
from prior_art.headless.core_sampling import KSampler
from prior_art.host import host, room
from prior_art.host.embedded import memory
from prior_art.nodes.kandinsky import KandinskyDecoder, LoadLatentDecoder
from prior_art.nodes.karlo import KarloDecoder, KarloUpscale, LoadDecoder, LoadUpscaler
from prior_art.nodes.koala import KoalaSample, KoalaTextEncode, LoadKoala
from prior_art.nodes.unclip import LoadTextEncoder, TextEncode

from .conftest import SOURCE

ONE = {"seed": 0, "steps": 2, "cfg": 4.0}


@pytest.fixture
def given(models, monkeypatch) -> None:
    """A machine with half a megabyte of memory."""
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))
    for module in (room, memory):
        monkeypatch.setattr(module, "main_memory", lambda: 2**19)


def embedding(dim: int = 32) -> Any:
    return host.clip_vision_output(torch.ones(1, dim), embedding_space="custom-32d", made_by="here")


def karlo(batch: int) -> Any:
    (model,), (clip,) = LoadDecoder.execute(SOURCE, "fp32").args, texts().args
    text = TextEncode.execute(clip, "a circle").args[0]
    return KarloDecoder.execute(model, embedding(), text, text, batch_size=batch, **ONE)


def texts() -> Any:
    return LoadTextEncoder.execute(SOURCE, "fp32")


def upscaled(count: int) -> Any:
    (upscaler,) = LoadUpscaler.execute(SOURCE, "fp32").args
    return KarloUpscale.execute(upscaler, torch.rand(count, 8, 8, 3), seed=0, steps=2)


def kandinsky(batch: int, side: int = 64) -> Any:
    model = LoadLatentDecoder.execute("tiny-kandinsky/decoder", "fp32", "published").args[0]
    sides = {"image_embeds": embedding(), "negative_image_embeds": embedding()}
    return KandinskyDecoder.execute(
        model=model, width=side, height=side, batch_size=batch, **sides, **ONE
    )


def koala(batch: int, sampler: Callable[..., Any] | None = None) -> Any:
    own = "from the source"
    model, clip, _ = LoadKoala.execute("tiny-koala/koala-1b", "fp32", "any KOALA", *[own] * 3).args
    sizes = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
    text = KoalaTextEncode.execute(clip, "a cat", **dict.fromkeys(sizes, 64)).args[0]
    if sampler is not None:
        return sampler(model, text)
    spacing = {"timestep_spacing": "as published"}
    return KoalaSample.execute(
        model=model, positive=text, width=64, height=64, batch_size=batch, **spacing, **ONE
    )


def by_ksampler(model: Any, text: Any) -> Any:
    latent = {"samples": torch.zeros(32, 4, 8, 8)}
    chosen = {"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sides = {"positive": text, "negative": text, "latent_image": latent}
    return KSampler.execute(model=model, **sides, **chosen, **ONE)


def decoded() -> Any:
    vae = LoadKoala.execute("tiny-koala/koala-1b", "fp32", "any KOALA", *["from the source"] * 3)
    return VAEDecode.execute({"samples": torch.zeros(64, 4, 8, 8)}, vae.args[2])


def opened(folder: Path) -> Any:
    Image.new("L", (256, 256)).save(folder / "wide.png")
    return read_picture(folder / "wide.png")


LATENT = {"samples": torch.zeros(1, 4, 64, 64)}
PICTURE = torch.zeros(1, 64, 64, 3)
LARGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Karlo Decoder": (lambda _: karlo(64), "64 pictures .*'batch_size'"),
    "Karlo Upscale": (lambda _: upscaled(16), "16 pictures of 32x32 .*'image'"),
    "Kandinsky Decoder": (lambda _: kandinsky(64), "64 pictures of 64x64 .*'width' or 'height'"),
    "KOALA Sample": (lambda _: koala(64), "64 pictures of 64x64 .*'width' or 'height'"),
    "KSampler": (lambda _: koala(1, by_ksampler), "32 latents of 8x8 .*'latent_image'"),
    "VAE Decode": (lambda _: decoded(), r"64 pictures of \d+x\d+ .*'samples'"),
    "Empty Latent Image": (
        lambda _: core_latents.EmptyLatentImage.execute(16384, 16384, 4096),
        "4096 latents for 16384x16384 .*'batch_size'",
    ),
    "Repeat Latent Batch": (
        lambda _: core_latents.RepeatLatentBatch.execute(LATENT, 64),
        "64 times .*'amount'",
    ),
    "Upscale Latent": (
        lambda _: core_latents.LatentUpscale.execute(LATENT, "bilinear", 16384, 0, "disabled"),
        "of 2048x2048 .*'width'",
    ),
    "Repeat Image Batch": (
        lambda _: core_images.RepeatImageBatch.execute(PICTURE, 4096),
        "4096 times .*'amount'",
    ),
    "Upscale Image By": (
        lambda _: core_images.ImageScaleBy.execute(PICTURE, "lanczos", 8.0),
        "of 512x512 .*'scale_by'",
    ),
    "Solid Mask": (
        lambda _: core_images.SolidMask.execute(1.0, 16384, 16384),
        "16384x16384 .*'width'",
    ),
    "Load Image": (opened, "'image' is 'wide.png' of 256x256"),
}


@pytest.mark.parametrize("node", LARGE)
def test_what_does_not_fit_is_refused_with_figures(given, tmp_path: Path, node: str) -> None:
    ask, words = LARGE[node]
    with pytest.raises(EdgeError, match=words) as error:
        ask(tmp_path)
    assert re.search(r"at least \d+\.\d GB of memory, of which there are 0\.0; ", str(error.value))


@pytest.mark.parametrize("ask", [karlo, kandinsky, koala])
def test_one_small_picture_fits(given, ask: Callable[[int], Any]) -> None:
    ask(1)


class Held(TorchDispatchMode):
    """The most bytes of tensors made here that are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._seen = 0, WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._seen.update({one: True for one in tree_leaves(made) if torch.is_tensor(one)})
        storages = {(own := one.untyped_storage()).data_ptr(): own.nbytes() for one in self._seen}
        self.most = max(self.most, sum(storages.values()))
        return made


@pytest.mark.parametrize("ask", [karlo, kandinsky, koala, upscaled])
def test_a_unet_holds_more_than_the_estimate(models, monkeypatch, ask: Callable) -> None:
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))
    monkeypatch.setitem(ONE, "cfg", 1.0)  # without guidance it holds half as much
    asked, held = [], Held()

    def watch(needed: int, *_: str) -> None:
        asked.append(needed)
        held.__enter__()

    monkeypatch.setattr(host, "check_room", watch)
    try:
        ask(4)
    finally:
        held.__exit__(None, None, None)
    assert held.most > asked[0] > 0
