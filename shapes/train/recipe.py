"""The embedded family's configurations: the published ones, every width and depth made small.

Kept from Karlo's because loaders and key maps depend on them: 64 channels a head, 77
tokens, block types, time embedding modes, schedulers. Changed: widths, layers, 16 pixel decoder
pictures (64 published), 64 pixel final ones (256 published), and 8 groups a norm for 32: at 32
channels these would be one channel each, which takes every channel's mean away and the colours of
the picture with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...networks.mindalle import ARTransformer

SPACE_WIDTH = 64  # of the CLIP's joint space; text hidden states must be as wide
WIDER = 96  # of Kandinsky 2.2's own CLIP, as bigG's is wider than ViT-L's
DECODER_SIDE, FINAL_SIDE = 16, 64

TEXT: dict[str, Any] = {
    "hidden_size": SPACE_WIDTH,
    "intermediate_size": 4 * SPACE_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "projection_dim": SPACE_WIDTH,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "projection_dim": SPACE_WIDTH,
    "image_size": FINAL_SIDE,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
PRIOR: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "num_layers": 3,
    "embedding_dim": SPACE_WIDTH,
    "num_embeddings": 77,
    "additional_embeddings": 4,
}
DECODER: dict[str, Any] = {
    "sample_size": DECODER_SIDE,
    "in_channels": 3,
    "out_channels": 6,
    "layers_per_block": 1,
    "block_out_channels": (32, 64, 64),
    "down_block_types": (
        "ResnetDownsampleBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "SimpleCrossAttnDownBlock2D",
    ),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (
        "SimpleCrossAttnUpBlock2D",
        "SimpleCrossAttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    ),
    "attention_head_dim": 64,
    "cross_attention_dim": 64,
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "identity",
    "norm_num_groups": 8,
}
TEXT_PROJECTION: dict[str, Any] = {
    "clip_extra_context_tokens": 4,
    "clip_embeddings_dim": SPACE_WIDTH,
    "time_embed_dim": 4 * DECODER["block_out_channels"][0],
    "cross_attention_dim": DECODER["cross_attention_dim"],
}
SUPER_RES: dict[str, Any] = {
    "sample_size": FINAL_SIDE,
    "in_channels": 6,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("ResnetDownsampleBlock2D",) * 3,
    "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
    "add_attention": False,
    "norm_num_groups": 8,
}
VQGAN: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
    "block_out_channels": (16, 32, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 32,
    "vq_embed_dim": 32,
    "num_vq_embeddings": 512,
    "norm_num_groups": 2,
    "lookup_from_codebook": True,
    "sample_size": FINAL_SIDE,
}
# diffusers' spatial norms have 32 groups whatever is asked for, so widths are multiples of 32.
MOVQ: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
    "block_out_channels": (32, 32, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 256,
    "norm_num_groups": 4,
    "norm_type": "spatial",
    "sample_size": FINAL_SIDE,
}
# Published: (384, 768, 1152, 1536), 3 layers a block, over latents of 64x64.
LATENT_DECODER: dict[str, Any] = {
    "sample_size": FINAL_SIDE // 8,
    "in_channels": 4,
    "out_channels": 8,
    "layers_per_block": 1,
    "block_out_channels": (48, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 64,
    "cross_attention_dim": 32,
    "encoder_hid_dim": WIDER,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
    "resnet_time_scale_shift": "scale_shift",
    "norm_num_groups": 8,
}
# As published but for widths and norms: SDXL's, which all KOALAs use.
KOALA_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 24, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": FINAL_SIDE,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
# Published: (320, 640, 1280), 64 channels a head. The host's U-Net has 32 groups a norm whatever is
# asked for and takes the mean of each away, so that one channel a group would know neither time nor
# colour: hence the widths. The innermost level has four places and little to say.
_KOALA_UNET: dict[str, Any] = {
    "sample_size": FINAL_SIDE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 64, 32),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "attention_head_dim": (2, 2, 1),  # of 32 channels each; diffusers' name for their number
    "cross_attention_dim": SPACE_WIDTH + WIDER,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + WIDER,
    "norm_num_groups": 32,
}
_MIDDLE = {"mid_block_type": "UNetMidBlock2DCrossAttn"}
# Published: 2 layers of (2, 10) transformer blocks with a middle (SDXL); 1 of (2, 6) and (2, 5).
KOALA_UNETS: dict[str, dict[str, Any]] = {
    "teacher": _KOALA_UNET
    | _MIDDLE
    | {"layers_per_block": 2, "transformer_layers_per_block": (1, 1, 2)},
    "1b": _KOALA_UNET
    | _MIDDLE
    | {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2)},
    "700m": _KOALA_UNET
    | {
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 1),
        "mid_block_type": None,
    },
}
# As published, SDXL's.
KOALA_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
# Published: 42 layers of 1536, 64 text tokens, 16x16 of 16384 codes.
AR: dict[str, Any] = {
    "layers": 6,
    "width": 128,
    "heads": 2,
    "image_vocab": VQGAN["num_vq_embeddings"],
    "image_tokens": 64,
}
AR_TEXT_TOKENS = 16
# What of it is another in the published decoders for inpainting and for depth.
LATENT_MODES: dict[str, dict[str, Any]] = {
    "decoder": {},
    "inpaint": {"in_channels": 9},
    "depth": {"in_channels": 8, "addition_embed_type": "image_hint"},
}
# Kandinsky 2.1's decoder reads the prompt beside the embedding, which is Karlo's CLIP's.
OLD_DECODER: dict[str, Any] = LATENT_DECODER | {
    "cross_attention_dim": SPACE_WIDTH,
    "encoder_hid_dim": 32,
    "encoder_hid_dim_type": "text_image_proj",
    "addition_embed_type": "text_image",
}
# Published: XLM-R large, 24 layers of 1024.
MCLIP: dict[str, Any] = {
    "hidden_size": OLD_DECODER["encoder_hid_dim"],
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 80,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
}
# As published.
OLD_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "thresholding": False,
}
# As published. Dynamic thresholding presses x0 into +-1.
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
WIDER_PRIOR_SCHEDULER: dict[str, Any] = {
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
    "clip_sample_range": 10.0,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "prior_scheduler": {
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
        "clip_sample_range": 5.0,
    },
    "decoder_scheduler": {"prediction_type": "epsilon", "variance_type": "learned_range"},
    "super_res_scheduler": {"prediction_type": "epsilon", "variance_type": "fixed_small_log"},
}


def text_encoder(tokenizer: Any, width: int = SPACE_WIDTH) -> torch.nn.Module:
    """A fresh CLIPTextModelWithProjection that finds this tokenizer's end token."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    wide = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            **TEXT | wide,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def image_encoder(width: int = SPACE_WIDTH) -> torch.nn.Module:
    """A fresh CLIPVisionModelWithProjection."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION | {"projection_dim": width}))


def prior(width: int = SPACE_WIDTH) -> torch.nn.Module:
    """A fresh PriorTransformer."""
    from diffusers import PriorTransformer

    return PriorTransformer(**PRIOR | {"embedding_dim": width})


def decoder() -> torch.nn.Module:
    """A fresh UNet2DConditionModel."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**DECODER)


