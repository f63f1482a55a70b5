"""Kandinsky's stages out of hub folders.

Sources: kandinsky-community/kandinsky-2-2-prior, -2-2-decoder, -2-2-decoder-inpaint,
-2-2-controlnet-depth, kandinsky-2-1-prior, -2-1 and -2-1-inpaint. CLIP's text encoder, image
encoder and prior are loaded by ``unclip.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..edges import (
    EdgeError,
    EmbeddingSpace,
    conditioning_to_embeds,
    depth_beside,
    reason_of,
    text_beside,
)
from ..networks.kandinsky_mclip import MultilingualCLIP
from ..networks.kandinsky_movq import at_latent_size
from ..samplers.kandinsky import Condition, mode_of
from ..samplers.kandinsky_schedule import LatentSchedule, last_part_apart
from . import clip, sentencepiece
from . import kandinsky_keys as kandinsky_original
from .files.catalogue import Published, Source, Stage, System
from .files.checkpoint import (
    AGAIN,
    CheckpointError,
    check_bytes,
    check_inside,
    read_state_dict,
)
from .files.configs import check_config, check_tokens, read_schedule_config, sizes_of
from .files.hub import build, build_diffusers, fill, part, read_hub
from .files.libraries import require
from .files.safe import WORDS_BYTES
from .guided_diffusion import HEAD_DIM
from .unclip import TextEncoder, space_of

CONDITIONING = "Kandinsky Conditioning"
"""The node that makes what these decoders read from a native sampler, for messages."""

MCLIP_SPACE = EmbeddingSpace("mclip-vit-l-14", 768, "mCLIP XLM-R (Kandinsky 2.1's text encoder)")


def _folders(parts: tuple[str, ...], *names: str) -> dict[str, Published]:
    """Repositories of the same components, each a folder of its own."""
    whole = ("", *parts, "scheduler")
    return {name: Published(name, {f"kandinsky-community/{name}": whole}) for name in names}


_COMBINED = frozenset(
    f"Kandinsky{version}{mode}CombinedPipeline"
    for version in ("", "V22")
    for mode in ("", "Img2Img", "Inpaint")
)

SYSTEMS = (
    System(
        name="kandinsky-prior",
        title="Kandinsky",
        stages={
            "text_encoder": Stage("encoder", ("text_encoder", "CLIPTextModelWithProjection")),
            "image_encoder": Stage("encoder", ("image_encoder", "CLIPVisionModelWithProjection")),
            "prior": Stage("prior", ("prior", "PriorTransformer")),
        },
        pipelines=frozenset(
            {
                "KandinskyV22PriorPipeline",
                "KandinskyV22PriorEmb2EmbPipeline",
                "KandinskyPriorPipeline",
            }
        ),
        combined=_COMBINED,
        prefix="prior_",
        checkpoints=(
            clip.OPENAI_VIT_L,
            (re.compile(r"prior_fp16\.(ckpt|safetensors)"), frozenset({"prior"})),
        ),
        beside=re.compile(r"(prior|decoder|inpainting)_fp16\..*|movq_final\..*"),
        label="Kandinsky 2.1",
        readme=kandinsky_original.README,
        indexed=True,
        zero_image=True,
        places={"preprocessor": "image_processor", "prior_schedule": "scheduler"},
        embedded=(
            ("shapes-kandinsky-prior", "kandinsky/prior"),
            ("shapes-kandinsky-2-1-prior", "kandinsky/2-1-prior"),
        ),
        spaces=(
            EmbeddingSpace("laion-vit-bigg-14", 1280, "OpenCLIP ViT-bigG/14", 1664),
            EmbeddingSpace(
                "shapes-vit-g", 96, "the embedded family's wider CLIP (shapes-kandinsky)"
            ),
        ),
        speaks={"openai-vit-l-14": "Kandinsky 2.1", "laion-vit-bigg-14": "Kandinsky 2.2"},
        published=_folders(
            ("tokenizer", "text_encoder", "image_encoder", "image_processor", "prior"),
            "kandinsky-2-2-prior",
            "kandinsky-2-1-prior",
        ),
        together={"kandinsky-2-2": ("kandinsky-2-2-prior", "kandinsky-2-2-decoder")},
        download="prior-art download kandinsky-2-2-prior",
    ),
    System(
        name="kandinsky",
        title="Kandinsky",
        stages={
            "latent_decoder": Stage("sampled", ("unet", "UNet2DConditionModel")),
            "movq": Stage("autoencoder", ("movq", "VQModel"), full=True),
            # The original reads it as whatever AutoConfig makes of it.
            "mclip": Stage("encoder", ("text_encoder", "MultilingualCLIP"), types=("xlm-roberta",)),
        },
        pipelines=frozenset(
            {
                "KandinskyV22Pipeline",
                "KandinskyV22Img2ImgPipeline",
                "KandinskyV22InpaintPipeline",
                "KandinskyV22ControlnetPipeline",
                "KandinskyV22ControlnetImg2ImgPipeline",
                "KandinskyPipeline",
                "KandinskyImg2ImgPipeline",
                "KandinskyInpaintPipeline",
            }
            | _COMBINED
        ),
        checkpoints=(
            (
                re.compile(r"(decoder|inpainting)_fp16\.(ckpt|safetensors)"),
                frozenset({"latent_decoder"}),
            ),
            (re.compile(r"movq_final\.(ckpt|safetensors)"), frozenset({"movq"})),
        ),
        embedded=(
            ("shapes-kandinsky", "kandinsky/decoder"),
            ("shapes-kandinsky-inpaint", "kandinsky/inpaint"),
            ("shapes-kandinsky-depth", "kandinsky/depth"),
            ("shapes-kandinsky-2-1", "kandinsky/2-1"),
        ),
        spaces=(MCLIP_SPACE,),
        published={
            **_folders(
                ("unet", "movq"),
                "kandinsky-2-2-decoder",
                "kandinsky-2-2-decoder-inpaint",
                "kandinsky-2-2-controlnet-depth",
            ),
            **_folders(
                ("tokenizer", "text_encoder", "unet", "movq"),
                "kandinsky-2-1",
                "kandinsky-2-1-inpaint",
            ),
        },
        download="prior-art download kandinsky-2-2-decoder",
    ),
)


@dataclass(frozen=True)
class MoVQ:
    """A MoVQ ready to use; its functions are in ``networks/kandinsky_movq.py``.

    Attributes:
        network: diffusers' ``VQModel``, its spatial norms evaluated at latent size.
        factor: how many pixels wide a latent's place is.
        channels: of a latent.
        name: where it came from, for messages.
    """

    network: nn.Module
    factor: int
    channels: int
    name: str


@dataclass(frozen=True)
class LatentDecoder:
    """A decoder ready to use.

    Attributes:
        network: diffusers' ``UNet2DConditionModel``.
        schedule: its published constants.
        space: of the image embeddings that it reads.
        text_space: of the prompt that it reads too (Kandinsky 2.1), or ``None``.
        name: where it came from, for messages.
        exact: a picture has the size that was asked for, as the original repository cuts it; else
            the next multiple of 64, as diffusers leaves it.
        latent_rgb_factors: for previews ``[5, 3]``, see ``networks.latent_rgb``; ``None`` where no
            MoVQ lies beside it.
    """

    network: nn.Module
    schedule: LatentSchedule
    space: EmbeddingSpace
    text_space: EmbeddingSpace | None
    name: str
    exact: bool = False
    latent_rgb_factors: torch.Tensor | None = None

    def condition(self, entry: list, size: tuple[int, int], name: str) -> Condition:
        """What the decoder is told by one entry of a native sampler's CONDITIONING.

        Args:
            size: height and width of the latents.
            name: of the sampler's input, for messages.

        Raises:
            EdgeError: a prompt where an image embedding belongs, another space, no depth map for a
                depth decoder, no text for one of Kandinsky 2.1.
        """
        embeds = conditioning_to_embeds([entry], self.space, name, CONDITIONING)
        hidden = pooled = hint = None
        if self.text_space is not None:
            text = text_beside(entry[1], self.text_space, name, CONDITIONING)
            hidden, pooled = text.hidden, text.pooled
        if mode_of(self.network) == "depth":
            hint = depth_beside(entry[1], size, name, CONDITIONING)
        return Condition(embeds, hidden, pooled, hint)


def load_movq(source: Source, dtype: torch.dtype = torch.float32) -> MoVQ:
    """Load the MoVQ.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``movq``.
        dtype: storage dtype.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        name = str(source.path)
        config, tensors = kandinsky_original.convert_movq(read_state_dict(source.path), name)
    else:
        config, tensors, name = read_hub(source, "movq", dtype)
    network = build_diffusers("VQModel", config, name, tensors)
    if network.config.norm_type != "spatial":
        raise CheckpointError(
            f"'{name}' is a VQModel without spatial norms, so no MoVQ. Choose the folder of a"
            " Kandinsky decoder"
        )
    fill(network, tensors, dtype, name)
    factor = 2 ** (len(network.config.block_out_channels) - 1)
    return MoVQ(at_latent_size(network), factor, network.config.latent_channels, name)


