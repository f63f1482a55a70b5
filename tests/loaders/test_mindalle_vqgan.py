"""The VQGAN's key map and arithmetic against a network in the original layout."""

from __future__ import annotations

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.loaders.files.checkpoint import CheckpointError, load_strict
from prior_art.loaders.mindalle_vqgan import build_vqgan
from prior_art.loaders.taming import convert_vqgan
from prior_art.networks.mindalle_vqgan import (
    codes_of,
    decode,
    decode_embeddings,
    embeddings,
    encode,
)

from .draw import random
from .mindalle_originals import CODES, OriginalVQGAN, vqgan

SHAPES = [
    {},
    # Attention at two levels, as taming's f8 has it, and sizes that are all different.
    {"widths": (32, 64), "blocks": 2, "attends": (0, 1), "z": 6, "embed": 5, "codes": 7},
]


@pytest.mark.parametrize("sizes", SHAPES)
def test_equals_the_original(sizes: dict) -> None:
    original = vqgan(**sizes)
    built = build_vqgan(original.state_dict(), "x")
    for network in (original, built.network):
        network.double()  # a processor's rounding decides no code
    factor = 2 ** (len(sizes.get("widths", (1, 1, 1))) - 1)
    assert built.factor == factor and built.image_size == 16 * factor
    assert built.codes == sizes.get("codes", CODES)
    pictures = random(3, 3, 16, 16).clamp(-1, 1).double()
    with torch.no_grad():
        codes = original.get_codes(pictures)
        wanted = original.decode_code(codes)
    assert codes.unique().numel() > 3
    assert torch.equal(encode(built.network, pictures), codes)
    assert (decode(built.network, codes) - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_published_size_loads_strictly() -> None:
    from diffusers import VQModel

    with torch.device("meta"):
        original = OriginalVQGAN((128, 128, 256, 256, 512), 2, (4,), 256, 256, 16384)
        config, tensors = convert_vqgan(original.state_dict(), "x")
        network = VQModel(**config)
    assert len(tensors) == 343
    assert sum(tensor.numel() for tensor in tensors.values()) == 76_073_859
    load_strict(network, tensors, "x")


def test_codes_do_not_depend_on_the_batch() -> None:
    network = build_vqgan(vqgan().state_dict(), "x").network.double()
    pictures = random(3, 3, 16, 16).double()
    together = encode(network, pictures)
    assert torch.equal(together, torch.cat([encode(network, p[None]) for p in pictures]))


def test_latent_holds_the_codes() -> None:
    network = build_vqgan(vqgan().state_dict(), "x").network
    codes = torch.arange(16).view(1, 4, 4).repeat(2, 1, 1)
    latent = embeddings(network, codes)
    assert latent.shape == (2, 8, 4, 4) and latent.is_contiguous()
    assert torch.equal(codes_of(network, latent), codes)
    assert torch.equal(codes_of(network, latent + 0.01), codes)
    assert torch.equal(decode_embeddings(network, latent), decode(network, codes))


def test_codes_of_close_entries_are_exact() -> None:
    network = build_vqgan(vqgan().state_dict(), "x").network
    # Pairs of entries so close together that rounding in |z|^2 + |e|^2 - 2ze confuses them.
    pairs = random(CODES // 2, 8).repeat(2, 1)
    network.quantize.embedding.weight.data = pairs + 1e-4 * random(CODES, 8, seed=1)
    codes = torch.arange(16).view(1, 4, 4)
    assert torch.equal(codes_of(network, embeddings(network, codes)), codes)
    network.quantize.embedding.weight.data[3] = network.quantize.embedding.weight[1]
    assert codes_of(network, embeddings(network, codes)).flatten()[:5].tolist() == [0, 1, 2, 1, 4]


def test_foreign_latents_and_codes_are_refused() -> None:
    network = build_vqgan(vqgan().state_dict(), "x").network
    with pytest.raises(EdgeError, match=r"LATENT of shape \[1, 4, 8, 8\].*\[B, 8, h, w\]"):
        codes_of(network, torch.zeros(1, 4, 8, 8))
    for bad in (-1, CODES):
        with pytest.raises(EdgeError, match=f"{bad}.*which has {CODES}"):
            embeddings(network, torch.full((1, 4, 4), bad))


def test_half_precision_codebook() -> None:
    network = build_vqgan(vqgan().state_dict(), "x", torch.float16).network
    codes = torch.arange(16).view(1, 4, 4)
    latent = embeddings(network, codes)
    assert latent.dtype == torch.float16
    assert torch.equal(codes_of(network, latent), codes)


def test_diffusers_keys_pass_through() -> None:
    first = build_vqgan(vqgan().state_dict(), "x").network
    again = build_vqgan(first.state_dict(), "x").network
    assert all(torch.equal(again.state_dict()[k], v) for k, v in first.state_dict().items())


def test_image_size_and_groups_of_a_config() -> None:
    state = vqgan().state_dict()
    built = build_vqgan(state, "x", image_size=32, groups=16)
    assert built.image_size == 32 and built.network.encoder.conv_norm_out.num_groups == 16
    with pytest.raises(CheckpointError, match="pictures of 30 pixels, which codes of 4"):
        build_vqgan(state, "x", image_size=30)
    with pytest.raises(CheckpointError, match="no VQGAN that can be built"):
        build_vqgan(state, "x", groups=24)


def test_missing_and_unexpected_keys_are_named() -> None:
    state = vqgan().state_dict()
    lost = {k: v for k, v in state.items() if k != "decoder.up.1.block.0.conv1.bias"}
    lost["loss.logvar"] = torch.zeros(1)
    words = r"lacks decoder.up_blocks.1.resnets.0.conv1.bias and holds unknown loss.logvar"
    with pytest.raises(CheckpointError, match=words):
        build_vqgan(lost, "x")
    del state["quantize.embedding.weight"]
    with pytest.raises(CheckpointError, match=r"'x' is no VQGAN: it lacks quantize.embedding"):
        build_vqgan(state, "x")
    with pytest.raises(CheckpointError, match=r"'x' is no VQGAN: it holds tok_emb_img.weight, ..."):
        build_vqgan({"tok_emb_img.weight": torch.zeros(2, 2)}, "x")
    with pytest.raises(CheckpointError, match="no VQGAN"):
        build_vqgan({"encoder.down.0.block.0.conv1.weight": torch.zeros(())}, "x")
