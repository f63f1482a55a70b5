"""What stands between convolutions: the plain expressions, the operations, and their kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_art.networks import fused

from .offline_triton import passes


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm_of(channels: int, groups: int = 4, device: str = "cpu") -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, device=device).requires_grad_(False)
    if device == "cpu":
        norm.weight.data, norm.bias.data = draw(2, channels, seed=9)
    return norm


def upsampler_of(
    channels: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    from diffusers.models.upsampling import Upsample2D

    return Upsample2D(channels, use_conv=True).to(device, dtype).requires_grad_(False)


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """The names of what is run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# On the CPU everything is as torch has it, to the last bit.


def test_a_residual_block_is_what_it_was():
    norm, x, time = norm_of(8), draw(2, 8, 5, 6), draw(1, 8, seed=1)
    assert torch.equal(fused.group_norm(norm, x, silu=True), F.silu(norm(x)))
    assert torch.equal(fused.group_norm(norm, x), norm(x))
    expected = norm(x + time[:, :, None, None])
    assert torch.equal(fused.group_norm(norm, x, time=time), expected)
    scale, shift = draw(2, 16, seed=2).chunk(2, dim=1)
    expected = norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    assert torch.equal(fused.group_norm(norm, x, scale=scale, shift=shift), expected)
    bias = draw(8, seed=3)
    expected = F.silu(norm(x + bias[:, None, None]))
    assert torch.equal(fused.group_norm(norm, x, bias=bias, silu=True), expected)


def test_a_sequence_is_normalised_as_a_picture():
    norm, x, time = norm_of(8), draw(2, 8, 30), draw(2, 8, seed=1)
    expected = norm(x + time[:, :, None])
    assert torch.equal(fused.group_norm(norm, x, time=time), expected)


def test_a_spatial_norm_is_what_it_was():
    norm, x = norm_of(8), draw(2, 8, 4, 6)
    scale, shift = draw(2, 2, 8, 2, 2, seed=1)
    by, onto = (each.repeat_interleave(2, 2).repeat_interleave(3, 3) for each in (scale, shift))
    assert torch.equal(fused.spatial_norm(norm, x, scale, shift), norm(x) * by + onto)
    bias = draw(8, seed=2)
    expected = F.silu(norm(x + bias[:, None, None]) * by + onto)
    assert torch.equal(fused.spatial_norm(norm, x, scale, shift, bias=bias, silu=True), expected)


def test_a_transformer_block_is_what_it_was():
    norm, x, delta = nn.LayerNorm(12), draw(2, 5, 12), draw(2, 5, 12, seed=1)
    total, normed = fused.layer_norm(norm, x, delta)
    assert torch.equal(total, delta + x) and torch.equal(normed, norm(delta + x))
    total, normed = fused.layer_norm(norm, x)
    assert total is x and torch.equal(normed, norm(x))
    bias = draw(12, seed=2)
    assert torch.equal(fused.layer_norm(norm, x, delta, bias)[0], x + delta + bias)
    gated, gate = x.chunk(2, dim=-1)
    assert torch.equal(fused.geglu(x), F.gelu(gate) * gated)


def test_a_bias_is_added_to_channels():
    x, y, bias = draw(2, 8, 5, 6), draw(2, 8, 5, 6, seed=1), draw(8, seed=2)
    assert torch.equal(fused.add(x, y), x + y)
    assert torch.equal(fused.add(x, y, bias), x + y + bias[:, None, None])
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(fused.add(tokens, tokens, bias), tokens + tokens + bias)


def test_a_picture_is_doubled_as_the_layer_doubles_it(monkeypatch: pytest.MonkeyPatch):
    layer, x = upsampler_of(8), draw(2, 8, 5, 3)
    expected = layer(x)
    assert torch.equal(fused.upsample(layer, x), expected)
    monkeypatch.setattr(fused, "fuses", lambda x: True)  # the operation, in plain torch
    torch.testing.assert_close(fused.upsample(layer, x), expected)
    assert torch.equal(fused.upsample(nn.Identity(), x), x)


def test_gradients_pass():
    norm, x = norm_of(8).requires_grad_(True), draw(2, 8, 5, 6).requires_grad_(True)
    fused.group_norm(norm, x, silu=True).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None


# What is fused. A meta tensor stands for one on a GPU.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_each_is_one_operation(dtype):
    norm, layer = (n.to(dtype) for n in (norm_of(8, device="meta"), nn.LayerNorm(8, device="meta")))
    x = torch.empty(2, 8, 6, 6, dtype=dtype, device="meta")
    tokens, cells = x.flatten(2).transpose(1, 2), x[:, :, :3, :3]
    with torch.no_grad(), Seen() as seen:
        fused.group_norm(norm, x, bias=norm.bias, time=norm.bias[None], silu=True)
        fused.spatial_norm(norm, x, cells, cells)
        fused.add(x, x, norm.bias)
        fused.layer_norm(layer, tokens, tokens)
        fused.geglu(tokens)
        fused.upsample(upsampler_of(8, "meta", dtype), x)
    names = [name for name in seen.names if "prior_art" in name]
    kinds = ["group_norm", "spatial_norm", "add", "layer_norm", "geglu", "double"]
    assert names == [f"prior_art::{kind}" for kind in kinds]
    assert not [name for name in seen.names if "norm" in name and name not in names]


