"""The unCLIP prior with its constant part computed once.

diffusers' ``PriorTransformer`` attends causally over [text tokens, text embedding, time, noisy
embedding, query]. What stands before the noisy embedding never sees what stands behind it, so its
keys and values are the same for every image of a prompt, and but for the time token at every step.
They are computed once (:func:`prepare`); a step then runs two tokens an image (:class:`Run`).
Masked padding has no influence and is left out. The result is the network's own, up to the order of
additions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .few_rows import fits, linear_add, norm_linear
from .graphs import Recording, can_record, prepared, recording
from .leaf import is_plain

# Noisy embedding and query: what changes with the image.
_TAIL = 2
# Up to so many rows a CPU is quicker with the weight on the left of the product: twice at four.
_FEW_ROWS = 8


@dataclass(frozen=True)
class Constants:
    """What R prompts and a schedule of N steps make of the prior.

    Attributes:
        past: keys, and values, of the constant tokens ``[2, blocks, R, heads, L, head_dim]``.
        valid: ``[R, L]`` bool, false where a shorter prompt was padded.
        times: of every step's time token ``[N, 2, blocks, R, heads, 1, head_dim]``.
        recorded: whether they come from a recording, and steps may.
    """

    past: torch.Tensor
    valid: torch.Tensor
    times: torch.Tensor
    recorded: bool

    def rows(self, chosen: list[int]) -> Constants:
        """These rows, in this order."""
        past, times = self.past[:, :, chosen], self.times[:, :, :, chosen]
        return Constants(past, self.valid[chosen], times, self.recorded)


def text_length(network: nn.Module) -> int:
    """How many text tokens the prior reads: all positions but text embedding, time and
    tail."""
    return network.positional_embedding.shape[1] - 2 - _TAIL


def prepare(
    network: nn.Module,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
    mask: torch.Tensor,
    timesteps: list[int],
) -> Constants:
    """Run the constant tokens of R prompts and of every step through the prior.

    Args:
        network: diffusers' ``PriorTransformer`` with a "prd" query token.
        hidden: text hidden states ``[R, 77, D]``; pooled: ``[R, D]``; mask: ``[R, 77]`` bool.
    """
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    lengths, longest = mask.sum(dim=1), hidden.shape[1]
    recorded = hidden.is_meta or can_record(network, hidden.device)
    if not recorded:
        longest = int(lengths.max())  # a recording serves prompts of any length

    def work(
        hidden: torch.Tensor, pooled: torch.Tensor, *rest: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        order, lengths, steps = rest
        past, valid = _prefill(network, hidden, pooled, order, lengths, longest)
        embedded = network.time_embedding(network.time_proj(steps).to(hidden.dtype))
        return past, valid, _prefill_times(network, past, valid, embedded)

    steps = torch.tensor(timesteps, device=hidden.device)
    past, valid, times = prepared(network, work, [hidden, pooled, order, lengths, steps])
    return Constants(past, valid, times, recorded)


def _prefill(
    network: nn.Module,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
    order: torch.Tensor,
    lengths: torch.Tensor,
    longest: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:class:`Constants`' ``past`` and ``valid``, L of ``longest`` tokens and the embedding.

    Args:
        order: of the tokens, real ones first ``[R, 77]``; lengths: how many are real ``[R]``.
    """
    text = network.encoder_hidden_states_proj(hidden)
    if network.embedding_proj_norm is not None:
        pooled = network.embedding_proj_norm(pooled)
    embed = network.embedding_proj(pooled)
    positions = network.positional_embedding.to(text)[0]  # [81, W]
    count = text.shape[1]
    text = text + positions[:count]
    embed = embed + positions[count]
    # Each row: its real tokens, the text embedding, then filler that nothing attends to.
    x = F.pad(text.gather(1, order[..., None].expand_as(text)), (0, 0, 0, 1))
    x = x.scatter(1, lengths[:, None, None].expand(-1, 1, x.shape[2]), embed[:, None])
    x = x[:, : longest + 1]
    keys, values = [], []
    for block in network.transformer_blocks:
        q, k, v = _project(block, x)
        keys.append(k)
        values.append(v)
        if len(keys) < len(network.transformer_blocks):  # nothing reads the last block's output
            x = _finish(block, x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    valid = torch.arange(x.shape[1], device=x.device)[None] <= lengths[:, None]
    return torch.stack([torch.stack(keys), torch.stack(values)]), valid


def _prefill_times(
    network: nn.Module, past: torch.Tensor, valid: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """:class:`Constants`' ``times``, of embeddings ``[N, W]`` of every timestep."""
    rows, count = len(valid), len(times)
    position = network.positional_embedding.to(times)[0, -_TAIL - 1]
    h = (times + position).expand(rows, -1, -1)
    # Each sees the prompt and itself.
    prompt = valid[:, None, :].expand(rows, count, -1)
    own = torch.eye(count, dtype=torch.bool, device=prompt.device).expand(rows, -1, -1)
    mask = torch.cat([prompt, own], dim=2)[:, None]
    keys, values = [], []
    for block, past_k, past_v in zip(network.transformer_blocks, *past, strict=True):
        q, k, v = _project(block, h)
        keys.append(k)
        values.append(v)
        k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        h = _finish(block, h, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    both = torch.stack([torch.stack(keys), torch.stack(values)])
    return both.unsqueeze(-2).movedim(4, 0).contiguous()


def _step_mask(valid: torch.Tensor, images: int) -> torch.Tensor:
    """Who attends to whom in :class:`Run`, ``[R, 1, 2n, L + 1 + 2n]``: all to their prompt and the
    time, each image causally to its own two tokens."""
    rows, length = valid.shape
    tail = torch.ones(_TAIL, _TAIL, dtype=torch.bool, device=valid.device).tril()
    own = torch.block_diag(*[tail] * images).bool()
    own = F.pad(own, (1, 0), value=True)
    prompt = valid[:, None, :].expand(rows, images * _TAIL, length)
    return torch.cat([prompt, own.expand(rows, -1, -1)], dim=2)[:, None]


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores for a mask, with room behind each row up to a whole eight: so it need
    not be made and laid out again in every block."""
    length = mask.shape[-1]
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return F.pad(added.masked_fill(~mask, -math.inf), (0, -length % 8))


class Run:
    """The prior over one schedule, for n images of each of R prompts.

    Args:
        constants: of the prompts and the schedule; images: n.

    Attributes:
        recording: of steps that call this.
    """

    def __init__(self, network: nn.Module, constants: Constants, images: int) -> None:
        self._network, self._times = network, constants.times
        device, dtype = self._times.device, self._times.dtype
        self._fused = constants.recorded and _fits(network, device, dtype)
        mask = _step_mask(constants.valid, images)
        length = mask.shape[-1]
        if self._fused:
            mask = _added(mask, dtype)
        # With room for the step's time and tokens behind what is constant.
        past = F.pad(constants.past, (0, 0, 0, 1 + images * _TAIL))
        self.recording: Recording = recording(network, [mask, past], device)
        mask, self._past = self.recording.held
        self._mask = mask[..., :length]

    def at(self, index: int) -> torch.Tensor:
        """Keys and values of a step's time ``[2, blocks, R, heads, 1, head_dim]``."""
        return self._times[index]

    def __call__(self, x: torch.Tensor, place: torch.Tensor | int) -> torch.Tensor:
        """Noisy embeddings ``[R, n, D]`` -> the clean ones that the network predicts.

        Args:
            place: the step's index, or what :meth:`at` says of it.
        """
        network, time = self._network, self.at(place) if isinstance(place, int) else place
        rows, images, _ = x.shape
        noisy = network.proj_in(x)
        query = network.prd_embedding.to(noisy)[0]  # [1, W]
        tokens = torch.stack([noisy, query.expand_as(noisy)], dim=2)  # [R, n, 2, W]
        tokens = tokens + network.positional_embedding.to(noisy)[0, -_TAIL:]
        h = tokens.reshape(rows, images * _TAIL, -1)
        own = self._past.shape[-2] - h.shape[1]
        self._past[..., own - 1 : own, :] = time
        for block, keys, values in zip(network.transformer_blocks, *self._past, strict=True):
            q, keys[:, :, own:], values[:, :, own:] = _project(block, h, self._fused)
            attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask)
            h = _finish(block, h, attended, self._fused)
        h = network.norm_out(h.reshape(rows, images, _TAIL, -1)[:, :, -1])
        return network.proj_to_clip_embeddings(h)


def denormalise(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``x * std + mean`` with the prior's own statistics of CLIP image embeddings."""
    return x * network.clip_std.to(x) + network.clip_mean.to(x)


def _project(
    block: nn.Module, x: torch.Tensor, fused: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    attention = block.attn1
    layers = [attention.to_q, attention.to_k, attention.to_v]
    if fused:
        parts = [part.view_as(x) for part in norm_linear(block.norm1, layers, x.flatten(0, 1))]
    else:
        y = block.norm1(x)
        parts = [_linear(layer, y) for layer in layers]
    q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
    return q, k, v


def _finish(
    block: nn.Module, x: torch.Tensor, attended: torch.Tensor, fused: bool = False
) -> torch.Tensor:
    y, out = attended.transpose(1, 2).flatten(2), block.attn1.to_out[0]
    up, *dropout, down = block.ff.net
    if fused:
        rows = linear_add(out, y.flatten(0, 1), x.flatten(0, 1))
        (y,) = norm_linear(block.norm3, [up.proj], rows, gelu=True)
        return linear_add(down, y, rows).view_as(x)
    x = x + _linear(out, y)
    y = up.gelu(_linear(up.proj, block.norm3(x)))
    for layer in dropout:
        y = layer(y)
    return x + _linear(down, y)


def _fits(network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether few_rows' operations are what the blocks do."""
    layers = []
    for block in network.transformer_blocks:
        attention, (up, *_, down) = block.attn1, block.ff.net
        if network.training or getattr(up, "approximate", None) != "none":
            return False
        layers += [block.norm1, attention.to_q, attention.to_k, attention.to_v]
        layers += [attention.to_out[0], block.norm3, up.proj, down]
    return all(layer.bias is not None for layer in layers) and fits(layers, device, dtype)


def _linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)``, quick for the few rows of a step."""
    rows = x.flatten(0, -2)
    if not 1 < len(rows) <= _FEW_ROWS or not is_plain(layer, nn.Linear):
        return layer(x)
    out = torch.mm(layer.weight, rows.T).T.contiguous()
    return out.add_(layer.bias).unflatten(0, x.shape[:-1])
