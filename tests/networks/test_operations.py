"""What happens where a kernel does not run."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prior_art.networks import operations
from prior_art.networks.operations import has_kernels, on_grid


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """An operation on a GPU, which doubles, whose kernel is the given function."""
    monkeypatch.setattr(operations, "_failed", False)
    monkeypatch.setattr(operations, "_HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def run(kernel: Callable[..., Any], *args: Any) -> Any:
        kernels = SimpleNamespace(double=kernel)
        monkeypatch.setitem(sys.modules, "prior_art.networks.some_kernels", kernels)
        return operations.launch("some_kernels", "double", lambda x: 2 * x, *args)

    return run


def test_a_kernel_that_fails_is_reported_once_and_not_tried_again(launch, caplog):
    calls = []

    def kernel(x: Tensor) -> Tensor:
        calls.append(x)
        raise RuntimeError("no kernel image\nand a long story")

    x, gpu = torch.ones(2), torch.device("cuda")
    assert has_kernels(gpu)
    with caplog.at_level(logging.WARNING, "prior_art"):
        for _ in range(3):
            assert torch.equal(launch(kernel, x), 2 * x)
    assert len(calls) == 1 and not has_kernels(gpu)
    (record,) = caplog.records
    assert record.getMessage().endswith("RuntimeError: no kernel image")


def test_a_kernel_that_runs_is_believed(launch):
    assert launch(lambda x: x + 1, torch.zeros(2)).tolist() == [1, 1]


def test_too_little_memory_is_no_failed_kernel(launch):
    def kernel(x: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        launch(kernel, torch.ones(2))
    assert has_kernels(torch.device("cuda"))


def test_kernels_are_counted_where_nothing_is_computed():
    assert has_kernels(torch.device("meta")) and not has_kernels(torch.device("cpu"))


class Kernel:
    """What Triton has of a kernel, of two tensors and a constant; keeps how it was launched."""

    params = tuple(SimpleNamespace(is_constexpr=constant) for constant in (False, False, True))
    signature = inspect.signature(lambda x, size, BLOCK: None)

    def __init__(self) -> None:
        self.launched: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **sizes: self.launched.append((grid, args, sizes))

    def warmup(self, *args: Any, grid: tuple[int, ...], **sizes: Any) -> Kernel:
        assert isinstance(args[0], Tensor) and sizes["num_warps"] == 4  # it is compiled for these
        return self


@pytest.mark.parametrize("version", ["3.2.0", "3.3.1", "3.10.0"])
def test_a_recording_with_cudas_allocator_is_told_addresses(monkeypatch, version):
    """Which a driver does not know yet, and Triton would refuse; since 3.3 constants come too."""
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    kernel, x = Kernel(), torch.ones(2)
    on_grid(kernel, (7,))(x, 2, BLOCK=8, num_warps=4)
    monkeypatch.setattr(operations, "_allocates_later", lambda: True)
    on_grid(kernel, (7,))(x, 2, BLOCK=8, num_warps=4)
    plain, recorded = kernel.launched
    assert plain == ((7,), (x, 2), {"BLOCK": 8, "num_warps": 4})
    constants = () if version == "3.2.0" else (8,)
    assert recorded == ((7, 1, 1), (x.data_ptr(), 2, *constants), {})
