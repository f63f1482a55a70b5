"""The prepared U-Nets against a plain call of diffusers' own, and the convolution they use."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prior_art.networks import convolution, unet

TIMESTEPS = [999, 500, 0]
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
    return network.eval().requires_grad_(False)


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
    generator = torch.Generator().manual_seed(rows)
    return {
        "context": torch.randn(rows, 9, 24, generator=generator),
        "class_labels": torch.randn(rows, 4 * WIDTHS[0], generator=generator),
        "mask": torch.rand(rows, 9, generator=generator) > 0.4,
    }


@pytest.fixture(params=["plain", "winograd", "product"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every tiny block through the plain path, or through one of the fast ones."""
    if request.param != "plain":
        monkeypatch.setattr(unet, "_LEAST_CHANNELS", 1)
    if request.param == "winograd":
        monkeypatch.setattr(unet, "_LEAST_TILES", 1)
        monkeypatch.setattr(convolution, "_CACHE", 1 << 16)  # several strips and column chunks
    if request.param == "product":
        monkeypatch.setattr(unet, "_LEAST_TILES", 1 << 30)
    return request.param


def count_fast(monkeypatch: pytest.MonkeyPatch, path: str) -> list[str]:
    """Note every convolution that leaves the plain path."""
    calls: list[str] = []
    for name in ("conv3x3", "conv3x3_few"):
        real = getattr(unet, name)

        def spy(*args, name=name, real=real, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(unet, name, spy)
    return calls


def expect_path(calls: list[str], path: str) -> None:
    expected = {"plain": set(), "winograd": {"conv3x3", "conv3x3_few"}, "product": {"conv3x3_few"}}
    assert set(calls) <= expected[path]
    assert path == "plain" or {"winograd": "conv3x3", "product": "conv3x3_few"}[path] in calls


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
def test_upscaler_equals_diffusers(path, rows, time_scale_shift, monkeypatch):
    network = make_upscaler(time_scale_shift)
    calls = count_fast(monkeypatch, path)
    predict = unet.prepare_upscaler(network, TIMESTEPS)
    for index, timestep in enumerate(TIMESTEPS):
        x = torch.randn(rows, 6, 16, 16, generator=torch.Generator().manual_seed(index))
        before = x.clone()
        ours = predict(x, index)
        assert torch.equal(x, before)
        assert ours.is_contiguous()
        assert relative(ours, network(x, timestep).sample) < 1e-5
    expect_path(calls, path)


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_decoder_equals_diffusers(path, rows, monkeypatch):
    network, given = make_decoder(), conditions(rows)
    calls = count_fast(monkeypatch, path)
    predict = unet.prepare_decoder(network, *given.values(), TIMESTEPS)
    for index, timestep in enumerate(TIMESTEPS):
        x = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(index))
        peer = network(
            x,
            timestep,
            encoder_hidden_states=given["context"],
            class_labels=given["class_labels"],
            attention_mask=given["mask"],
        ).sample
        assert relative(predict(x, index), peer) < 1e-5
    expect_path(calls, path)


def test_masked_context_has_no_influence():
    network, given = make_decoder(), conditions(2)
    x = torch.randn(2, 3, 16, 16)
    one = unet.prepare_decoder(network, *given.values(), TIMESTEPS)(x, 0)
    given["context"] = torch.where(given["mask"][..., None], given["context"], 99.0)
    assert torch.equal(one, unet.prepare_decoder(network, *given.values(), TIMESTEPS)(x, 0))


def test_concatenation_without_projection(monkeypatch):
    """Widths where two concatenated inputs happen to be as wide as the output."""
    monkeypatch.setattr(unet, "_LEAST_CHANNELS", 1)
    monkeypatch.setattr(unet, "_LEAST_TILES", 1)
    network = make_upscaler(widths=(32, 16, 16))
    x = torch.randn(2, 6, 16, 16)
    assert relative(unet.prepare_upscaler(network, [7])(x, 0), network(x, 7).sample) < 1e-5


