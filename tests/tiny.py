"""A Karlo, a minDALL-E, a Kandinsky and a KOALA of random weights and very small widths, for tests.

Every parameter is drawn, also those that a fresh network starts at zero or one, so that a picture
depends on all of them. Each draw of noise is a multiple of 16 numbers, as in the published sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

DIM = 32  # of the CLIP's joint space: loaders name it "custom-32d"
LOW, HIGH = 8, 32  # picture edges before and after super-resolution
TOKENS = 77

PRIOR: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 3,
    "embedding_dim": DIM,
    "num_embeddings": TOKENS,
    "additional_embeddings": 4,
}
DECODER: dict[str, Any] = {
    "sample_size": LOW,
    "in_channels": 3,
    "out_channels": 6,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "norm_num_groups": 8,  # groups of several channels, as published: of one, time has no effect
    "attention_head_dim": 16,
    "cross_attention_dim": 40,
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "identity",
}
TEXT_PROJ: dict[str, Any] = {
    "clip_extra_context_tokens": 4,
    "clip_embeddings_dim": DIM,
    "time_embed_dim": 4 * DECODER["block_out_channels"][0],
    "cross_attention_dim": DECODER["cross_attention_dim"],
}
UPSCALER: dict[str, Any] = {
    "sample_size": HIGH,
    "in_channels": 6,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 32),
    "norm_num_groups": 8,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
    "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    "add_attention": False,
}
TEXT: dict[str, Any] = {
    "hidden_size": DIM,  # the prior and the text projection read hidden states of this width
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": DIM,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": DIM,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "prior_scheduler": {
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
        "clip_sample_range": 5.0,
        "num_train_timesteps": 1000,
    },
    "decoder_scheduler": {
        "prediction_type": "epsilon",
        "variance_type": "learned_range",
        "clip_sample_range": 1.0,
        "num_train_timesteps": 1000,
    },
    "super_res_scheduler": {
        "prediction_type": "epsilon",
        "variance_type": "fixed_small_log",
        "clip_sample_range": 1.0,
        "num_train_timesteps": 1000,
    },
}
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


PICTURE, GRID, CODES, CODE_WIDTH = 32, 8, 24, 8  # minDALL-E: pixels, codes across, codebook
PROMPT, CLASSES = 6, 5  # tokens of a prompt, classes of the class-conditional transformer
VQGAN: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 16, 32),
    "layers_per_block": 1,
    "latent_channels": CODE_WIDTH,
    "vq_embed_dim": CODE_WIDTH,
    "num_vq_embeddings": CODES,
    "norm_num_groups": 8,
    "lookup_from_codebook": True,
}
BPE = ["[PAD]", "[UNK]", *"abcdert", "e</w>", "d</w>", "a</w>", "t</w>", "re", "red</w>"]
BPE_MERGES = ["r e", "re d</w>"]


def tiny_mindalle(folder: str | Path, kind: str = "text", seed: int = 0, **sizes: int) -> Path:
    """Write a tiny minDALL-E in our own layout into ``folder``.

    Args:
        kind: of the transformer: text, class or unconditional.
        sizes: of the transformer's ``ARConfig``, where they shall differ.
    """
    from diffusers import VQModel
    from safetensors.torch import save_file

    from prior_art.loaders.mindalle import Settings, write_settings
    from prior_art.networks.mindalle import ARConfig, ARTransformer

    folder = Path(folder)
    (folder / "tokenizer").mkdir(parents=True)
    ids = json.dumps({word: i for i, word in enumerate(BPE)})
    (folder / "tokenizer" / "bpe-16k-vocab.json").write_text(ids, encoding="utf-8")
    merges = "\n".join(["#version: 0.2 - Trained", *BPE_MERGES]) + "\n"
    (folder / "tokenizer" / "bpe-16k-merges.txt").write_text(merges, encoding="utf-8")
    config = {"layers": 2, "width": 32, "heads": 4, "image_vocab": CODES, "image_tokens": GRID**2}
    config |= {"text_vocab": len(BPE) if kind == "text" else None, "text_tokens": PROMPT}
    config |= {"classes": CLASSES if kind == "class" else None, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vqgan, transformer = VQModel(**VQGAN), ARTransformer(ARConfig(**config))
        randomise(vqgan)
        # Entries where the encoder's outputs are, so that many of them are chosen.
        vqgan.quantize.embedding.weight.data.normal_()
        for parameter in transformer.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape)
    save_file(vqgan.state_dict(), folder / "vqgan.safetensors")
    save_file(transformer.state_dict(), folder / "transformer.safetensors")
    write_settings(folder, Settings(PICTURE, 4, 8))
    return folder


def tiny_karlo(folder: str | Path, seed: int = 0) -> Path:
    """Write every stage of a tiny Karlo, text-to-image and variation, into ``folder``."""
    from diffusers import PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
    from transformers import CLIPImageProcessorPil

    folder = Path(folder)
    start, end = write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {
            "text_encoder": _text_tower(start, end),
            "image_encoder": _image_tower(),
            "prior": PriorTransformer(**PRIOR),
            "decoder": UNet2DConditionModel(**DECODER),
            "text_proj": UnCLIPTextProjModel(**TEXT_PROJ),
            "super_res_first": UNet2DModel(**UPSCALER),
            "super_res_last": UNet2DModel(**UPSCALER),
        }
        for name, network in networks.items():
            randomise(network)
            if name == "super_res_last":  # t = 0 weighs its prediction with 0.006
                network.conv_out.weight.data.mul_(30)
            if name == "decoder":  # or strong guidance of a random network amplifies rounding
                network.conv_out.weight.data.mul_(0.3)
            network.save_pretrained(folder / name, safe_serialization=True)
    CLIPImageProcessorPil(
        size={"shortest_edge": VISION["image_size"]},
        crop_size={"height": VISION["image_size"], "width": VISION["image_size"]},
    ).save_pretrained(folder / "feature_extractor")
    for name, config in SCHEDULERS.items():
        UnCLIPScheduler(**config).save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(_INDEX, indent=2), encoding="utf-8")
    return folder


LATENT_DECODER: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "cross_attention_dim": 24,
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim": DIM,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
}
MOVQ: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 16,
    "norm_num_groups": 8,
    "norm_type": "spatial",
}
LATENT_MODES: dict[str, dict[str, Any]] = {
    "decoder": {},
    "inpaint": {"in_channels": 9},
    "depth": {"in_channels": 8, "addition_embed_type": "image_hint"},
}
LATENT_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 2.0,
    "clip_sample_range": 2.0,
}
PIPELINES = {
    "prior": "KandinskyV22PriorPipeline",
    "decoder": "KandinskyV22Pipeline",
    "inpaint": "KandinskyV22InpaintPipeline",
    "depth": "KandinskyV22ControlnetPipeline",
}


def tiny_kandinsky(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny Kandinsky 2.2 into ``folder``: prior, decoder, inpaint and depth, each as the
    hub's folder of its own, with one MoVQ."""
    import diffusers
    from transformers import CLIPImageProcessorPil

    folder = Path(folder)
    start, end = write_tokenizer(folder / "prior" / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {
            "prior/text_encoder": _text_tower(start, end),
            "prior/image_encoder": _image_tower(),
            "prior/prior": diffusers.PriorTransformer(**PRIOR),
        }
        movq = diffusers.VQModel(**MOVQ)
        for mode, other in LATENT_MODES.items():
            unet = diffusers.UNet2DConditionModel(**LATENT_DECODER | other)
            networks |= {f"{mode}/unet": unet, f"{mode}/movq": movq}
        for network in networks.values():
            randomise(network)
        for name, network in networks.items():
            network.save_pretrained(folder / name, safe_serialization=True)
    side = VISION["image_size"]
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder / "prior" / "image_processor")
    scheduler = SCHEDULERS["prior_scheduler"] | {"clip_sample_range": 10.0}
    diffusers.UnCLIPScheduler(**scheduler).save_pretrained(folder / "prior" / "scheduler")
    for mode in LATENT_MODES:
        diffusers.DDPMScheduler(**LATENT_SCHEDULER).save_pretrained(folder / mode / "scheduler")
    for part, pipeline_class in PIPELINES.items():
        parts = sorted(path.name for path in (folder / part).iterdir())
        index = {"_class_name": pipeline_class} | {
            name: list(_KANDINSKY_PARTS[name]) for name in parts
        }
        if part == "prior":
            index["scheduler"] = ["diffusers", "UnCLIPScheduler"]
        (folder / part / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


XLMR: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
    "transformerDimSize": 48,
    "imageDimSize": DIM,
}
DDIM: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "thresholding": False,
}
OLD_MODES = {"decoder": (4, "KandinskyPipeline"), "inpaint": (9, "KandinskyInpaintPipeline")}


