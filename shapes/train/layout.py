"""The members' folders in fp16 safetensors: the hub's layout (diffusers), and minDALL-E's."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...loaders import mindalle
from ...loaders.files.catalogue import SHARED
from . import recipe
from .words import (
    read_multilingual_tokenizer,
    read_tokenizer,
    write_char_tokenizer,
    write_multilingual_tokenizer,
    write_tokenizer,
)

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
KARLO = {
    "clip": ("tokenizer", "text_encoder", "image_encoder", "feature_extractor"),
    "prior": ("prior", "prior_scheduler"),
    "decoder": ("decoder", "text_proj", "decoder_scheduler"),
    "sr": ("super_res_first", "super_res_last", "super_res_scheduler"),
}
"""Folders of the Karlo member by the stage of training that writes them."""

KANDINSKY = {
    "movq": ("decoder/movq",),
    "clip": tuple(
        f"prior/{name}"
        for name in ("tokenizer", "text_encoder", "image_encoder", "image_processor")
    ),
    "prior": ("prior/prior", "prior/scheduler"),
    "decoder": ("decoder/unet", "decoder/scheduler"),
    "inpaint": ("inpaint/unet", "inpaint/scheduler"),
    "depth": ("depth/unet", "depth/scheduler"),
    "mclip": ("2-1/tokenizer", "2-1/text_encoder"),
    "2-1-prior": ("2-1-prior/prior", "2-1-prior/scheduler"),
    "2-1": ("2-1/unet", "2-1/scheduler"),
}
"""Folders of the Kandinsky members by the stage of training that writes them. The CLIP of 2.1's
prior is Karlo's and its MoVQ is 2.2's, as published, and neither lies there again."""

KOALA_VAE = "700m/vae"
KOALA = {
    "vae": (KOALA_VAE,),
    "700m": ("700m/unet",),
    "1b": ("1b/unet",),
}
"""Folders of the KOALA member by the stage of training that writes them; mending writes the VAE's
again. Both variants read it there, and both read the family's text encoders."""

