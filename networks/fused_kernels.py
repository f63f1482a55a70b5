"""The kernels behind ``fused.py``, in Triton. Imported only where they are needed.

Pictures are ``[R, P, C]`` to them: rows, pixels, and channels, which lie side by side. A tile is
``TILE`` pixels by ``WIDTH`` channels. Whatever the dtype of what is read and written, arithmetic
is fp32. A size that changes between layers is never a constant of a kernel, so that a network needs
each kernel once.
"""

# No annotations from the future: the interpreter of Triton 3.0 does not read them.
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operations import on_grid

_TILE, _WIDTH = 64, 64
_PROGRAMS = 512  # a row's, at which a card is busy: a chunk is as long as this leaves it
_BLOCK = 1024


@triton.jit(do_not_specialize=["pixels", "chunk"])
def _moments(x, moments, pixels, channels, chunk, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Each channel's mean and sum of squared deviations over a chunk of a row's pixels.

    ``x [R, P, C]``, ``moments [R, chunks, 2, C]``. The deviations of a tile are taken from its own
    mean, so that nothing cancels where the mean is large; tiles are joined as Chan et al. 1983.
    """
    blocks = tl.cdiv(channels, WIDTH)
    part, row = tl.program_id(0) // blocks, tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    first = part * chunk
    length = tl.minimum(chunk, pixels - first)
    x += (row * pixels + first) * channels
    mean = tl.zeros([WIDTH], tl.float32)
    squares = tl.zeros([WIDTH], tl.float32)
    for start in range(0, length, TILE):
        pixel = start + tl.arange(0, TILE)
        inside = (pixel < length)[:, None] & (column < channels)[None, :]
        tile = tl.load(x + pixel[:, None] * channels + column[None, :], inside, 0.0)
        tile = tile.to(tl.float32)
        count = tl.minimum(TILE, length - start).to(tl.float32)
        tile_mean = tl.sum(tile, 0) / count
        deviation = tl.where(inside, tile - tile_mean[None, :], 0.0)
        step = tile_mean - mean
        share = count / (start + count)
        mean += step * share
        squares += tl.sum(deviation * deviation, 0) + step * step * (start * share)
    moments += (row * (tl.num_programs(0) // blocks) + part) * 2 * channels + column
    tl.store(moments, mean, column < channels)
    tl.store(moments + channels, squares, column < channels)


@triton.jit
def _added(bias, time, channel, own, biased, timed):
    """What is added to channels of ``x``; each counts for the first so many of a group's."""
    added = tl.load(bias + channel, own < biased, 0.0).to(tl.float32)
    return added + tl.load(time + channel, own < timed, 0.0).to(tl.float32)


@triton.jit(
    do_not_specialize=[
        *("time_row", "scale_row", "shift_row", "given"),
        *("pixels", "channels", "chunk", "chunks", "size"),
    ]
)
def _factors(
    moments, factors, weight, beta, bias, time, scale, shift, time_row, scale_row, shift_row, given,
    pixels, channels, chunk, chunks, size, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    """What normalises a row's group: ``factors [R, 2, C]``, by which ``y = x * a + b``.

    ``moments`` as :func:`_moments` writes them; ``bias [C]``, ``time``, ``scale`` and ``shift
    [R, C]`` with the steps between their rows count where ``given`` has the bit 1, 2, 4, 8.
    A group is ``size`` channels. What is added to a channel moves its mean and nothing else.
    """
    group, row = tl.program_id(0), tl.program_id(1)
    moments += row.to(tl.int64) * chunks * 2 * channels
    time += row * time_row
    biased, timed = (given & 1) * size, (given >> 1 & 1) * size
    scaled, shifted = (given >> 2 & 1) * size, (given >> 3 & 1) * size
    places = pixels.to(tl.float32) * size
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks * size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        part, own, inside = index // size, index % size, index < chunks * size
        channel = group * size + own
        mean = tl.load(moments + part * 2 * channels + channel, inside, 0.0)
        mean += _added(bias, time, channel, own, biased, timed)
        count = tl.minimum(chunk, pixels - part * chunk).to(tl.float32)
        total += tl.where(inside, mean * count, 0.0)
    centre = tl.sum(total, 0) / places
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks * size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        part, own, inside = index // size, index % size, index < chunks * size
        channel = group * size + own
        at = moments + part * 2 * channels + channel
        step = tl.load(at, inside, 0.0) - centre
        step += _added(bias, time, channel, own, biased, timed)
        count = tl.minimum(chunk, pixels - part * chunk).to(tl.float32)
        squares += tl.load(at + channels, inside, 0.0)
        squares += tl.where(inside, step * step * count, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(squares, 0) / places + eps)
    for start in range(0, size, BLOCK):
        own = start + tl.arange(0, BLOCK)
        channel = group * size + own
        moved = _added(bias, time, channel, own, biased, timed) - centre
        by = tl.load(scale + row * scale_row + channel, own < scaled, 0.0).to(tl.float32) + 1
        onto = tl.load(shift + row * shift_row + channel, own < shifted, 0.0).to(tl.float32)
        a = inverse * tl.load(weight + channel, own < size, 0.0).to(tl.float32) * by
        b = moved * a + tl.load(beta + channel, own < size, 0.0).to(tl.float32) * by + onto
        at = factors + row * 2 * channels + channel
        tl.store(at, a, own < size)
        tl.store(at + channels, b, own < size)


@triton.jit(do_not_specialize=["pixels"])
def _scale(
    x, factors, y, pixels, channels, SILU: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr
):
    """``y = x * a + b`` of ``[R, P, C]`` by ``factors [R, 2, C]``, through SiLU where asked."""
    blocks = tl.cdiv(channels, WIDTH)
    first, row = tl.program_id(0) // blocks * TILE, tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    a = tl.load(factors + row * 2 * channels + column, column < channels, 0.0)
    b = tl.load(factors + (row * 2 + 1) * channels + column, column < channels, 0.0)
    pixel = tl.arange(0, TILE)
    inside = (first + pixel < pixels)[:, None] & (column < channels)[None, :]
    at = pixel[:, None] * channels + column[None, :]
    start = (row * pixels + first) * channels
    value = tl.load(x + start + at, inside, 0.0).to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + start + at, value.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["pixels", "wide", "cell_high", "cell_wide"])
def _scale_cells(
    x, factors, scale, shift, y, pixels, channels, wide, cell_high, cell_wide,
    SILU: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``y = (x * a + b) * scale + shift``, with ``scale`` and ``shift [R, cells, C]``.

    A row is ``wide`` pixels wide, and a cell ``cell_high`` by ``cell_wide`` of them.
    """
    blocks = tl.cdiv(channels, WIDTH)
    first, row = tl.program_id(0) // blocks * TILE, tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    a = tl.load(factors + row * 2 * channels + column, column < channels, 0.0)
    b = tl.load(factors + (row * 2 + 1) * channels + column, column < channels, 0.0)
    pixel = tl.arange(0, TILE)
    inside = (first + pixel < pixels)[:, None] & (column < channels)[None, :]
    at = pixel[:, None] * channels + column[None, :]
    start = (row * pixels + first) * channels
    value = tl.load(x + start + at, inside, 0.0).to(tl.float32) * a[None, :] + b[None, :]
    across = wide // cell_wide
    cell = (first + pixel) // wide // cell_high * across + (first + pixel) % wide // cell_wide
    of = cell[:, None] * channels + column[None, :]
    cells = row * (pixels // (cell_high * cell_wide)) * channels
    value *= tl.load(scale + cells + of, inside, 0.0).to(tl.float32)
    value += tl.load(shift + cells + of, inside, 0.0).to(tl.float32)
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + start + at, value.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows"])
def _add(x, y, bias, total, rows, channels, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """``total = x + y + bias`` of ``[rows, C]``."""
    blocks = tl.cdiv(channels, WIDTH)
    first = (tl.program_id(0) // blocks).to(tl.int64) * TILE
    column = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, TILE)
    inside = (first + row < rows)[:, None] & (column < channels)[None, :]
    at = first * channels + row[:, None] * channels + column[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    value += tl.load(y + at, inside, 0.0).to(tl.float32)
    value += tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
    tl.store(total + at, value.to(total.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["given"])
def _layer_norm(
    x, delta, bias, weight, beta, total, normed, width, eps, given, BLOCK: tl.constexpr
):
    """``total = x + delta + bias`` of a row ``[W]``, and its LayerNorm.

    ``delta`` and ``bias`` count where ``given`` has the bit 1, 2; ``total`` is written where it is
    not ``x``.
    """
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = tl.program_id(0).to(tl.int64) * width + column
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    value += tl.load(delta + at, column < (given & 1) * width, 0.0).to(tl.float32)
    value += tl.load(bias + column, column < (given >> 1) * width, 0.0).to(tl.float32)
    # The sum is normalised as it goes on, rounded to its dtype.
    value = value.to(total.dtype.element_ty).to(tl.float32)
    tl.store(total + at, value.to(total.dtype.element_ty), inside & (column < given * width))
    deviation = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(deviation * deviation, 0) / width + eps)
    value = deviation * inverse * tl.load(weight + column, inside, 0.0).to(tl.float32)
    value += tl.load(beta + column, inside, 0.0).to(tl.float32)
    tl.store(normed + at, value.to(normed.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["pixels", "wide"])
def _double(x, y, pixels, wide, channels, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Each pixel of ``x [R, P, C]``, ``wide`` in a row, four times: ``y [R, 4 P, C]``."""
    blocks = tl.cdiv(channels, WIDTH)
    first, row = tl.program_id(0) // blocks * TILE, tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    pixel = first + tl.arange(0, TILE)
    inside = (pixel < pixels)[:, None] & (column < channels)[None, :]
    at = pixel[:, None] * channels + column[None, :]
    value = tl.load(x + row * pixels * channels + at, inside, 0.0)
    corner = pixel // wide * 4 * wide + pixel % wide * 2
    y += row * 4 * pixels * channels
    at = corner[:, None].to(tl.int64) * channels + column[None, :]
    tl.store(y + at, value, inside)
    tl.store(y + at + channels, value, inside)
    at += 2 * wide * channels
    tl.store(y + at, value, inside)
    tl.store(y + at + channels, value, inside)


@triton.jit
def _geglu(x, y, width, BLOCK: tl.constexpr):
    """``y = x[:, :W] * gelu(x[:, W:])`` of ``x [rows, 2 W]``."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    at = x + row * 2 * width + column
    gate = tl.load(at + width, column < width, 0.0).to(tl.float32)
    value = tl.load(at, column < width, 0.0).to(tl.float32)
    value *= 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * width + column, value.to(y.dtype.element_ty), column < width)


def group_norm(
    x: Tensor,
    weight: Tensor,
    beta: Tensor,
    around: Sequence[Tensor | None],
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """``torch.ops.prior_art.group_norm``: bias, time, scale and shift in ``around``."""
    rows = x.movedim(1, -1).contiguous()
    factors = _factors_of(rows, (weight, beta), around, groups, eps)
    out, (count, pixels, channels) = torch.empty_like(rows), _sizes(rows)
    grid = (triton.cdiv(pixels, _TILE) * triton.cdiv(channels, _WIDTH), count)
    on_grid(_scale, grid)(rows, factors, out, pixels, channels, silu, _TILE, _WIDTH)
    return out.movedim(-1, 1)


def spatial_norm(
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
    """``torch.ops.prior_art.spatial_norm``."""
    rows, by, onto = (each.movedim(1, -1).contiguous() for each in (x, scale, shift))
    factors = _factors_of(rows, (weight, beta), [bias, None, None, None], groups, eps)
    out, (count, pixels, channels) = torch.empty_like(rows), _sizes(rows)
    _, high, wide, _ = rows.shape
    cell = high // by.shape[1], wide // by.shape[2]
    grid = (triton.cdiv(pixels, _TILE) * triton.cdiv(channels, _WIDTH), count)
    on_grid(_scale_cells, grid)(
        rows, factors, by, onto, out, pixels, channels, wide, *cell, silu, _TILE, _WIDTH
    )
    return out.movedim(-1, 1)


def add(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """``torch.ops.prior_art.add``."""
    channel = 1 if x.ndim == 4 else -1
    x, y = (each.movedim(channel, -1).contiguous() for each in (x, y))
    out, channels = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // channels
    grid = (triton.cdiv(rows, _TILE) * triton.cdiv(channels, _WIDTH),)
    on_grid(_add, grid)(x, y, bias.contiguous(), out, rows, channels, _TILE, _WIDTH)
    return out.movedim(-1, channel)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    beta: Tensor,
    delta: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``torch.ops.prior_art.layer_norm``."""
    x, width = x.contiguous(), x.shape[-1]
    given = (delta is not None) + 2 * (bias is not None)
    delta = x if delta is None else delta.contiguous()
    bias = weight if bias is None else bias.contiguous()
    normed = torch.empty_like(x)
    total = torch.empty_like(x) if given else x.new_empty(0)
    on_grid(_layer_norm, (x.numel() // width,))(
        x, delta, bias, weight, beta, total, normed, width, eps, given,
        triton.next_power_of_2(width),
    )  # fmt: skip
    return total, normed


def double(x: Tensor) -> Tensor:
    """``torch.ops.prior_art.double``."""
    rows = x.movedim(1, -1).contiguous()
    _, high, wide, _ = rows.shape
    count, pixels, channels = _sizes(rows)
    out = rows.new_empty((count, 2 * high, 2 * wide, channels))
    grid = (triton.cdiv(pixels, _TILE) * triton.cdiv(channels, _WIDTH), count)
    on_grid(_double, grid)(rows, out, pixels, wide, channels, _TILE, _WIDTH)
    return out.movedim(-1, 1)


def geglu(x: Tensor) -> Tensor:
    """``torch.ops.prior_art.geglu``."""
    x, width = x.contiguous(), x.shape[-1] // 2
    out = x.new_empty((*x.shape[:-1], width))
    grid = (out.numel() // width * triton.cdiv(width, _BLOCK),)
    on_grid(_geglu, grid)(x, out, width, _BLOCK)
    return out


def _sizes(rows: Tensor) -> tuple[int, int, int]:
    """Rows, pixels and channels of ``[R, ..., C]``."""
    return rows.shape[0], rows[0, ..., 0].numel(), rows.shape[-1]


def _factors_of(
    rows: Tensor,
    affine: tuple[Tensor, Tensor],
    around: Sequence[Tensor | None],
    groups: int,
    eps: float,
) -> Tensor:
    """A group norm as ``[R, 2, C]`` fp32, by which it is ``x * a + b``; two launches."""
    count, pixels, channels = _sizes(rows)
    blocks, tiles = triton.cdiv(channels, _WIDTH), triton.cdiv(pixels, _TILE)
    chunk = triton.cdiv(tiles, min(tiles, max(1, _PROGRAMS // blocks))) * _TILE
    chunks = triton.cdiv(pixels, chunk)
    moments = rows.new_empty((count, chunks, 2, channels), dtype=torch.float32)
    grid = (chunks * blocks, count)
    on_grid(_moments, grid)(rows, moments, pixels, channels, chunk, _TILE, _WIDTH)
    factors = rows.new_empty((count, 2, channels), dtype=torch.float32)
    given = sum(1 << bit for bit, each in enumerate(around) if each is not None)
    # What is not there is never read; it takes a pointer to something all the same.
    each = [affine[0] if a is None else a.expand(count, channels) for a in around]
    each = [a if a.stride(-1) == 1 else a.contiguous() for a in each]
    steps = [a.stride(0) for a in each[1:]]
    on_grid(_factors, (groups, count))(
        moments, factors, *affine, *each, *steps, given,
        pixels, channels, chunk, chunks, channels // groups, eps, _BLOCK,
    )  # fmt: skip
    return factors