def tiny_kandinsky_21(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny Kandinsky 2.1 into ``folder``: decoder and inpaint, each as the hub's folder of
    its own, with mCLIP and MoVQ."""
    import diffusers
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
    from transformers import XLMRobertaTokenizer

    folder = Path(folder)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"\u2581abcdefghijklmnopqrstuvwxyz", "\u2581red"]
    tokenizer = XLMRobertaTokenizer(vocab=[*((piece, -1.0) for piece in pieces), ("<mask>", 0.0)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = MultilingualCLIP(MCLIPConfig(**XLMR, vocab_size=len(tokenizer)))
        randomise(tower)
        movq = diffusers.VQModel(**MOVQ)
        randomise(movq)
        for mode, (channels, pipeline_class) in OLD_MODES.items():
            unet = diffusers.UNet2DConditionModel(
                **LATENT_DECODER
                | {
                    "in_channels": channels,
                    "cross_attention_dim": DIM,
                    "encoder_hid_dim": XLMR["hidden_size"],
                    "encoder_hid_dim_type": "text_image_proj",
                    "addition_embed_type": "text_image",
                }
            )
            # Its matrices are drawn as a fresh network's: with larger ones attention is so sharp
            # that fp32's rounding alone moves a prediction by 0.002.
            for parameter in unet.parameters():
                if parameter.ndim == 1:
                    parameter.data.add_(0.1 * torch.randn(parameter.shape))
            for name, network in (("unet", unet), ("movq", movq), ("text_encoder", tower)):
                network.save_pretrained(folder / mode / name, safe_serialization=True)
            tokenizer.save_pretrained(folder / mode / "tokenizer")
            diffusers.DDIMScheduler(**DDIM).save_pretrained(folder / mode / "scheduler")
            index = {"_class_name": pipeline_class}
            (folder / mode / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def kandinsky_21_pipeline(
    folder: str | Path, mode: str, class_name: str = "", movq: str = ""
) -> Any:
    """diffusers' pipeline of one of the two folders; ``movq``: where another one's MoVQ lies."""
    import diffusers
    from diffusers.pipelines.kandinsky.text_encoder import MultilingualCLIP
    from transformers import XLMRobertaTokenizer

    folder, other = Path(folder) / mode, Path(folder) / (movq or mode)
    plain = {"low_cpu_mem_usage": False}
    pipe = getattr(diffusers, class_name or OLD_MODES[mode][1])(
        text_encoder=MultilingualCLIP.from_pretrained(folder / "text_encoder"),
        tokenizer=XLMRobertaTokenizer.from_pretrained(folder / "tokenizer"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **plain),
        scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
        movq=diffusers.VQModel.from_pretrained(other / "movq", **plain),
    ).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# As published but for widths, 8 channels of a head and depths; the host hard-codes 32 groups and
# 256 numbers a size. Widths are multiples of the first.
KOALA: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (4, 8, 16),
    "use_linear_projection": True,
    "cross_attention_dim": 80,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 40,
}
KOALAS: dict[str, dict[str, Any]] = {
    "koala-1b": {"mid_block_type": "UNetMidBlock2DCrossAttn"},
    "koala-700m": {"mid_block_type": None},
    "sdxl": {"layers_per_block": 2},
}
KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
EULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def tiny_koala(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny KOALA-1B, KOALA-700M and SDXL into ``folder``, each as the hub's folder."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start, end = write_tokenizer(folder / "koala-1b" / "tokenizer")
        shared = {"vocab_size": end + 1, "bos_token_id": start, "eos_token_id": end}
        shared["num_hidden_layers"] = 3  # the host takes the last but one for granted
        wider = {"hidden_size": 48, "projection_dim": 40, "hidden_act": "gelu"}
        networks = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT | shared)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT | shared | wider)),
            "vae": diffusers.AutoencoderKL(**KL),
        }
        for network in networks.values():
            randomise(network)
        for name, own in KOALAS.items():
            unet = diffusers.UNet2DConditionModel(**KOALA | own)
            # Its matrices are drawn as a fresh network's: with larger ones attention is so sharp
            # that fp32's rounding alone moves a prediction by 0.002.
            for parameter in unet.parameters():
                if parameter.ndim == 1:
                    parameter.data.add_(0.1 * torch.randn(parameter.shape))
            write_tokenizer(folder / name / "tokenizer")
            write_tokenizer(folder / name / "tokenizer_2")
            for part, network in {**networks, "unet": unet}.items():
                network.save_pretrained(folder / name / part, safe_serialization=True)
            scheduler = diffusers.EulerDiscreteScheduler(**EULER)
            scheduler.save_pretrained(folder / name / "scheduler")
            index = {"_class_name": "StableDiffusionXLPipeline"}
            (folder / name / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def part(member: str | Path, name: str) -> Path:
    """Where a component of an embedded member or of a hub folder lies."""
    file = Path(member) / "shared.json"
    shared = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Path(member) / shared.get(name, name)


def koala_pipeline(folder: str | Path) -> Any:
    """diffusers' StableDiffusionXLPipeline of one of the three folders, or of a member's."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    plain = {"low_cpu_mem_usage": False}
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(part(folder, "vae"), **plain),
        text_encoder=CLIPTextModel.from_pretrained(part(folder, "text_encoder")),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(part(folder, "text_encoder_2")),
        tokenizer=CLIPTokenizer.from_pretrained(part(folder, "tokenizer")),
        tokenizer_2=CLIPTokenizer.from_pretrained(part(folder, "tokenizer_2")),
        unet=diffusers.UNet2DConditionModel.from_pretrained(part(folder, "unet"), **plain),
        scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(part(folder, "scheduler")),
        add_watermarker=False,
    ).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


