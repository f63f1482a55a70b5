"""A tiny Karlo in hub layout, saved by the libraries themselves, and a tiny CLIP tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .originals import scramble

DIM, CONTEXT, CHANNELS = 24, 20, (32, 64)


def write_tokenizer(folder: Path, pad: str = "!") -> int:
    """A CLIP vocabulary of bytes and a few merges, in the published files; returns its size."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())  # "!" comes first, as in the published vocabulary
    merges = ["r e", "re d</w>", "c i", "ci r", "b l", "bl u", "blu e</w>"]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    vocabulary += ["".join(merge.split()) for merge in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    table = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / "vocab.json").write_text(json.dumps(table))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": "<|startoftext|>", **token},
        "eos_token": {"content": "<|endoftext|>", **token},
        "unk_token": {"content": "<|endoftext|>", **token},
        "pad_token": pad,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(table)


def write_hub(folder: Path) -> Path:
    """Everything that karlo-v1-alpha and -image-variations hold, at toy size."""
    from diffusers import PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    size = write_tokenizer(folder / "tokenizer")
    tower = {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=size, hidden_size=DIM, projection_dim=DIM, eos_token_id=2, **tower
    )
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=DIM, image_size=32, patch_size=8, **tower
    )
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=DIM
    )
    decoder = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=16,
        cross_attention_dim=CONTEXT,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    )
    projection = UnCLIPTextProjModel(
        clip_embeddings_dim=DIM, time_embed_dim=4 * CHANNELS[0], cross_attention_dim=CONTEXT
    )
    parts = {
        "text_encoder": CLIPTextModelWithProjection(text),
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "prior": prior,
        "decoder": decoder,
        "text_proj": projection,
    }
    for name in ("super_res_first", "super_res_last"):
        parts[name] = UNet2DModel(
            sample_size=32,
            in_channels=6,
            out_channels=3,
            block_out_channels=CHANNELS,
            layers_per_block=1,
            add_attention=False,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
        )
    for seed, (name, part) in enumerate(parts.items()):
        scramble(part, seed).save_pretrained(folder / name)
    schedules = {
        "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
        "decoder": {"variance_type": "learned_range", "clip_sample_range": 1.0},
        "super_res": {"clip_sample_range": 1.0},
    }
    for name, config in schedules.items():
        UnCLIPScheduler(**config).save_pretrained(folder / f"{name}_scheduler")
    (folder / "feature_extractor").mkdir()
    extractor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    path = folder / "feature_extractor" / "preprocessor_config.json"
    path.write_text(json.dumps({**extractor, "resample": 3}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "UnCLIPPipeline"}))
    return folder


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