def test_state_is_left_alone(path):
    network = make_upscaler()
    before = copy.deepcopy(network.state_dict())
    unet.prepare_upscaler(network, TIMESTEPS)(torch.randn(1, 6, 16, 16), 1)
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
def test_leaves_that_change_their_weight_on_call_are_called(how, monkeypatch):
    monkeypatch.setattr(unet, "_LEAST_CHANNELS", 1)
    monkeypatch.setattr(unet, "_LEAST_TILES", 1)
    network = make_upscaler()
    conv = network.down_blocks[0].resnets[0].conv1
    conv.__class__ = Patched
    if how == "function":
        conv.weight_function = [lambda weight: weight * 3]
    elif how == "half":
        conv.half()
    else:
        conv.register_forward_hook(lambda leaf, args, out: out * 3)
    x = torch.randn(1, 6, 16, 16)
    assert relative(unet.prepare_upscaler(network, [7])(x, 0), network(x, 7).sample) < 1e-5


def test_another_dtype_runs_through_the_leaves():
    network = make_upscaler().to(torch.bfloat16)
    x = torch.randn(1, 6, 16, 16, dtype=torch.bfloat16)
    ours = unet.prepare_upscaler(network, [7])(x, 0)
    assert ours.dtype == torch.bfloat16
    assert relative(ours.float(), network(x, 7).sample.float()) < 2e-2


def test_a_foreign_unet_is_called_as_it_is():
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=16, block_out_channels=(32, 32), norm_num_groups=8, in_channels=6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    x = torch.randn(1, 6, 16, 16)
    with torch.no_grad():
        assert torch.equal(unet.prepare_upscaler(network, [7])(x, 0), network(x, 7).sample)


# The convolution by itself.


@pytest.mark.parametrize("cache", [1 << 12, 1 << 16, 1 << 24])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 8, 16), (2, 24, 4)])
def test_conv3x3(cache, up, normed, batch, height, width, monkeypatch):
    monkeypatch.setattr(convolution, "_CACHE", cache)
    torch.manual_seed(0)
    conv = shake(nn.Conv2d(20, 24, 3, padding=1))
    parts = [torch.randn(batch, height // (1 + up), width // (1 + up), c) for c in (12, 8)]
    affine = (torch.randn(batch, 20), torch.randn(batch, 20)) if normed else None
    residual, bias = torch.randn(batch, height, width, 24), torch.randn(batch, 24)
    out = torch.full((batch, height, width, 24), torch.nan)
    workspace = convolution.Workspace()
    for buffer in ("strip", "patches", "data", "kernel"):
        workspace.take(buffer, 1 << 16).fill_(torch.nan)  # nothing unwritten may be read
    convolution.conv3x3(
        parts, conv, out, workspace, affine=affine, up=up, bias=bias, residual=residual
    )
    x = torch.cat(parts, dim=3).permute(0, 3, 1, 2).double()
    if affine is not None:
        x = F.silu(x * affine[0][:, :, None, None] + affine[1][:, :, None, None])
    x = F.interpolate(x, scale_factor=2) if up else x
    exact = F.conv2d(x, conv.weight.double(), padding=1) + bias[:, :, None, None]
    exact = exact.permute(0, 2, 3, 1) + residual
    assert relative(out.double(), exact) < 1e-6


def test_rounding_is_no_worse_than_the_direct_convolutions():
    torch.manual_seed(0)
    conv = nn.Conv2d(320, 320, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 320, 32, 32)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    out = torch.empty(1, 32, 32, 320)
    convolution.conv3x3([x.permute(0, 2, 3, 1)], conv, out, convolution.Workspace())
    ours, direct = ((y - exact).std() for y in (out.permute(0, 3, 1, 2), conv(x)))
    assert ours < 2 * direct


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_norm_affine(offset, scaled):
    torch.manual_seed(0)
    norm = shake(nn.GroupNorm(6, 24))
    parts = [torch.randn(2, 300, 5, c) + offset for c in (20, 4)]  # groups do not align with parts
    scale_shift = (torch.randn(2, 24), torch.randn(2, 24)) if scaled else None
    scale, shift = convolution.norm_affine(norm, parts, scale_shift)
    x = torch.cat(parts, dim=3)
    exact = copy.deepcopy(norm).double()(x.permute(0, 3, 1, 2).double()).permute(0, 2, 3, 1)
    if scale_shift is not None:
        exact = exact * (1 + scale_shift[0][:, None, None]) + scale_shift[1][:, None, None]
    ours = x.double() * scale[:, None, None].double() + shift[:, None, None].double()
    assert relative(ours, exact) < (1e-6 if offset == 0 else 1e-5)
