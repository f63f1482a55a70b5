"""minDALL-E's transformer, and running it one token at a time with nothing computed twice.

Parameters carry the names of kakaobrain's checkpoints. What all candidates of a prompt have in
common, the prompt itself and any image tokens that they all keep, is computed once
(:func:`prefill`) and its keys and values are stored once; a :class:`Cache` holds what each
candidate adds to it, in room that is allocated once (:meth:`Cache.extend`). :meth:`Cache.step` is
the same for one token in a form that can be recorded as a CUDA graph or compiled.

Source: minDALL-E (Kim et al. 2021), after Ramesh et al. 2021 and minGPT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Embedding, LayerNorm, Linear

from . import few_rows
from .few_rows import attend_shared
from .fused import layer_norm
from .leaf import is_plain

# For so few rows (and more than one) this product of a large matrix is faster on a CPU from the
# left: 25 ms instead of 36 for 4 rows of 6 layers of 1536 x 6144 on one thread of an AMD EPYC.
# From 6 rows on there is no difference.
_FEW_ROWS = 4
# For one or two rows a large matrix of short rows is read a quarter faster if it is stored column
# by column: 2.0 ms instead of 2.6 for 6144 x 1536 there, 4.1 instead of 5.4. For four rows it is
# 8.0 against 5.1. Storing it anew takes 40 ms.
_COLUMN_ROWS = 2
_LARGE = 2**22
_WORTH_STEPS = 100

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
ApplyLinear = Callable[[Linear, Tensor], Tensor]
ApplyNorm = Callable[[LayerNorm, Tensor], Tensor]
RunBlock = Callable[..., Tensor]  # as run_block


@dataclass(frozen=True)
class ARConfig:
    """The dimensions of one transformer.

    Attributes:
        layers, width, heads: 42, 1536 and 24 as published.
        image_vocab, image_tokens: codes of the tokenizer, and how many make a picture (raster).
        text_vocab: ``None`` for the ImageNet variants.
        text_tokens: prompt length, always full: padding is attended to.
        classes: of a class-conditional model. Without text and classes it is unconditional.
    """

    layers: int
    width: int
    heads: int
    image_vocab: int = 16384
    image_tokens: int = 256
    text_vocab: int | None = 16384
    text_tokens: int = 64
    classes: int | None = None

    @property
    def context(self) -> int:
        """Positions before the first image token."""
        return 1 if self.text_vocab is None else self.text_tokens


class SelfAttention(nn.Module):
    """The four projections of a block's attention."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.key = Linear(config.width, config.width)
        self.query = Linear(config.width, config.width)
        self.value = Linear(config.width, config.width)
        self.proj = Linear(config.width, config.width)


