"""`prior-art batch` and a ComfyUI's /prompt make the same pictures of the same rows, so that people
can move between a farm of servers and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prior_art.scale.batch import RECORD, Batch, run_batch
from prior_art.scale.rows import apply, jobs

from .serving import is_a_picture, levels

pytestmark = [pytest.mark.host, pytest.mark.slow]

TEMPLATE = Path(__file__).resolve().parents[2] / "example_workflows" / "karlo_text_to_image.json"
MAPPING = ("Prompt.text={caption}", "Seed of all stages.value={seed}", "PriorArtPrior.steps=5")
ROWS = [
    {"caption": "a small yellow square on a purple background", "seed": 3},
    {"caption": "a {cross|circle} // on a white background", "seed": 2**40},
]


def test_the_same_rows_give_the_same_pictures(comfy: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    batch = Batch(TEMPLATE, rows, MAPPING, tmp_path / "out")
    done = run_batch(batch)
    prompt = json.loads((batch.out / RECORD).read_text(encoding="utf-8"))["prompt"]
    entries = done.manifest.read_text(encoding="utf-8").splitlines()
    for job, entry in zip(jobs(rows, MAPPING), map(json.loads, entries), strict=True):
        graph, _ = apply(prompt, job.settings)
        (theirs,) = comfy.pictures(comfy.run(graph), "12")
        with Image.open(batch.out / entry["files"][0]["path"]) as ours:
            assert is_a_picture(theirs) and levels(ours, theirs) == 0
