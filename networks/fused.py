"""What stands between the convolutions and products of a network, each fused into one operation.

On a GPU with Triton an operation is ``torch.ops.prior_art.<name>``, whose kernels are in
``fused_kernels.py``: a picture is read in the order in which convolutions are fastest
(channels_last), and a norm's arithmetic, whatever is added or scaled around it and its activation
touch memory as often as the norm alone. Everywhere else, and where a host has swapped or patched
the layer, the same functions are the plain expressions of torch, which call the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .leaf import is_bare
from .operations import define, has_kernels

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 8192  # what the kernel of a LayerNorm holds of a row


def fuses(x: Tensor) -> bool:
    """Whether fused kernels take ``x``: on a GPU, in fp16, bf16 or fp32, with no gradient needed.

    A meta tensor is taken too: nothing is computed there, and what a GPU would run can be counted.
    """
    return has_kernels(x.device) and x.dtype in _DTYPES and not _needs_gradient(x)


def group_norm(
    norm: nn.GroupNorm,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    time: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """``GroupNorm(x + bias + time) * (1 + scale) + shift``, through SiLU where ``silu``.

    Args:
        norm: with C channels.
        x: ``[R, C, ...]``, a picture ``[R, C, H, W]`` or a sequence ``[R, C, L]``.
        bias: ``[C]``, of the convolution that made ``x``.
        time: ``[R, C]`` or ``[1, C]``; ``scale`` and ``shift`` likewise.

    Returns:
        The shape and dtype of ``x``; fused, with its channels last in memory.
    """
    around = [bias, time, scale, shift]
    if _takes(norm, x, *around):
        return torch.ops.prior_art.group_norm(
            x, norm.weight, norm.bias, around, norm.num_groups, norm.eps, silu
        )
    return _normalise(norm, x, around, silu)


def spatial_norm(
    norm: nn.GroupNorm,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """``GroupNorm(x + bias) * scale + shift``, through SiLU where ``silu``, as MoVQ has it.

    Args:
        norm: with C channels.
        x: ``[R, C, H, W]``.
        scale: ``[R, C, h, w]``; ``shift`` likewise. H and W are multiples of h and w: each value is
            for a whole cell of pixels.
        bias: ``[C]``, of the convolution that made ``x``.

    Returns:
        The shape and dtype of ``x``; fused, with its channels last in memory.
    """
    whole = x.shape[2] % scale.shape[2] == 0 and x.shape[3] % scale.shape[3] == 0
    if whole and scale.shape == shift.shape and _takes(norm, x, scale, shift, bias):
        return torch.ops.prior_art.spatial_norm(
            x, norm.weight, norm.bias, scale, shift, bias, norm.num_groups, norm.eps, silu
        )
    return _normalise_cells(norm, _biased(x, bias), scale, shift, silu)


def add(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x + y + bias``.

    Args:
        x: a picture ``[R, C, H, W]`` or tokens ``[R, L, C]``; y: the same.
        bias: ``[C]``, of the layer that made one of them.
    """
    if bias is None:
        return x + y
    if x.shape == y.shape and _alike(x, y, bias):
        return torch.ops.prior_art.add(x, y, bias)
    return _sum(x, y, bias)