def load_latent_decoder(
    source: Source,
    dtype: torch.dtype = torch.float32,
    sampler: str = "published",
    head_dim: int = HEAD_DIM,
) -> LatentDecoder:
    """Load a decoder's U-Net and its scheduler's constants: text-to-image, inpainting or depth.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``latent_decoder``.
        dtype: storage dtype.
        sampler: "published", the source's own, or one of the original repository's:
            ``kandinsky_original.SAMPLERS``.
        head_dim: width of an attention head; only original checkpoints need it.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        name = str(source.path)
        config, tensors = kandinsky_original.convert_decoder(
            read_state_dict(source.path), name, head_dim
        )
        published = None
    else:
        config, tensors, name = read_hub(source, "unet", dtype)
        published = _read_schedule(source)
    network = build_diffusers("UNet2DConditionModel", config, name, tensors)
    kind = network.config.encoder_hid_dim_type
    if kind == "image_proj":
        dim, text_space = network.config.encoder_hid_dim, None
    elif kind == "text_image_proj":
        dim = network.config.cross_attention_dim
        text_space = _mclip_space(dim)
        if published is not None:
            # diffusers' pipeline has it from the original repository, no config says it.
            published = replace(
                published, begin=last_part_apart, start_betas=kandinsky_original.START_BETAS
            )
    else:
        raise CheckpointError(
            f"'{name}' does not read image embeddings (encoder_hid_dim_type is {kind!r}), so it is"
            " no decoder of Kandinsky. Choose the folder of one"
        )
    if sampler != "published":
        schedule = kandinsky_original.schedule_of(sampler, published)
    else:
        schedule = published or kandinsky_original.DDIM_SAMPLER
    fill(network, tensors, dtype, name)
    space = space_of(source, dim)
    exact = source.kind == "checkpoint"
    return LatentDecoder(network, schedule, space, text_space, name, exact)


def load_mclip(source: Source, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Load Kandinsky 2.1's text model and its tokenizer.

    The original repository's folder ``text_encoder`` works too: it holds the tokenizer itself, and
    its config leaves the sizes to the model's name.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``mclip``.
        dtype: storage dtype.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        LibraryError: transformers cannot be imported.
    """
    config, tensors, name = read_hub(source, "text_encoder", dtype)
    model, config_class = require("transformers", "XLMRobertaModel", "XLMRobertaConfig")
    check_config("XLMRobertaConfig", config, name, len(tensors))
    own = _xlmr_sizes(tensors) | sizes_of("XLMRobertaConfig", config)
    # The pooler answers a question that this model is not asked; some files lack it.
    tensors = {k: v for k, v in tensors.items() if not k.startswith("transformer.pooler.")}
    projection = tensors.get("LinearTransformation.weight")
    if projection is None or projection.ndim != 2:
        raise CheckpointError(
            f"'{name}' has no projection into CLIP's space (LinearTransformation.weight), so it is"
            f" no mCLIP. {AGAIN}"
        )
    dim, width = projection.shape

    def make() -> nn.Module:
        settings = config_class.from_dict(own)
        return MultilingualCLIP(model(settings, add_pooling_layer=False), width, dim, settings)

    network = build(make, name)
    fill(network, tensors, dtype, name)
    tokenizer, sizes = _xlmr_tokenizer(source), network.config
    # Positions are counted from behind the padding's.
    places = sizes.max_position_embeddings - sizes.pad_token_id - 1
    check_tokens(tokenizer, sizes.vocab_size, places, f"{name}'s tokenizer")
    return TextEncoder(network, tokenizer, _mclip_space(dim))


