"""The embedded host: the same nodes without ComfyUI, for the headless runner and for tests.

The same names as :mod:`.comfyui`. Networks move to the GPU, where there is one, when a stage uses
them, and back when the next stage comes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...edges import (
    EdgeError,
    EmbeddingSpace,
    Role,
    SDXLText,
    check_image,
    cut_to_asked,
    placed,
    sdxl_to_conditioning,
    text_to_conditioning,
)
from ...headless.core_rows import tiled
from ...networks.kandinsky_movq import LatentMoVQ
from ...networks.koala_vae import LatentKL
from ...networks.mindalle_vqgan import LatentVQGAN
from ...samplers.parts.schedule import published_sigmas
from ..prompts import Chunk, chunks, empty_chunk, plain_warnings, weigh
from . import io as io
from .io import ComfyExtension

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...loaders.clip import Preprocess
    from ...loaders.kandinsky import LatentDecoder, MoVQ
    from ...loaders.karlo import LoadedDecoder
    from ...loaders.koala import SDXLVAE, KoalaFacts, KoalaUNet, TextEncoderPair
    from ...loaders.mindalle_vqgan import VQGAN
    from ...loaders.unclip import ImageEncoder, TextEncoder
    from ...samplers.koala import Prepare
    from ...samplers.parts.schedule import UnCLIPSchedule

NAME = "the embedded host"
MODELS_VARIABLE = "PRIOR_ART_MODELS"
EMBEDDINGS = "image_embeds"
PACK = Path(__file__).resolve().parents[2]

logger = logging.getLogger("prior_art")

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Interrupted(Exception):
    """The user stopped the run."""


@dataclass
class Session:
    """What surrounds the running workflow: folders, what SaveImage notes in its PNGs, who listens
    to progress and warnings, the stop button."""

    input_folder: Path = Path("input")
    output_folder: Path = Path("output")
    prompt: dict[str, Any] | None = None
    workflow: dict[str, Any] | None = None
    on_progress: Callable[[int, int, Image | None], None] | None = None
    on_warning: Callable[[str], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


session = Session()


@dataclass
class Managed:
    """A network in the embedded host's care."""

    network: nn.Module


@dataclass(frozen=True)
class Model:
    """MODEL: Karlo's decoder."""

    managed: Managed
    schedule: UnCLIPSchedule
    space: EmbeddingSpace


@dataclass(frozen=True)
class LatentModel:
    """MODEL: a Kandinsky decoder."""

    managed: Managed
    loaded: LatentDecoder


@dataclass(frozen=True)
class KoalaModel:
    """MODEL: a U-Net of SDXL's kind."""

    managed: Managed
    facts: KoalaFacts


@dataclass(frozen=True)
class ClipPair:
    """CLIP: SDXL's two text encoders, with the two methods that native CLIP Text Encode calls."""

    managed: Managed
    loaded: TextEncoderPair

    def tokenize(self, text: str) -> tuple[list[Chunk], list[Chunk]]:
        """Weighed tokens for both, as the host reads a prompt."""
        tokenizers = self.loaded.tokenizer, self.loaded.second_tokenizer
        first, second = (chunks(tokenizer, text) for tokenizer in tokenizers)
        return first, second

    def encode(self, ids: torch.Tensor, second_ids: torch.Tensor) -> SDXLText:
        """Both encoders on token ids ``[B, 77]``."""
        from ...samplers.koala import encode_text_pair

        towers, device, _ = use(self.managed)
        ids, second_ids = ids.to(device), second_ids.to(device)
        return encode_text_pair(towers["first"], towers["second"], ids, second_ids)

    def encode_from_tokens_scheduled(self, tokens: tuple[list[Chunk], list[Chunk]]) -> list:
        """The tokens' CONDITIONING: the chunks' hidden states in a row, the first one's pooled
        embedding."""
        loaded, count = self.loaded, max(map(len, tokens))
        if any(weight != 1 for tower in tokens for chunk in tower for _, weight in chunk):
            count += 1  # what they are measured from comes last
        parts = []
        tokenizers = loaded.tokenizer, loaded.second_tokenizer
        for tower, tokenizer in zip(tokens, tokenizers, strict=True):
            ids = [[token for token, _ in chunk] for chunk in tower]
            ids += [empty_chunk(tokenizer)] * (count - len(ids))
            parts.append((ids, torch.tensor([[weight for _, weight in chunk] for chunk in tower])))
        (ids, weights), (second_ids, second_weights) = parts
        text = self.encode(torch.tensor(ids), torch.tensor(second_ids))
        width = loaded.first.config.hidden_size
        towers = [
            weigh(hidden[: len(share)], hidden[-1], share).flatten(0, 1)
            for hidden, share in (
                (text.hidden[..., :width], weights),
                (text.hidden[..., width:], second_weights),
            )
        ]
        shorter = min(map(len, towers))
        hidden = torch.cat([tower[:shorter] for tower in towers], dim=-1)[None]
        return sdxl_to_conditioning(SDXLText(offload(hidden), offload(text.pooled[:1])))