class Block(nn.Module):
    """A pre-norm transformer block; who attends to what is the caller's business."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config.width)
        self.ln2 = LayerNorm(config.width)
        self.attn = SelfAttention(config)
        self.mlp = nn.Sequential(
            Linear(config.width, 4 * config.width),
            nn.GELU(),
            Linear(4 * config.width, config.width),
        )

    def forward(
        self,
        x: Tensor,
        attend: Attend,
        linear: ApplyLinear | None = None,
        norm: ApplyNorm | None = None,
    ) -> Tensor:
        """``[B, T, W]`` -> ``[B, T, W]``.

        Args:
            attend: of queries, keys and values ``[B, heads, T, head_dim]`` makes the attended
                values, in the same shape.
            linear, norm: apply a layer; by calling it, if not given.
        """
        linear, norm = linear or _call, norm or _call
        y, attn = norm(self.ln1, x), self.attn
        q, k, v = (
            linear(layer, y).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.query, attn.key, attn.value)
        )
        x = x + linear(attn.proj, attend(q, k, v).transpose(1, 2).flatten(2))
        y = norm(self.ln2, x)
        return x + linear(self.mlp[2], self.mlp[1](linear(self.mlp[0], y)))


class ARTransformer(nn.Module):
    """The autoregressive transformer over [context, image tokens], of any of the three kinds.

    The context is a prompt of ``text_tokens`` tokens, or one position: a class, or a learned start.
    """

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is no multiple of {config.heads} heads")
        self.config = config
        if config.text_vocab is not None:
            self.tok_emb_txt = Embedding(config.text_vocab, config.width)
            self.pos_emb_txt = Embedding(config.text_tokens, config.width)
        elif config.classes is not None:
            self.sos = Embedding(config.classes, config.width)
        else:
            self.sos = nn.Parameter(torch.empty(1, 1, config.width).normal_(0, 0.02))
        self.tok_emb_img = Embedding(config.image_vocab, config.width)
        self.pos_emb_img = Embedding(config.image_tokens, config.width)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.ln_f = LayerNorm(config.width)
        if config.text_vocab is None:
            self.head = Linear(config.width, config.image_vocab, bias=False)
        else:
            self.head_img = Linear(config.width, config.image_vocab, bias=False)
            self.head_txt = Linear(config.width, config.text_vocab, bias=False)

    def initialise(self) -> None:
        """Draw all weights as the published training starts: normal with a deviation of 0.02."""
        for module in self.modules():
            if isinstance(module, (Linear, Embedding)):
                nn.init.normal_(module.weight, 0, 0.02)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, context: Tensor | None, tokens: Tensor) -> Tensor:
        """Logits of every image token, given those before it: one pass, for training.

        Args:
            context: prompts ``[B, text_tokens]``, classes ``[B, 1]``, or None.
            tokens: the image tokens ``[B, T]``.

        Returns:
            ``[B, T, image_vocab]``.
        """
        start = self.embed_context(context).expand(len(tokens), -1, -1)
        x = torch.cat([start, self.embed_image(tokens[:, :-1], 0)], dim=1)
        for block in self.blocks:
            x = block(x, _attend_causally)
        return self.logits(self.ln_f(x[:, self.config.context - 1 :]))

    def embed_context(self, context: Tensor | None) -> Tensor:
        """``[B, context, W]``, B = 1 for an unconditional model."""
        if self.config.text_vocab is not None:
            x = self.tok_emb_txt(context)
            return x + self.pos_emb_txt.weight.to(x)  # a host may have left it behind
        return self.sos if self.config.classes is None else self.sos(context)

    def embed_image(self, tokens: Tensor, start: int) -> Tensor:
        """``[B, T, W]`` of image tokens ``[B, T]``, the first of which stands at ``start``."""
        x = self.tok_emb_img(tokens)
        return x + self.pos_emb_img.weight[start : start + tokens.shape[1]].to(x)

    @property
    def image_head(self) -> Linear:
        """The layer that makes logits of image tokens, without a bias."""
        return self.head if self.config.text_vocab is None else self.head_img

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., image_vocab]`` of what the token after each ``hidden`` ``[..., W]`` may be."""
        return self.image_head(hidden)


