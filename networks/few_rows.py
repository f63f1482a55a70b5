"""A transformer's step of few rows, on a GPU: five launches a block, bound by reading the weights.

The operations' kernels are in ``few_rows_kernels.py``; each has the same in plain torch, which is
what runs on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import layer_norm
from .leaf import is_bare
from .operations import define, has_kernels

ROWS = 16
"""So many rows are few: as many as a matrix instruction takes, whose time is the weight's."""

_WIDEST = 8192  # what one program holds of a row


def fits(layers: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compute with these layers as they are: on a GPU, in half precision.

    On the meta device too: nothing is computed there, and what a GPU would run can be counted.

    Args:
        layers: LayerNorms and Linears.
        device, dtype: of the rows.
    """
    return (
        has_kernels(device)
        and dtype in (torch.float16, torch.bfloat16)
        and all(
            is_bare(layer)
            and layer.weight is not None
            and layer.weight.shape[-1] <= _WIDEST
            and all(
                part.dtype == dtype and part.device.type == device.type and part.is_contiguous()
                for part in layer.parameters(recurse=False)
            )
            for layer in layers
        )
    )


def norm_linear(
    norm: nn.LayerNorm, layers: Sequence[nn.Linear], x: Tensor, *, gelu: bool = False
) -> list[Tensor]:
    """Each of one to three layers of one size with a bias, of the LayerNorm of rows.

    They :func:`fits`.

    Args:
        x: ``[B, W]``.
        gelu: the exact GELU of the result.

    Returns:
        ``[B, N]`` of each layer.
    """
    gain, shift, eps = norm.weight, norm.bias, norm.eps
    if len(x) > ROWS:
        x, gain, shift = layer_norm(norm, x)[1], None, None
        if len(layers) == 1:
            (layer,) = layers
            y = F.linear(x, layer.weight, layer.bias)
            return [F.gelu(y) if gelu else y]
    # Several products are one launch, however many rows: each of them alone leaves a GPU idle.
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    made = torch.ops.prior_art.norm_linear(x, gain, shift, eps, weights, biases, gelu)
    return list(made.unbind())


def linear(weight: Tensor, x: Tensor) -> Tensor:
    """``[B, N]``: rows ``[B, W]`` times ``weight`` ``[N, W]``, of a layer that :func:`fits`."""
    if len(x) > ROWS:
        return F.linear(x, weight)
    return torch.ops.prior_art.norm_linear(x, None, None, 0.0, [weight], [], False)[0]


def linear_add(layer: nn.Linear, x: Tensor, add: Tensor) -> Tensor:
    """``layer(x) + add``: ``[B, N]`` of rows ``[B, W]`` and ``[B, N]``, of a layer that fits."""
    if len(x) > ROWS:
        return add + F.linear(x, layer.weight, layer.bias)
    return torch.ops.prior_art.linear_add(x, layer.weight, layer.bias, add)


def mask_behind(slot: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """``[size]``, what is added to scores so that keys behind ``slot`` ``[1]`` do not count."""
    ahead = torch.arange(size, device=slot.device) > slot
    return torch.zeros(size, dtype=dtype, device=slot.device).masked_fill(ahead, -math.inf)


def attend_shared(
    q: Tensor,
    shared_keys: Tensor,
    shared_values: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """One query of each row over keys that all rows share and keys of its own.

    The shared part is one product for all rows, so it is read once instead of once a row.

    Args:
        q: ``[B, heads, 1, head_dim]``; shared: ``[heads, P, head_dim]``; own:
            ``[B, heads, n, head_dim]``.
        mask: ``[n]``, added to the own keys' scores.
    """
    q = q * q.shape[-1] ** -0.5
    by_head = q[:, :, 0].transpose(0, 1)  # [heads, B, head_dim]
    shared = (by_head @ shared_keys.transpose(1, 2)).transpose(0, 1)  # [B, heads, P]
    own = (q @ keys.transpose(2, 3))[:, :, 0]
    if mask is not None:
        own = own + mask
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
    count = shared_keys.shape[1]
    out = (weights[..., :count].transpose(0, 1) @ shared_values).transpose(0, 1)[:, :, None]
    # This one first: the sum takes its layout, in which a row's heads lie side by side.
    return weights[:, :, None, count:] @ values + out


def likeliest(logits: Tensor, top_k: int) -> Tensor:
    """``[B, V]`` with all but the ``top_k`` largest of each row, and what ties with the last of
    them, at minus infinity; 0 leaves all."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    least = logits.topk(top_k, sorted=False).values.amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < least, -math.inf)


def _norm_linear(
    x: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    gelu: bool,
) -> Tensor:
    y = x if gain is None else F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    out = torch.stack(
        [F.linear(y, w, biases[i] if biases else None) for i, w in enumerate(weights)]
    )
    return F.gelu(out) if gelu else out


def _linear_add(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor) -> Tensor:
    return (add + F.linear(x, weight, bias)).contiguous()


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    shared_keys: Tensor | None,
    shared_values: Tensor | None,
    slot: Tensor,
) -> Tensor:
    q, k, v = (part.unflatten(-1, (keys.shape[1], -1))[:, :, None] for part in (q, k, v))
    keys.index_copy_(2, slot, k)
    values.index_copy_(2, slot, v)
    mask = mask_behind(slot, keys.shape[2], q.dtype)
    if shared_keys is None or shared_values is None:
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[None])
    else:
        out = attend_shared(q, shared_keys, shared_values, keys, values, mask)
    return out[:, :, 0].flatten(1).contiguous()


def _choose(logits: Tensor, noise: Tensor, top_k: int, temperature: float) -> Tensor:
    x = likeliest(logits.float() / temperature, top_k)
    return (x.softmax(dim=-1) / noise).argmax(dim=-1)


_define = partial(define, "few_rows_kernels")
_define(
    "norm_linear(Tensor x, Tensor? gain, Tensor? shift, float eps, Tensor[] weights,"
    " Tensor[] biases, bool gelu) -> Tensor",
    _norm_linear,
    lambda x, gain, shift, eps, weights, biases, gelu: x.new_empty(
        len(weights), len(x), len(weights[0])
    ),
)
_define(
    "linear_add(Tensor x, Tensor weight, Tensor bias, Tensor add) -> Tensor",
    _linear_add,
    lambda x, weight, bias, add: add.new_empty(add.shape),
)
_define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values,"
    " Tensor? shared_keys, Tensor? shared_values, Tensor slot) -> Tensor",
    _attend,
    lambda q, *others: q.new_empty(q.shape),
    mutates=("keys", "values"),
)
_define(
    "choose(Tensor logits, Tensor noise, int top_k, float temperature) -> Tensor",
    _choose,
    lambda logits, *others: logits.new_empty(len(logits), dtype=torch.long),
)
