"""The MoVQ against diffusers' VQModel on the same weights, in float64: the algorithm is left."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import VQModel

from prior_art.networks.kandinsky_movq import LatentSizedNorm, at_latent_size, decode, encode

MOVQ = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (32, 64),
    "latent_channels": 4,
    "num_vq_embeddings": 16,
    "vq_embed_dim": 4,
    "norm_type": "spatial",
}


@pytest.fixture(scope="module")
def movq() -> VQModel:
    torch.manual_seed(0)
    network = VQModel(**MOVQ).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.02, 0.1)
    return network


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5)], ids=str)
def test_decodes_as_the_library_does(movq: VQModel, size: tuple[int, int]) -> None:
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected = movq.decode(latents, force_not_quantize=True).sample
    ours = at_latent_size(copy.deepcopy(movq))
    found = decode(ours, latents)
    assert found.shape == (2, 3, 2 * size[0], 2 * size[1])
    exact = 1e-12 * expected.abs().max()
    assert (found - expected).abs().max() <= exact
    # A picture's decoding does not depend on the batch.
    assert (decode(ours, latents[1:]) - found[1:]).abs().max() <= exact


def test_every_norm_of_the_decoder_is_replaced_and_no_key_changes(movq: VQModel) -> None:
    ours = at_latent_size(copy.deepcopy(movq))
    kinds = [type(module).__name__ for module in ours.modules()]
    replaced = sum(isinstance(module, LatentSizedNorm) for module in ours.modules())
    before = sum(type(module).__name__ == "SpatialNorm" for module in movq.modules())
    assert "SpatialNorm" not in kinds and replaced == before > 8
    assert ours.state_dict().keys() == movq.state_dict().keys()


def test_the_convolutions_run_at_latent_size(movq: VQModel) -> None:
    ours = at_latent_size(copy.deepcopy(movq))
    seen = set()
    for module in ours.modules():
        if isinstance(module, LatentSizedNorm):
            module.conv_y.register_forward_hook(lambda *call: seen.add(call[1][0].shape[2:]))
    decode(ours, torch.randn(1, 4, 3, 5).double())
    assert seen == {(3, 5)}


def test_encodes_as_the_library_does(movq: VQModel) -> None:
    pictures = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    with torch.no_grad():
        expected = movq.encode(pictures).latents
    assert torch.equal(encode(movq, pictures), expected)