@dataclass(frozen=True)
class Prefix:
    """What all candidates share.

    Attributes:
        keys, values: per block ``[1, heads, P, head_dim]``.
        hidden: ``[1, W]``, predicts the first token after the prefix.
        images: how many image tokens the prefix holds.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor
    images: int


def prefill(
    network: ARTransformer, context: Tensor | None, tokens: Tensor | None, dtype: torch.dtype
) -> Prefix:
    """Run the context, and image tokens that every candidate keeps, once.

    Args:
        context: ``[1, context]``, or None for an unconditional model.
        tokens: the first image tokens ``[1, n]``, or None.
        dtype: what the network computes in.
    """
    x = network.embed_context(context)
    if tokens is not None:
        x = torch.cat([x, network.embed_image(tokens, 0)], dim=1)
    x = x.to(dtype)
    keys, values = [], []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k.contiguous())
        values.append(v.contiguous())
        return _attend_causally(q, k, v)

    for block in network.blocks:
        x = block(x, attend)
    images = 0 if tokens is None else tokens.shape[1]
    return Prefix(keys, values, network.ln_f(x[:, -1]), images)


def lay_out(network: ARTransformer, rows: int, steps: int) -> None:
    """Store large fp32 weights on a CPU in the order in which ``rows`` rows read them fastest.

    In place: names, shapes and values stay, only strides change.

    Args:
        steps: tokens that will be fed one by one; few are not worth it.
    """
    if rows > _FEW_ROWS or steps < _WORTH_STEPS:
        return
    by_column = rows <= _COLUMN_ROWS
    for block in network.blocks:
        layer, weight = block.mlp[0], block.mlp[0].weight
        if weight.numel() < _LARGE or not is_plain(layer, Linear):
            continue
        if weight.is_contiguous() == by_column:
            with torch.inference_mode(weight.is_inference()):
                old = weight.detach()
                weight.data = old.t().contiguous().t() if by_column else old.contiguous()


class Cache:
    """Keys and values of candidates that continue one prefix.

    Attributes:
        images: image tokens before the next, the prefix's included.
        rows, dtype, device: of the candidates, of keys and values.
    """

    @staticmethod
    def holds(network: ARTransformer, prefix: Prefix, rows: int, room: int) -> list[Tensor]:
        """What a cache is made of, in no memory of its own: one number stands for what is empty."""
        # What a step looks at may reach beyond what is filled: it must be numbers, in whole eights.
        used = 0 if rows > 1 else prefix.keys[0].shape[2]
        slots = -(-(used + room) // 8) * 8
        size = (rows, network.config.heads, slots, prefix.keys[0].shape[3])
        empty = prefix.keys[0].new_zeros(()).expand(2, len(prefix.keys), *size)
        # One candidate shares with no one: its own room starts with the prefix, and attention is
        # one call.
        return [empty] if rows == 1 else [empty, *prefix.keys, *prefix.values]

    def __init__(
        self,
        network: ARTransformer,
        prefix: Prefix,
        rows: int,
        room: int,
        held: Sequence[Tensor] | None = None,
    ) -> None:
        """Room for ``room`` more tokens of each of ``rows`` candidates.

        Args:
            held: the memory to use, like :meth:`holds`; its own, if not given.
        """
        self.images, self.rows = prefix.images, rows
        self.dtype, self.device = prefix.keys[0].dtype, prefix.keys[0].device
        self._used = 0 if rows > 1 else prefix.keys[0].shape[2]
        self._ahead = self._used - prefix.images  # of an image token's place: its slot in the room
        own, *shared = held or self.holds(network, prefix, rows, room)
        self._keys, self._values = (list(part) for part in own.contiguous())
        self._shared = None
        if shared:
            keys, values = shared[: len(self._keys)], shared[len(self._keys) :]
            self._shared = Prefix(keys, values, prefix.hidden, prefix.images)
        else:
            for part, given in zip(
                [*self._keys, *self._values], [*prefix.keys, *prefix.values], strict=True
            ):
                part[:, :, : self._used] = given
        few = 1 < rows <= _FEW_ROWS and all(
            is_plain(layer, Linear)
            for layer in network.blocks.modules()
            if isinstance(layer, Linear)
        )
        self._single = _few_rows if few else _call

    def extend(self, network: ARTransformer, tokens: Tensor) -> Tensor:
        """Feed the next image tokens ``[B, T]``.

        Returns:
            ``[B, T, W]``: hidden states, each predicting the token after it.
        """
        count = tokens.shape[1]
        x = network.embed_image(tokens, self.images).to(self.dtype)
        linear = self._single if count == 1 else _call
        mask = self._mask(count, x.device) if count > 1 else None
        for index, block in enumerate(network.blocks):
            x = block(x, partial(self._attend, index, mask), linear)
        self._used += count
        self.images += count
        return network.ln_f(x)

    def reach(self, bucket: int | None) -> int:
        """How much of the room the next :meth:`step` must look at, up to a multiple of ``bucket``.

        None looks at all of it.
        """
        slots = self._keys[0].shape[2]
        return slots if bucket is None else min(slots, -(-(self._used + 1) // bucket) * bucket)

    def step(
        self, network: ARTransformer, token: Tensor, place: Tensor, reach: int, run: RunBlock
    ) -> Tensor:
        """What :meth:`extend` does for one token, told where it is by a tensor.

        So the very same operations on the very same memory serve every token within ``reach``, and
        no code of a host's is among them. :meth:`advance` belongs to it.

        Args:
            token: ``[B, 1]``.
            place: ``[1]``, int64, on the device: the token's place among the image tokens.
            reach: from :meth:`reach`.
            run: :func:`run_block`, that compiled, or :func:`run_rows`.

        Returns:
            ``[B, 1, W]``.
        """
        embeddings, positions = network.tok_emb_img.weight, network.pos_emb_img.weight
        x = F.embedding(token, embeddings.to(token.device))
        x = (x + positions.to(x).index_select(0, place)).to(self.dtype)
        slot = place + self._ahead
        mask = None if run is run_rows else few_rows.mask_behind(slot, reach, x.dtype)
        for index, block in enumerate(network.blocks):
            own = self._keys[index][:, :, :reach], self._values[index][:, :, :reach]
            shared = None
            if self._shared is not None:
                shared = self._shared.keys[index][0], self._shared.values[index][0]
            x = run(block, x, own, shared, slot, mask)
        if run is run_rows:
            return layer_norm(network.ln_f, x)[1]
        return _norm(network.ln_f, x)

    def advance(self) -> None:
        """A token went through :meth:`step`."""
        self._used += 1
        self.images += 1

    def _mask(self, count: int, device: torch.device) -> Tensor:
        """Who of ``count`` new tokens attends to what: all before them, and each other causally."""
        past = self._used + (self._shared.keys[0].shape[2] if self._shared else 0)
        return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)

    def _attend(self, index: int, mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self._used + k.shape[2]
        keys, values = self._keys[index], self._values[index]
        keys[:, :, self._used : end] = k
        values[:, :, self._used : end] = v
        keys, values = keys[:, :, :end], values[:, :, :end]
        if self._shared is None:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        shared_keys, shared_values = self._shared.keys[index], self._shared.values[index]
        if mask is None:
            return attend_shared(q, shared_keys[0], shared_values[0], keys, values)
        rows = len(q)
        keys = torch.cat([shared_keys.expand(rows, -1, -1, -1), keys], dim=2)
        values = torch.cat([shared_values.expand(rows, -1, -1, -1), values], dim=2)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def run_block(
    block: Block,
    x: Tensor,
    own: tuple[Tensor, Tensor],
    shared: tuple[Tensor, Tensor] | None,
    slot: Tensor,
    mask: Tensor,
) -> Tensor:
    """One block for one token of each row, ``[B, 1, W]`` -> ``[B, 1, W]``: tensors and no more.

    What a host does when a layer is called, it does not do: the weights are read as they are.

    Args:
        own: the rows' keys and values ``[B, heads, n, head_dim]``; the token's are put into them.
        shared: those that all rows share, ``[heads, P, head_dim]``.
        slot: ``[1]``, where the token's own go.
        mask: ``[n]``, added to the scores of ``own``.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = own[0].index_copy_(2, slot, k), own[1].index_copy_(2, slot, v)
        if shared is None:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[None])
        return attend_shared(q, *shared, keys, values, mask)

    return block(x, attend, _linear, _norm)


