"""The autoregressive sampler against the published loop written plainly: no cache, one row."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prior_art.edges import EdgeError
from prior_art.networks import graphs, mindalle_graphs
from prior_art.networks.mindalle import ARConfig, ARTransformer, Cache
from prior_art.samplers import mindalle as autoregressive
from prior_art.samplers.mindalle import (
    Draw,
    complete_by_likelihood,
    log_probabilities,
    sample_tokens,
)
from prior_art.samplers.parts.noise import ExponentialNoise, Noise, generators

from ..networks.recorder import record_on_cpu
from ..networks.test_mindalle import KINDS, context_of, make, plain, tokens_of

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
LENGTH = KINDS["text"].image_tokens


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def draw(seed: int = 7, count: int = 1, **options: object) -> Draw:
    return Draw(Noise.seeded(seed, count), **PLACE, **options)


def sample(network: ARTransformer, seed: int = 7, count: int = 1, **options: object) -> Tensor:
    options = {"top_k": 20, **options}
    leading = options.pop("leading", None)
    drawn = draw(seed, count, **options)
    return sample_tokens(network, context_of(network.config), drawn, leading)


def cut(logits: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """Probabilities ``[1, V]`` as published, in plain steps."""
    logits = logits / temperature
    if top_k:
        least = sorted(logits[0].tolist(), reverse=True)[top_k - 1]
        logits = torch.where(logits >= least, logits, -math.inf)
    p = logits.softmax(-1)
    if top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True)
        total, kept = 0.0, torch.zeros_like(p)
        for value, index in zip(ordered[0], order[0], strict=True):
            if total >= top_p:
                break
            kept[0, index] = value
            total += value.item()
        p = kept / kept.sum()
    return p


def reference(
    network: ARTransformer,
    seed: int,
    *,
    top_k: int = 20,
    top_p: float = 1.0,
    temperature: float = 1.0,
    leading: Tensor | None = None,
) -> Tensor:
    """One candidate ``[1, T]``: a full pass for each token, drawn by torch.multinomial."""
    stream = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(1, 0, dtype=torch.long) if leading is None else leading
    while tokens.shape[1] < network.config.image_tokens:
        logits = plain(network, context_of(network.config), tokens)[:, -1]
        if temperature == 0:
            drawn = logits.argmax(-1, keepdim=True)
        else:
            p = cut(logits, top_k, top_p, temperature)
            drawn = torch.multinomial(p, 1, generator=stream)
        tokens = torch.cat([tokens, drawn], dim=1)
    return tokens


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *[(kind, count) for kind in KINDS for count in (1, 3, 8)],
        pytest.param("text", 96, marks=pytest.mark.slow),
    ],
)
def test_tokens_equal_the_published_loop(kind: str, count: int) -> None:
    network = make(KINDS[kind])
    expected = torch.cat([reference(network, 7 + i) for i in range(count)])
    found = sample(network, 7, count)
    assert found.dtype == torch.long and found.device.type == "cpu"
    assert torch.equal(found, expected)
    assert count == 1 or len(found.unique(dim=0)) == count


@pytest.mark.parametrize("kernels", [False, True], ids=["", "by few_rows' operations"])
@pytest.mark.parametrize("count", [1, 3, 17])
def test_recorded_steps_draw_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, count: int, kernels: bool
) -> None:
    """As on NVIDIA; with kept tokens, and with known ones between those that are drawn."""
    network = make(KINDS["text"])
    expected = torch.cat([reference(network, 7 + i) for i in range(count)])
    given, known = tokens_of(network.config, 1)[0], torch.zeros(LENGTH, dtype=torch.bool)
    known[[0, 1, 6, 9, 10, 11, 20]] = True
    completed, weights = complete(network, given, known, count, top_k=20)
    recorders = record_on_cpu(monkeypatch)
    monkeypatch.setattr(mindalle_graphs, "fits", lambda *_: kernels)
    for _ in range(2):
        assert torch.equal(sample(network, 7, count), expected)
    # But the first, recorded, and the last, never fed; few candidates' recording is kept.
    once = 17 if count > 16 else 0
    replays = [recorder.replays for recorder in recorders]
    assert replays == ([LENGTH - 2] * 2 if once else [2 * (LENGTH - 1) - 1])
    again = complete(network, given, known, count, top_k=20)
    assert torch.equal(again[0], completed)
    torch.testing.assert_close(again[1], weights, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{"top_p": 0.7}, {"temperature": 0}, {"temperature": 0.5}])
def test_recorded_options(monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    """On one recording's keys and values, each with steps of its own."""
    network = make(KINDS["text"])
    expected = [sample(network, 7, 2), sample(network, 7, 2, **options)]
    record_on_cpu(monkeypatch)
    monkeypatch.setattr(mindalle_graphs, "fits", lambda *_: True)
    for _ in range(2):
        assert torch.equal(sample(network, 7, 2), expected[0])
        assert torch.equal(sample(network, 7, 2, **options), expected[1])