def hooked(norm: nn.Module) -> None:
    norm.register_forward_hook(lambda *call: None)


def patched(norm: nn.Module) -> None:
    norm.weight_function = [lambda weight: weight]


def elsewhere(norm: nn.Module) -> None:
    norm.weight = nn.Parameter(torch.ones(8), requires_grad=False)


def without_weights(norm: nn.Module) -> None:
    norm.weight = norm.bias = None


@pytest.mark.parametrize(
    "how", [hooked, patched, elsewhere, without_weights, nn.Module.double, nn.Module.train]
)
def test_a_layer_that_does_more_is_called(how):
    norm, x = norm_of(8, device="meta"), torch.empty(2, 8, 6, 6, device="meta")
    how(norm)
    if how is nn.Module.train:  # a gradient is asked for
        norm.requires_grad_(True)
    if how is nn.Module.double:
        x = x.double()
    called: list[Tensor] = []
    forward = norm.forward
    norm.forward = lambda x: called.append(x) or (x if how is elsewhere else forward(x))
    fused.group_norm(norm, x, time=x[:, :, 0, 0])
    fused.spatial_norm(norm, x, x, x)
    assert len(called) == 2


def test_other_dtypes_and_gradients_are_not_taken():
    x = torch.empty(2, 8, device="meta")
    assert fused.fuses(x) and not fused.fuses(draw(2, 8))
    assert not fused.fuses(x.double()) and not fused.fuses(x.requires_grad_(True))
    with torch.no_grad():
        assert fused.fuses(x)


# The operations.


def operations(device: str = "cpu") -> list[tuple[Any, tuple[Any, ...]]]:
    """Each with arguments, pictures in both formats and windows of larger ones."""
    ops, found = torch.ops.prior_art, []
    c = draw(8).to(device)
    for x in (
        draw(2, 8, 6, 4),
        draw(2, 8, 6, 4).contiguous(memory_format=torch.channels_last),
        draw(2, 8, 9, 7)[:, :, 1:7, 2:6],
    ):
        x = x.to(device)
        found += [
            (ops.group_norm, (x, c, c, [c, None, c[None], None], 4, 1e-5, True)),
            (ops.spatial_norm, (x, c, c, x[:, :, ::3, ::2], x[:, :, ::3, ::2], c, 4, 1e-5, False)),
            (ops.add, (x, x, c)),
            (ops.layer_norm, (x.transpose(1, 3), c, c, None, None, 1e-5)),
            (ops.layer_norm, (x.transpose(1, 3), c, c, x.transpose(1, 3), c, 1e-5)),
            (ops.geglu, (x,)),
            (ops.double, (x,)),
        ]
    tokens = draw(2, 24, 8).to(device)
    found.append((ops.group_norm, (tokens.transpose(1, 2), c, c, [None] * 4, 2, 1e-5, False)))
    found.append((ops.add, (tokens, tokens, c)))
    return found


@pytest.mark.slow
def test_operations_keep_torchs_rules():
    for operation, given in operations():
        torch.library.opcheck(operation.default, given)


def test_what_is_not_computed_is_like_what_is():
    for (operation, given), (_, meta) in zip(operations(), operations("meta"), strict=True):
        found, like = operation(*given), operation(*meta)
        pairs = [(found, like)] if isinstance(found, Tensor) else zip(found, like, strict=True)
        for ours, theirs in pairs:
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert ours.stride() == theirs.stride()


def test_a_picture_comes_out_with_its_channels_last():
    norm, x = norm_of(8, device="meta"), torch.empty(2, 8, 6, 4, device="meta")
    for lay in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=lay)
        for out in (fused.group_norm(norm, given), fused.add(given, given, norm.bias)):
            assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_network_with_them_is_traced_whole():
    norm, layer = norm_of(8, device="meta"), nn.LayerNorm(8, device="meta")
    x = torch.empty(2, 8, 6, 6, device="meta")

    @torch.no_grad()
    def network(x: Tensor) -> Tensor:
        x = fused.group_norm(norm, x, bias=norm.bias, silu=True)
        x = fused.add(fused.spatial_norm(norm, x, x, x), x, norm.bias)
        total, normed = fused.layer_norm(layer, x.flatten(2).transpose(1, 2), bias=layer.bias)
        return fused.geglu(total + normed)

    traced = torch.compile(network, backend="eager", fullgraph=True)
    assert traced(x).shape == network(x).shape


# The kernels.


@pytest.mark.slow
def test_kernels_compute_what_float64_does(tmp_path):
    passes("fused_in_interpreter.py", tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_kernels_compile_for_cards_that_are_not_here(tmp_path):
    passes("fused_in_compiler.py", tmp_path)
