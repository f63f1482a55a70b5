"""KOALA in the host's own classes: its SDXL model, its text encoder pair, its VAE.

Published sizes go through the host's detection and loaders. Its tables do not list a miniature's
widths, and its classes cannot be so small (they want 32 groups a norm, and widths that are
multiples of the first): there diffusers' network runs in the host's model. The host's text models
take any width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.encoders.noise_aug_modules import CLIPEmbeddingNoiseAugmentation

from ...edges import EdgeError, SDXLText, check_pooled, sizes_beside
from ...loaders import koala
from ...loaders.clip import tokenize
from ...loaders.files.checkpoint import CheckpointError, check_inside, read_state_dict
from ...networks.koala import prepare_sdxl
from ...networks.koala_vae import LatentKL
from ...samplers.koala import EulerSchedule
from ..api import Adapter
from .compat import fitted, warn
from .koala_view import View, view_of
from .memory import VIEW, Adopted, Managed, kind_of, patcher_of, prepare, stays
from .vae import native_vae

if TYPE_CHECKING:
    from torch import nn

FACTS = "prior_art_koala"
"""Where a ModelPatcher, and every clone of it, keeps what the loader knew."""


@contextmanager
def _without_missing_mid_block() -> Iterator[None]:
    """The host warns of the keys of a mid block, which KOALA-700M has not."""

    def wanted(record: logging.LogRecord) -> bool:
        return "mid_block." not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


# -- MODEL ---------------------------------------------------------------------------------------


def wrap_koala(loaded: koala.KoalaUNet, latent_rgb_factors: torch.Tensor | None) -> Any:
    """A U-Net of SDXL's kind as the host's own MODEL.

    Raises:
        CheckpointError: the host does not know this network.
    """
    if tuple(loaded.network.config.block_out_channels) == koala.WIDTHS:
        patcher = _native(loaded)
    else:
        patcher = _adopted(loaded, latent_rgb_factors)
    patcher.set_attachments(FACTS, koala.facts_of(loaded, latent_rgb_factors))
    return patcher


def _native(loaded: koala.KoalaUNet) -> Any:
    """A U-Net of published widths in the host's own class."""
    with _without_missing_mid_block():
        patcher = fitted(comfy.sd.load_diffusion_model_state_dict)(
            dict(loaded.network.state_dict()),
            model_options={"dtype": loaded.variant.dtype},
            disable_dynamic=stays(loaded.variant.size, memory.get_torch_device()),
        )
    if patcher is None:
        raise CheckpointError(
            f"'{loaded.name}' is {loaded.variant.name}, which this ComfyUI does not know;"
            " update ComfyUI"
        )
    if type(patcher) is comfy.model_patcher.ModelPatcher:
        patcher = patcher_of(patcher.model, patcher.load_device, patcher.offload_device)
    patcher.set_attachments(VIEW, View())
    return patcher


class MiniatureLatents(comfy.latent_formats.SDXL):
    """SDXL's latent format with a miniature's own RGB factors."""

    def __init__(self, factors: torch.Tensor | None) -> None:
        super().__init__()
        if factors is not None:
            self.latent_rgb_factors = (factors[:-1] / self.scale_factor).tolist()
            self.latent_rgb_factors_bias = factors[-1].tolist()
            self.taesd_decoder_name = None


class AdoptedNetwork(Adopted):
    """diffusers' U-Net with the signature that the host calls."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, unet)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        y: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Predict the noise; ``y`` is the pooled embedding and the six sizes behind it."""
        if control is not None:
            raise EdgeError("this miniature of KOALA takes no ControlNet; load a published one")
        conditions = {"text_embeds": y[:, :-6], "time_ids": y[:, -6:]}
        return self.network(x, timesteps, context, added_cond_kwargs=conditions).sample


