"""KOALA's stages in SDXL's hub layout: the compressed U-Net, two text encoders, the VAE.

A U-Net may also come as one file with diffusers' keys; its shape is then told by its tensors. What
is loaded is told by name (:class:`Variant`), so that SDXL's own U-Net is not taken for a KOALA.
Source: the table of the KOALA model cards; diffusers' ``StableDiffusionXLPipeline``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..edges import EdgeError
from ..networks.memory import SDXL_PLACE
from ..samplers.koala import FACTOR, LATENT_SCALE, EulerSchedule
from . import clip
from .files.catalogue import Published, Source, Stage, System
from .files.checkpoint import AGAIN, CheckpointError, check_inside, read_state_dict
from .files.configs import read_schedule_config
from .files.hub import build_diffusers, build_transformers, fill, part, read_hub

HEAD_DIM = 64
"""Width of an attention head in SDXL and in every KOALA."""

WIDTHS = (320, 640, 1280)
_NAMES: dict[tuple[int, tuple[int, ...], bool], str] = {
    (1, (0, 2, 5), False): "KOALA-700M",
    (1, (0, 2, 6), True): "KOALA-1B",
    (2, (0, 2, 10), True): "SDXL-Base",
}
"""Published U-Nets by residual blocks a level, transformer blocks of each level, mid block."""

ANY_KOALA, ANY_SDXL = "any KOALA", "any SDXL"
WANTED = [ANY_KOALA, "KOALA-700M", "KOALA-1B", ANY_SDXL]

_PARTS = (
    "",
    "tokenizer",
    "tokenizer_2",
    "text_encoder",
    "text_encoder_2",
    "unet",
    "vae",
    "scheduler",
)
_REPOSITORIES = {
    "koala-700m": "koala-700m-llava-cap",
    "koala-1b": "koala-1b-llava-cap",
    "koala-lightning-700m": "koala-lightning-700m",
    "koala-lightning-1b": "koala-lightning-1b",
}

SYSTEMS = (
    System(
        name="koala",
        title="KOALA",
        stages={
            "koala_unet": Stage("sampled", ("unet", "UNet2DConditionModel")),
            "koala_text": Stage("encoder", ("text_encoder", "CLIPTextModel")),
            "koala_vae": Stage("autoencoder", ("vae", "AutoencoderKL"), full=True),
        },
        # Whatever else such a pipeline brings along, its U-Net, encoders and VAE are SDXL's.
        pipelines=frozenset(
            f"StableDiffusionXL{extra}{mode}Pipeline"
            for extra in ("", "ControlNet", "ControlNetUnion", "ControlNetPAG", "PAG", "Adapter")
            for mode in ("", "Img2Img", "Inpaint")
        ),
        checkpoints=(
            (
                re.compile(r".*(koala|sd_?xl).*\.(safetensors|bin)", re.IGNORECASE),
                frozenset({"koala_unet"}),
            ),
        ),
        indexed=True,
        embedded=(("shapes-koala-1b", "koala/1b"), ("shapes-koala-700m", "koala/700m")),
        published={
            name: Published(name, {f"etri-vilab/{repository}": _PARTS})
            for name, repository in _REPOSITORIES.items()
        },
        download="prior-art download koala-700m",
    ),
)


@dataclass(frozen=True)
class Variant:
    """Which U-Net this is.

    Attributes:
        name: "KOALA-700M", "KOALA-1B", "SDXL-Base", or what it resembles.
        parameters: of the U-Net.
        transformer_blocks: in each attention of the three levels; 0 where there is none.
        mid_block: whether it has one.
        dtype: of its weights.
    """

    name: str
    parameters: int
    transformer_blocks: tuple[int, ...]
    mid_block: bool
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return self.parameters * self.dtype.itemsize

    def memory(self, side: int = 1024) -> int:
        """Bytes that sampling with guidance needs at this side of a picture, about: the weights
        and the activations."""
        return self.size + (side // FACTOR) ** 2 * SDXL_PLACE * self.dtype.itemsize

    def is_a(self, wanted: str) -> bool:
        """Whether it is what the user asked for, one of :data:`WANTED`."""
        return (
            wanted == ANY_SDXL
            or (wanted == ANY_KOALA and self.name.startswith("KOALA"))
            or self.name.removesuffix(_MINIATURE) == wanted
        )


_MINIATURE = " (miniature)"


@dataclass(frozen=True)
class KoalaUNet:
    """A U-Net ready to use.

    Attributes:
        network: diffusers' ``UNet2DConditionModel``.
        schedule: its published constants.
        variant: which one it is.
        name: where it came from, for messages.
    """

    network: nn.Module
    schedule: EulerSchedule
    variant: Variant
    name: str


@dataclass(frozen=True)
class TextEncoderPair:
    """SDXL's two text encoders (CLIPTextModel and CLIPTextModelWithProjection), their tokenizers,
    and where they came from."""

    first: nn.Module
    second: nn.Module
    tokenizer: Any
    second_tokenizer: Any
    name: str

    def __post_init__(self) -> None:
        """Both must read prompts of one length.

        Raises:
            CheckpointError: they do not.
        """
        lengths = {clip.length_of(one) for one in (self.tokenizer, self.second_tokenizer)}
        if len(lengths) > 1:
            raise CheckpointError(
                f"the text encoders of '{self.name}' read prompts of {min(lengths)} and of"
                f" {max(lengths)} tokens (model_max_length of their tokenizers), but a KOALA reads"
                f" both together. {AGAIN}"
            )


@dataclass(frozen=True)
class SDXLVAE:
    """SDXL's VAE (AutoencoderKL) and where it came from. It is computed in fp32: the published one
    overflows in fp16."""

    network: nn.Module
    name: str


def load_unet(
    source: Source, dtype: torch.dtype = torch.float32, wanted: str = ANY_KOALA
) -> KoalaUNet:
    """Load a U-Net and its scheduler's constants.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``koala_unet``.
        dtype: storage dtype.
        wanted: one of :data:`WANTED`.

    Raises:
        CheckpointError: a file is missing, damaged or foreign, or another U-Net than was wanted.
        LibraryError: diffusers cannot be imported.
    """
    if source.kind == "checkpoint":
        tensors, name = read_state_dict(source.path), str(source.path)
        config, schedule = config_of(tensors, name), EulerSchedule()
    else:
        config, tensors, name = read_hub(source, "unet", dtype)
        file = source.path / "scheduler" / "scheduler_config.json"
        if file.is_file():
            check_inside(file, source.folders)
        schedule = EulerSchedule()
        try:
            if file.is_file():
                schedule = EulerSchedule.from_config(read_schedule_config(file))
        except EdgeError as error:
            raise CheckpointError(f"'{file}': {error}") from error
    network = build_diffusers("UNet2DConditionModel", config, name, tensors)
    if network.config.addition_embed_type != "text_time":
        raise CheckpointError(
            f"'{name}' is no U-Net of SDXL's kind (addition_embed_type is"
            f" {network.config.addition_embed_type!r}); choose the folder of a KOALA"
        )
    sizes = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    for key in (*sizes, "cross_attention_dim"):
        if not isinstance(network.config[key], int):
            raise CheckpointError(
                f"the configuration of '{name}' says {key} {network.config[key]!r}, but a U-Net of"
                f" SDXL's kind has one number there. {AGAIN}"
            )
    if network.config.in_channels != 4:
        raise CheckpointError(
            f"'{name}' has {network.config.in_channels} input channels, as for inpainting or"
            " editing, but this stage samples a text-to-image U-Net of 4. Choose another source"
        )
    variant = variant_of(network, dtype)
    if not variant.is_a(wanted):
        raise CheckpointError(
            f"'{name}' is {variant.name} ({variant.parameters / 1e6:,.0f}M parameters), but"
            f" 'variant' asks for {wanted}. Choose another source, or set 'variant' to"
            f" '{ANY_SDXL}' to load it all the same"
        )
    fill(network, tensors, dtype, name)
    return KoalaUNet(network, schedule, variant, name)


def variant_of(network: nn.Module, dtype: torch.dtype) -> Variant:
    """Which variant a ``UNet2DConditionModel`` is, told by its configuration."""
    config = network.config
    depths = config.transformer_layers_per_block
    if isinstance(depths, int):
        depths = (depths,) * len(config.down_block_types)
    blocks = tuple(
        depth if "CrossAttn" in kind else 0
        for kind, depth in zip(config.down_block_types, depths, strict=True)
    )
    layers = config.layers_per_block
    layers = layers if isinstance(layers, int) else layers[0]
    middle = network.mid_block is not None
    parameters = sum(p.numel() for p in network.parameters())
    name = name_of(layers, blocks, middle, tuple(config.block_out_channels) == WIDTHS)
    return Variant(name, parameters, blocks, middle, dtype)


@dataclass(frozen=True)
class KoalaFacts:
    """What a stage must know of a U-Net in a MODEL.

    Attributes:
        schedule: its published constants.
        variant: which one it is.
        widths: of the prompt's hidden states and of its pooled embedding.
        latent_rgb_factors: for previews ``[5, 3]``, see ``networks.latent_rgb``; ``None`` where
            they are not known.
        prepare: ``(network, hidden, pooled, time_ids, timesteps) -> predict``: how the host that
            has it calls the network, see ``samplers.koala.Prepare``.
    """

    schedule: EulerSchedule
    variant: Variant
    widths: tuple[int, int]
    latent_rgb_factors: torch.Tensor | None = None
    prepare: Callable[..., Any] | None = None


def facts_of(unet: KoalaUNet, latent_rgb_factors: torch.Tensor | None) -> KoalaFacts:
    """The facts of a loaded U-Net."""
    config = unet.network.config
    sizes = 6 * config.addition_time_embed_dim
    pooled = config.projection_class_embeddings_input_dim - sizes
    widths = config.cross_attention_dim, pooled
    return KoalaFacts(unet.schedule, unet.variant, widths, latent_rgb_factors)


def name_of(layers: int, blocks: tuple[int, ...], middle: bool, full_size: bool) -> str:
    """A U-Net's name by its residual blocks a level, transformer blocks and mid block."""
    if full_size:
        return _NAMES.get((layers, blocks, middle), f"an SDXL U-Net with blocks {list(blocks)}")
    kind = "SDXL-Base" if layers > 1 else "KOALA-1B" if middle else "KOALA-700M"
    return kind + _MINIATURE


