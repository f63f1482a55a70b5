"""KOALA's U-Nets as MODEL, SDXL's two text encoders as CLIP, its VAE, and back again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...edges import (
    EdgeError,
    SDXLText,
    check_pooled,
    conditioning_to_sdxl,
    sdxl_to_conditioning,
    sizes_beside,
)
from ...networks.koala import prepare_sdxl
from ...networks.koala_vae import LatentKL
from ...samplers.koala import FACTOR, LATENT_SCALE
from ...samplers.parts.schedule import UnCLIPSchedule
from ..api import Adapter
from ..prompts import SYNTAX_LOADERS, Chunk, chunks, empty_chunk, weigh
from .memory import Managed, manage, offload, use
from .rows import fitted
from .sampling import Prepared, Prompt, check_latents
from .session import warn
from .vae import Vae

if TYPE_CHECKING:
    from ...loaders.koala import SDXLVAE, KoalaFacts, KoalaUNet, TextEncoderPair


@dataclass(frozen=True)
class KoalaModel:
    """MODEL: a U-Net of SDXL's kind."""

    managed: Managed
    facts: KoalaFacts
    scale = LATENT_SCALE

    def sigmas(self) -> torch.Tensor:
        """Noise over signal at every training timestep, ascending, fp32."""
        return torch.from_numpy(self.facts.schedule.sigmas())

    def prepare(
        self,
        prompts: list[Prompt],
        start: torch.Tensor,
        mask: torch.Tensor | None,
        times: list[int],
        seed: int,
    ) -> Prepared:
        """A U-Net of SDXL's kind; where a prompt names no sizes, they are those of the latents."""
        facts, count = self.facts, len(start)
        network, device, dtype = use(self.managed)
        check_latents(network, start, dtype)
        size = (FACTOR * start.shape[2], FACTOR * start.shape[3])
        hidden, pooled, sizes = [], [], []
        for name, entry in prompts:
            entry = pooled_by_images(entry, facts.widths[1], seed)
            text = conditioning_to_sdxl([entry], facts.widths, name)
            hidden.append(fitted(text.hidden, count))
            pooled.append(fitted(text.pooled, count))
            sizes.append(torch.tensor([sizes_beside(entry[1], size)]).expand(count, -1))
        # Prompts of several chunks and of one: repeating tokens changes no attention.
        length = math.lcm(*(rows.shape[1] for rows in hidden))
        hidden = [rows.repeat(1, length // rows.shape[1], 1) for rows in hidden]
        rows = (torch.cat(part).to(device, dtype) for part in (hidden, pooled))
        predict = prepare_sdxl(network, *rows, torch.cat(sizes).to(device), times)
        return Prepared(predict, device, dtype)


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

    def encode(self, text: str) -> SDXLText:
        """A prompt through both as published, cut to their length with a warning."""
        from ...loaders.clip import tokenize

        tokenizers = self.loaded.tokenizer, self.loaded.second_tokenizer
        (first, _, cut), (second, _, _) = (tokenize(t, [text], cleaned=False) for t in tokenizers)
        if cut[0]:
            warn(f"the prompt has more than {first.shape[1]} tokens; not seen: '{cut[0]}'")
        return self.encode_ids(first, second)

    def encode_ids(self, ids: torch.Tensor, second_ids: torch.Tensor) -> SDXLText:
        """Both encoders on token ids ``[B, 77]``."""
        from ...samplers.koala import encode_text_pair

        encoders, device, _ = use(self.managed)
        ids, second_ids = ids.to(device), second_ids.to(device)
        return encode_text_pair(encoders["first"], encoders["second"], ids, second_ids)

    def encode_from_tokens_scheduled(self, tokens: tuple[list[Chunk], list[Chunk]]) -> list:
        """The tokens' CONDITIONING: the chunks' hidden states in a row, the first one's pooled
        embedding."""
        loaded, count = self.loaded, max(map(len, tokens))
        if any(weight != 1 for encoder in tokens for chunk in encoder for _, weight in chunk):
            count += 1  # what they are measured from comes last
        parts = []
        tokenizers = loaded.tokenizer, loaded.second_tokenizer
        for encoder, tokenizer in zip(tokens, tokenizers, strict=True):
            ids = [[token for token, _ in chunk] for chunk in encoder]
            ids += [empty_chunk(tokenizer)] * (count - len(ids))
            parts.append(
                (ids, torch.tensor([[weight for _, weight in chunk] for chunk in encoder]))
            )
        (ids, weights), (second_ids, second_weights) = parts
        text = self.encode_ids(torch.tensor(ids), torch.tensor(second_ids))
        width = loaded.first.config.hidden_size
        encoders = [
            weigh(hidden[: len(share)], hidden[-1], share).flatten(0, 1)
            for hidden, share in (
                (text.hidden[..., :width], weights),
                (text.hidden[..., width:], second_weights),
            )
        ]
        shorter = min(map(len, encoders))
        hidden = torch.cat([encoder[:shorter] for encoder in encoders], dim=-1)[None]
        return sdxl_to_conditioning(SDXLText(offload(hidden), offload(text.pooled[:1])))


def wrap_koala(loaded: KoalaUNet, latent_rgb_factors: torch.Tensor | None) -> KoalaModel:
    """A U-Net of SDXL's kind as MODEL; ``latent_rgb_factors`` are for previews."""
    from ...loaders.koala import facts_of

    return KoalaModel(manage(loaded.network), facts_of(loaded, latent_rgb_factors))


def open_koala(model: Any) -> tuple[Managed, KoalaFacts]:
    """The U-Net in a MODEL, and what is known of it.

    Raises:
        EdgeError: another kind of MODEL.
    """
    from ...networks.koala import prepare_sdxl

    if not isinstance(model, KoalaModel):
        raise EdgeError(
            f"'model' is another kind of MODEL ({type(model).__name__}); this node needs a U-Net"
            " of SDXL's kind from 'Load KOALA'"
        )
    return model.managed, replace(model.facts, prepare=prepare_sdxl)


def wrap_text_pair(loaded: TextEncoderPair) -> ClipPair:
    """SDXL's two text encoders as CLIP."""
    encoders = nn.ModuleDict({"first": loaded.first, "second": loaded.second})
    return ClipPair(manage(encoders), loaded)


def open_text_pair(clip: Any) -> tuple[Managed, ClipPair]:
    """SDXL's two text encoders in a CLIP.

    Raises:
        EdgeError: another kind of CLIP.
    """
    if not isinstance(clip, ClipPair):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(clip).__name__}); this node needs"
            " SDXL's two, from 'Load KOALA'"
        )
    return clip.managed, clip