def run_rows(
    block: Block,
    x: Tensor,
    own: tuple[Tensor, Tensor],
    shared: tuple[Tensor, Tensor] | None,
    slot: Tensor,
    mask: None = None,
) -> Tensor:
    """What :func:`run_block` does, by the kernels of :mod:`.few_rows`, whose ``fits`` must hold.

    What stands behind ``slot`` is not read, and needs no mask.
    """
    attn, mlp, rows = block.attn, block.mlp, x[:, 0]
    qkv = few_rows.norm_linear(block.ln1, [attn.query, attn.key, attn.value], rows)
    y = torch.ops.prior_art.attend(*qkv, *own, *(shared or (None, None)), slot)
    rows = few_rows.linear_add(attn.proj, y, rows)
    (y,) = few_rows.norm_linear(block.ln2, [mlp[0]], rows, gelu=True)
    return few_rows.linear_add(mlp[2], y, rows)[:, None]


def _linear(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x), layer.bias.to(x))


def _norm(layer: LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x), layer.bias.to(x), layer.eps)


def _attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def _few_rows(layer: Linear, x: Tensor) -> Tensor:
    """``layer(x)`` for ``[B, 1, W]``, as a product with the weight on the left."""
    if not layer.weight.is_contiguous():
        return layer(x)
    out = torch.mm(layer.weight, x[:, 0].T).T.contiguous()
    return out.add_(layer.bias)[:, None]