def test_recordings_do_not_outlive_memory_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that half as many have room."""
    network, seen = make(KINDS["text"]), []
    expected = sample(network, 7, 3)
    record_on_cpu(monkeypatch)

    def run_out(done: int, total: int, tokens: Tensor) -> None:
        seen.append((len(tokens), network in graphs._kept))
        if len(tokens) > 1 and done == 3:
            raise torch.cuda.OutOfMemoryError

    assert torch.equal(sample(network, 7, 3, callback=run_out), expected)
    forgotten: list[bool] = []
    monkeypatch.setattr(autoregressive, "forget", lambda network: forgotten.append(True))
    sample(network, 7, 3, callback=run_out)
    assert seen[0] == (3, True) and forgotten == [True]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 1},
        {"top_k": 500},
        {"top_k": 0, "top_p": 0.7},
        {"top_k": 12, "top_p": 0.6},
        {"top_k": 12, "top_p": 0.9, "temperature": 0.5},
        {"top_k": 0, "temperature": 2.0},
        {"top_p": 1e-9},
        {"temperature": 0},
    ],
    ids=str,
)
def test_options(options: dict) -> None:
    network = make(KINDS["text"])
    plain_options = {**options, "top_k": options.get("top_k", 20) % 500}
    expected = torch.cat([reference(network, 7 + i, **plain_options) for i in range(3)])
    assert torch.equal(sample(network, 7, 3, **options), expected)


def chosen(logits: Tensor, **options: object) -> set[int]:
    """The codes that 200 candidates draw."""
    noise = ExponentialNoise(generators(0, 200), logits.shape[1], PLACE["device"], 1)
    how = draw(count=200, **{"top_k": 0, **options})
    drawn = autoregressive._choose(logits.expand(200, -1), how, noise())
    return set(drawn.flatten().tolist())


@pytest.mark.parametrize(("top_k", "kept"), [(1, {1, 3}), (2, {1, 3}), (3, {0, 1, 2, 3})])
def test_ties_with_the_kth_are_kept(top_k: int, kept: set[int]) -> None:
    """Of logits that are equal to the bit, which no network's need be."""
    assert chosen(torch.tensor([[1.0, 2.0, 1.0, 2.0, 0.5]]), top_k=top_k) == kept


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, {1}), (0.51, {1, 2}), (0.8, {1, 2, 3})])
def test_the_token_that_crosses_p_is_kept(top_p: float, kept: set[int]) -> None:
    assert chosen(torch.tensor([[0.1, 0.5, 0.25, 0.15]]).log(), top_p=top_p) == kept


@pytest.mark.parametrize(("top_p", "count"), [(0.25, 1), (0.5, 2), (0.51, 3)])
def test_the_token_after_exactly_p_is_not(top_p: float, count: int) -> None:
    """Four equal logits are a quarter each to the bit, on any processor."""
    assert len(chosen(torch.zeros(1, 4), top_p=top_p)) == count


def test_draws_equal_multinomial_on_the_same_stream() -> None:
    p = torch.rand(64, 16384, generator=torch.Generator().manual_seed(1)).softmax(-1)
    noise = ExponentialNoise(generators(3, 64), 16384, PLACE["device"], 1)
    ours = autoregressive._choose(p.log(), draw(count=64, top_k=0), noise())
    p = p.log().softmax(-1)
    streams = generators(3, 64)
    theirs = [torch.multinomial(row, 1, generator=g) for row, g in zip(p, streams, strict=True)]
    assert torch.equal(ours, torch.cat(theirs))


def test_zero_temperature_draws_nothing() -> None:
    streams = generators(7, 1)
    before = streams[0].get_state()
    network = make(KINDS["free"])
    sample_tokens(network, None, Draw(Noise(streams), **PLACE, temperature=0))
    assert torch.equal(streams[0].get_state(), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 10, LENGTH - 1, LENGTH])
@pytest.mark.parametrize("each", [False, True])
def test_completion(kind: str, length: int, each: bool) -> None:
    network = make(KINDS[kind])
    kept = tokens_of(network.config, 3 if each else 1)[:, :length]
    found = sample(network, 7, 3, leading=kept)
    rows = kept.expand(3, -1)
    expected = [reference(network, 7 + i, leading=rows[i : i + 1]) for i in range(3)]
    assert torch.equal(found, torch.cat(expected))


def test_what_all_candidates_keep_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []
    extend = Cache.extend
    monkeypatch.setattr(Cache, "extend", lambda *args: fed.append(args[2].shape) or extend(*args))
    network = make(KINDS["text"])
    given = tokens_of(network.config, 1)
    sample(network, 7, 3, leading=given[:, :10])
    complete(network, given[0], torch.arange(LENGTH) < 10, 3)
    assert fed == [(3, 1)] * (LENGTH - 11) * 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_chunks_do_not_matter(chunk: int) -> None:
    network = make(KINDS["text"])
    kept = tokens_of(network.config, 7)[:, :4]
    for options in ({}, {"leading": kept}):
        assert torch.equal(
            sample(network, 7, 7, chunk=chunk, **options), sample(network, 7, 7, **options)
        )


def test_a_candidate_can_be_made_alone() -> None:
    network = make(KINDS["text"])
    batch = sample(network, 7, 5)
    for i in range(5):
        assert torch.equal(batch[i : i + 1], sample(network, 7 + i))


def run_out(monkeypatch: pytest.MonkeyPatch, limit: int, after: int) -> list[int]:
    """Memory for ``limit`` candidates; more fail at their ``after``-th token. Sizes tried."""
    tried: list[int] = []
    extend = Cache.extend

    def failing(cache: Cache, network: ARTransformer, tokens: Tensor) -> Tensor:
        if cache.images == 0:
            tried.append(len(tokens))
        if cache.images >= after and len(tokens) > limit:
            raise torch.cuda.OutOfMemoryError("no memory")
        return extend(cache, network, tokens)

    monkeypatch.setattr(Cache, "extend", failing)
    return tried


def test_smaller_chunks_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(KINDS["text"])
    expected = sample(network, 7, 8)
    tried = run_out(monkeypatch, limit=3, after=5)
    assert torch.equal(sample(network, 7, 8), expected)
    assert tried == [8, 4, 2, 2, 2, 2]


def test_out_of_memory_with_one_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = run_out(monkeypatch, limit=0, after=5)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample(make(KINDS["text"]), 7, 3)
    assert tried == [3, 1]


@pytest.mark.parametrize("kept", [0, 4])
def test_callback_sees_tokens_arrive(kept: int) -> None:
    network = make(KINDS["text"])
    seen = []
    options = {"leading": tokens_of(network.config, 1)[:, :kept]} if kept else {}
    found = sample(network, 7, 3, callback=lambda *args: seen.append(args), chunk=2, **options)
    places = list(range(kept + 1, LENGTH + 1))
    assert [(done, total) for done, total, _ in seen] == [(p, LENGTH) for p in places] * 2
    for done, _, tokens in seen[: len(places)]:
        assert torch.equal(tokens, found[:2, :done])
    for done, _, tokens in seen[len(places) :]:
        assert torch.equal(tokens, found[2:, :done])


def test_a_callback_stops_within_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    extend = Cache.extend
    monkeypatch.setattr(Cache, "extend", lambda *args: steps.append(0) or extend(*args))

    def stop(done: int, total: int, tokens: Tensor) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(make(KINDS["text"]), 7, 2, callback=stop)
    assert len(steps) == 3


