"""minDALL-E's sampler: image tokens one after another, each candidate from its own random stream.

Source: minDALL-E (Kim et al. 2021). Tokens equal the published loop's on the same stream: drawing
from ``p`` is ``argmax(p / noise)`` with Exponential(1) noise, which is how ``torch.multinomial``
draws one sample on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..edges import EdgeError
from ..networks.few_rows import likeliest
from ..networks.graphs import forget
from ..networks.mindalle import ARConfig, ARTransformer, Cache, Prefix, lay_out, prefill
from ..networks.mindalle_graphs import Steps, release
from .parts.chunks import in_chunks
from .parts.guidance import refuse_nan
from .parts.noise import ExponentialNoise
from .parts.sampling import Sampling

_STAGE = "autoregressive transformer"
# Positions whose logits are held at a time where all are known: 16 MB of them as published.
_SCORED = 256


@dataclass(frozen=True)
class Draw(Sampling):
    """How candidates are drawn, B in all.

    Attributes:
        callback: called with (tokens done, tokens in all, tokens so far ``[b, done]`` on
            ``device``) after each token of a chunk of b candidates; counts anew for each chunk;
            may raise.
        top_k: draw from the k likeliest tokens, and those that tie with the k-th; 0 for all.
        top_p: then from the likeliest that together reach p, with the one that crosses it;
            0 < p <= 1, and 1 for all.
        temperature: divides the logits; 0 takes the likeliest token and draws nothing.
        chunk: candidates at once, all of them by default. Halved where memory runs out.
        compiled: run the blocks by torch.compile, which needs a compiler and a minute at first.
    """

    top_k: int = 256
    top_p: float = 1.0
    temperature: float = 1.0
    chunk: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        """Raise :class:`EdgeError` for options out of range."""
        if self.top_k < 0:
            raise EdgeError(f"'top_k' is {self.top_k}; use 1 or more, or 0 to draw from all tokens")
        if not 0 < self.top_p <= 1:
            raise EdgeError(
                f"'top_p' is {self.top_p}; it must be above 0 and at most 1, and 1 draws from all"
                " tokens"
            )
        if not (self.temperature == 0 or 1e-4 <= self.temperature < math.inf):
            raise EdgeError(
                f"'temperature' is {self.temperature}; use 0.0001 or more, or 0 for the likeliest"
                " token"
            )
        _check_chunk(self.chunk, len(self.noise))


@torch.no_grad()
def sample_tokens(
    network: ARTransformer, context: Tensor | None, draw: Draw, leading: Tensor | None = None
) -> Tensor:
    """Sample the image tokens of candidates for one context.

    A candidate depends on its own generator only, not on how many are sampled beside it.

    Args:
        context: the prompt's tokens ``[1, text_tokens]``, a class ``[1, 1]``, or None for an
            unconditional model.
        draw: of B candidates. Probabilities are fp32 whatever the network computes in.
        leading: the first n image tokens, ``[1, n]`` or ``[B, n]``: exact completion.

    Returns:
        ``[B, image_tokens]`` on the CPU.

    Raises:
        EdgeError: context or leading tokens of another model, no finite logits.
        torch.cuda.OutOfMemoryError: memory does not even suffice for one candidate.
    """
    count, total = len(draw.noise), network.config.image_tokens
    context = _check_context(network, context, draw.device)
    lead = 0
    given = torch.zeros(1, total, dtype=torch.long)
    if leading is not None:
        _check_tokens(network, leading, "leading")
        _check_pictures(leading, count, "leading")
        lead = leading.shape[1]
        given = torch.cat([leading.cpu(), given.expand(len(leading), -1)[:, lead:]], dim=1)
    given = given.to(draw.device)
    shared = given[:, :lead] if lead and len(given) == 1 else None
    known = [i < lead for i in range(total)]
    if lead == total:
        return given.expand(count, -1).cpu()
    prefix = prefill(network, context, shared, draw.dtype)

    return _sample(network, prefix, given.expand(count, -1), known, draw)[0]


@torch.no_grad()
def complete_by_likelihood(
    network: ARTransformer,
    context: Tensor | None,
    tokens: Tensor,
    known: Tensor,
    draw: Draw,
) -> tuple[Tensor, Tensor]:
    """Candidates for any set of unknown tokens, weighted by how well they explain the known ones.

    An approximation. A transformer that writes from left to right cannot draw a token given those
    after it, so each candidate is drawn left to right with the known tokens clamped, and weighed
    by the probability of the known tokens that followed: importance sampling, of which the best of
    N candidates is taken or one is drawn by weight. With ``top_k`` 0, ``top_p`` 1 and
    ``temperature`` 1 it becomes exact as N grows; cut or tempered draws are biased towards likely
    tokens. Where no known token stands after an unknown one, all weights are 0 and the completion
    is exact, as :func:`sample_tokens` with ``leading``.

    Args:
        tokens: ``[image_tokens]``, or ``[B, image_tokens]`` with a picture of its own for each
            candidate; what stands at unknown places does not matter.
        known: ``[image_tokens]`` bool.
        context, draw: as in :func:`sample_tokens`.

    Returns:
        Tokens ``[B, image_tokens]`` and log weights ``[B]``, fp32, on the CPU: the sum of
        log p(known token | all before it), of the untempered network, over the known tokens after
        the first unknown one.

    Raises:
        EdgeError: as :func:`sample_tokens`; tokens or mask of another length.
        torch.cuda.OutOfMemoryError: memory does not even suffice for one candidate.
    """
    count, total = len(draw.noise), network.config.image_tokens
    context = _check_context(network, context, draw.device)
    tokens = torch.atleast_2d(tokens)
    if tokens.shape[1:] != (total,) or known.shape != (total,):
        raise EdgeError(
            f"the picture has {tokens[0].numel()} tokens and its mask {known.numel()}, but this"
            f" transformer writes {total}; encode a picture of the size it was made for"
        )
    mask = known.bool().tolist()
    given = torch.where(known.cpu().bool(), tokens.cpu(), 0)
    _check_tokens(network, given, "tokens")
    _check_pictures(given, count, "tokens")
    given = given.to(draw.device)
    if all(mask):
        return given.expand(count, -1).cpu(), torch.zeros(count)
    lead = mask.index(False)
    shared = given[:, :lead] if lead and len(given) == 1 else None
    prefix = prefill(network, context, shared, draw.dtype)
    return _sample(network, prefix, given.expand(count, -1), mask, draw)


@torch.no_grad()
def log_probabilities(
    network: ARTransformer,
    context: Tensor | None,
    tokens: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    chunk: int | None = None,
) -> Tensor:
    """Natural log p(token | context, tokens before it), exact: one pass with the tokens given.

    Their sum over T is the picture's log-likelihood.

    Args:
        context: as in :func:`sample_tokens`.
        tokens: ``[B, T]``, T at most ``image_tokens``.
        chunk: pictures at once, all of them by default. Halved where memory runs out.

    Returns:
        ``[B, T]``, fp32, on the CPU.

    Raises:
        EdgeError: context or tokens of another model, no finite result.
        torch.cuda.OutOfMemoryError: memory does not even suffice for one picture.
    """
    context = _check_context(network, context, device)
    _check_tokens(network, tokens, "tokens")
    _check_chunk(chunk, len(tokens))
    tokens = tokens.to(device)
    prefix = prefill(network, context, None, dtype)

    def work(rows: slice) -> Tensor:
        part = tokens[rows]
        hidden = prefix.hidden.expand(len(part), 1, -1)
        if part.shape[1] > 1:
            cache = Cache(network, prefix, len(part), part.shape[1] - 1)
            hidden = torch.cat([hidden, cache.extend(network, part[:, :-1])], dim=1)
        return _log_probs(network, hidden, part)

    result = torch.cat(in_chunks(work, len(tokens), chunk)).cpu()
    return refuse_nan(result, _STAGE, dtype)


def bytes_per_candidate(config: ARConfig, dtype: torch.dtype) -> int:
    """Memory that one more candidate takes while it is sampled or scored, an upper estimate.

    Keys and values of its tokens, the widest layer, and some copies of its logits.
    """
    positions = config.context + config.image_tokens
    cached = 2 * config.layers * config.width * positions * dtype.itemsize
    widest = 8 * config.width * positions * dtype.itemsize
    return cached + widest + 8 * 4 * config.image_vocab


def _sample(
    network: ARTransformer, prefix: Prefix, given: Tensor, known: list[bool], draw: Draw
) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, T]`` and log weights ``[B]`` of known tokens, on the CPU.

    ``given`` ``[B, T]`` counts where ``known``; the leading known tokens that are not in the prefix
    are fed first and do not weigh.
    """
    draws = known.count(False) if draw.temperature else 0

    def work(rows: slice) -> tuple[Tensor, Tensor]:
        streams = draw.noise.generators[rows]
        try:
            with ExponentialNoise(
                streams, network.config.image_vocab, given.device, draws
            ) as noise:
                return _sample_rows(network, prefix, given[rows], known, draw, noise)
        except torch.cuda.OutOfMemoryError:
            forget(network)
            raise

    try:
        parts = in_chunks(work, len(given), draw.chunk, draw.noise.generators)
    finally:
        release(network, prefix, draw.chunk or len(given))
    found, weights = zip(*parts, strict=True)
    return torch.cat(found).cpu(), torch.cat(weights).cpu()