def config_of(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, Any]:
    """The diffusers config of a U-Net of SDXL's kind, told by its tensors.

    Raises:
        CheckpointError: other keys than diffusers' for such a network.
    """
    if any(".input_blocks." in f".{key}" for key in tensors):
        raise CheckpointError(
            f"'{name}' has ComfyUI's own key layout; load it with 'Load Checkpoint' or 'Load"
            " Diffusion Model', or use the hub's unet/diffusion_pytorch_model.safetensors here"
        )
    needed = ("conv_in.weight", "conv_out.weight", "add_embedding.linear_1.weight")
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise CheckpointError(
            f"'{name}' is no U-Net of SDXL's kind (it lacks {', '.join(missing)}). Use a KOALA's"
            " unet/diffusion_pytorch_model.safetensors"
        )

    def count(pattern: str) -> int:
        return len({m[0] for key in tensors if (m := re.match(pattern, key))})

    levels = range(count(r"down_blocks\.\d+\."))
    # The mid block, where there is one, is as deep as the last level.
    depths = [count(rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.\d+\.") for i in levels]
    widths = [tensors[f"down_blocks.{i}.resnets.0.conv2.weight"].shape[0] for i in levels]
    context = next(t.shape[1] for k, t in tensors.items() if k.endswith("attn2.to_k.weight"))
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)]
    middle = any(key.startswith("mid_block.") for key in tensors)
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": count(r"down_blocks\.0\.resnets\.\d+\."),
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "attention_head_dim": [max(1, width // HEAD_DIM) for width in widths],
        "use_linear_projection": True,
        "cross_attention_dim": context,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": tensors["add_embedding.linear_1.weight"].shape[1],
    }


def load_text_encoders(source: Source, dtype: torch.dtype = torch.float32) -> TextEncoderPair:
    """Load both text encoders and their tokenizers.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``koala_text``.
        dtype: storage dtype.

    Raises:
        CheckpointError: a file is missing (the second encoder's, say), damaged or foreign.
        LibraryError: transformers cannot be imported.
    """
    encoders, tokenizers = [], []
    for suffix, class_name in (("", "CLIPTextModel"), ("_2", "CLIPTextModelWithProjection")):
        config, tensors, name = read_hub(source, f"text_encoder{suffix}", dtype)
        if not suffix and config.get("architectures") == ["CLIPTextModelWithProjection"]:
            # The same encoder as unCLIP has it; the pooled embedding is the second encoder's.
            config = config | {"architectures": [class_name]}
            tensors.pop("text_projection.weight", None)
        network = build_transformers(class_name, "CLIPTextConfig", config, name, tensors)
        fill(network, tensors, dtype, name, "text_model.")
        encoders.append(network)
        folder = part(source, f"tokenizer{suffix}")
        tokenizers.append(clip.load_tokenizer(folder, source.folders))
        clip.check_tokenizer(tokenizers[-1], network, str(folder))
    return TextEncoderPair(
        encoders[0], encoders[1], tokenizers[0], tokenizers[1], name=str(source.path)
    )


def load_vae(source: Source, dtype: torch.dtype = torch.float32) -> SDXLVAE:
    """Load the VAE.

    Args:
        source: from :func:`~.files.catalogue.find_source` for the stage ``koala_vae``.
        dtype: storage dtype; float16 is stored as float32 where the VAE's config says that it
            overflows (``force_upcast``), as SDXL's does.

    Raises:
        CheckpointError: a file is missing or damaged, or it is a VAE of another family.
        LibraryError: diffusers cannot be imported.
    """
    config, tensors, name = read_hub(source, "vae", dtype)
    network = build_diffusers("AutoencoderKL", config, name, tensors)
    channels, scale = network.config.latent_channels, network.config.scaling_factor
    if channels != 4 or abs(scale - LATENT_SCALE) > 1e-4:
        raise CheckpointError(
            f"'{name}' is a VAE of another family (latents of {channels} channels, scaled by"
            f" {scale:g}); KOALA needs SDXL's, with 4 channels scaled by {LATENT_SCALE}. {AGAIN}"
        )
    if dtype == torch.float16 and network.config.force_upcast:
        dtype = torch.float32
    fill(network, tensors, dtype, name)
    return SDXLVAE(network, name)