class AdoptedSDXL(comfy.model_base.SDXL):
    """The host's SDXL around such a network, which turns the sizes into waves itself."""

    def encode_adm(self, **kwargs: Any) -> torch.Tensor:
        pooled = kwargs["pooled_output"]
        if "unclip_conditioning" in kwargs:
            pooled = self._from_images(kwargs, pooled.shape[1])
        # The host noises image embeddings where it computes; a prompt without any waits elsewhere.
        # Only conditions on one device are run in one batch.
        pooled = pooled.to(kwargs["device"])
        size = (kwargs["height"], kwargs["width"])  # the sampler's, where the prompt has none
        sizes = pooled.new_tensor([sizes_beside(kwargs, size)])
        return torch.cat([pooled, sizes.expand(len(pooled), -1)], dim=1)

    def _from_images(self, kwargs: dict[str, Any], width: int) -> torch.Tensor:
        """The image embeddings of unCLIPConditioning in the place of the pooled prompt's, as the
        host's SDXL takes them."""
        carried = kwargs["unclip_conditioning"]
        for entry in carried:
            check_pooled(entry["clip_vision_output"], width)
        noising = CLIPEmbeddingNoiseAugmentation(
            noise_schedule_config={"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"},
            timestep_dim=width,
        )
        seed = kwargs.get("seed", 0) - 10
        both = comfy.model_base.unclip_adm(carried, kwargs["device"], noising, seed=seed)
        return both[:, :width]


def _adopted(loaded: koala.KoalaUNet, factors: torch.Tensor | None) -> Any:
    """A U-Net that the host's own class cannot be."""
    device, offload = memory.get_torch_device(), memory.unet_offload_device()
    stored, compute = loaded.variant.dtype, prepare(loaded.network, device)
    config = comfy.supported_models.SDXL({"disable_unet_model_creation": True})
    config.latent_format = MiniatureLatents(factors)
    config.set_inference_dtype(stored, None if compute == stored else compute)
    model = AdoptedSDXL(config, device=offload)
    model.diffusion_model = AdoptedNetwork(loaded.network)
    return patcher_of(model, device, offload)


def open_koala(model: Any) -> tuple[Managed, koala.KoalaFacts]:
    """The U-Net in a MODEL, with the patches that were put on it since, and what is known of it,
    whoever loaded it.

    Raises:
        EdgeError: another kind of MODEL; says which.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, comfy.model_base.SDXL):
        raise EdgeError(
            f"'model' is {kind_of(inner, model)}, but this node needs a U-Net of SDXL's kind; load"
            " one with 'Load KOALA' or 'Load Checkpoint'"
        )
    known = model.get_attachment(FACTS) or _read_facts(inner)
    compute = inner.manual_cast_dtype or inner.get_dtype()
    return Managed(model, compute), replace(known, prepare=partial(_prepare, model))


def _read_facts(inner: Any) -> koala.KoalaFacts:
    """What the host's own configuration tells of a U-Net that a native loader loaded."""
    settings = inner.model_config.unet_config
    layers = settings["num_res_blocks"]
    blocks = tuple(settings["transformer_depth"][:: layers[0]])
    middle = settings.get("transformer_depth_middle", 0) >= 0
    full = settings["model_channels"] == koala.WIDTHS[0]
    variant = koala.Variant(
        koala.name_of(layers[0], blocks, middle, full),
        sum(p.numel() for p in inner.diffusion_model.parameters()),
        blocks,
        middle,
        inner.get_dtype(),
    )
    widths = settings["context_dim"], settings["adm_in_channels"] - 6 * 256
    return koala.KoalaFacts(EulerSchedule(), variant, widths)


