"""benchmarks/gpu.py: what goes wrong in a row stays in it, and all of it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ..host.finding import found_host, python_of

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
JOBS = ("karlo-prior@1:plain", "karlo-sr@1:plain", "movq-512@1:plain")
COLUMNS = {
    *("work", "size", "machine", "ours_s", "peer_s", "ratio", "max_abs_diff"),
    *("ours_peak_mib", "peer_peak_mib", "ours_error", "peer_error", "first_s", "compiled_s"),
    *("compiled_ratio", "host_s", "limit_s", "goal_ratio", "goal_s", "reached", "error", "dropped"),
}


@pytest.fixture
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture
def gpu_table() -> ModuleType:
    return importlib.import_module("gpu_table")


def table_of(gpu_table: ModuleType, folder: Path) -> Any:
    table = gpu_table.Table(folder / "rows.json", "embedded")
    table.write()
    return table


def done(table: Any) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(table.path.read_text())}


# A worker that does one job, dies in the second, and does the third when started again.
DIES = """
import json, os, sys
from gpu_table import Job, Table
from gpu_worker import do, parse
args = parse()
def work(job):
    if job.name == "karlo-sr":
        os._exit(7)
    return {"ours_s": 1.0, "peer_s": 4.0, "ratio": 4.0, "machine": "none", "dtype": "none"}
