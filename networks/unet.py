"""Running diffusers' U-Nets over a whole schedule, with nothing computed twice.

What does not change over the steps is computed once: every residual block's projection of the time
embedding, for all steps together, and the keys and values of the conditioning. Everything else
calls diffusers' own leaf modules, which a host may have swapped for ones that move, cast or patch
their weights; on a GPU, norms and what stands around them are one operation (:mod:`.fused`), and
pictures stay in the layout that its convolutions want. A U-Net built of other blocks is called as
it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused
from .graphs import Recording, prepared, recording

_BLOCKS = {
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
    "UNetMidBlock2D",
    "UNetMidBlock2DSimpleCrossAttn",
    "ResnetUpsampleBlock2D",
    "SimpleCrossAttnUpBlock2D",
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
}
# What the latent decoders have beside: an embedding added to the time's, and image tokens.
_ADDED = (None, "image", "image_hint", "text_image", "text_time")
_PROJECTED = (None, "image_proj", "text_image_proj")


def _blocks(unet: nn.Module) -> list[nn.Module]:
    middle = [] if unet.mid_block is None else [unet.mid_block]  # some have none
    return [*unet.down_blocks, *middle, *unet.up_blocks]


def _attentions(block: nn.Module) -> list[nn.Module | None]:
    """The attention beside each residual block; None where there is none."""
    found = list(getattr(block, "attentions", None) or [])
    return found or [None] * len(block.resnets)


def _resnets(unet: nn.Module) -> list[nn.Module]:
    found = []
    for block in _blocks(unet):
        found += block.resnets
        for name in ("downsamplers", "upsamplers"):
            found += [r for r in getattr(block, name, None) or [] if hasattr(r, "time_emb_proj")]
    return found


def _cross_attentions(unet: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
    """Whatever attends to the context, with what makes the context's keys and values."""
    for attention in (a for b in _blocks(unet) for a in _attentions(b) if a is not None):
        if hasattr(attention, "add_k_proj"):
            yield attention, attention.add_k_proj, attention.add_v_proj
        for block in getattr(attention, "transformer_blocks", ()):
            yield block.attn2, block.attn2.to_k, block.attn2.to_v


def _is_known_transformer(transformer: nn.Module) -> bool:
    """Whether this is SDXL's: linear projections around self- and cross-attention and a GEGLU."""
    return (
        type(transformer).__name__ == "Transformer2DModel"
        and transformer.is_input_continuous
        and transformer.use_linear_projection
        and all(
            block.norm_type == "layer_norm"
            and block.pos_embed is None
            and block.attn2 is not None
            and not block.only_cross_attention
            and type(block.ff.net[0]).__name__ == "GEGLU"
            and all(
                type(a.processor).__name__ == "AttnProcessor2_0"
                and not (a.group_norm or a.spatial_norm or a.norm_cross)
                and not (a.norm_q or a.norm_k or a.residual_connection)
                and a.rescale_output_factor == 1
                for a in (block.attn1, block.attn2)
            )
            for block in transformer.transformer_blocks
        )
    )


def is_known(unet: nn.Module) -> bool:
    """Whether this U-Net is built of the blocks, and only those, that `Run` knows."""
    config = getattr(unet, "config", None)
    if config is None or any(type(block).__name__ not in _BLOCKS for block in _blocks(unet)):
        return False
    resnets = all(
        type(r).__name__ == "ResnetBlock2D"
        and r.time_emb_proj is not None
        and r.time_embedding_norm in ("default", "scale_shift")
        and type(r.nonlinearity).__name__ == "SiLU"
        for r in _resnets(unet)
    )
    attentions = all(
        a is None
        or _is_known_transformer(a)
        or (
            type(a.processor).__name__.startswith("AttnAddedKVProcessor")
            and not a.norm_cross
            and not a.only_cross_attention
        )
        for block in _blocks(unet)
        for a in _attentions(block)
    )
    return (
        resnets
        and attentions
        and not config.center_input_sample
        and config.time_embedding_type == "positional"
        and config.class_embed_type in (None, "identity")
        and not getattr(config, "class_embeddings_concat", False)
        and getattr(config, "addition_embed_type", None) in _ADDED
        and getattr(config, "encoder_hid_dim_type", None) in _PROJECTED
        and getattr(unet, "time_embed_act", None) is None
        and unet.conv_norm_out is not None
        and type(unet.conv_act).__name__ == "SiLU"
        and not unet.training
    )


Predict = Callable[[Tensor, Any], Tensor]
"""``(x, place)``: a network with its conditioning held fixed. ``place`` is a step's index; a
:class:`Run` takes also what its :meth:`Run.at` says of it."""


@dataclass(frozen=True)
class Told:
    """What a U-Net is told beside picture and time, the same at every step.

    Attributes:
        context: tokens to attend to ``[R, L, C]``; mask: which of them count ``[R, L]`` bool.
        extra: added to the time embedding ``[R, T]``.
        beside: further channels of the picture ``[R, c, h, w]``.
    """

    context: Tensor | None = None
    mask: Tensor | None = None
    extra: Tensor | None = None
    beside: Tensor | None = None


