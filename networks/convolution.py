"""Three by three convolutions and group norms on a CPU, with far fewer multiplications.

Winograd's F(4x4, 3x3): a tile of 4x4 outputs costs 36 multiplications per channel pair instead
of 144, and the 36 products over all tiles are plain matrix products. No library offers it on every
CPU, so it lives here, in torch operations only. It is exact algebra; with the interpolation points
0, ±√½, ±√2, ∞ its fp32 rounding error is below that of the direct convolution.

Everything works on activations laid out [batch, height, width, channels]. Normalisation,
activation, concatenation and nearest upsampling happen while a strip of the input is gathered into
the cache, and the residual is added while a strip of the output leaves it: none of them touches
memory on its own. Weights are transformed on the fly and never kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .leaf import is_plain

TILE = 4
_PATCH = TILE + 2
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
_CACHE = 16 << 20  # floats of transformed activations, or of transformed weights, held at a time


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """The 2D transforms of input, weight and output as [36, 36], [36, 9] and [16, 36] matrices."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    data = torch.zeros(_PATCH, _PATCH, dtype=torch.float64)
    kernel, result = data[:, :3].clone(), data[:, :TILE].clone()
    kernel[-1, -1] = result[-1, -1] = 1
    polynomials = []  # coefficients of prod(x - p): row i leaves out point i, the last row none
    for i in range(_PATCH):
        others = [p for j, p in enumerate(_POINTS) if j != i]
        coefficients = [1.0]
        for p in others:
            shifted = [0.0, *coefficients]
            coefficients = [a - p * b for a, b in zip(shifted, [*coefficients, 0.0], strict=True)]
        polynomials.append(coefficients)
    for i, coefficients in enumerate(polynomials):
        data[i, : len(coefficients)] = torch.tensor(coefficients, dtype=torch.float64)
        if i < len(_POINTS):
            scale = (points[i] - torch.tensor([p for p in _POINTS if p != _POINTS[i]])).prod()
            kernel[i] = points[i] ** torch.arange(3) / scale
            result[i] = points[i] ** torch.arange(TILE)
    return tuple(torch.kron(m, m).float().contiguous() for m in (data, kernel, result.T))


class Workspace:
    """Buffers that live as long as one sampling run, so that no step pays for fresh memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self.data, self.kernel, self.result = _transforms()

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape; the next `take` of the name reuses its memory."""
        size = 1
        for extent in shape:
            size *= extent
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers[name] = buffer = torch.empty(size)
        return buffer[:size].view(shape)


