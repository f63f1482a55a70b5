"""minDALL-E's steps as recordings, with a recorder for the CPU in CUDA's place.

The recorder keeps what a CUDA graph keeps: the operations that reached the device, on which memory,
with every number of Python's as it was then. Nothing here runs on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prior_art.edges import EdgeError
from prior_art.networks import mindalle_graphs as steps
from prior_art.networks.leaf import is_bare
from prior_art.networks.mindalle import ARTransformer, Cache, prefill
from prior_art.networks.mindalle_graphs import Steps, can_record

from .test_mindalle import KINDS, context_of, make, plain, tokens_of

CPU = torch.device("cpu")


class Recorder(TorchDispatchMode):
    """Keeps operations as they run; :meth:`replay` runs them again, on the same tensors."""

    # What makes Python wait for the device, or reads the host's memory.
    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "_pin_memory", "is_pinned")

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, recorded in self.tape:
            again = func(*args, **kwargs)
            if not isinstance(recorded, tuple):
                again, recorded = (again,), (recorded,)
            for new, old in zip(again, recorded, strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def record_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Let every network be recorded; the list fills with what is."""
    made: list[Recorder] = []

    def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        assert device == CPU
        work()
        with Recorder() as recorder:
            work()
        made.append(recorder)
        return recorder.replay

    monkeypatch.setattr(steps, "can_record", lambda *_: True)
    monkeypatch.setattr(steps, "record", record)
    return made


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    return record_on_cpu(monkeypatch)


def logits_of(network: ARTransformer, tokens: Tensor, kept: int, *, fed: int, **options) -> Tensor:
    """Logits after each of ``tokens`` ``[B, T]`` from the one at ``kept`` on, ``fed`` by steps."""
    context = context_of(network.config)
    prefix = prefill(network, context, tokens[:1, :kept] if kept else None, torch.float32)
    cache = Cache(network, prefix, len(tokens), network.config.image_tokens - kept)
    step = Steps(network, cache, **options)
    hidden = [prefix.hidden.expand(len(tokens), 1, -1)]
    hidden += [step(tokens[:, i, None]) for i in range(kept, kept + fed)]
    assert cache.images == kept + fed
    return network.logits(torch.cat(hidden, dim=1))


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


@torch.no_grad()
def test_a_known_token_between_steps(recorders: list[Recorder]) -> None:
    """Runs of several tokens go past the recording, and the recording goes on after them."""
    network = make(KINDS["text"])
    tokens = tokens_of(network.config, 2)
    prefix = prefill(network, context_of(network.config), None, torch.float32)
    cache = Cache(network, prefix, 2, network.config.image_tokens)
    step = Steps(network, cache)
    hidden = [step(tokens[:, :1]), step(tokens[:, 1:2]), cache.extend(network, tokens[:, 2:6])]
    hidden += [step(tokens[:, 6:7]), step(tokens[:, 7:8])]
    expected = plain(network, context_of(network.config), tokens[:, :8])[:, 1:]
    ours = network.logits(torch.cat(hidden, dim=1))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert [recorder.replays for recorder in recorders] == [3]


@torch.no_grad()
def test_what_a_replay_writes_over_is_not_given_out(recorders: list[Recorder]) -> None:
    network = make(KINDS["text"])
    tokens = tokens_of(network.config, 2)
    prefix = prefill(network, context_of(network.config), None, torch.float32)
    step = Steps(network, Cache(network, prefix, 2, 10))
    first = step(tokens[:, :1])
    before = first.clone()
    step(tokens[:, 1:2])
    assert torch.equal(first, before)


@torch.no_grad()
def test_where_nothing_can_be_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, the same logits operation by operation, and no second try."""

    def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(steps, "_failed", False)
    monkeypatch.setattr(steps, "can_record", lambda *_: not steps._failed)
    monkeypatch.setattr(steps, "record", record)
    network = make(KINDS["text"])
    tokens = tokens_of(network.config, 2)
    with caplog.at_level(logging.WARNING):
        ours = logits_of(network, tokens, 0, fed=10)
        logits_of(network, tokens, 0, fed=2)
    expected = plain(network, context_of(network.config), tokens[:, :10])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert [record.message.count("not permitted") for record in caplog.records] == [1]


def test_memory_that_runs_out_is_left_to_who_chose_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(steps, "can_record", lambda *_: True)
    monkeypatch.setattr(steps, "record", record)
    network = make(KINDS["text"])
    with pytest.raises(torch.cuda.OutOfMemoryError), torch.no_grad():
        logits_of(network, tokens_of(network.config, 2), 0, fed=2)


def test_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what lies on an NVIDIA device, and nothing after a failure."""
    network, cuda = make(KINDS["free"]), torch.device("cuda")
    assert not can_record(network, cuda)  # its weights are elsewhere
    there = SimpleNamespace(
        parameters=lambda: [SimpleNamespace(device=cuda)], modules=network.modules
    )
    assert can_record(there, cuda)
    assert not can_record(there, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert not can_record(there, cuda)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not can_record(there, cuda)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_failed", True)
        assert not can_record(there, cuda)
    network.blocks[2].mlp[0].weight_function = [lambda weight: weight]
    assert not can_record(there, cuda)


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