@dataclass(frozen=True)
class Clip:
    """CLIP: a text tower, with the two methods that native CLIP Text Encode calls."""

    managed: Managed
    tokenizer: Any
    space: EmbeddingSpace

    def tokenize(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask; the user is told what was cut or read as plain text."""
        from ...loaders.clip import tokenize

        ids, mask, cut = tokenize(self.tokenizer, [text])
        for message in plain_warnings(text, cut[0], ids.shape[1]):
            warn(message)
        return ids, mask

    def encode_from_tokens_scheduled(self, tokens: tuple[torch.Tensor, torch.Tensor]) -> list:
        """The tokens' CONDITIONING."""
        from ...samplers.clip import encode_text

        network, device, dtype = use(self.managed)
        return text_to_conditioning(encode_text(network, *tokens, self.space, device, dtype))


@dataclass(frozen=True)
class ClipVision:
    """CLIP_VISION: an image tower, with the method that native CLIP Vision Encode calls."""

    managed: Managed
    preprocess: Preprocess
    space: EmbeddingSpace

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> Any:
        """An IMAGE's CLIP_VISION_OUTPUT, preprocessed as published; without ``crop``, the whole
        picture squeezed square."""
        from ...samplers.clip import encode_image

        check_image(image, "image")
        pixels = (self.preprocess if crop else self.preprocess.whole())(image[..., :3])
        network, device, dtype = use(self.managed)
        embeds = offload(encode_image(network, pixels, device, dtype))
        return clip_vision_output(
            embeds, embedding_space=self.space.name, made_by="CLIP Vision Encode"
        )


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
    facts: VQGAN | MoVQ | SDXLVAE

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """IMAGE ``[B, H, W, 3]`` → latent, cut to multiples of the factor as native VAEs do."""
        return self._each("encode", self._cut(pixels))

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """The middle of an IMAGE as the network sees it ``[B, 3, H, W]``.

        Raises:
            EdgeError: nothing is left.
        """
        high, wide = (side - side % self.factor for side in pixels.shape[1:3])
        if not high or not wide:
            raise EdgeError(
                f"a picture of {pixels.shape[2]}×{pixels.shape[1]} is smaller than one place of"
                f" this VAE's latent, {self.factor} pixels; wire a larger one"
            )
        top, left = (pixels.shape[1] - high) // 2, (pixels.shape[2] - wide) // 2
        return pixels[:, top : top + high, left : left + wide, :3].movedim(-1, 1) * 2 - 1

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Latent → IMAGE ``[B, H, W, 3]``."""
        pixels = (self._each("decode", samples) * 0.5 + 0.5).clamp(0, 1).movedim(1, -1)
        return cut_to_asked(pixels, samples)

    def decode_tiled(self, samples: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        """Latent → IMAGE in tiles of so many places, as native VAEs do it."""
        pixels = self._tiles("decode", samples, tile, overlap, self.factor)
        return (pixels * 0.5 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode_tiled(self, pixels: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        """IMAGE → latent in tiles of so many pixels, as native VAEs do it."""
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
        return torch.cat([offload(run(row[None].to(device, dtype)).float()) for row in rows])


_on_device: list[Managed] = []


def model_folders() -> list[Path]:
    """``$PRIOR_ART_MODELS`` (several, separated as in PATH), else ``models/prior_art``: that of
    the current folder, then the pack's own."""
    named = os.environ.get(MODELS_VARIABLE)
    if named:
        return [Path(part).expanduser() for part in named.split(os.pathsep) if part]
    here, own = Path("models") / "prior_art", PACK / "models" / "prior_art"
    return [here] if here.resolve() == own.resolve() else [here, own]


def embedding_folders() -> list[Path]:
    """Where files of image embeddings are: the first is written to."""
    return [session.output_folder / EMBEDDINGS, session.input_folder]


def pick_dtype(choice: str, role: Role) -> torch.dtype:
    """Storage dtype: ``auto`` is fp32 on the CPU and fp16 on a GPU.

    Raises:
        ValueError: another ``choice`` than auto, fp32, fp16, bf16.
    """
    if choice == "auto":
        return torch.float16 if torch.cuda.is_available() else torch.float32
    if choice not in _DTYPES:
        raise ValueError(f"unknown dtype '{choice}'; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[choice]


def manage(network: nn.Module) -> Managed:
    """Take a network into care."""
    return Managed(network)


def use(
    managed: Managed, memory_required: int = 0, beside: Sequence[Managed] = ()
) -> tuple[nn.Module, torch.device, torch.dtype]:
    """Put a network on the device, and those of the stage before back: (network, device, dtype).

    ``beside`` are networks that the same stage uses too.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [managed, *beside]
    for other in [other for other in _on_device if other not in wanted]:
        other.network.to("cpu")
        _on_device.remove(other)
    for one in wanted if device.type != "cpu" else ():
        if one not in _on_device:
            one.network.to(device)
            _on_device.append(one)
    return managed.network, device, next(managed.network.parameters()).dtype


def free_memory() -> int:
    """Bytes that are free on the device that computes."""
    if torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 4 * 2**30


def wrap_decoder(loaded: LoadedDecoder) -> Model:
    """Karlo's decoder as MODEL."""
    return Model(manage(loaded.network), loaded.schedule, loaded.space)


def open_decoder(model: Any) -> tuple[Managed, UnCLIPSchedule, EmbeddingSpace]:
    """The decoder in a MODEL.

    Raises:
        EdgeError: another kind of MODEL.
    """
    if not isinstance(model, Model):
        raise EdgeError(
            f"'model' is another kind of MODEL ({type(model).__name__}); this node needs Karlo's"
            " decoder from 'Load Decoder (unCLIP)'"
        )
    return model.managed, model.schedule, model.space


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


def latent_sampler() -> str:
    """The published learned-range DDPM as SAMPLER: the name that the runner's SamplerCustom
    knows."""
    return "kandinsky_ddpm"


def latent_sigmas(model: Any, steps: int, denoise: float) -> torch.Tensor:
    """The published timesteps' noise levels, and 0, as SIGMAS.

    Raises:
        EdgeError: another kind of MODEL, steps or denoise out of range.
    """
    return published_sigmas(open_latent_decoder(model)[1].schedule, steps, denoise)


def wrap_koala(loaded: KoalaUNet, colours: torch.Tensor | None) -> KoalaModel:
    """A U-Net of SDXL's kind as MODEL; ``colours`` are those of its latents, for previews."""
    from ...loaders.koala import facts_of

    return KoalaModel(manage(loaded.network), facts_of(loaded, colours))


def koala_facts(model: Any) -> KoalaFacts:
    """What is known of the U-Net in a MODEL.

    Raises:
        EdgeError: another kind of MODEL.
    """
    if not isinstance(model, KoalaModel):
        raise EdgeError(
            f"'model' is another kind of MODEL ({type(model).__name__}); this node needs a U-Net"
            " of SDXL's kind from 'Load KOALA'"
        )
    return model.facts


def use_koala(model: KoalaModel, memory_required: int) -> tuple[Prepare, torch.device, torch.dtype]:
    """Put a U-Net on the device: (what prepares it for a prompt, device, dtype)."""
    from ...networks.unet import prepare_sdxl

    network, device, dtype = use(model.managed, memory_required)
    return partial(prepare_sdxl, network), device, dtype


def wrap_text_pair(loaded: TextEncoderPair) -> ClipPair:
    """SDXL's two text encoders as CLIP."""
    towers = nn.ModuleDict({"first": loaded.first, "second": loaded.second})
    return ClipPair(manage(towers), loaded)


def encode_sdxl(clip: Any, text: str) -> SDXLText:
    """A prompt through both text encoders, cut to their length with a warning.

    Raises:
        EdgeError: another kind of CLIP.
    """
    if not isinstance(clip, ClipPair):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(clip).__name__}); this node needs"
            " SDXL's two, from 'Load KOALA'"
        )
    from ...loaders.clip import tokenize

    tokenizers = clip.loaded.tokenizer, clip.loaded.second_tokenizer
    (first, _, cut), (second, _, _) = (tokenize(one, [text]) for one in tokenizers)
    if cut[0]:
        warn(f"the prompt has more than {first.shape[1]} tokens; not seen: '{cut[0]}'")
    return clip.encode(first, second)