def layer_norm(
    norm: nn.LayerNorm, x: Tensor, delta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``x + delta + bias`` and the LayerNorm of that.

    Args:
        norm: over the last dimension.
        x: ``[..., W]``; delta: the same.
        bias: ``[W]``, of the layer that made ``delta``.
    """
    width = x.shape[-1]
    fits = norm.normalized_shape == (width,) and width <= _WIDEST
    if fits and (delta is None or delta.shape == x.shape) and _takes(norm, x, delta, bias):
        total, normed = torch.ops.prior_art.layer_norm(
            x, norm.weight, norm.bias, delta, bias, norm.eps
        )
        return (x if delta is None and bias is None else total), normed
    for each in (delta, bias):
        x = x if each is None else x + each
    return x, norm(x)


def convolve(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution of ``[R, C, H, W]`` without its bias, and that, for what follows to add.

    Its bias is None where it is in the convolution already, as it is where nothing is fused.
    """
    if (
        not fuses(x)
        or not is_bare(conv)
        or type(conv.padding) is str
        or conv.padding_mode != "zeros"
        or not _alike(x, conv.weight, conv.bias)
    ):
        return conv(x), None
    made = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return made, conv.bias


def upsample(block: nn.Module, x: Tensor) -> Tensor:
    """What a layer that resamples a picture ``[R, C, H, W]`` makes of it.

    Args:
        block: diffusers' ``Upsample2D``, which doubles it by the nearest pixel, or any other.
    """
    doubles = (
        _alike(x)
        and type(block).__name__ == "Upsample2D"
        and is_bare(block)
        and block.interpolate
        and block.norm is None
        and not block.use_conv_transpose
    )
    if not doubles:
        return block(x)
    x = torch.ops.prior_art.double(x)
    if not block.use_conv:
        return x
    return (block.conv if block.name == "conv" else block.Conv2d_0)(x)


def geglu(x: Tensor) -> Tensor:
    """``[..., 2 C]`` to ``[..., C]``: the first half times the exact GELU of the second."""
    return torch.ops.prior_art.geglu(x) if _alike(x) else _gate(x)


def _normalise(
    norm: Callable[[Tensor], Tensor], x: Tensor, around: Sequence[Tensor | None], silu: bool
) -> Tensor:
    ones = (1,) * (x.ndim - 2)
    bias, time, scale, shift = (None if a is None else a.view(*a.shape, *ones) for a in around)
    if bias is not None:
        x = x + bias
    if time is not None:
        x = x + time
    x = norm(x)
    if scale is not None:
        x = x * (1 + scale)
    if shift is not None:
        x = x + shift
    return F.silu(x) if silu else x


def _normalise_cells(
    norm: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor, shift: Tensor, silu: bool
) -> Tensor:
    high, wide = scale.shape[2:]
    cells = norm(x).unflatten(3, (wide, -1)).unflatten(2, (high, -1))
    cells = cells * scale[:, :, :, None, :, None] + shift[:, :, :, None, :, None]
    x = cells.flatten(4, 5).flatten(2, 3)
    return F.silu(x) if silu else x


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias[:, None, None]


def _sum(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    return x + y + (bias[:, None, None] if x.ndim == 4 else bias)


def _gate(x: Tensor) -> Tensor:
    gated, gate = x.chunk(2, dim=-1)
    return F.gelu(gate).mul_(gated)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _alike(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a kernel that takes ``x`` may read the others beside it."""
    given = [other for other in others if other is not None]
    same = all(other.device == x.device and other.dtype == x.dtype for other in given)
    return fuses(x) and same and x.numel() > 0 and not _needs_gradient(*given)


def _takes(leaf: nn.Module, x: Tensor, *others: Tensor | None) -> bool:
    """Whether a kernel that takes ``x`` may read past a layer what it would compute with."""
    if not fuses(x) or leaf.weight is None or leaf.bias is None:
        return False
    return _alike(x, leaf.weight, leaf.bias, *others) and is_bare(leaf)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _like_picture(x: Tensor, *others: Any) -> Tensor:
    rows = x.movedim(1, -1)
    return torch.empty_like(rows, memory_format=torch.contiguous_format).movedim(-1, 1)


def _plain_group_norm(
    x: Tensor,
    weight: Tensor,
    beta: Tensor,
    around: Sequence[Tensor | None],
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        return F.group_norm(x, groups, weight, beta, eps)

    return _channels_last(_normalise(norm, x, around, silu))


def _plain_spatial_norm(
    x: Tensor,
    weight: Tensor,
    beta: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        return F.group_norm(_biased(x, bias), groups, weight, beta, eps)

    return _channels_last(_normalise_cells(norm, x, scale, shift, silu))


def _plain_add(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    total = _sum(x, y, bias)
    return _channels_last(total) if x.ndim == 4 else total.contiguous()


def _like_sum(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    return _like_picture(x) if x.ndim == 4 else _like_rows(x)


def _plain_layer_norm(
    x: Tensor,
    weight: Tensor,
    beta: Tensor,
    delta: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    total = x
    for each in (delta, bias):
        total = total if each is None else total + each
    normed = F.layer_norm(total, total.shape[-1:], weight, beta, eps).contiguous()
    # What comes out of an operation may not be what went in.
    return (x.new_empty(0) if total is x else total.contiguous()), normed


def _like_layer_norm(
    x: Tensor, weight: Tensor, beta: Tensor, delta: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    alone = delta is None and bias is None
    return (x.new_empty(0) if alone else _like_rows(x)), _like_rows(x)


def _plain_double(x: Tensor) -> Tensor:
    return _channels_last(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _like_double(x: Tensor) -> Tensor:
    rows, channels, high, wide = x.shape
    return x.new_empty((rows, 2 * high, 2 * wide, channels)).movedim(-1, 1)


def _plain_geglu(x: Tensor) -> Tensor:
    return _gate(x).contiguous()


def _like_geglu(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _like_rows(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_define = partial(define, "fused_kernels")
_define(
    "group_norm(Tensor x, Tensor weight, Tensor beta, Tensor?[] around, int groups, float eps,"
    " bool silu) -> Tensor",
    _plain_group_norm,
    _like_picture,
)
_define(
    "spatial_norm(Tensor x, Tensor weight, Tensor beta, Tensor scale, Tensor shift, Tensor? bias,"
    " int groups, float eps, bool silu) -> Tensor",
    _plain_spatial_norm,
    _like_picture,
)
_define("add(Tensor x, Tensor y, Tensor bias) -> Tensor", _plain_add, _like_sum)
_define(
    "layer_norm(Tensor x, Tensor weight, Tensor beta, Tensor? delta, Tensor? bias, float eps)"
    " -> (Tensor, Tensor)",
    _plain_layer_norm,
    _like_layer_norm,
)
_define("double(Tensor x) -> Tensor", _plain_double, _like_double)
_define("geglu(Tensor x) -> Tensor", _plain_geglu, _like_geglu)