_KANDINSKY_PARTS = {
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "image_processor": ("transformers", "CLIPImageProcessorPil"),
    "movq": ("diffusers", "VQModel"),
    "prior": ("diffusers", "PriorTransformer"),
    "scheduler": ("diffusers", "DDPMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
}


def kandinsky_pipeline(folder: str | Path, part: str, class_name: str = "") -> Any:
    """diffusers' pipeline of one of the four folders."""
    import diffusers
    import transformers

    folder = Path(folder) / part
    libraries = {"diffusers": diffusers, "transformers": transformers}
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {}
    for name, (library, loader) in ((k, v) for k, v in index.items() if not k.startswith("_")):
        # torchvision's processor is another by a level, and not always there.
        loader = loader.replace("CLIPImageProcessor", "CLIPImageProcessorPil").replace(
            "PilPil", "Pil"
        )
        # The embedded family keeps one MoVQ for all.
        here = folder if (folder / name).is_dir() else folder.parent / "decoder"
        cls = getattr(libraries[library], loader)
        options = {"low_cpu_mem_usage": False} if issubclass(cls, diffusers.ModelMixin) else {}
        parts[name] = cls.from_pretrained(here / name, **options)
    pipe = getattr(diffusers, class_name or index["_class_name"])(**parts).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _text_tower(start: int, end: int) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            **TEXT, vocab_size=end + 1, bos_token_id=start, eos_token_id=end, pad_token_id=0
        )
    )


