"""A quick graph over rows: a grey picture a row, whose level and size the row gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prior_art.scale.batch import Batch
from prior_art.scale.manifest import JOURNAL

GREY = {
    "1": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 32, "height": 32}},
    "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "grey"}},
}
MAPPING = ("SolidMask.value={level}",)


def table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def greys(folder: Path, count: int, side: int = 32, **options: Any) -> Batch:
    """A batch of ``count`` greys of ``side`` pixels into ``folder/out``."""
    graph = json.loads(json.dumps(GREY))
    graph["1"]["inputs"].update(width=side, height=side)
    workflow = folder / "grey.json"
    workflow.write_text(json.dumps(graph), encoding="utf-8")
    rows = table(folder / "rows.jsonl", ({"level": i / count} for i in range(count)))
    return Batch(workflow, rows, MAPPING, **{"out": folder / "out", **options})


def lines(path: Path) -> list[dict[str, Any]]:
    """What a journal or a manifest says."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def journal(batch: Batch) -> list[dict[str, Any]]:
    """What a batch has written down so far."""
    path = batch.out / JOURNAL
    return lines(path) if path.exists() else []


def untimed(batch: Batch) -> list[dict[str, Any]]:
    """A finished batch's manifest without what differs from run to run."""
    entries = lines(batch.out / "manifest.jsonl")
    return [{k: v for k, v in e.items() if k not in ("seconds", "worker")} for e in entries]