def wrap_sdxl_vae(loaded: SDXLVAE) -> Vae:
    """SDXL's VAE as VAE."""
    factor = 2 ** (len(loaded.network.config.block_out_channels) - 1)
    return Vae(manage(loaded.network), LatentKL(loaded.network), factor, loaded)


def model_files(kind: str) -> list[str]:
    """Files of the host's own folder ``kind`` ("text_encoders", "vae"): it has none."""
    return []


def load_text_pair_files(clip_l: str, clip_g: str) -> ClipPair:
    """CLIP of two of those files: there are none.

    Raises:
        EdgeError: always.
    """
    raise EdgeError(f"{NAME} has no folder for '{clip_l}' and '{clip_g}'; run this in ComfyUI")


def load_sdxl_vae_file(name: str) -> Vae:
    """VAE of one of those files: there are none.

    Raises:
        EdgeError: always.
    """
    raise EdgeError(f"{NAME} has no folder for '{name}'; run this in ComfyUI")


def wrap_text_encoder(loaded: TextEncoder) -> Clip:
    """A text tower as CLIP."""
    return Clip(manage(loaded.network), loaded.tokenizer, loaded.space)


def open_text_encoder(clip: Any) -> tuple[Managed, Any, EmbeddingSpace]:
    """The text tower in a CLIP, its tokenizer and its space.

    Raises:
        EdgeError: another kind of CLIP.
    """
    if not isinstance(clip, Clip):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(clip).__name__}); this node needs one"
            " from 'Load Text Encoder (unCLIP)' or 'Load CLIP (Rerank)'"
        )
    return clip.managed, clip.tokenizer, clip.space


