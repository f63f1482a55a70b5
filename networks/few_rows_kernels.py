"""The kernels of :mod:`.few_rows`, in Triton; imported only where Triton is there.

What one token of a transformer takes is reading: each weight once. So a program reads a few rows of
a weight from end to end, with as much under way at a time as a device needs, and what is small is
done again in every program instead of in a launch of its own: the moments of the LayerNorm before.
Sums are fp32. Sizes are the launch's; nothing is tuned at run time.

Moments are taken by sums and sums of squares. For half precision that loses nothing: where a row's
mean is r times its deviation, rounding has left the deviation an error of r 2^-12 (fp16; more in
bf16), and the difference of fp32 sums adds about the square of that.
"""

# No annotations from the future: the interpreter of Triton 3.0 does not read them.
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operations import on_grid

_ROWS = 16  # the least that a matrix instruction takes
_PROGRAMS = 1024  # at which an H100 reads fastest


@triton.jit
def _one_row(
    x, gain, shift, w0, w1, w2, b0, b1, b2, add, out, size, width, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Up to three layers ``[size, width]`` of one row x ``[width]``, into out ``[layers, size]``.

    Grid: (size / BLOCK, layers). NORM: of x's LayerNorm. ADD: plus add ``[size]``. WHOLE is a power
    of two, at least width.
    """
    weight, bias = _of_part(w0, w1, w2, b0, b1, b2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, WHOLE)
    # All that is read is asked for before anything is waited for.
    inside = (n < size)[:, None] & (k < width)[None, :]
    w = tl.load(weight + n[:, None] * width + k[None, :], mask=inside, other=0.0)
    if NORM:
        g = tl.load(gain + k, mask=k < width, other=0.0).to(tl.float32)
        b = tl.load(shift + k, mask=k < width, other=0.0).to(tl.float32)
    y = tl.load(x + k, mask=k < width, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(y, axis=0) / width
        variance = tl.sum(y * y, axis=0) / width - mean * mean
        y = (y - mean) * (1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)) * g + b
    result = tl.sum(w.to(tl.float32) * y[None, :], axis=1)
    if BIAS:
        result += tl.load(bias + n, mask=n < size, other=0.0).to(tl.float32)
    if GELU:
        result = _gelu(result)
    if ADD:
        result += tl.load(add + n, mask=n < size, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(1) * size + n, result.to(out.dtype.element_ty), mask=n < size)


@triton.jit(do_not_specialize=["count"])
def _some_rows(
    x, gain, shift, w0, w1, w2, b0, b1, b2, add, out, count, size, width, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The same for count rows x ``[count, width]``: out ``[layers, count, size]``.

    Grid: (size / BLOCK_N, layers, count / ROWS). WHOLE is a multiple of BLOCK_K, at least width.
    """
    weight, bias = _of_part(w0, w1, w2, b0, b1, b2)
    r = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_N, ROWS], dtype=tl.float32)
    if NORM:
        sums = tl.zeros([ROWS, BLOCK_K], dtype=tl.float32)
        squares = tl.zeros([ROWS, BLOCK_K], dtype=tl.float32)
        # Unrolled, so that all of it is asked for before anything is waited for.
        for start in tl.static_range(0, WHOLE, BLOCK_K):
            real = (r < count)[:, None] & (start + k < width)[None, :]
            tile = tl.load(x + r[:, None] * width + start + k[None, :], mask=real, other=0.0)
            tile = tile.to(tl.float32)
            sums += tile
            squares += tile * tile
        mean = tl.sum(sums, axis=1) / width
        variance = tl.sum(squares, axis=1) / width - mean * mean
        scale = 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    for start in range(0, width, BLOCK_K):
        at = start + k
        inside = (n < size)[:, None] & (at < width)[None, :]
        w = tl.load(weight + n[:, None] * width + at[None, :], mask=inside, other=0.0)
        inside = (at < width)[:, None] & (r < count)[None, :]
        y = tl.load(x + r[None, :] * width + at[:, None], mask=inside, other=0.0)
        if NORM:
            g = tl.load(gain + at, mask=at < width, other=0.0).to(tl.float32)
            b = tl.load(shift + at, mask=at < width, other=0.0).to(tl.float32)
            y = (y.to(tl.float32) - mean[None, :]) * scale[None, :] * g[:, None] + b[:, None]
            y = y.to(w.dtype)
        total = tl.dot(w, y, total)
    if BIAS:
        total += tl.load(bias + n, mask=n < size, other=0.0).to(tl.float32)[:, None]
    if GELU:
        total = _gelu(total)
    where = r[None, :] * size + n[:, None]
    inside = (n < size)[:, None] & (r < count)[None, :]
    if ADD:
        total += tl.load(add + where, mask=inside, other=0.0).to(tl.float32)
    out += tl.program_id(1) * count * size
    tl.store(out + where, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _of_part(w0, w1, w2, b0, b1, b2):
    """Weight and bias of the layer that this program is for."""
    weight, bias = w0, b0
    if tl.program_id(1) == 1:
        weight, bias = w1, b1
    if tl.program_id(1) == 2:
        weight, bias = w2, b2
    return weight, bias


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["common", "room"])
def _attend(
    q, k, v, keys, values, shared_keys, shared_values, slot, out, common, room,
    SHARED: tl.constexpr, HEAD: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One query of a row and head over what is shared, what the row has, and its own token.

    Grid: (heads, rows). q, k, v, out: ``[rows, heads, HEAD]``; keys, values ``[rows, heads, room,
    HEAD]``, where the token's own are put at ``slot`` and what stands from there on is not read;
    shared ``[heads, common, HEAD]``. WHOLE is a power of two, at least HEAD.
    """
    head, heads = tl.program_id(0), tl.num_programs(0)
    place = tl.program_id(1) * heads + head
    d = tl.arange(0, WHOLE)
    real = d < HEAD
    at = place * HEAD + d
    own = place.to(tl.int64) * room * HEAD
    keys += own
    values += own
    count = tl.load(slot).to(tl.int32)
    # All first pieces are asked for before anything is waited for.
    k1, v1 = _piece(keys, values, 0, count, HEAD, WHOLE, BLOCK)
    if SHARED:
        shared_keys += head * common * HEAD
        shared_values += head * common * HEAD
        k0, v0 = _piece(shared_keys, shared_values, 0, common, HEAD, WHOLE, BLOCK)
    query = tl.load(q + at, mask=real, other=0.0).to(tl.float32) * (1 / tl.sqrt(HEAD * 1.0))
    key = tl.load(k + at, mask=real, other=0.0)
    value = tl.load(v + at, mask=real, other=0.0)
    tl.store(keys + count * HEAD + d, key, mask=real)
    tl.store(values + count * HEAD + d, value, mask=real)
    # The token itself comes first, out of the registers it is in.
    best = tl.sum(query * key.to(tl.float32), axis=0)
    total, result = tl.full([], 1.0, tl.float32), value.to(tl.float32)
    if SHARED:
        best, total, result = _look(
            query, shared_keys, shared_values, common, k0, v0, best, total, result,
            HEAD, WHOLE, BLOCK,
        )  # fmt: skip
    best, total, result = _look(
        query, keys, values, count, k1, v1, best, total, result, HEAD, WHOLE, BLOCK
    )
    tl.store(out + at, (result / total).to(out.dtype.element_ty), mask=real)


@triton.jit
def _piece(
    keys, values, start, count,
    HEAD: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys and values from start on, as many as there are of count: ``[BLOCK, WHOLE]``."""
    d = tl.arange(0, WHOLE)
    i = start + tl.arange(0, BLOCK)
    inside = (i < count)[:, None] & (d < HEAD)[None, :]
    where = i[:, None] * HEAD + d[None, :]
    k = tl.load(keys + where, mask=inside, other=0.0)
    v = tl.load(values + where, mask=inside, other=0.0)
    return k, v


@triton.jit
def _look(
    query, keys, values, count, k, v, best, total, result,
    HEAD: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Softmax so far (largest score, sum, weighted values), with count more keys and values, of
    which k and v are the first piece.
    """
    i = tl.arange(0, BLOCK)
    for start in range(0, count, BLOCK):
        next_k, next_v = _piece(keys, values, start + BLOCK, count, HEAD, WHOLE, BLOCK)
        scores = tl.sum(k.to(tl.float32) * query[None, :], axis=1)
        scores = tl.where(start + i < count, scores, float("-inf"))
        largest = tl.maximum(best, tl.max(scores, axis=0))
        p = tl.exp(scores - largest)
        before = tl.exp(best - largest)
        total = total * before + tl.sum(p, axis=0)
        result = result * before + tl.sum(p[:, None] * v.to(tl.float32), axis=0)
        best, k, v = largest, next_k, next_v
    return best, total, result


@triton.jit(do_not_specialize=["top_k"])
def _choose(
    logits, noise, out, size, top_k, temperature,
    CUT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The code of a row that is drawn: argmax of softmax(logits / temperature) / noise.

    Grid: (rows,). CUT: of the top_k likeliest, and what ties with the last of them. WHOLE is a
    power of two, at least size.
    """
    i = tl.arange(0, WHOLE)
    row = tl.program_id(0).to(tl.int64) * size
    real = i < size
    x = tl.load(logits + row + i, mask=real, other=float("-inf")).to(tl.float32) / temperature
    kept = real
    if CUT:
        # Numbers in the order of their bits; the k-th largest is found bit by bit.
        x = tl.where(x == 0, 0.0, x)  # as for -0
        bits = x.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, ~bits, bits | -0x80000000).to(tl.uint32, bitcast=True)
        order = tl.where(real, order, 0)
        least = tl.full([], 0, tl.uint32)
        bit = tl.full([], 1, tl.uint32) << 31
        for _ in range(32):
            enough = tl.sum((order >= (least | bit)).to(tl.int32), axis=0) >= top_k
            least = tl.where(enough, least | bit, least)
            bit = bit >> 1
        kept = real & (order >= least)
    p = tl.where(kept, tl.exp(x - tl.max(x, axis=0)), 0.0)
    p = p / tl.sum(p, axis=0)
    score = tl.where(kept, p / tl.load(noise + row + i, mask=real, other=1.0), -1.0)
    # Where everything is NaN any code will do, but it has to be one.
    code = tl.minimum(tl.argmax(score, axis=0), size - 1)
    tl.store(out + tl.program_id(0), code.to(tl.int64))


def norm_linear(
    x: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    gelu: bool,
) -> Tensor:
    """See :mod:`.few_rows`."""
    out = x.new_empty(len(weights), len(x), len(weights[0]))
    _linear(x, (gain, shift, eps), (weights, biases), None, out, gelu)
    return out


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor) -> Tensor:
    """See :mod:`.few_rows`."""
    out = add.new_empty(add.shape)
    _linear(x, (None, None, 0.0), ([weight], [bias]), add, out, False)
    return out