do(args, work, lambda: None, lambda: True)
"""


def run(
    gpu: ModuleType, table: Any, command: list[str], jobs: list[Any], seconds: float = 600
) -> None:
    args = argparse.Namespace(size="embedded", device="cpu")
    gpu.run_jobs([sys.executable, *command], jobs, gpu.time.time() + seconds, table, args)


def test_a_process_that_dies_takes_one_job_with_it(
    gpu: ModuleType, gpu_table: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(f"import sys; sys.path.insert(0, {BENCHMARKS!r}){DIES}")
    table = table_of(gpu_table, tmp_path)
    run(gpu, table, [str(tmp_path / "dies.py")], [gpu_table.Job.parse(job) for job in JOBS])
    rows = done(table)
    assert rows["karlo-prior"]["ours_s"] == rows["movq-512"]["ours_s"] == 1.0
    assert rows["karlo-sr"]["ours_s"] is None
    assert "ended" in rows["karlo-sr"]["error"]["plain"]
    assert rows["karlo-prior"]["reached"]["ratio"]  # at least 4


def test_what_the_end_of_the_time_cuts_off_is_no_error(
    gpu: ModuleType, gpu_table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text(f"import sys; sys.path.insert(0, {BENCHMARKS!r}){DIES}")
    table, clock = (
        table_of(gpu_table, tmp_path),
        iter([time.time(), time.time(), time.time() + 1e6]),
    )
    monkeypatch.setattr(gpu, "time", SimpleNamespace(time=lambda: next(clock)))
    run(gpu, table, [str(tmp_path / "dies.py")], [gpu_table.Job.parse(JOBS[1])])
    row = done(table)["karlo-sr"]
    assert (row["error"], row["dropped"]) == ({}, {"plain": "the time was up while it ran"})


def test_a_process_that_does_not_start_fails_every_job(
    gpu: ModuleType, gpu_table: ModuleType, tmp_path: Path
) -> None:
    table = table_of(gpu_table, tmp_path)
    run(gpu, table, ["-c", "raise SystemExit(5)"], [gpu_table.Job.parse(job) for job in JOBS])
    assert all("with 5" in row["error"]["plain"] for row in done(table).values())
    assert len(done(table)) == 3


def test_what_there_is_no_time_for_is_named(
    gpu: ModuleType, gpu_table: ModuleType, tmp_path: Path
) -> None:
    table = table_of(gpu_table, tmp_path)
    jobs = [gpu_table.Job.parse(job) for job in JOBS]
    run(gpu, table, ["-c", "raise SystemExit(5)"], jobs, seconds=1)
    assert all("time" in row["dropped"]["plain"] for row in done(table).values())
    assert "Karlo SR, 4 steps, plain: dropped" in gpu_table.told(table.rows)


def test_an_error_is_written_into_its_row_and_the_rest_goes_on(
    gpu_table: ModuleType, tmp_path: Path
) -> None:
    worker, table = importlib.import_module("gpu_worker"), table_of(gpu_table, tmp_path)
    args = argparse.Namespace(
        jobs=",".join(JOBS), until=time.time() + 600, table=table.path, size="embedded", device="-"
    )
    well = iter([True, False])

    def work(job: Any) -> dict[str, Any]:
        if job.name == "karlo-prior":
            raise RuntimeError("CUDA error: an illegal memory access\nand advice")
        return {"ours_s": 2.0}

    with pytest.raises(SystemExit) as ended:  # after the second job the device does not answer
        worker.do(args, work, lambda: None, lambda: next(well))
    rows = done(table)
    assert ended.value.code == worker.BROKEN
    assert rows["karlo-prior"]["error"]["plain"] == (
        "RuntimeError: CUDA error: an illegal memory access"
    )
    assert (rows["karlo-sr"]["ours_s"], rows["karlo-sr"]["error"]) == (2.0, {})
    assert "movq-512" not in rows


def test_a_job_that_hangs_ends_its_process(scripts: Path) -> None:
    script = "import time, gpu_worker\nwith gpu_worker.watched(0): time.sleep(60)"
    place = {"PYTHONPATH": str(scripts)}
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | place, timeout=30)
    assert ended.returncode == 1


def test_the_most_important_comes_first(gpu_table: ModuleType) -> None:
    jobs = gpu_table.plan(list(gpu_table.WORKS))
    kinds = [(job.kind, job.batch == 8) for job in jobs]
    order = [("plain", False), ("host", False), ("compiled", False), ("plain", True)]
    assert list(dict.fromkeys(kinds)) == [*order, ("compiled", True)]
    assert len(set(jobs)) == len(jobs)
    assert [j.batch for j in jobs if j.name == "mindalle"] == [1, 16, 96, 1]


def test_karlo_whole_is_the_sum_of_its_stages(gpu_table: ModuleType, tmp_path: Path) -> None:
    table = table_of(gpu_table, tmp_path)
    for name in gpu_table.KARLO:
        found = {"ours_s": 0.1, "peer_s": 0.4, "ours_peak_mib": 3.0, "peer_peak_mib": None}
        table.settle(gpu_table.Job(name, 1, "plain"), found)
    whole = done(table)["karlo-whole"]
    assert whole["ours_s"] == pytest.approx(0.3)
    assert whole["ratio"] == pytest.approx(4)
    assert whole["reached"] == {"ratio": True, "seconds": True}
    assert whole["compiled_s"] is None


def whole_table(folder: Path, gpu: ModuleType, *arguments: str, **place: str) -> list[Any]:
    """The rows of a run in a process of its own."""
    file = folder / "rows.json"
    given = ["--size", "embedded", "--device", "cpu", "--minutes", "120", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, gpu.__file__, *given, *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("COMFYUI_")} | place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(file.read_text())
    assert all(set(row) >= COLUMNS for row in rows)
    assert not [(row["name"], row["error"]) for row in rows if row["error"]], done.stderr[-4000:]
    assert "error from fp32" in done.stdout
    return rows


@pytest.mark.slow
def test_the_whole_table_is_measured_on_a_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    rows = whole_table(tmp_path, gpu)
    works = importlib.import_module("gpu_table").WORKS
    assert {row["name"] for row in rows} == {*works, "karlo-whole"}
    assert all(row["ours_s"] > 0 for row in rows)
    compiled = [row["name"] for row in rows if row["compiled_s"]]
    assert compiled == ["karlo-prior"] or "compiler" in str(rows)
    for row in rows:
        assert row["ours_error"] is None or row["reached"]["near"], row
        assert "host" not in row["reached"]


@pytest.mark.host
def test_stages_are_measured_in_a_real_comfyui(gpu: ModuleType, tmp_path: Path) -> None:
    try:
        folder, _ = found_host()
    except LookupError as why:
        pytest.skip(str(why))
    place = {"COMFYUI_PATH": str(folder), "COMFYUI_PYTHON": str(python_of(folder)), "CXX": "none"}
    rows = whole_table(tmp_path, gpu, "--only", "karlo-prior,koala-700m,movq-512,mindalle", **place)
    hosted = {row["name"] for row in rows if row["host_s"]}
    assert hosted == {"karlo-prior", "koala-700m", "movq-512", "mindalle"}