def _sample_rows(
    network: ARTransformer,
    prefix: Prefix,
    given: Tensor,
    known: list[bool],
    draw: Draw,
    noise: ExponentialNoise,
) -> tuple[Tensor, Tensor]:
    """:func:`_sample` for some candidates at once, on the device."""
    rows, total = given.shape
    tokens = given.clone()
    lay_out(network, rows, known.count(False))
    steps = Steps(network, prefix, rows, compiled=draw.compiled)
    key, choose = _chooser(steps, draw)
    hidden = prefix.hidden.expand(rows, -1)
    start = known.index(False)
    if start > prefix.images:
        hidden = steps.cache.extend(network, tokens[:, prefix.images : start])[:, -1]
    hidden = hidden.clone(memory_format=torch.contiguous_format)
    weights = torch.zeros(rows, device=given.device)
    # Looked at here, where damaged weights show, and then only at the end: looking at a number
    # makes the processor wait for the device.
    refuse_nan(hidden, _STAGE, draw.dtype)
    largest = torch.zeros((), device=given.device)
    while start < total:
        stop = start + 1
        if known[start]:
            while stop < total and known[stop]:
                stop += 1
            hidden, weight = _feed(network, steps, hidden, tokens[:, start:stop], stop == total)
            weights += weight
        else:
            inputs = (hidden, largest, noise()) if draw.temperature else (hidden, largest)
            if stop == total:  # nothing reads what the very last token predicts
                tokens[:, start], largest = choose(*inputs)
            elif draw.top_p < 1:  # which sorts, and not every sort can be recorded
                tokens[:, start], largest = choose(*inputs)
                hidden = steps.feed(tokens[:, start])
            else:
                tokens[:, start], hidden, largest = steps.choose_and_feed(key, choose, *inputs)
        draw.tell(stop, total, tokens[:, :stop])
        start = stop
    refuse_nan(largest + weights.sum(), _STAGE, draw.dtype)
    return tokens, weights