def _image_tower() -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))


@torch.no_grad()
def randomise(network: torch.nn.Module) -> None:
    """Draw every parameter from torch's global stream, at scales that keep activations near 1."""
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape)
        if name == "clip_std":
            parameter.copy_(0.6 + 0.1 * noise)
        elif name.endswith("learned_classifier_free_guidance_embeddings"):
            parameter.copy_(noise)
        elif parameter.ndim == 1 and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.1 * noise)
        elif "embedding" in name and "_proj" not in name and not name.startswith("time_"):
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)


def write_tokenizer(folder: Path) -> tuple[int, int]:
    """A CLIP tokenizer of all single bytes and a few merges, padded with "!", which is id 0.

    Returns:
        the ids of the start and of the end token.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())  # begins at "!"
    merges = ["r e", "re d</w>", "c a", "ca t</w>", "a n", "t h", "th e</w>"]
    words = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {word: i for i, word in enumerate(words)}
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        "vocab.json": vocab,
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "add_prefix_space": False,
            "bos_token": "<|startoftext|>",
            "do_lower_case": True,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": TOKENS,
            "pad_token": "!",
            "unk_token": "<|endoftext|>",
        },
        "special_tokens_map.json": {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "!",
            "unk_token": "<|endoftext|>",
        },
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    text = "#version: 0.2\n" + "\n".join(merges) + "\n"
    (folder / "merges.txt").write_text(text, encoding="utf-8", newline="\n")
    return vocab["<|startoftext|>"], vocab["<|endoftext|>"]


def component(folder: str | Path, name: str) -> Any:
    """One part of the folder, loaded by the library that published the class."""
    import diffusers
    import transformers
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

    classes: dict[str, Any] = {
        "tokenizer": transformers.CLIPTokenizer,
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "image_encoder": transformers.CLIPVisionModelWithProjection,
        "feature_extractor": transformers.CLIPImageProcessorPil,
        "prior": diffusers.PriorTransformer,
        "decoder": diffusers.UNet2DConditionModel,
        "text_proj": UnCLIPTextProjModel,
        "super_res_first": diffusers.UNet2DModel,
        "super_res_last": diffusers.UNet2DModel,
    }
    loader = diffusers.UnCLIPScheduler if name.endswith("scheduler") else classes[name]
    # Without accelerate, diffusers' models warn of the other way to load them.
    options = {"low_cpu_mem_usage": False} if issubclass(loader, diffusers.ModelMixin) else {}
    return loader.from_pretrained(Path(folder) / name, **options)


def pipeline(folder: str | Path) -> Any:
    """diffusers' UnCLIPPipeline from the folder's parts (its own loading of Karlo is broken)."""
    from diffusers.pipelines.deprecated.unclip import UnCLIPPipeline

    names = [name for name in _INDEX if not name.startswith("_")]
    pipe = UnCLIPPipeline(**{name: component(folder, name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def variation_pipeline(folder: str | Path) -> Any:
    """diffusers' UnCLIPImageVariationPipeline from the folder's parts."""
    from diffusers.pipelines.deprecated.unclip import UnCLIPImageVariationPipeline

    names = [name for name in _INDEX if not name.startswith(("_", "prior"))]
    names += ["feature_extractor", "image_encoder"]
    pipe = UnCLIPImageVariationPipeline(**{name: component(folder, name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe
