"""What is recorded, how long it is kept, and what happens where nothing can be."""

from __future__ import annotations

import gc
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prior_art.networks import graphs
from prior_art.networks.graphs import by_step, can_record, forget, recording

from .recorder import Recorder, record_on_cpu

CPU = torch.device("cpu")


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    return record_on_cpu(monkeypatch)


@pytest.fixture
def network() -> nn.Module:
    return nn.Linear(3, 3).requires_grad_(False)


def times(network: nn.Module, held: Tensor, x: Tensor, key: str | None = None) -> Tensor:
    """``network(x) + held`` by a recording of a run of its own."""
    run = recording(network, [held], CPU, key)
    (made,) = run("sum", lambda x: (network(x) + run.held[0],), x)
    return made


def test_a_later_run_records_nothing(recorders: list[Recorder], network: nn.Module) -> None:
    for _ in range(3):
        x, held = torch.randn(2, 3), torch.randn(3)
        assert torch.equal(times(network, held, x), network(x) + held)
    assert [recorder.replays for recorder in recorders] == [2]


def test_another_shape_or_key_is_another_recording(
    recorders: list[Recorder], network: nn.Module
) -> None:
    x, held = torch.randn(2, 3), torch.randn(3)
    times(network, held, x)
    times(network, held, x[:1])
    times(network, held[None], x)
    times(network, held, x.to(torch.float64).float(), "another")
    times(network, held, x)
    assert [recorder.replays for recorder in recorders] == [1, 0, 0, 0]


def test_outputs_and_inputs_stay_as_they_are(recorders: list[Recorder], network: nn.Module) -> None:
    run, x = recording(network, [torch.ones(3)], CPU), torch.randn(2, 3)
    results = [run("sum", lambda x: (network(x) + run.held[0],), x + i)[0] for i in range(3)]
    for i, result in enumerate(results):
        torch.testing.assert_close(result, network(x + i) + 1)


def test_two_runs_at_once_do_not_share(recorders: list[Recorder], network: nn.Module) -> None:
    one = recording(network, [torch.ones(3)], CPU)
    two = recording(network, [torch.zeros(3)], CPU)
    assert torch.equal(one.held[0], torch.ones(3)) and torch.equal(two.held[0], torch.zeros(3))
    place = one.held[0].data_ptr()
    del one, two
    assert recording(network, [torch.zeros(3)], CPU).held[0].data_ptr() == place


def test_few_steps_of_a_recording_are_kept(network: nn.Module, recorders: list[Recorder]) -> None:
    """Of so many temperatures, say."""
    run = recording(network, [], CPU)
    for key in range(40):
        run(key, lambda x: (x + 1,), torch.zeros(1))
    assert len(run._graphs) == graphs._GRAPHS
    run(39, lambda x: (x + 1,), torch.zeros(1))
    assert len(recorders) == 40


def test_few_recordings_of_a_network_are_kept(
    recorders: list[Recorder], network: nn.Module
) -> None:
    for rows in [*range(1, 8), 1]:
        times(network, torch.zeros(rows, 3), torch.zeros(rows, 3))
    assert len(recorders) == 8
    times(network, torch.zeros(7, 3), torch.zeros(7, 3))
    assert len(recorders) == 8


def test_weights_that_moved_are_recorded_anew(
    monkeypatch: pytest.MonkeyPatch, recorders: list[Recorder], network: nn.Module
) -> None:
    monkeypatch.setattr(graphs, "_places", lambda network, _: network.weight.data_ptr())
    x, held = torch.randn(2, 3), torch.randn(3)
    times(network, held, x)
    network.weight.data = network.weight + 1
    assert torch.equal(times(network, held, x), network(x) + held)
    assert len(recorders) == 2


def test_what_is_recorded_goes_with_its_network(
    recorders: list[Recorder], network: nn.Module
) -> None:
    holder = nn.Sequential(network)
    times(network, torch.zeros(3), torch.zeros(1, 3))
    assert network in graphs._kept
    forget(holder)
    assert network not in graphs._kept
    other = nn.Linear(3, 3)
    times(other, torch.zeros(3), torch.zeros(1, 3))
    known = len(graphs._kept)
    recorders.clear()
    del other
    gc.collect()
    assert len(graphs._kept) == known - 1


@pytest.mark.parametrize("error", [RuntimeError("not permitted"), torch.cuda.OutOfMemoryError()])
def test_where_nothing_can_be_recorded(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    network: nn.Module,
    error: RuntimeError,
) -> None:
    """The same result operation by operation; only where it was no lack of memory, one warning and
    no second try."""
    tried = []

    def record(work, device):
        tried.append(device)
        raise graphs._Unrecorded(work()) from error

    monkeypatch.setattr(graphs, "_failed", False)
    monkeypatch.setattr(graphs, "_places", lambda *_: int(not graphs._failed))
    monkeypatch.setattr(graphs, "record", record)
    x, held = torch.randn(2, 3), torch.randn(3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(times(network, held, x), network(x) + held)
    short = isinstance(error, torch.cuda.OutOfMemoryError)
    assert len(tried) == (2 if short else 1)
    assert [r.message.count("not permitted") for r in caplog.records] == ([] if short else [1])


def test_memory_that_runs_out_in_the_step_itself_is_an_error(
    recorders: list[Recorder], network: nn.Module
) -> None:
    def work(x: Tensor) -> tuple[Tensor]:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        recording(network, [], CPU)("step", work, torch.zeros(1))


def test_a_step_that_looks_at_a_number_is_refused(
    recorders: list[Recorder], network: nn.Module
) -> None:
    with pytest.raises(RuntimeError, match="not permitted"):
        recording(network, [], CPU)("step", lambda x: (x * x.sum().item(),), torch.ones(2))


def test_a_network_without_a_recording_is_told_the_step_s_index() -> None:
    step = by_step(lambda x, place: x + place, "sum", lambda place, x: (x + place,))
    assert step(2, torch.ones(1))[0].item() == 3


def test_what_may_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what lies on an NVIDIA device with nothing of a host's on it, and nothing after a
    failure."""
    cuda = torch.device("cuda")
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not can_record(network, cuda)  # its weights are elsewhere

    def placed() -> SimpleNamespace:
        weight = SimpleNamespace(device=cuda, data_ptr=lambda: 1)
        hooks = {"_forward_hooks": {}, "_forward_pre_hooks": {}}
        leaf = SimpleNamespace(_parameters={"weight": weight, "bias": None}, _buffers={}, **hooks)
        return SimpleNamespace(modules=lambda: [leaf])

    monkeypatch.setattr(graphs, "is_bare", lambda leaf: True)
    assert can_record(placed(), cuda)
    assert not can_record(placed(), CPU)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert not can_record(placed(), cuda)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not can_record(placed(), cuda)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_failed", True)
        assert not can_record(placed(), cuda)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "is_bare", lambda leaf: False)
        assert not can_record(placed(), cuda)