def wrap_image_encoder(loaded: ImageEncoder) -> ClipVision:
    """An image tower as CLIP_VISION."""
    return ClipVision(manage(loaded.network), loaded.preprocess, loaded.space)


def open_image_encoder(clip_vision: Any) -> tuple[Managed, Any, EmbeddingSpace]:
    """The image tower in a CLIP_VISION, its preprocessing and its space.

    Raises:
        EdgeError: another kind of CLIP_VISION.
    """
    if not isinstance(clip_vision, ClipVision):
        raise EdgeError(
            f"'clip_vision' is another kind of image encoder ({type(clip_vision).__name__}); this"
            " node needs one from 'Load Image Encoder (unCLIP)' or 'Load CLIP (Rerank)'"
        )
    return clip_vision.managed, clip_vision.preprocess, clip_vision.space


def wrap_movq(loaded: MoVQ) -> Vae:
    """A MoVQ as VAE."""
    return Vae(manage(loaded.network), LatentMoVQ(loaded.network), loaded.factor, loaded)


def open_movq(vae: Any) -> tuple[Managed, MoVQ]:
    """The MoVQ in a VAE, and what its loader knows about it.

    Raises:
        EdgeError: another kind of VAE.
    """
    return _open(vae, LatentMoVQ, "Load MoVQ")