_INDEX = {
    "_class_name": "UnCLIPPipeline",
    "_diffusers_version": "0.12.0.dev0",
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "prior": ["diffusers", "PriorTransformer"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


_KANDINSKY_INDEX = {
    "prior": {
        "_class_name": "KandinskyV22PriorPipeline",
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
        "prior": ["diffusers", "PriorTransformer"],
        "scheduler": ["diffusers", "UnCLIPScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    },
    **{
        folder: {
            "_class_name": f"KandinskyV22{pipeline}",
            "movq": ["diffusers", "VQModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        }
        for folder, pipeline in (
            ("decoder", "Pipeline"),
            ("inpaint", "InpaintPipeline"),
            ("depth", "ControlnetPipeline"),
        )
    },
    "2-1-prior": {
        "_class_name": "KandinskyPriorPipeline",
        "prior": ["diffusers", "PriorTransformer"],
        "scheduler": ["diffusers", "UnCLIPScheduler"],
    },
    "2-1": {
        "_class_name": "KandinskyPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["kandinsky", "MultilingualCLIP"],
        "tokenizer": ["transformers", "XLMRobertaTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    },
}

_KOALA_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.25.0",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def fresh(name: str, tokenizer: Any = None) -> torch.nn.Module:
    """A network with random weights, by its folder's name."""
    if name == "text_encoder":
        return recipe.text_encoder(tokenizer)
    if name == "prior/text_encoder":
        return recipe.text_encoder(tokenizer, recipe.WIDER)
    return {
        "image_encoder": recipe.image_encoder,
        "prior": recipe.prior,
        "decoder": recipe.decoder,
        "text_proj": recipe.text_projection,
        "super_res_first": recipe.super_res,
        "super_res_last": recipe.super_res,
        "prior/image_encoder": partial(recipe.image_encoder, recipe.WIDER),
        "prior/prior": partial(recipe.prior, recipe.WIDER),
        "decoder/movq": recipe.movq,
        "decoder/unet": partial(recipe.latent_decoder, "decoder"),
        "inpaint/unet": partial(recipe.latent_decoder, "inpaint"),
        "depth/unet": partial(recipe.latent_decoder, "depth"),
        "2-1-prior/prior": recipe.prior,
        "2-1/unet": recipe.old_decoder,
        "1b/unet": partial(recipe.koala_unet, "1b"),
        "700m/unet": partial(recipe.koala_unet, "700m"),
        KOALA_VAE: recipe.koala_vae,
    }[name]()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def write_settings(out: Path) -> None:
    """Tokenizer, picture settings, schedulers and the index: all that is not trained."""
    from diffusers import UnCLIPScheduler

    write_tokenizer(out / "tokenizer")
    _write_preparation(out / "feature_extractor")
    for name, settings in recipe.SCHEDULERS.items():
        UnCLIPScheduler(**settings).save_pretrained(out / name)
    _write_json(out / "model_index.json", _INDEX)


def write_kandinsky_settings(out: Path) -> None:
    """The same for Kandinsky, whose hub folders are ``out``'s: prior, decoder and others."""
    from diffusers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler

    write_tokenizer(out / "prior/tokenizer")
    _write_preparation(out / "prior/image_processor")
    UnCLIPScheduler(**recipe.WIDER_PRIOR_SCHEDULER).save_pretrained(out / "prior/scheduler")
    for mode in recipe.LATENT_MODES:
        DDPMScheduler(**recipe.LATENT_SCHEDULER).save_pretrained(out / mode / "scheduler")
    UnCLIPScheduler(**recipe.WIDER_PRIOR_SCHEDULER).save_pretrained(out / "2-1-prior/scheduler")
    write_multilingual_tokenizer(out / "2-1/tokenizer")
    DDIMScheduler(**recipe.OLD_SCHEDULER).save_pretrained(out / "2-1/scheduler")
    for folder, index in _KANDINSKY_INDEX.items():
        _write_json(out / folder / "model_index.json", index)


def write_koala_settings(out: Path) -> None:
    """The same for KOALA, whose hub folders are ``out``'s: 1b and 700m.

    The text encoders are the family's: SDXL's are the ViT-L that Karlo uses and Kandinsky 2.2's
    bigG. They are not stored again, and neither is the VAE that both variants have.
    """
    from diffusers import EulerDiscreteScheduler

    encoders = {
        "text_encoder": WEIGHTS / "karlo/text_encoder",
        "text_encoder_2": WEIGHTS / "kandinsky/prior/text_encoder",
        "tokenizer": WEIGHTS / "karlo/tokenizer",
        "tokenizer_2": WEIGHTS / "kandinsky/prior/tokenizer",
    }
    for kind in ("1b", "700m"):
        folder = out / kind
        shared = encoders | ({"vae": out / KOALA_VAE} if kind == "1b" else {})
        lies = {name: Path(os.path.relpath(path, folder)) for name, path in shared.items()}
        _write_json(folder / SHARED, {name: path.as_posix() for name, path in lies.items()})
        EulerDiscreteScheduler(**recipe.KOALA_SCHEDULER).save_pretrained(folder / "scheduler")
        _write_json(folder / "model_index.json", _KOALA_INDEX)


def write_mclip(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Kandinsky 2.1's text tower as fp16, as the hub has it."""
    config = recipe.MCLIP | {
        "architectures": ["MultilingualCLIP"],
        "transformerDimSize": recipe.MCLIP["hidden_size"],
        "imageDimSize": recipe.SPACE_WIDTH,
        "vocab_size": len(read_multilingual_tokenizer(folder.parent / "tokenizer")),
    }
    _write_json(folder / "config.json", config)
    _write_half(weights, folder / "model.safetensors")


def _write_preparation(folder: Path) -> None:
    """How pictures are made ready for a CLIP of the family."""
    from transformers import CLIPImageProcessorPil

    side = recipe.FINAL_SIDE
    CLIPImageProcessorPil(
        # The data set's own range: -1..1.
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
    ).save_pretrained(folder)


def _fill(network: torch.nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    missing, unexpected = network.load_state_dict(weights, strict=False)
    buffers = {key for key, _ in network.named_buffers()}
    if unexpected or set(missing) - buffers:
        raise ValueError(f"{name}: missing {sorted(missing)}, unexpected {sorted(unexpected)}")


def _tokenizer_beside(folder: Path) -> Any:
    """A text encoder's tokenizer; None for other networks."""
    return read_tokenizer(folder.parent / "tokenizer") if folder.name == "text_encoder" else None


def write_network(out: Path, name: str, weights: dict[str, torch.Tensor]) -> None:
    """One network's weights as fp16 in its folder, with its configuration."""
    network = fresh(name, _tokenizer_beside(out / name))
    _fill(network, weights, name)
    network = network.half()
    if name == "text_proj":
        from safetensors.torch import save_file

        # The pack's own class; the hub's folder names the one it takes the place of.
        settings = {"_class_name": "UnCLIPTextProjModel", **recipe.TEXT_PROJECTION}
        _write_json(out / name / "config.json", settings)
        file = out / name / "diffusion_pytorch_model.safetensors"
        save_file(network.state_dict(), file, metadata={"format": "pt"})
    else:
        network.save_pretrained(out / name, safe_serialization=True)


def read_network(out: Path, name: str) -> torch.nn.Module:
    """One network from its folder, fp32, ready to use and without gradients."""
    from safetensors.torch import load_file

    network = fresh(name, _tokenizer_beside(out / name))
    files = sorted((out / name).glob("*.safetensors"))
    if len(files) != 1:
        raise FileNotFoundError(f"no weights in {out / name}: train that stage first")
    weights = {key: value.float() for key, value in load_file(files[0]).items()}
    network.load_state_dict(weights, strict=False)
    return network.eval().requires_grad_(False)


def write_clip(folder: Path, weights: dict[str, dict[str, torch.Tensor]]) -> None:
    """Both towers as one fp16 ``CLIPModel`` of transformers, with its tokenizer.

    Args:
        weights: each tower's, by Karlo's folder names.
    """
    from transformers import CLIPConfig, CLIPModel

    write_tokenizer(folder)
    _write_preparation(folder)
    text = recipe.text_encoder(read_tokenizer(folder))
    network = CLIPModel(
        CLIPConfig(
            text_config=text.config.to_dict(),
            vision_config=recipe.image_encoder().config.to_dict(),
            projection_dim=recipe.SPACE_WIDTH,
        )
    )
    towers = {key: tensor for tower in weights.values() for key, tensor in tower.items()}
    _fill(network, towers | {"logit_scale": network.logit_scale}, folder.name)
    network.half().save_pretrained(folder, safe_serialization=True)


def write_mindalle_settings(out: Path) -> None:
    """minDALL-E's tokenizer and what the shapes of its weights cannot tell."""
    write_char_tokenizer(out / "tokenizer")
    _write_mindalle_config(out)


def _write_mindalle_config(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    heads, groups = recipe.AR["heads"], recipe.VQGAN["norm_num_groups"]
    mindalle.write_settings(out, mindalle.Settings(recipe.FINAL_SIDE, heads, groups))


def write_vqgan(out: Path, weights: dict[str, torch.Tensor]) -> None:
    """The VQGAN's weights as fp16."""
    _write_half(weights, out / mindalle.VQGAN_FILES[0])


def write_ar(out: Path, kind: str, weights: dict[str, torch.Tensor]) -> None:
    """A transformer's weights as fp16; the variants' in folders of their own beside ``out``."""
    folder = out if kind == "text" else out.with_name(f"{out.name}-{kind}")
    _write_mindalle_config(folder)
    _write_half(weights, folder / mindalle.TRANSFORMER_FILES[0])


def _write_half(weights: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.half().contiguous() for k, v in weights.items()}, file, {"format": "pt"})