def _xlmr_tokenizer(source: Source) -> Any:
    """XLM-R's tokenizer beside the model, or in its folder as in the original's.

    Raises:
        CheckpointError: none there, or a damaged one.
    """
    beside = source.folder("tokenizer").is_dir()
    folder = part(source, "tokenizer" if beside else "text_encoder")
    for file in sorted(folder.iterdir()):
        check_inside(file, source.folders)
        if file.suffix == ".json":
            check_bytes(file, WORDS_BYTES)
    pieces = folder / sentencepiece.FILE
    if (folder / "tokenizer.json").is_file():
        tokenizer_class = require("transformers", "XLMRobertaTokenizer")
        try:
            tokenizer = tokenizer_class.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            raise CheckpointError(
                f"'{folder}' is no XLM-R tokenizer ({reason_of(error)}). {AGAIN}"
            ) from error
    elif pieces.is_file():
        tokenizer = sentencepiece.read_xlmr_tokenizer(pieces)
    else:
        raise CheckpointError(
            f"'{folder}' holds neither tokenizer.json nor {sentencepiece.FILE}. {AGAIN}"
        )
    tokenizer.model_max_length = clip.CONTEXT
    return tokenizer


def _xlmr_sizes(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """An XLM-R's sizes by its weights' shapes, where a config does not say them; empty for other
    weights, whose missing keys are then named."""
    table = tensors.get("transformer.embeddings.word_embeddings.weight")
    places = tensors.get("transformer.embeddings.position_embeddings.weight")
    inner = tensors.get("transformer.encoder.layer.0.intermediate.dense.weight")
    if table is None or places is None or inner is None:
        return {}
    layers = {key.split(".")[3] for key in tensors if key.startswith("transformer.encoder.layer.")}
    return {
        "vocab_size": table.shape[0],
        "hidden_size": table.shape[1],
        "num_attention_heads": max(1, table.shape[1] // 64),
        "num_hidden_layers": len(layers),
        "intermediate_size": inner.shape[0],
        "max_position_embeddings": places.shape[0],
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }


def _mclip_space(dim: int) -> EmbeddingSpace:
    """The space of an mCLIP of this width: the published one's, or a name of its own."""
    published = MCLIP_SPACE
    if dim == published.dim:
        return published
    return replace(published, name=f"mclip-{dim}d", dim=dim)


def _read_schedule(source: Source) -> LatentSchedule:
    file = part(source, "scheduler") / "scheduler_config.json"
    check_inside(file, source.folders)
    try:
        return LatentSchedule.from_config(read_schedule_config(file))
    except (EdgeError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{file}': {error}. {AGAIN}") from error