def test_inputs_are_left_untouched() -> None:
    network = make(KINDS["text"])
    kept = tokens_of(network.config, 1)[:, :4]
    tokens, known = tokens_of(network.config, 1)[0], torch.arange(LENGTH) % 3 == 0
    inputs = kept, tokens, known
    before = [tensor.clone() for tensor in inputs]
    sample(network, leading=kept)
    complete(network, tokens, known, 2)
    assert all(map(torch.equal, inputs, before))


# -- likelihood --------------------------------------------------------------------------------


def log_p(network: ARTransformer, tokens: Tensor) -> Tensor:
    """log p of each token ``[B, T]``, by one plain pass."""
    logits = plain(network, context_of(network.config), tokens[:, :-1])
    return logits.log_softmax(-1).gather(2, tokens[:, :, None])[..., 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("length", [1, 2, LENGTH])
def test_log_probabilities(kind: str, count: int, length: int, monkeypatch) -> None:
    monkeypatch.setattr(autoregressive, "_SCORED", 10)
    network = make(KINDS[kind])
    tokens = tokens_of(network.config, count)[:, :length]
    expected = log_p(network, tokens)
    context = context_of(network.config)
    for chunk in (None, 2):
        found = log_probabilities(network, context, tokens, chunk=chunk, **PLACE)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def complete(
    network: ARTransformer, tokens: Tensor, known: Tensor, count: int, **options: object
) -> tuple[Tensor, Tensor]:
    drawn = draw(7, count, **options)
    return complete_by_likelihood(network, context_of(network.config), tokens, known, drawn)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "middle": lambda i: (i < 8) | (i > 15),
    "holes": lambda i: (i % 3 == 0) | (i > 18),
    "start": lambda i: i > 3,
    "last known": lambda i: i == LENGTH - 1,
    "nothing known": lambda i: i < 0,
    "prefix": lambda i: i < 9,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("count", [1, 5])
def test_completion_of_any_mask(kind: str, mask: str, count: int) -> None:
    network = make(KINDS[kind])
    known = MASKS[mask](torch.arange(LENGTH))
    given = tokens_of(network.config, 1)[0]
    found, weights = complete(network, given, known, count, top_k=20)
    first = known.tolist().index(False)
    context = context_of(network.config)
    for i in range(count):
        stream = torch.Generator().manual_seed(7 + i)
        tokens = given[None, :0]
        for place in range(LENGTH):
            drawn = given[None, place : place + 1]
            if not known[place]:
                p = cut(plain(network, context, tokens)[:, -1], 20, 1.0, 1.0)
                drawn = torch.multinomial(p, 1, generator=stream)
            tokens = torch.cat([tokens, drawn], dim=1)
        assert torch.equal(found[i : i + 1], tokens)
        after = known & (torch.arange(LENGTH) > first)
        expected = log_p(network, tokens)[0][after].sum()
        torch.testing.assert_close(weights[i], expected, atol=1e-3, rtol=0)


def test_any_mask_in_chunks() -> None:
    network = make(KINDS["text"])
    given, known = tokens_of(network.config, 1)[0], MASKS["holes"](torch.arange(LENGTH))
    whole, parts = complete(network, given, known, 5), complete(network, given, known, 5, chunk=2)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1], atol=1e-3, rtol=0)


def test_everything_known() -> None:
    network = make(KINDS["text"])
    given = tokens_of(network.config, 1)[0]
    found, weights = complete(network, given, torch.ones(LENGTH, dtype=torch.bool), 2)
    assert torch.equal(found, given.expand(2, -1)) and weights.tolist() == [0, 0]


