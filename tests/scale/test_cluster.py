"""Rows on a real Ray of two workers: the same bytes, and nothing lost when processes are killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from prior_art.scale.batch import run_batch
from prior_art.scale.manifest import JOURNAL
from prior_art.scale.worker import PICTURES, SCRATCH

from .graphs import MAPPING, greys, journal, untimed

pytestmark = pytest.mark.slow
pytest.importorskip("ray")

ROWS = 40


def assert_whole(batch, rows):
    """Every row once, every file as its manifest says, and no other file."""
    entries = untimed(batch)
    assert [entry["row"] for entry in entries] == list(range(rows))
    assert [entry["error"] for entry in entries] == [None] * rows
    files = {file["path"]: file["sha256"] for entry in entries for file in entry["files"]}
    found = [path for path in (batch.out / PICTURES).rglob("*") if path.is_file()]
    digests = {
        path.relative_to(batch.out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }
    assert digests == files and len(files) == rows
    assert not (batch.out / SCRATCH).exists()


def test_two_workers_make_what_one_makes_though_one_is_killed(tmp_path):
    """The killed one's row is made by another; manifests differ in timings alone."""
    alone = greys(tmp_path, ROWS, side=512)
    run_batch(alone)
    batch = replace(alone, out=tmp_path / "two", workers=2)
    killed = []

    def kill(rows, made, failed):
        if made == 5:
            killed.append(journal(batch)[-1]["worker"])
            os.kill(int(killed[0].rpartition(":")[2]), signal.SIGKILL)

    done = run_batch(batch, kill)
    assert (done.made, done.failed) == (ROWS, 0)
    assert_whole(batch, ROWS)
    assert untimed(batch) == untimed(alone)
    assert len(journal(batch)) == ROWS
    assert killed[0] not in {entry["worker"] for entry in journal(batch)[5:]}


def test_a_killed_driver_is_started_again(tmp_path):
    batch = greys(tmp_path, ROWS, side=1024)
    command = [sys.executable, "-m", "prior_art.cli", "batch", str(batch.workflow)]
    command += ["--rows", str(batch.rows), "--set", *MAPPING, "--out", str(batch.out)]
    driver = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    try:
        while len(journal(batch)) < 5:
            assert driver.poll() is None
            time.sleep(0.01)
    finally:
        driver.kill()
        driver.wait()
    made = (batch.out / JOURNAL).read_bytes().count(b"\n")
    assert made < ROWS
    assert run_batch(batch).made == ROWS
    assert_whole(batch, ROWS)
    assert len(journal(batch)) == ROWS