def text_projection() -> torch.nn.Module:
    """A fresh text projection with the published parameter names."""
    from ...networks.karlo import TextProjection

    return TextProjection(**TEXT_PROJECTION)


def super_res() -> torch.nn.Module:
    """A fresh UNet2DModel; the first and the last network are of one shape."""
    from diffusers import UNet2DModel

    return UNet2DModel(**SUPER_RES)


def vqgan() -> torch.nn.Module:
    """A fresh VQModel: 64 pixel pictures as 8x8 codes."""
    from diffusers import VQModel

    return VQModel(**VQGAN)


def movq() -> torch.nn.Module:
    """A fresh VQModel with spatial norms: 64 pixel pictures as 4x8x8 latents."""
    from diffusers import VQModel

    return VQModel(**MOVQ)


def latent_decoder(mode: str = "decoder") -> torch.nn.Module:
    """A fresh UNet2DConditionModel of Kandinsky's kind: "decoder", "inpaint" or "depth"."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**LATENT_DECODER | LATENT_MODES[mode])


def old_decoder() -> torch.nn.Module:
    """A fresh UNet2DConditionModel of Kandinsky 2.1's kind."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**OLD_DECODER)


def mclip(tokenizer: Any) -> torch.nn.Module:
    """A fresh MultilingualCLIP into Karlo's CLIP's space, for this tokenizer."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from ...networks.kandinsky_mclip import MultilingualCLIP

    settings = XLMRobertaConfig(**MCLIP, vocab_size=len(tokenizer))
    network = XLMRobertaModel(settings)
    return MultilingualCLIP(network, MCLIP["hidden_size"], SPACE_WIDTH, settings)


def koala_vae() -> torch.nn.Module:
    """A fresh AutoencoderKL: 64 pixel pictures as 4x8x8 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**KOALA_VAE)


def koala_unet(kind: str) -> torch.nn.Module:
    """A fresh UNet2DConditionModel of SDXL's kind: "teacher", "1b" or "700m"."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**KOALA_UNETS[kind])


def ar_transformer(text_vocab: int) -> ARTransformer:
    """A fresh transformer that reads prompts of so many different tokens."""
    from ...networks.mindalle import ARConfig, ARTransformer

    network = ARTransformer(ARConfig(**AR, text_vocab=text_vocab, text_tokens=AR_TEXT_TOKENS))
    network.initialise()
    return network