def _feed(
    network: ARTransformer, steps: Steps, hidden: Tensor, run: Tensor, last: bool
) -> tuple[Tensor, Tensor]:
    """Feed known tokens ``[b, n]``, of which ``hidden`` ``[b, W]`` predicts the first.

    Returns:
        What predicts the token after them ``[b, W]``, and log p of them all ``[b]``.
    """
    fed = run[:, :-1] if last else run
    if fed.shape[1] == 1:
        states = steps.feed(fed[:, 0])[:, None]
    else:
        states = steps.cache.extend(network, fed) if fed.shape[1] else hidden[:, None]
    before = torch.cat([hidden[:, None], states], dim=1)[:, : run.shape[1]]
    hidden = states[:, -1].clone(memory_format=torch.contiguous_format)
    return hidden, _log_probs(network, before, run).sum(dim=1)


def _chooser(steps: Steps, draw: Draw) -> tuple[Hashable, Callable[..., tuple[Tensor, Tensor]]]:
    """What draws a token, and what tells it from others.

    It makes tokens ``[b]`` and the largest logit so far of ``hidden`` ``[b, W]``, the largest
    before, and noise, if anything is drawn.
    """
    fused = steps.fused and draw.top_p == 1 and draw.temperature > 0

    def choose(hidden: Tensor, largest: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        logits = steps.logits(hidden).float()
        largest = torch.maximum(largest, logits.abs().amax())  # NaN stays NaN
        if fused:
            token = torch.ops.prior_art.choose(logits, *noise, draw.top_k, draw.temperature)
        else:
            token = _choose(logits, draw, *noise)
        return token, largest

    return ("choose", draw.top_k, draw.temperature, fused), choose


def _choose(logits: Tensor, draw: Draw, *noise: Tensor) -> Tensor:
    """A token ``[B]`` for each row of fp32 ``logits`` ``[B, V]``; ``noise`` is Exponential(1)."""
    if draw.temperature == 0:
        return logits.argmax(dim=-1)
    p = likeliest(logits / draw.temperature, draw.top_k).softmax(dim=-1)
    if draw.top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1)[:, :-1]  # of a token: the sum down to its predecessor
        out = torch.cat(
            [torch.zeros_like(before[:, :1], dtype=torch.bool), before >= draw.top_p], 1
        )
        p = p.masked_fill(out.scatter(-1, order, out), 0.0)
        p = p / p.sum(dim=-1, keepdim=True)
    return (p / noise[0]).argmax(dim=-1)


