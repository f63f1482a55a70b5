"""Every benchmark on a second device in fp16, where a tensor left behind or in fp32 is an error."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .second_device import second_device


def test_a_second_device_is_one() -> None:
    with second_device():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there + 1).device.type == "cuda"
        assert (there.cpu() + here).device.type == "cpu"
        assert torch.nn.Linear(3, 3).to("cuda")(there).device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())


def test_the_peer_draws_our_noise_in_any_dtype(scripts: Path) -> None:
    measure = importlib.import_module("measure")
    scheduler = importlib.import_module("diffusers.schedulers.scheduling_unclip")

    def drawn(dtype: torch.dtype) -> torch.Tensor:
        source = torch.Generator().manual_seed(7)
        return scheduler.randn_tensor((1, 17), generator=[source], dtype=dtype)

    ours = torch.randn(1, 17, generator=torch.Generator().manual_seed(7))
    with measure.same_noise():
        assert torch.equal(drawn(torch.float16), ours.half())
        assert torch.equal(drawn(torch.float32), ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("mindalle", "--size embedded --tokens 4 --batch 1 3 --dtype bfloat16"),
        ("koala", "--unet koala-700m --pixels 64 --steps 2 --dtype float16"),
        ("karlo", "--size embedded --steps 2 --dtype float16"),
        ("kandinsky", "--size embedded --decoder-steps 2 --pixels 64 --dtype float16"),
        ("kandinsky", "--size embedded --stage mask --pixels 64 --dtype float16"),
    ],
    ids=lambda value: value.split()[0] if value[0] != "-" else "",
)
def test_a_benchmark_runs_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, arguments: str
) -> None:
    module, file = importlib.import_module(script), tmp_path / "rows.json"
    given = [*arguments.split(), "--device", "cuda", "--runs", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", [script, *given])
    for rate in ("matmul_rate", "reading_rate"):
        monkeypatch.setattr(module, rate, lambda *_: 1e9, raising=False)
    if script == "koala":
        published = module.config_of
        monkeypatch.setattr(module, "config_of", lambda name, _: published(name, "embedded"))
    with second_device():
        module.main()
    rows = json.loads(file.read_text())
    assert rows
    assert all(row["machine"].startswith("pretended") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        *("karlo-prior@3:plain", "karlo-decoder@1:plain", "karlo-sr@1:plain"),
        *("kandinsky-decoder@3:plain", "movq-512@1:plain", "koala-700m@1:plain"),
        *("koala-700m-sdxl@1:plain", "mindalle@1:plain", "mindalle@3:plain"),
    ],
)
def test_a_row_of_the_table_is_measured_there(
    monkeypatch: pytest.MonkeyPatch, scripts: Path, job: str
) -> None:
    works, table = importlib.import_module("gpu_works"), importlib.import_module("gpu_table")
    monkeypatch.setattr(works, "RUNS", {})
    with second_device():
        found = works.measured(table.Job.parse(job), "embedded", "cuda", "float16")
    assert found["ours_s"] > 0
    if "ours_error" in found:
        # Of fp16, and of nothing else: the other side's noise would be as large as the result.
        assert 0 < found["ours_error"] < 0.05
        assert 0 < found["peer_error"] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["karlo-prior", "karlo-decoder", "karlo-sr", "kandinsky-decoder", "movq-512", "koala-700m"],
)
def test_a_peer_is_compiled_as_one_graph(
    monkeypatch: pytest.MonkeyPatch, scripts: Path, name: str
) -> None:
    """Once for all steps; here what is traced is run as it is, which takes no compiler."""
    works, table = importlib.import_module("gpu_works"), importlib.import_module("gpu_table")
    compiles, graphs = torch.nn.Module.compile, []

    def keep(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda network, **how: compiles(network, backend=keep, **how)
    )
    monkeypatch.setattr(works, "cannot_compile", lambda _: None)
    found = works.measured(table.Job(name, 1, "compiled"), "embedded", "cpu", "float16")
    assert len(graphs) == 1
    assert found["compiled_ratio"] > 0