def is_conv(leaf: nn.Module, side: int) -> bool:
    """Whether this is an ordinary convolution that keeps the size, `side` pixels square."""
    return (
        is_plain(leaf, nn.Conv2d)
        and (leaf.kernel_size, leaf.stride) == ((side, side), (1, 1))
        and leaf.padding == (side // 2, side // 2)
        and (leaf.dilation, leaf.groups, leaf.padding_mode) == ((1, 1), 1, "zeros")
    )


def norm_affine(
    norm: nn.GroupNorm, parts: Sequence[Tensor], scale_shift: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The group norm of the concatenated `parts` as one scale and one shift a channel, [B, C] each.

    `scale_shift` is a second affine map to apply after the norm: x * (1 + scale) + shift.
    """
    batch, height, width, _ = parts[0].shape
    pixels = height * width
    means, squares = [], []  # of each channel, and its squared deviations from that mean
    for part in parts:
        rows = max(1, (1 << 17) // (width * part.shape[-1]))  # as many as stay in the cache
        near = part[:, :rows].mean((1, 2), keepdim=True)  # deviations from it cancel nothing
        sums = []
        for y in range(0, height, rows):
            deviation = (part[:, y : y + rows] - near).flatten(1, 2)
            sums.append((deviation.sum(1), deviation.square_().sum(1)))
        total, square = (torch.stack(column).double().sum(0) for column in zip(*sums, strict=True))
        means.append(near[:, 0, 0].double() + total / pixels)
        squares.append(square - total * total / pixels)
    shape = (batch, norm.num_groups, -1)
    means, squares = (torch.cat(some, 1).view(shape) for some in (means, squares))
    mean = means.mean(2, keepdim=True)
    variance = (squares / pixels + (means - mean).square()).mean(2, keepdim=True)
    scale = (variance.clamp_(min=0) + norm.eps).rsqrt() * norm.weight.view(1, norm.num_groups, -1)
    shift = norm.bias.view(1, norm.num_groups, -1) - mean * scale
    scale, shift = scale.view(batch, -1), shift.view(batch, -1)
    if scale_shift is not None:
        scale, shift = scale * (1 + scale_shift[0]), shift * (1 + scale_shift[0]) + scale_shift[1]
    return scale.float(), shift.float()


def conv1x1(parts: Sequence[Tensor], conv: nn.Conv2d, out: Tensor) -> Tensor:
    """A 1x1 convolution of the concatenated `parts` into `out`."""
    weight = conv.weight.flatten(1)
    flat, start = out.view(-1, out.shape[-1]), 0
    for part in parts:
        rows, columns = part.flatten(0, 2), weight[:, start : start + part.shape[-1]].T
        torch.addmm(flat if start else conv.bias, rows, columns, out=flat)
        start += part.shape[-1]
    return out


def conv3x3_few(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer on [B, C, H, W] as one matrix product with the weights as they lie in memory."""
    batch, _, height, width = x.shape
    columns = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    out = torch.addmm(conv.bias, columns, conv.weight.flatten(1).T)
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _gather(
    strip: Tensor, parts: Sequence[Tensor], top: int, affine: tuple[Tensor, Tensor] | None, up: bool
) -> None:
    """Fill a zero-padded strip with rows `top` and on of the parts, normalised and activated."""
    factor = 2 if up else 1
    first, last = max(top, 0), min(top + strip.shape[1], parts[0].shape[1] * factor)
    strip[:, : first - top] = 0
    strip[:, last - top :] = 0
    strip[:, :, 0] = 0
    strip[:, :, -1] = 0
    inside = strip[:, first - top : last - top, 1:-1]
    start = 0
    for part in parts:
        end = start + part.shape[-1]
        for parity in range(factor):  # with `up`, every second row repeats the row before it
            target = inside[:, parity::factor, :, start:end].unflatten(2, (-1, factor))
            y = (first + parity) // factor
            source = part[:, y : y + target.shape[1], :, None].expand_as(target)
            if affine is None:
                target.copy_(source)
            else:
                scale, shift = (a[:, None, None, None, start:end] for a in affine)
                torch.addcmul(shift, source, scale, out=target)
        start = end
    if affine is not None:
        F.silu(inside, inplace=True)


def conv3x3(
    parts: Sequence[Tensor],
    conv: nn.Conv2d,
    out: Tensor,
    workspace: Workspace,
    *,
    affine: tuple[Tensor, Tensor] | None = None,
    up: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """conv(silu(concatenated parts * scale + shift)) + residual into `out`, sides multiples of 4.

    `affine` is the scale and shift [B, C] ahead of the activation, or None for neither; `up`
    upsamples the input to the nearest by two; `bias` [B, O] replaces the layer's; `residual` may
    be `out` itself.
    """
    batch, height, width, outputs = out.shape
    channels = conv.in_channels
    down, across = height // TILE, width // TILE
    weight = conv.weight.reshape(outputs, channels * 9)
    bias = (conv.bias if bias is None else bias).expand(batch, outputs)
    size = 36 * across * channels  # floats of a row of tiles
    rows = min(down, max(1, _CACHE // size))
    images = max(1, min(batch, _CACHE // (size * down)))
    chunk = min(outputs, max(16, _CACHE // (36 * channels)))
    kernel = None
    for image in range(0, batch, images):
        some = slice(image, min(image + images, batch))
        count = some.stop - some.start
        scale_shift = None if affine is None else (affine[0][some], affine[1][some])
        for row in range(0, down, rows):
            high = min(rows, down - row)
            tiles = count * high * across
            strip = workspace.take("strip", count, high * TILE + 2, width + 2, channels)
            _gather(strip, [p[some] for p in parts], row * TILE - 1, scale_shift, up)
            a, b, c, _ = strip.stride()
            shape = (_PATCH, _PATCH, count, high, across, channels)
            patches = workspace.take("patches", *shape)
            patches.copy_(strip.as_strided(shape, (b, c, a, b * TILE, c * TILE, 1)))
            data = workspace.take("data", 36, tiles * channels)
            torch.mm(workspace.data, patches.view(36, -1), out=data)
            for begin in range(0, outputs, chunk):
                part = slice(begin, min(begin + chunk, outputs))
                wide = part.stop - part.start
                if kernel is None or chunk < outputs:
                    kernel = workspace.take("kernel", 36, wide * channels)
                    torch.mm(workspace.kernel, weight[part].view(-1, 9).T, out=kernel)
                product = workspace.take("patches", 36, tiles, wide)  # whose content is used up
                columns = kernel.view(36, wide, channels).transpose(1, 2)
                torch.bmm(data.view(36, tiles, channels), columns, out=product)
                result = workspace.take("strip", TILE * TILE, tiles * wide)  # and so is the strip's
                torch.mm(workspace.result, product.view(36, -1), out=result)
                result = result.view(TILE, TILE, count, high, across, wide)
                result += bias[some, None, None, part]
                result = result.permute(2, 3, 0, 4, 1, 5)
                target = (some, slice(row * TILE, (row + high) * TILE), slice(None), part)
                view = out[target].unflatten(2, (across, TILE)).unflatten(1, (high, TILE))
                if residual is None:
                    view.copy_(result)
                else:
                    other = residual[target].unflatten(2, (across, TILE)).unflatten(1, (high, TILE))
                    torch.add(result, other, out=view)
    return out