def _prepare(
    model: Any,
    network: Any,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
    time_ids: torch.Tensor,
    timesteps: list[float],
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The host's own network with its conditioning held fixed: as diffusers' where that is all it
    is, else called as the host calls it."""
    view = view_of(model, hidden.dtype)
    if view is not None:
        return prepare_sdxl(view, hidden, pooled, time_ids, timesteps)
    sizes = time_ids
    if not isinstance(network, AdoptedSDXL):
        sizes = network.embedder(time_ids.flatten().float()).reshape(len(pooled), -1)
    label = torch.cat([pooled, sizes.to(pooled)], dim=1)
    options = dict(model.model_options.get("transformer_options", {}))

    def predict(x: torch.Tensor, index: int) -> torch.Tensor:
        times = x.new_full((len(x),), timesteps[index], dtype=torch.float32)
        return network.diffusion_model(
            x, times, context=hidden, y=label, transformer_options=options.copy()
        )

    return predict


# -- CLIP ----------------------------------------------------------------------------------------


def wrap_text_pair(loaded: koala.TextEncoderPair) -> Any:
    """SDXL's two text encoders as the host's CLIP."""
    states = [_named(encoder) for encoder in (loaded.first, loaded.second)]
    if loaded.first.config.hidden_size == 768 and loaded.second.config.hidden_size == 1280:
        return _native_pair(states)
    target = comfy.supported_models.supported_models_base.ClipTarget(
        _tokenizers(loaded), _text_models(loaded)
    )
    dtype = next(loaded.first.parameters()).dtype
    clip = comfy.sd.CLIP(target, model_options={"dtype": dtype})
    clip.cond_stage_model.clip_l.load_sd(states[0])
    clip.cond_stage_model.clip_g.load_sd(states[1])
    return clip


def _native_pair(states: list[dict[str, torch.Tensor]]) -> Any:
    return comfy.sd.load_text_encoder_state_dicts(
        states,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
    )


def _named(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """An encoder's tensors under the names that every transformers before 5 writes."""
    known = ("text_model.", "text_projection.")
    return {
        key if key.startswith(known) else f"text_model.{key}": tensor
        for key, tensor in encoder.state_dict().items()
    }


class TextModel(comfy.clip_model.CLIPTextModel):
    """The host's text model with a vocabulary and a projection of its config's sizes."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        width, place = config["hidden_size"], {"dtype": dtype, "device": device}
        table = operations.Embedding(config["vocab_size"], width, **place)
        self.set_input_embeddings(table)
        self.text_projection = operations.Linear(
            width, config["projection_dim"], bias=False, **place
        )


def _text_models(loaded: koala.TextEncoderPair) -> Any:
    """The host's SDXL text model with these encoders' widths."""

    class TextModels(comfy.sdxl_clip.SDXLClipModel):
        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Mapping | None = None
        ) -> None:
            torch.nn.Module.__init__(self)
            for name, encoder, tokenizer in (
                ("clip_l", loaded.first, loaded.tokenizer),
                ("clip_g", loaded.second, loaded.second_tokenizer),
            ):
                special = {
                    "start": tokenizer.bos_token_id,
                    "end": tokenizer.eos_token_id,
                    "pad": tokenizer.pad_token_id,
                }
                model = comfy.sd1_clip.SDClipModel(
                    layer="hidden",
                    layer_idx=-2,
                    device=device,
                    dtype=dtype,
                    model_class=TextModel,
                    layer_norm_hidden_state=False,
                    textmodel_json_config=encoder.config.to_dict(),
                    special_tokens=special,
                    model_options=dict(model_options or {}),
                )
                setattr(self, name, model)
            self.dtypes = {dtype}

    return TextModels


def _tokenizers(loaded: koala.TextEncoderPair) -> Any:
    """The host's SDXL tokenizer pair with these vocabularies."""

    class Given:
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

        def from_pretrained(self, path: Any, **kwargs: Any) -> Any:
            return self.tokenizer

    def one(tokenizer: Any, key: str, width: int, directory: Any) -> Any:
        return comfy.sd1_clip.SDTokenizer(
            tokenizer_path="",
            tokenizer_class=Given(tokenizer),
            embedding_directory=directory,
            embedding_size=width,
            embedding_key=key,
            pad_token=tokenizer.pad_token_id,
        )

    class Tokenizers(comfy.sdxl_clip.SDXLTokenizer):
        def __init__(
            self, embedding_directory: Any = None, tokenizer_data: Mapping | None = None
        ) -> None:
            first, second = loaded.first.config.hidden_size, loaded.second.config.hidden_size
            self.clip_l = one(loaded.tokenizer, "clip_l", first, embedding_directory)
            self.clip_g = one(loaded.second_tokenizer, "clip_g", second, embedding_directory)

    return Tokenizers


@dataclass(frozen=True)
class TextPair:
    """SDXL's two text encoders in the host's CLIP."""

    clip: Any

    def encode(self, text: str) -> SDXLText:
        """A prompt through both as published, cut to their length with a warning."""
        tokens = {}
        tokenizers = self.clip.tokenizer
        for key, own in (("l", tokenizers.clip_l), ("g", tokenizers.clip_g)):
            ids, mask, cut = tokenize(own.tokenizer, [text], cleaned=False)
            if cut[0] and key == "l":
                warn(f"the prompt has more than {ids.shape[1]} tokens; not seen: '{cut[0]}'")
            padded = ids.masked_fill(~mask, own.pad_token)
            tokens[key] = [[(token, 1.0) for token in padded[0].tolist()]]
        hidden, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
        return SDXLText(hidden, pooled)


def open_text_pair(clip: Any) -> tuple[Any, TextPair]:
    """SDXL's two text encoders in a CLIP, whoever loaded it.

    Raises:
        EdgeError: another kind of CLIP.
    """
    tokenizers: Any = getattr(clip, "tokenizer", None)
    if not (hasattr(tokenizers, "clip_l") and hasattr(tokenizers, "clip_g")):
        raise EdgeError(
            f"'clip' is another kind of text encoder ({type(tokenizers).__name__}); this node"
            " needs SDXL's two, from 'Load KOALA' or 'DualCLIPLoader' of type sdxl"
        )
    return clip, TextPair(clip)


def load_text_pair_files(clip_l: str, clip_g: str) -> Any:
    """CLIP of two files in the host's text_encoders folder.

    Raises:
        CheckpointError: a file is damaged, or they are not SDXL's two.
    """
    states = [dict(_read_file("text_encoders", name)) for name in (clip_l, clip_g)]
    clip = _native_pair(states)
    tokenizers: Any = getattr(clip, "tokenizer", None)
    if not (hasattr(tokenizers, "clip_l") and hasattr(tokenizers, "clip_g")):
        raise CheckpointError(
            f"'{clip_l}' and '{clip_g}' are not SDXL's two text encoders; choose its clip_l (CLIP"
            " ViT-L/14) and clip_g (OpenCLIP ViT-bigG/14)"
        )
    return clip


# -- VAE -----------------------------------------------------------------------------------------


def wrap_sdxl_vae(loaded: koala.SDXLVAE) -> Any:
    """SDXL's VAE as the host's own, in fp32 or bf16: the host never computes it in fp16."""
    config = loaded.network.config
    if tuple(config.block_out_channels) == (128, 256, 512, 512):
        dtype = next(loaded.network.parameters()).dtype
        return comfy.sd.VAE(sd=dict(loaded.network.state_dict()), dtype=dtype)
    factor = 2 ** (len(config.block_out_channels) - 1)
    return native_vae(LatentKL(loaded.network), factor, config.latent_channels)


def load_sdxl_vae_file(name: str) -> Any:
    """VAE of a file in the host's vae folder.

    Raises:
        CheckpointError: the file is damaged, or a VAE of another family.
    """
    state = dict(_read_file("vae", name))
    entry = state.get("decoder.conv_in.weight")
    if entry is None or entry.shape[1] != 4:
        found = "no autoencoder" if entry is None else f"a VAE of {entry.shape[1]} channels"
        raise CheckpointError(
            f"'{name}' is {found}, but KOALA needs SDXL's, of 4 channels (sdxl_vae.safetensors)"
        )
    return comfy.sd.VAE(sd=state)


def _read_file(kind: str, name: str) -> dict[str, torch.Tensor]:
    path = Path(folder_paths.get_full_path_or_raise(kind, name))
    check_inside(path, [Path(folder) for folder in folder_paths.get_folder_paths(kind)])
    return read_state_dict(path)


ADAPTERS = {
    "koala_unet": Adapter(wrap_koala, open_koala),
    "koala_text": Adapter(wrap_text_pair, open_text_pair, load_text_pair_files),
    "koala_vae": Adapter(wrap_sdxl_vae, load_files=load_sdxl_vae_file),
}
