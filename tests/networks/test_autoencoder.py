"""The decoders of autoencoders against diffusers' own walk through the same layers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prior_art.networks.autoencoder import decode
from prior_art.networks.kandinsky_movq import at_latent_size

from .test_fused import Seen

SIZES: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
PLAIN = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
ATTENDING = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}


def vqgan(**settings: Any) -> nn.Module:
    from diffusers import VQModel

    return VQModel(**{**SIZES, **ATTENDING, "num_vq_embeddings": 8, **settings})


def movq(**settings: Any) -> nn.Module:
    return at_latent_size(vqgan(**{"norm_type": "spatial", "norm_num_groups": 32, **settings}))


def kl(**settings: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**{**SIZES, **PLAIN, **settings})


def make(kind: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    decoder = kind(**settings).decoder.eval().requires_grad_(False)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, 0.02, 0.1)
    return decoder


def given(kind: Callable[..., nn.Module], device: str = "cpu") -> tuple[Tensor, ...]:
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1)).to(device)
    return (x, x + 1) if kind is movq else (x,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [vqgan, movq, kl])
def test_decodes_as_the_library_does(kind, dtype):
    decoder, inputs = make(kind).to(dtype), [each.to(dtype) for each in given(kind)]
    with torch.no_grad():
        expected = decoder(*inputs)
    called: list[Any] = []
    decoder.mid_block.register_forward_hook(lambda *call: called.append(call))
    assert torch.equal(decode(decoder, *inputs), expected)
    assert not called  # it is walked through, not called


def test_a_middle_without_attention():
    decoder, inputs = make(kl, mid_block_add_attention=False), given(kl)
    with torch.no_grad():
        assert torch.equal(decode(decoder, *inputs), decoder(*inputs))


@pytest.mark.parametrize("kind", [vqgan, movq, kl])
def test_on_a_gpu_every_norm_is_fused_and_nothing_changes_its_format(kind):
    # A meta tensor stands for one on a GPU.
    decoder, inputs = make(kind).to("meta", memory_format=torch.channels_last), given(kind, "meta")
    inputs = [each.contiguous(memory_format=torch.channels_last) for each in inputs]
    with Seen() as seen:
        decode(decoder, *inputs)
    norms = sum(isinstance(module, nn.GroupNorm) for module in decoder.modules())
    fused = "prior_art::spatial_norm" if kind is movq else "prior_art::group_norm"
    assert seen.names.count(fused) == norms
    wasted = {"aten::native_group_norm", "aten::silu", "aten::clone", "aten::copy_"}
    assert not wasted & set(seen.names)
    # Of each residual block the biases are in what follows, and are no pass of their own.
    resnets = sum("ResnetBlock" in type(module).__name__ for module in decoder.modules())
    assert seen.names.count("prior_art::add") == resnets


def tripled(convolution: nn.Module) -> None:
    convolution.register_forward_hook(lambda leaf, args, out: out * 3)


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv_shortcut"])
def test_a_patched_convolution_is_called(name):
    decoder, inputs = make(kl), given(kl)
    tripled(getattr(decoder.up_blocks[1].resnets[0], name))
    with torch.no_grad():
        assert torch.equal(decode(decoder, *inputs), decoder(*inputs))
    called: list[Any] = []
    decoder.to("meta")
    getattr(decoder.up_blocks[1].resnets[0], name).forward = lambda x: called.append(x) or x[:, :32]
    decode(decoder, *given(kl, "meta"))
    assert len(called) == 1


def test_a_foreign_decoder_is_called_as_it_is():
    decoder, inputs = make(kl, act_fn="gelu"), given(kl)
    with torch.no_grad():
        expected = decoder(*inputs)
    called: list[Any] = []
    decoder.mid_block.register_forward_hook(lambda *call: called.append(call))
    assert torch.equal(decode(decoder, *inputs), expected)
    assert called