def wrap_vqgan(loaded: VQGAN) -> Vae:
    """A VQGAN as VAE."""
    return Vae(manage(loaded.network), LatentVQGAN(loaded.network), loaded.factor, loaded)


def open_vqgan(vae: Any) -> tuple[Managed, VQGAN]:
    """The VQGAN in a VAE, and what its loader knows about it.

    Raises:
        EdgeError: another kind of VAE.
    """
    return _open(vae, LatentVQGAN, "Load VQGAN")


def _open(vae: Any, coder: type, loader: str) -> tuple[Managed, Any]:
    if not isinstance(getattr(vae, "coder", None), coder):
        raise EdgeError(
            f"'vae' is another kind of VAE ({type(vae).__name__}); this node needs one from"
            f" '{loader}'"
        )
    return vae.managed, vae.facts


def clip_vision_output(image_embeds: torch.Tensor, **extra: Any) -> SimpleNamespace:
    """A CLIP_VISION_OUTPUT of unnormalised ``image_embeds`` ``[B, D]`` and further attributes."""
    return SimpleNamespace(image_embeds=image_embeds, **extra)


def progress(total: int) -> Callable[[int, Image | None], None]:
    """``update(step, preview)`` for the running node; raises :class:`Interrupted` when stopped."""

    def update(step: int, preview: Image | None = None) -> None:
        if session.on_progress is not None:
            session.on_progress(step, total, preview)
        if session.stop.is_set():
            raise Interrupted(f"stopped at step {step} of {total}")

    return update


def offload(value: Any) -> Any:
    """A node's output, a tensor or lists and dicts of them, in main memory, where what waits
    between nodes is kept."""
    return placed(value, "cpu")


def with_image_normalizer(model: Any, mean: torch.Tensor, std: torch.Tensor) -> Any:
    """A Stable Diffusion 2.1 unCLIP, which only ComfyUI has, with these statistics.

    Raises:
        EdgeError: always.
    """
    raise EdgeError(
        f"'model' is {type(model).__name__}, but an image normalizer belongs to a Stable Diffusion"
        " 2.1 unCLIP, which only ComfyUI runs"
    )


def warn(message: str) -> None:
    """Tell the user."""
    if session.on_warning is not None:
        session.on_warning(message)
    else:
        logger.warning("%s", message)


__all__ = [
    "NAME",
    "Clip",
    "ClipPair",
    "ClipVision",
    "ComfyExtension",
    "Interrupted",
    "KoalaModel",
    "LatentModel",
    "Managed",
    "Model",
    "Vae",
    "clip_vision_output",
    "embedding_folders",
    "encode_sdxl",
    "free_memory",
    "io",
    "koala_facts",
    "latent_sampler",
    "latent_sigmas",
    "load_sdxl_vae_file",
    "load_text_pair_files",
    "manage",
    "model_files",
    "model_folders",
    "offload",
    "open_decoder",
    "open_image_encoder",
    "open_latent_decoder",
    "open_movq",
    "open_text_encoder",
    "open_vqgan",
    "pick_dtype",
    "progress",
    "use",
    "use_koala",
    "warn",
    "with_image_normalizer",
    "wrap_decoder",
    "wrap_image_encoder",
    "wrap_koala",
    "wrap_latent_decoder",
    "wrap_movq",
    "wrap_sdxl_vae",
    "wrap_text_encoder",
    "wrap_text_pair",
    "wrap_vqgan",
]