def test_weights_approach_the_true_conditional() -> None:
    """Two unknown tokens, then a known one: weighted candidates against the exact posterior."""
    network = make(ARConfig(2, 16, 2, 4, 3, None))
    network.tok_emb_img.weight.mul_(10)  # a network with opinions
    network.head.weight.mul_(3)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    joint = log_p(network, every).sum(1).exp()
    known, given = torch.tensor([False, False, True]), torch.tensor([0, 0, 3])
    posterior = joint[every[:, 2] == 3]
    posterior = (posterior / posterior.sum()).view(4, 4)
    found, weights = complete(network, given, known, 3000, top_k=0)

    def distance(weights: Tensor) -> float:
        estimate = torch.zeros(4, 4).index_put_(
            (found[:, 0], found[:, 1]), weights / weights.sum(), accumulate=True
        )
        return (estimate - posterior).abs().sum().item() / 2

    assert distance(weights.exp()) < 0.05 < 0.5 < distance(torch.ones(3000))


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": -1}, "'top_k' is -1"),
        ({"top_p": 0}, "'top_p' is 0"),
        ({"top_p": 1.1}, "'top_p' is 1.1"),
        ({"top_p": math.nan}, "'top_p' is nan"),
        ({"temperature": -1.0}, "'temperature' is -1.0"),
        ({"temperature": math.inf}, "'temperature' is inf"),
        ({"temperature": 1e-40}, "use 0.0001 or more, or 0"),
        ({"noise": Noise([])}, "no candidates"),
        ({"chunk": 0}, "'chunk' is 0"),
        ({"leading": torch.zeros(2, 4, dtype=torch.long)}, "2 pictures for 1 candidates"),
        ({"leading": torch.zeros(1, LENGTH + 1, dtype=torch.long)}, "1 to 24"),
        ({"leading": torch.full((1, 4), 50)}, "code 50, but this transformer knows 50"),
        ({"leading": torch.full((1, 4), -1)}, "code -1"),
        ({"context": None}, "a prompt of 8 tokens, but got nothing"),
        ({"context": torch.zeros(1, 7, dtype=torch.long)}, r"shape \[1, 7\]"),
        ({"context": torch.full((1, 8), 40)}, "id 40, but this transformer knows 40; load the tok"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(options: dict, words: str) -> None:
    network = make(KINDS["text"])
    options = {"context": context_of(network.config), "noise": Noise.seeded(7, 1)} | options
    context, leading = options.pop("context"), options.pop("leading", None)
    with pytest.raises(EdgeError, match=words):
        sample_tokens(network, context, Draw(**options, **PLACE), leading)


def test_refuses_a_class_that_does_not_exist() -> None:
    with pytest.raises(EdgeError, match="a class from 0 to 4"):
        sample_tokens(make(KINDS["class"]), torch.tensor([[5]]), draw())


def test_refuses_a_prompt_for_an_unconditional_model() -> None:
    with pytest.raises(EdgeError, match="neither prompt nor class"):
        sample_tokens(make(KINDS["free"]), torch.tensor([[5]]), draw())


def test_refuses_masks_and_pictures_of_another_size() -> None:
    network = make(KINDS["text"])
    given, known = tokens_of(network.config, 1)[0], torch.arange(LENGTH) > 3
    with pytest.raises(EdgeError, match="23 tokens and its mask 24"):
        complete(network, given[1:], known, 1)
    with pytest.raises(EdgeError, match="mask 23"):
        complete(network, given, known[1:], 1)
    with pytest.raises(EdgeError, match="code 50"):
        complete(network, torch.full_like(given, 50), known, 1)
    with pytest.raises(EdgeError, match="no candidates"):
        Draw(Noise([]), **PLACE)
    with pytest.raises(EdgeError, match="code 50"):
        log_probabilities(network, context_of(network.config), torch.full((1, 4), 50), **PLACE)


@pytest.mark.parametrize("name", ["tok_emb_txt", "head_img", "pos_emb_img"])
def test_refuses_nan(name: str) -> None:
    network = make(KINDS["text"])
    getattr(network, name).weight[-2:] = math.nan
    if name == "tok_emb_txt":
        network.tok_emb_txt.weight.fill_(math.nan)
    context = context_of(network.config)
    calls = []
    with pytest.raises(EdgeError, match="NaN"):
        sample(network, 7, 2, callback=lambda *args: calls.append(args))
    assert name != "tok_emb_txt" or not calls  # damage in the prompt shows before any sampling
    with pytest.raises(EdgeError, match="NaN"):
        log_probabilities(network, context, tokens_of(network.config, 2), **PLACE)
