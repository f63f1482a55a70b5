"""benchmarks/launches.py: what a GPU would be asked to do, and that it is not asked too much."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@pytest.fixture
def launches() -> ModuleType:
    return importlib.import_module("launches")


def picture(dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(2, 32, 8, 8, dtype=dtype, device="meta")


def nhwc_of(x: Tensor) -> Tensor:
    """Another picture like ``x`` that was made so."""
    return torch.empty_like(x, memory_format=torch.channels_last)


CONVOLUTION, NHWC_CONVOLUTION, NORM = (
    layer.to("meta", torch.float16)
    for layer in (nn.Conv2d(32, 48, 3), nn.Conv2d(32, 48, 3), nn.GroupNorm(8, 32))
)
NHWC_CONVOLUTION.to(memory_format=torch.channels_last)

# What is done to a picture of fp16, and how many tensors are turned over for it.
TURNED = {
    "a convolution of NCHW": (CONVOLUTION, 3),  # picture, weights, result
    "of NHWC with weights of NCHW": (lambda x: CONVOLUTION(nhwc_of(x)), 1),
    "of NCHW with weights of NHWC": (NHWC_CONVOLUTION, 1),
    "all in NHWC": (lambda x: NHWC_CONVOLUTION(nhwc_of(x)), 0),
    "a copy into the other format": (lambda x: x.contiguous(memory_format=torch.channels_last), 1),
    "a copy in the same": (lambda x: nhwc_of(x).clone(), 0),
    "a cast in the same": (lambda x: nhwc_of(x).float(), 0),
    "a norm that knows NCHW only": (lambda x: NORM(nhwc_of(x)), 1),
    "pictures of both side by side": (lambda x: torch.cat([nhwc_of(x), x], dim=1), 1),
    "pixels as tokens of NHWC": (lambda x: nhwc_of(x).flatten(2).transpose(1, 2).contiguous(), 0),
    "pixels as tokens of NCHW": (lambda x: x.flatten(2).transpose(1, 2).contiguous(), 1),
    "one number a channel": (lambda x: x[:, :, :1, :1].clone(), 0),
}


@pytest.mark.parametrize(("work", "turned"), TURNED.values(), ids=TURNED)
def test_copies_between_formats_are_counted(launches: ModuleType, work: Any, turned: int) -> None:
    assert launches.at_once(lambda: work(picture())).format_copies == turned


def test_what_starts_nothing_is_no_operation(launches: ModuleType) -> None:
    def work() -> None:
        x = picture()
        x.view(2, -1).unsqueeze(1).transpose(0, 1)[:, :1].chunk(2, dim=-1)
        torch.randn(3) + 1  # the processor's own
        x.add_(1)

    assert launches.at_once(work).operations == 1


def test_norms_attention_and_reads_are_counted(launches: ModuleType) -> None:
    def work() -> None:
        x = picture()
        F.group_norm(x, 4)
        F.layer_norm(x, (8,))
        F.scaled_dot_product_attention(x, x, x)
        if x.amax() > 0 and bool(x.isnan().any()):
            x.cpu()

    found = launches.at_once(work)
    assert (found.group_norms, found.layer_norms, found.host_reads) == (1, 1, 3)
    assert found.operations == 3 + 4  # and amax, gt, isnan, any


def test_a_step_is_what_lies_between_two_calls_back(launches: ModuleType) -> None:
    def run(counter: Any) -> None:
        x = picture()
        x.add_(1)  # prepares
        for step in range(9):
            for _ in range(5 if step else 7):
                x.mul_(2)
            if step == 2:
                F.group_norm(x, 4)
            counter.next_step(step, 9, x)

    found = launches.step_of(run)
    assert (found["operations"], found["group_norms"], found["replays"]) == (6, 1, 0)


def test_a_bar_that_is_missed_is_said(
    launches: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {key: 0 for key in vars(launches.Counts())}
    row = {"work": "a stage", "replays": 1, "beside": 2, **counts, "format_copies": 3}
    row |= {f"peer_{key}": 0 for key in counts}
    monkeypatch.setattr(launches, "measured", lambda *_: row)
    monkeypatch.setattr(sys, "argv", ["launches"])
    assert launches.main() == 1
    assert "a stage: 3 copies between memory formats" in capsys.readouterr().out
    monkeypatch.setitem(row, "format_copies", 0)
    assert launches.main() == 0


@pytest.mark.slow
def test_no_stage_turns_pictures_reads_numbers_or_leaves_norms_unfused(
    launches: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At published size, every stage."""
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["launches", "--json", str(file)])
    assert launches.main() == 0
    rows = {row["work"]: row for row in json.loads(file.read_text())}
    assert len(rows) == 12
    for work, row in rows.items():
        assert (row["format_copies"], row["group_norms"], row["host_reads"]) == (0, 0, 0), work
        assert row["operations"] < row["peer_operations"], work
        # A recorded step is one launch and a few copies; a decoder of pictures has no steps.
        assert row["replays"] == (0 if "MoVQ" in work else 1), work
        assert row["beside"] < 20, work