def _linear(
    x: Tensor,
    norm: tuple[Tensor | None, Tensor | None, float],
    layers: tuple[Sequence[Tensor], Sequence[Tensor]],
    add: Tensor | None,
    out: Tensor,
    gelu: bool,
) -> None:
    x, add = x.contiguous(), None if add is None else add.contiguous()
    (count, width), size = x.shape, out.shape[-1]
    gain, shift, eps = norm
    weights, biases = layers
    # What is left out is never read; a kernel takes a pointer all the same.
    w = [*weights, *[weights[0]] * 2][:3]
    b = [*biases, *[x] * 3][:3]
    normed, added = gain is not None, add is not None
    given = (x, gain if normed else x, shift if normed else x, *w, *b, add if added else x, out)
    flags: dict[str, Any] = {"NORM": normed, "BIAS": bool(biases), "GELU": gelu, "ADD": added}
    whole = triton.next_power_of_2(width)
    if count == 1:
        # Up to 64 numbers of the weight a thread, in programs enough for a large card.
        block = min(64 * 128 // whole, size * len(weights) // _PROGRAMS)
        block = 1 << max(1, block).bit_length() - 1
        grid: tuple[int, ...] = (triton.cdiv(size, block), len(weights))
        on_grid(_one_row, grid)(
            *given, size, width, eps, **flags, WHOLE=whole, BLOCK=block, num_warps=4
        )
    else:
        # Rows are read again by every program, by one with a norm twice: so each has more of the
        # weight, the more they are. Each number is the best of those tried on an H200.
        few = count <= _ROWS
        rows = _ROWS if few else min(128, triton.next_power_of_2(count))
        block, depth, warps, stages = (16, 256, 2, 5) if few else (64, 64, 8, 4)
        if few and normed:
            block, warps, stages = 32, 4, 3
        grid = (triton.cdiv(size, block), len(weights), triton.cdiv(count, rows))
        on_grid(_some_rows, grid)(
            *given, count, size, width, eps, **flags,
            WHOLE=triton.cdiv(width, depth) * depth if normed else 0,
            ROWS=rows, BLOCK_N=block, BLOCK_K=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    shared_keys: Tensor | None,
    shared_values: Tensor | None,
    slot: Tensor,
) -> Tensor:
    """See :mod:`.few_rows`."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    rows, heads, room, size = keys.shape
    common = 0 if shared_keys is None else shared_keys.shape[1]
    shared = (shared_keys, shared_values) if common else (keys, values)
    # One row has few programs, which do more at once.
    alone = rows == 1
    on_grid(_attend, (heads, rows))(
        q, k, v, keys, values, *shared, slot, out, common, room,
        SHARED=common > 0, HEAD=size, WHOLE=triton.next_power_of_2(size),
        BLOCK=128 if alone else 64, num_warps=8 if alone else 2,
    )  # fmt: skip
    return out


def choose(logits: Tensor, noise: Tensor, top_k: int, temperature: float) -> Tensor:
    """See :mod:`.few_rows`."""
    rows, size = logits.shape
    out = torch.empty(rows, dtype=torch.long, device=logits.device)
    on_grid(_choose, (rows,))(
        logits, noise, out, size, top_k, temperature,
        CUT=0 < top_k < size, WHOLE=triton.next_power_of_2(size), num_warps=16,
    )  # fmt: skip
    return out