NOTHING = Told()


class Run:
    """One U-Net over one schedule; called with a picture and where in the schedule it is.

    Args:
        unet: diffusers' ``UNet2DConditionModel`` or ``UNet2DModel``, see :func:`is_known`.
        times: every step's time embedding ``[steps, R or 1, T]``, see :func:`embed_times`.
        told: what it is told beside.
        recorded: whether steps that call it may be recorded.

    Attributes:
        recording: of steps that call this.
    """

    def __init__(
        self, unet: nn.Module, times: Tensor, told: Told = NOTHING, *, recorded: bool = True
    ) -> None:
        self.unet = unet
        blocks = _resnets(unet)
        ends = itertools.accumulate(block.time_emb_proj.out_features for block in blocks)
        self._parts = {
            block: slice(end - block.time_emb_proj.out_features, end)
            for block, end in zip(blocks, ends, strict=True)
        }
        self._crossed = [] if told.context is None else list(_cross_attentions(unet))
        self._biases: dict[int, Tensor] = {}  # of a step: attention mask by number of pixels
        if told.extra is not None:
            times = times + told.extra.to(times.dtype)[None]
        given = [times] if told.context is None else [times, told.context]
        made = prepared(unet, self._prepare, given) if recorded else self._prepare(*given)
        self._times, *added = made  # of all channels, [steps, R or 1, C]
        self._hold(told, added, recorded)

    def _prepare(self, times: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """What the residual blocks are told at every step, and all keys and values, end to end."""
        projected = [
            r.time_emb_proj(times if r.skip_time_act else r.nonlinearity(times))
            for r in self._parts
        ]
        made = [torch.cat(projected, dim=-1)]
        for tokens in context:
            pairs = [project(tokens).flatten() for _, *pair in self._crossed for project in pair]
            made += [torch.cat(pairs)] if pairs else []
        return tuple(made)

    def _hold(self, told: Told, added: list[Tensor], recorded: bool) -> None:
        """Keep what no step changes where recorded steps find it."""
        rest = {"mask": told.mask, "beside": told.beside}
        if told.mask is not None:
            rest["mask"] = (1 - told.mask.to(self._times.dtype)) * -10000.0
        names = [name for name, part in rest.items() if part is not None]
        held = [*added, *(part for part in rest.values() if part is not None)]
        if recorded:
            self.recording: Recording = recording(self.unet, held, self._times.device, tuple(names))
            held = self.recording.held
        found = dict(zip(names, held[len(added) :], strict=True))
        self._mask, self._beside = found.get("mask"), found.get("beside")
        self._added: dict[nn.Module, list[Tensor]] = {}  # keys and values of the context
        if added and told.context is not None:
            rows = told.context.shape[:2]
            sizes = [rows.numel() * p.out_features for _, *pair in self._crossed for p in pair]
            parts = iter(held[0].split(sizes))
            for attention, *pair in self._crossed:
                heads = [_heads(attention, next(parts).view(*rows, -1)) for _ in pair]
                self._added[attention] = heads

    def at(self, index: int) -> Tensor:
        """What the residual blocks are told at a step ``[R or 1, all their channels]``."""
        return self._times[index]

    @torch.no_grad()
    def __call__(self, x: Tensor, place: Tensor | int) -> Tensor:
        """``[R, C, h, w]`` -> the network's answer ``[R, C', h, w]``.

        Args:
            place: the step's index, or what :meth:`at` says of it.
        """
        time = self.at(place) if isinstance(place, int) else place
        self._biases.clear()  # of a step that was not finished
        if self._beside is not None:
            x = torch.cat([x, self._beside], dim=1)
        if fused.fuses(x):
            x = x.contiguous(memory_format=torch.channels_last)
        unet = self.unet
        x = unet.conv_in(x)
        skips = [x]
        for block in unet.down_blocks:
            for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
                x = self._attend(attention, self._resnet(resnet, x, time))
                skips.append(x)
            for resample in block.downsamplers or ():
                x = self._resample(resample, x, time)
                skips.append(x)
        if unet.mid_block is not None:
            first, *rest = unet.mid_block.resnets
            x = self._resnet(first, x, time)
            for resnet, attention in zip(rest, unet.mid_block.attentions, strict=True):
                x = self._resnet(resnet, self._attend(attention, x), time)
        for block in unet.up_blocks:
            for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
                x = self._resnet(resnet, torch.cat([x, skips.pop()], dim=1), time)
                x = self._attend(attention, x)
            for resample in block.upsamplers or ():
                # An odd side halved and doubled is one longer than the skip beside it.
                size = skips[-1].shape[2:] if skips else None
                x = self._resample(resample, x, time, size)
        self._biases.clear()  # here, for what was there before a recording may not go in it
        return unet.conv_out(fused.group_norm(unet.conv_norm_out, x, silu=True))

    def _resample(
        self, block: nn.Module, x: Tensor, time: Tensor, size: torch.Size | None = None
    ) -> Tensor:
        """Half or twice the size: by a residual block, or by SDXL's convolution."""
        if block in self._parts:
            return self._resnet(block, x, time)
        double = (2 * x.shape[2], 2 * x.shape[3])
        return fused.upsample(block, x) if size in (None, double) else block(x, size)

    def _resnet(self, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        """A residual block with the time embedding of this step."""
        time = time[:, self._parts[block]]
        hidden = fused.group_norm(block.norm1, x, silu=True)
        for resample in (block.upsample, block.downsample):
            if resample is not None:
                x, hidden = (fused.upsample(resample, part) for part in (x, hidden))
        hidden, bias = fused.convolve(block.conv1, hidden)
        if block.time_embedding_norm == "default":
            told = {"time": time}
        else:
            scale, shift = time.chunk(2, dim=1)
            told = {"scale": scale, "shift": shift}
        hidden = fused.group_norm(block.norm2, hidden, bias=bias, silu=True, **told)
        hidden, bias = fused.convolve(block.conv2, hidden)
        if block.conv_shortcut is not None:
            x, other = fused.convolve(block.conv_shortcut, x)
            bias = other if bias is None else bias if other is None else bias + other
        hidden = fused.add(hidden, x, bias)
        return hidden if block.output_scale_factor == 1 else hidden / block.output_scale_factor

    def _attend(self, attention: nn.Module | None, x: Tensor) -> Tensor:
        """Attention of the pixels to the context and to themselves."""
        if attention is None:
            return x
        if hasattr(attention, "transformer_blocks"):
            return self._transform(attention, x)
        tokens = x.flatten(2).transpose(1, 2)
        normed = fused.group_norm(attention.group_norm, x).flatten(2).transpose(1, 2)
        query, key, value = (
            _heads(attention, project(normed))
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        added_key, added_value = self._added[attention]
        out = F.scaled_dot_product_attention(
            query,
            torch.cat([added_key, key], dim=2),
            torch.cat([added_value, value], dim=2),
            attn_mask=self._bias(tokens.shape[1]),
        )
        out = attention.to_out[0](out.transpose(1, 2).flatten(2)) + tokens
        return out.transpose(1, 2).unflatten(2, x.shape[2:])

    def _bias(self, pixels: int) -> Tensor | None:
        """What the mask adds to the scores ``[R, 1, 1, L + pixels]`` of so many pixels."""
        if self._mask is None:
            return None
        if pixels not in self._biases:
            length = self._mask.shape[1] + pixels
            # CUDA's attention wants rows of whole eights, and would make them anew at each call.
            over = -length % 8 if fused.fuses(self._mask) else 0
            bias = F.pad(self._mask, (0, pixels + over))
            self._biases[pixels] = bias[:, None, None, :length]
        return self._biases[pixels]

    def _transform(self, transformer: nn.Module, x: Tensor) -> Tensor:
        """SDXL's transformer: self-attention, attention to the text, a gated layer; L times."""
        normed = fused.group_norm(transformer.norm, x)
        tokens = transformer.proj_in(normed.flatten(2).transpose(1, 2))
        added = None  # what is still to be added to the tokens
        for block in transformer.transformer_blocks:
            own, text = block.attn1, block.attn2
            tokens, normed = fused.layer_norm(block.norm1, tokens, added)
            query, key, value = (
                _heads(own, project(normed)) for project in (own.to_q, own.to_k, own.to_v)
            )
            added = _joined(own, query, key, value)
            tokens, normed = fused.layer_norm(block.norm2, tokens, added)
            added = _joined(text, _heads(text, text.to_q(normed)), *self._added[text])
            tokens, normed = fused.layer_norm(block.norm3, tokens, added)
            added = block.ff.net[2](fused.geglu(block.ff.net[0].proj(normed)))
        tokens = transformer.proj_out(tokens if added is None else added + tokens)
        return fused.add(tokens.transpose(1, 2).unflatten(2, x.shape[2:]), x)


def embed_times(
    unet: nn.Module, timesteps: Sequence[float], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Time embeddings ``[steps, 1, T]`` of a schedule, where and in what the U-Net runs."""
    steps = torch.tensor(timesteps, device=device)
    return unet.time_embedding(unet.time_proj(steps).to(dtype))[:, None]


@torch.no_grad()
def call(unet: nn.Module, x: Tensor, timesteps: Tensor, told: Told) -> Tensor:
    """A known U-Net once: ``[R, C, h, w]`` at ``timesteps`` ``[R]`` -> ``[R, C', h, w]``.

    What its own ``forward`` computes, for a host that has a loop of its own.
    """
    times = unet.time_embedding(unet.time_proj(timesteps).to(x.dtype))[None]
    run = Run(unet, times, told, recorded=False)
    return Run.__call__(run, x, 0)  # torch.compile does not call what it has seen made


def _heads(attention: nn.Module, x: Tensor) -> Tensor:
    """``[R, tokens, C]`` to ``[R, heads, tokens, C / heads]``."""
    return x.unflatten(2, (attention.heads, -1)).transpose(1, 2)


def _joined(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](out.transpose(1, 2).flatten(2))