def wrap_sdxl_vae(loaded: SDXLVAE) -> Vae:
    """SDXL's VAE as VAE."""
    factor = 2 ** (len(loaded.network.config.block_out_channels) - 1)
    return Vae(manage(loaded.network), LatentKL(loaded.network), factor, loaded)


def pooled_by_images(entry: list, width: int, seed: int) -> list:
    """A prompt with unCLIPConditioning's image embedding in the place of its pooled one, noised as
    the host's SDXL does (``comfy/model_base.py``, ``unclip_adm``).

    Raises:
        EdgeError: of another width.
        EdgeError: more than one, whose sum the host noises again without a seed.
    """
    hidden, extra = entry[0], dict(entry[1])
    carried = extra.pop("unclip_conditioning", [])
    rows = [row for e in carried for row in check_pooled(e["clip_vision_output"], width)]
    if len(rows) > 1:
        raise EdgeError(
            "the headless runner takes one image embedding a prompt; run it in ComfyUI, or mix"
            " them with 'Mix Image Embeddings'"
        )
    if rows:
        products = (1 - UnCLIPSchedule(double_tables=True).betas()).cumprod(0)
        product = float(products[round(999 * carried[0]["noise_augmentation"])])
        noise = torch.randn(1, width, generator=torch.manual_seed(seed - 10))
        pooled = product**0.5 * rows[0].float()[None] + (1 - product) ** 0.5 * noise
        extra["pooled_output"] = pooled * carried[0]["strength"]
    return [hidden, extra]


SYNTAX_LOADERS.add("PriorArtLoadKoala")

ADAPTERS = {
    "koala_unet": Adapter(wrap_koala, open_koala),
    "koala_text": Adapter(wrap_text_pair, open_text_pair),
    "koala_vae": Adapter(wrap_sdxl_vae),
}
