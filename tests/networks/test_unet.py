"""The prepared U-Nets against a plain call of diffusers' own.

In float64, where any processor's rounding is far below anything that the algorithm can do wrong.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prior_art.networks import karlo

TIMESTEPS = [999, 500, 0]
EXACT = 1e-12  # of the largest value: thousands of float64's roundings
WIDTHS = (32, 64, 32)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny operations on several threads wait for each other, for minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def relative(ours: torch.Tensor, peer: torch.Tensor) -> float:
    return ((ours - peer).abs().max() / peer.abs().max()).item()


def shake(network: nn.Module) -> nn.Module:
    """Draw every parameter that a fresh network starts at zero or one."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False).double()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_upscaler(time_scale_shift: str = "default", widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return shake(
        UNet2DModel(
            sample_size=16,
            in_channels=6,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=widths,
            norm_num_groups=8,
            down_block_types=("ResnetDownsampleBlock2D",) * len(widths),
            up_block_types=("ResnetUpsampleBlock2D",) * len(widths),
            add_attention=False,
            resnet_time_scale_shift=time_scale_shift,
        )
    )


def make_decoder() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return shake(
        UNet2DConditionModel(
            sample_size=16,
            in_channels=3,
            out_channels=6,
            layers_per_block=2,
            block_out_channels=WIDTHS,
            norm_num_groups=8,
            down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 2),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=(*("SimpleCrossAttnUpBlock2D",) * 2, "ResnetUpsampleBlock2D"),
            attention_head_dim=16,
            cross_attention_dim=24,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
    )


def conditions(rows: int) -> dict[str, torch.Tensor]:
    return {
        "context": draw(rows, 9, 24, seed=rows),
        "class_labels": draw(rows, 4 * WIDTHS[0], seed=rows + 1),
        "mask": draw(rows, 9, seed=rows + 2) > -0.3,
    }


def prepare_upscaler(network: nn.Module, timesteps: list[int]) -> karlo.Predict:
    dtype = network.conv_in.bias.dtype
    return karlo.prepare_upscaler(network, timesteps, torch.device("cpu"), dtype)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
def test_upscaler_equals_diffusers(rows, time_scale_shift):
    network = make_upscaler(time_scale_shift)
    predict = prepare_upscaler(network, TIMESTEPS)
    for index, timestep in enumerate(TIMESTEPS):
        x = draw(rows, 6, 16, 16, seed=index)
        before = x.clone()
        ours = predict(x, index)
        assert torch.equal(x, before)
        assert relative(ours, network(x, timestep).sample) < EXACT


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_decoder_equals_diffusers(rows):
    network, given = make_decoder(), conditions(rows)
    predict = karlo.prepare_decoder(network, *given.values(), TIMESTEPS)
    for index, timestep in enumerate(TIMESTEPS):
        x = draw(rows, 3, 16, 16, seed=index)
        peer = network(
            x,
            timestep,
            encoder_hidden_states=given["context"],
            class_labels=given["class_labels"],
            attention_mask=given["mask"],
        ).sample
        assert relative(predict(x, index), peer) < EXACT


def test_masked_context_has_no_influence():
    network, given = make_decoder(), conditions(2)
    x = draw(2, 3, 16, 16)
    one = karlo.prepare_decoder(network, *given.values(), TIMESTEPS)(x, 0)
    given["context"] = torch.where(given["mask"][..., None], given["context"], 99.0)
    assert torch.equal(one, karlo.prepare_decoder(network, *given.values(), TIMESTEPS)(x, 0))


def test_state_is_left_alone():
    network = make_upscaler()
    before = copy.deepcopy(network.state_dict())
    prepare_upscaler(network, TIMESTEPS)(draw(1, 6, 16, 16), 1)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[k], v) and v.stride() == before[k].stride() for k, v in after.items()
    )


class Patched(nn.Conv2d):
    """A leaf as ComfyUI swaps it in: its weight is patched when it is called."""

    weight_function: tuple = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        for function in self.weight_function:
            weight = function(weight)
        return F.conv2d(x, weight.to(x.dtype), self.bias.to(x.dtype), padding=self.padding)


@pytest.mark.parametrize("how", ["function", "half", "hook"])
def test_leaves_that_change_their_weight_on_call_are_called(how):
    network = make_upscaler()
    conv = network.down_blocks[0].resnets[0].conv1
    conv.__class__ = Patched
    if how == "function":
        conv.weight_function = [lambda weight: weight * 3]
    elif how == "half":
        conv.half()
    else:
        conv.register_forward_hook(lambda leaf, args, out: out * 3)
    x = draw(1, 6, 16, 16)
    assert relative(prepare_upscaler(network, [7])(x, 0), network(x, 7).sample) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_another_dtype_runs_through_the_leaves(dtype):
    network, x = make_upscaler().to(dtype), draw(1, 6, 16, 16).to(dtype)
    ours = prepare_upscaler(network, [7])(x, 0)
    assert ours.dtype == dtype
    # Each of some forty layers rounds once, in an order that may differ.
    assert relative(ours.double(), network(x, 7).sample.double()) < 40 * torch.finfo(dtype).eps


def test_a_foreign_unet_is_called_as_it_is():
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=16, block_out_channels=(32, 32), norm_num_groups=8, in_channels=6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    x = torch.randn(1, 6, 16, 16)
    with torch.no_grad():
        assert torch.equal(prepare_upscaler(network, [7])(x, 0), network(x, 7).sample)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_single_call_equals_diffusers(rows):
    network, given = make_decoder(), conditions(rows)
    x, timesteps = draw(rows, 3, 16, 16), torch.tensor([700, 31, 2][:rows])
    peer = network(
        x,
        timesteps,
        encoder_hidden_states=given["context"],
        class_labels=given["class_labels"],
        attention_mask=given["mask"],
    ).sample
    assert relative(karlo.call_decoder(network, x, timesteps, *given.values()), peer) < EXACT
