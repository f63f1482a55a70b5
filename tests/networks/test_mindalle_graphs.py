"""minDALL-E's steps as recordings, with a recorder for the CPU in CUDA's place.

Nothing here runs on a GPU; the operations that kernels do there are plain torch's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prior_art.edges import EdgeError
from prior_art.networks import graphs
from prior_art.networks import mindalle_graphs as steps
from prior_art.networks.leaf import is_bare
from prior_art.networks.mindalle import ARTransformer, prefill
from prior_art.networks.mindalle_graphs import Steps, release

from .recorder import Recorder, record_on_cpu
from .test_mindalle import KINDS, context_of, make, plain, tokens_of


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    return record_on_cpu(monkeypatch)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: every network is computed by the operations of few_rows."""
    monkeypatch.setattr(steps, "fits", lambda *_: True)


def begin(network: ARTransformer, rows: int, tokens: Tensor | None = None, **options) -> Steps:
    """Steps of so many candidates of a prompt, and of ``tokens`` ``[1, n]`` that all keep."""
    prefix = prefill(network, context_of(network.config), tokens, torch.float32)
    return Steps(network, prefix, rows, **options)


def logits_of(network: ARTransformer, tokens: Tensor, kept: int, *, fed: int, **options) -> Tensor:
    """Logits after each of ``tokens`` ``[B, T]`` from the one at ``kept`` on, ``fed`` by steps."""
    common = tokens[:1, :kept] if kept else None
    prefix = prefill(network, context_of(network.config), common, torch.float32)
    step = Steps(network, prefix, len(tokens), **options)
    hidden = [prefix.hidden.expand(len(tokens), -1)]
    hidden += [step.feed(tokens[:, i]) for i in range(kept, kept + fed)]
    assert step.cache.images == kept + fed
    return step.logits(torch.cat(hidden)).unflatten(0, (-1, len(tokens))).transpose(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("kept", [0, 5])
@torch.no_grad()
def test_replays(
    monkeypatch: pytest.MonkeyPatch, recorders: list[Recorder], kind: str, rows: int, kept: int
) -> None:
    """Logits equal a plain pass; nine rows take a recording for each eight positions."""
    monkeypatch.setattr(steps, "_BUCKET", 8)
    network = make(KINDS[kind])
    tokens, fed = tokens_of(network.config, rows), 18
    tokens[:, :kept] = tokens[:1, :kept]
    ours = logits_of(network, tokens, kept, fed=fed)
    expected = plain(network, context_of(network.config), tokens[:, : kept + fed])[:, kept:]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert len(recorders) == (3 if rows == 9 else 1)
    assert sum(recorder.replays for recorder in recorders) == fed - len(recorders)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("kept", [0, 5])
@torch.no_grad()
def test_kernels(recorders: list[Recorder], kernels: None, kind: str, rows: int, kept: int) -> None:
    """One recording serves however many rows and tokens, and a block takes five operations."""
    network = make(KINDS[kind])
    tokens, fed = tokens_of(network.config, rows), 18
    tokens[:, :kept] = tokens[:1, :kept]
    ours = logits_of(network, tokens, kept, fed=fed)
    expected = plain(network, context_of(network.config), tokens[:, : kept + fed])[:, kept:]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert [recorder.replays for recorder in recorders] == [fed - 1]
    launched = [step[0] for step in recorders[0].tape if not step[0].is_view]
    blocks = network.config.layers
    ours = [operation for operation in launched if operation.namespace == "prior_art"]
    assert len(ours) == (5 if rows <= steps.ROWS else 2) * blocks
    assert rows > steps.ROWS or len(launched) < 5 * blocks + 10


@pytest.mark.parametrize("many", [False, True])
@torch.no_grad()
def test_the_next_run_replays_the_last_one_s(
    recorders: list[Recorder], kernels: None, many: bool
) -> None:
    """Of other tokens of another prompt; what many rows hold is given back."""
    network, rows = make(KINDS["text"]), 17 if many else 3
    tokens = tokens_of(network.config, rows)
    logits_of(network, tokens, 0, fed=10)
    release(network, prefill(network, context_of(network.config), None, torch.float32), rows)
    other = tokens.flip(1)
    ours = logits_of(network, other, 0, fed=10)
    expected = plain(network, context_of(network.config), other[:, :10])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert len(recorders) == (2 if many else 1)


@torch.no_grad()
def test_a_picture_s_own_beginning_is_not_kept(recorders: list[Recorder]) -> None:
    network = make(KINDS["text"])
    tokens = tokens_of(network.config, 2)
    tokens[1, :5] = tokens[0, :5]
    logits_of(network, tokens, 5, fed=2)
    assert network in graphs._kept
    prefix = prefill(network, context_of(network.config), tokens[:1, :5], torch.float32)
    release(network, prefix, 2)
    assert network not in graphs._kept


@torch.no_grad()
def test_a_choice_and_its_feeding_are_one_recording(
    recorders: list[Recorder], kernels: None
) -> None:
    network = make(KINDS["text"])
    step, twin = begin(network, 2), begin(copy.deepcopy(network), 2)
    hidden = step.cache._shared.hidden.expand(2, -1).contiguous()
    expected = hidden

    def choose(hidden: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        logits = step.logits(hidden)
        return (logits.argmax(-1) + shift) % 50, logits.amax()

    for _ in range(6):
        token, hidden, largest = step.choose_and_feed("choose", choose, hidden, torch.tensor(3))
        wanted, top = choose(expected, torch.tensor(3))
        assert torch.equal(token, wanted) and torch.equal(largest, top)
        expected = twin.feed(wanted)
        torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)
    assert [recorder.replays for recorder in recorders] == [5, 5]


@torch.no_grad()
def test_a_known_token_between_steps(recorders: list[Recorder]) -> None:
    """Runs of several tokens go past the recording, and the recording goes on after them."""
    network = make(KINDS["text"])
    tokens = tokens_of(network.config, 2)
    step = begin(network, 2)
    hidden = [step.feed(tokens[:, 0])[:, None], step.feed(tokens[:, 1])[:, None]]
    hidden += [step.cache.extend(network, tokens[:, 2:6])]
    hidden += [step.feed(tokens[:, 6])[:, None], step.feed(tokens[:, 7])[:, None]]
    expected = plain(network, context_of(network.config), tokens[:, :8])[:, 1:]
    ours = network.logits(torch.cat(hidden, dim=1))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert [recorder.replays for recorder in recorders] == [3]


def test_on_a_gpu_kernels_read_the_layers() -> None:
    """The meta device stands for one; a host's layers and fp32 are plain torch's."""
    with torch.device("meta"):
        network = ARTransformer(KINDS["text"]).half().requires_grad_(False)
    prompt = torch.zeros(1, network.config.context, dtype=torch.long, device="meta")
    with torch.no_grad():
        prefix = prefill(network, prompt, None, torch.float16)
        step = Steps(network, prefix, 3)
        assert step.fused and step._run is steps.run_rows
        assert step.feed(torch.zeros(3, dtype=torch.long, device="meta")).shape == (3, 32)
        network.blocks[2].mlp[0].weight_function = [lambda weight: weight]
        assert not Steps(network, prefix, 3).fused
        network = make(KINDS["text"])
        assert not begin(network, 3).fused


def test_a_host_s_patches_are_not_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    network = make(KINDS["free"])
    layer = network.blocks[1].attn.key
    assert is_bare(layer)
    layer.weight_function = []
    assert is_bare(layer)
    layer.register_forward_hook(lambda layer, args, result: result * 0)
    assert not is_bare(layer)
    tokens = tokens_of(network.config, 2)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        patched = logits_of(network, tokens, 0, fed=6, compiled=True)
        assert torch.equal(patched, logits_of(network, tokens, 0, fed=6))
    assert ["uncompiled" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_compiled(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Compiled blocks give the same logits; all blocks share what is compiled."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(steps.run_block, backend=backend, fullgraph=True)
    monkeypatch.setattr(steps, "compiled_block", lambda: compiled)
    network = make(KINDS["text"])
    tokens = tokens_of(network.config, rows)
    ours = logits_of(network, tokens, 0, fed=12, compiled=True)
    expected = plain(network, context_of(network.config), tokens[:, :12])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert len(graphs) == 1


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        raise FileNotFoundError("no working C++ compiler")

    torch._dynamo.reset()
    compiled = torch.compile(steps.run_block, backend=backend)
    monkeypatch.setattr(steps, "compiled_block", lambda: compiled)
    network = make(KINDS["text"])
    with pytest.raises(EdgeError, match=r"(?s)'compiled' off.*no working C\+\+"), torch.no_grad():
        logits_of(network, tokens_of(network.config, 2), 0, fed=2, compiled=True)
