"""Kandinsky 2.1's original files: every map proven by equal outputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from torch import nn

from prior_art.loaders import kandinsky
from prior_art.loaders import kandinsky_keys as kandinsky_original
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.networks.kandinsky_movq import decode, encode

from ..tiny import MOVQ, randomise
from . import karlo_originals as originals
from .draw import near

DIM, CONTEXT, HIDDEN, TOKENS, HEAD = 24, 24, 20, 10, 16


class OriginalDecoder(originals.OriginalUNet):
    """What text2im_model2_1.py adds to the U-Net."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__(
            channels, 8, (32, 64), 2, attends=(1,), head=HEAD, context=CONTEXT, shift=True
        )
        time = 4 * self.base
        self.clip_to_seq = nn.Linear(DIM, CONTEXT * TOKENS)
        self.to_model_dim_n = nn.Linear(HIDDEN, CONTEXT)
        self.proj_n, self.ln_model_n = nn.Linear(DIM, time), nn.LayerNorm(time)
        self.img_layer = nn.Linear(DIM, time)

    def forward(self, x, t, hidden, pooled, image):
        emb = self.time(t) + self.ln_model_n(self.proj_n(pooled)) + self.img_layer(image)
        tokens = self.clip_to_seq(image).reshape(len(image), TOKENS, CONTEXT)
        context = torch.cat([tokens, self.to_model_dim_n(hidden)], 1).permute(0, 2, 1)
        return self.run(x, emb, context, torch.zeros(len(x), context.shape[2]))


def original_keys(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """A VQModel's tensors as movq_final.ckpt spells them."""
    rules = [
        (r"(encoder|decoder)\.conv_norm_out", r"\1.norm_out"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.attentions\.(\d)", r"down.\1.attn.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}"),
        (
            r"up_blocks\.(\d)\.attentions\.(\d)",
            lambda m: f"up.{levels - 1 - int(m[1])}.attn.{m[2]}",
        ),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"group_norm|spatial_norm", "norm"),
        (r"to_out\.0", "proj_out"),
        (r"to_([qkv])\.", r"\1."),
    ]
    renamed = {}
    for key, tensor in state.items():
        linear = "attentions" in key and tensor.ndim == 2
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor[:, :, None, None] if linear else tensor
    return renamed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, channels in (("decoder_fp16.ckpt", 4), ("inpainting_fp16.ckpt", 9)):
        network = originals.scramble(OriginalDecoder(channels), channels)
        torch.save(network.state_dict(), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("name", "channels"), [("decoder_fp16", 4), ("inpainting_fp16", 9)])
def test_decoder(root: Path, name: str, channels: int) -> None:
    source = find_source(f"{name}.ckpt", "latent_decoder", [root])
    loaded = kandinsky.load_latent_decoder(source, head_dim=HEAD)
    original = originals.scramble(OriginalDecoder(channels), channels)
    draw = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, channels, 8, 8, generator=draw), torch.tensor([999, 10])
    hidden = torch.randn(2, 7, HIDDEN, generator=draw)
    pooled, image = torch.randn(2, 2, DIM, generator=draw)
    got = loaded.network(
        x, t, hidden, added_cond_kwargs={"image_embeds": image, "text_embeds": pooled}
    ).sample
    assert near(got, original(x, t, hidden, pooled, image))
    assert loaded.schedule == kandinsky_original.SAMPLERS["ddim_sampler"] and loaded.exact
    assert loaded.text_space.dim == DIM


def test_movq(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = VQModel(**MOVQ | {"norm_num_groups": 32}).eval()
    randomise(theirs)
    levels = len(MOVQ["block_out_channels"])
    torch.save(original_keys(theirs.state_dict(), levels), tmp_path / "movq_final.ckpt")
    loaded = kandinsky.load_movq(find_source("movq_final.ckpt", "movq", [tmp_path]))
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(image).latents
        wanted = theirs.decode(latents, force_not_quantize=True).sample
    assert near(encode(loaded.network, image), latents)
    assert near(decode(loaded.network, latents), wanted)


def test_a_foreign_file_is_named(root: Path) -> None:
    state = torch.load(root / "decoder_fp16.ckpt", weights_only=True)
    torch.save(state | {"cf_param": torch.zeros(3)}, root / "decoder_fp16.ckpt")
    source = find_source("decoder_fp16.ckpt", "latent_decoder", [root])
    with pytest.raises(CheckpointError, match=r"Kandinsky 2\.1 decoder.*holds unknown cf_param"):
        kandinsky.load_latent_decoder(source, head_dim=HEAD)
    torch.save({"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}, root / "movq_final.ckpt")
    with pytest.raises(CheckpointError, match=r"movq_final\.ckpt"):
        kandinsky.load_movq(find_source("movq_final.ckpt", "movq", [root]))