def _log_probs(network: ARTransformer, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log p(token), fp32 ``[B, T]``; hidden ``[B, T, W]`` predicts tokens ``[B, T]``."""
    parts = [
        network.logits(states).float().log_softmax(dim=-1).gather(1, chosen[:, None])
        for states, chosen in zip(
            hidden.flatten(0, 1).split(_SCORED), tokens.flatten().split(_SCORED), strict=True
        )
    ]
    return torch.cat(parts).view(tokens.shape)


def _check_chunk(chunk: int | None, count: int) -> None:
    if count < 1:
        raise EdgeError("asked for no candidates; their number must be at least 1")
    if chunk is not None and chunk < 1:
        raise EdgeError(f"'chunk' is {chunk}; at least 1 candidate must be sampled at a time")


def _check_context(
    network: ARTransformer, context: Tensor | None, device: torch.device
) -> Tensor | None:
    """The context on ``device``, if it is one that this network reads."""
    config = network.config
    if config.text_vocab is None and config.classes is None:
        if context is not None:
            raise EdgeError(
                "this transformer is unconditional and reads neither prompt nor class; give it"
                " none, or load the text-to-image or the class-conditional model"
            )
        return None
    kind = "a class" if config.text_vocab is None else f"a prompt of {config.context} tokens"
    size = config.text_vocab or config.classes or 0
    if context is None or tuple(context.shape) != (1, config.context):
        got = "nothing" if context is None else f"ids of shape {list(context.shape)}"
        raise EdgeError(
            f"this transformer reads {kind}, but got {got}; give it what belongs to this model"
        )
    low, high = int(context.min()), int(context.max())
    if low < 0 or high >= size:
        cure = (
            f"use a class from 0 to {size - 1}"
            if config.text_vocab is None
            else "load the tokenizer that belongs to this checkpoint"
        )
        raise EdgeError(
            f"the context holds id {high if high >= size else low}, but this transformer knows"
            f" {size}; {cure}"
        )
    return context.to(device)


def _check_pictures(tokens: Tensor, count: int, name: str) -> None:
    if len(tokens) not in (1, count):
        raise EdgeError(
            f"'{name}' holds {len(tokens)} pictures for {count} candidates; give one picture, or"
            " one for each candidate"
        )


def _check_tokens(network: ARTransformer, tokens: Tensor, name: str) -> None:
    total, size = network.config.image_tokens, network.config.image_vocab
    if tokens.dim() != 2 or len(tokens) == 0 or not 0 < tokens.shape[1] <= total:
        raise EdgeError(
            f"'{name}' has the shape {list(tokens.shape)}, but must be pictures of 1 to {total}"
            " tokens; encode a picture of the size this transformer was made for"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= size:
        raise EdgeError(
            f"'{name}' holds code {high if high >= size else low}, but this transformer knows"
            f" {size}; encode the picture with the VQGAN that belongs to it"
        )
