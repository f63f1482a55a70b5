"""Seeded small graphs through a real ComfyUI and through the headless runner: the same pictures, or
a refusal by name. ``python -m tests.host.differential`` runs more of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import differential
from . import differential_graphs as graphs

CASES, SEED = 150, 15
EQUALLED = (0, 33)
"""The release that the runner equals: older ones load pictures by other decoders, and their nodes
have other ranges."""
EDITED = 60
"""Graphs that the editor itself must queue as the generator says."""

pytestmark = pytest.mark.host


def _of_the_release(comfy: Any) -> None:
    """Skip where the ComfyUI, and its editor, is older than the one that the runner equals."""
    version = comfy.get("/system_stats")["system"]["comfyui_version"]
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < EQUALLED:
        pytest.skip(f"this ComfyUI is {version}; docs/HEADLESS.md speaks of v0.33.0")


@pytest.mark.slow
def test_headless_makes_what_comfyui_makes_or_refuses_by_name(
    comfy: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _of_the_release(comfy)
    headless = differential.Headless(tmp_path / "input", tmp_path)
    host = differential.Host(comfy.url)
    report = differential.sweep(host, headless, [(SEED, number) for number in range(CASES)])
    with capsys.disabled():
        print("\n" + report.text())
    assert not report.different
    assert report.kinds["refused on the way"] <= CASES / 50
    assert report.kinds["same"] >= CASES / 3
    missing = set(headless.nodes) - set(report.nodes) - graphs.LEFT_OUT
    assert not missing, "nodes of the runner that no graph has; differential_graphs.py makes them"


@pytest.mark.browser
def test_the_editor_queues_what_the_generator_says(comfy: Any, page: Any) -> None:
    _of_the_release(comfy)
    info = comfy.get("/object_info")
    cases = [graphs.draw(SEED, number, info) for number in range(EDITED)]
    wrong = {}
    for case in cases:
        if case.saved is None:
            continue
        queued = page.evaluate(
            """async graph => {
                await window.app.loadGraphData(graph);
                return (await window.app.graphToPrompt()).output;
            }""",
            case.saved,
        )
        if _bare(queued) != _bare(case.api):
            wrong[case.name] = (_bare(queued), _bare(case.api))
    assert not wrong


def _bare(prompt: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


def test_a_graph_is_the_same_in_every_process(comfy: Any) -> None:
    info = comfy.get("/object_info")
    for number in range(20):
        first, second = (graphs.draw(SEED, number, info) for _ in range(2))
        assert json.dumps([first.api, first.saved]) == json.dumps([second.api, second.saved])


def _outcome(**facts: Any) -> Any:
    return differential.Outcome(**facts)


def _picture(level: int) -> tuple[str, np.ndarray]:
    return "name", np.full((8, 8, 3), level, np.uint8)


API = {"4": {"class_type": "KSampler", "inputs": {}}}


@pytest.mark.parametrize(
    ("host", "ours", "kind"),
    [
        (_outcome(outputs={"4": [_picture(9)]}), _outcome(outputs={"4": [_picture(10)]}), "same"),
        (
            _outcome(outputs={"4": [_picture(9)]}),
            _outcome(outputs={"4": [_picture(11)]}),
            "different",
        ),
        (_outcome(outputs={"4": [_picture(9)]}), _outcome(), "different"),
        (_outcome(failed="raw"), _outcome(refused="node 4 (KSampler): no"), "both refuse"),
        (_outcome(), _outcome(refused="node 4 (KSampler): run it in ComfyUI"), "refused by name"),
        (_outcome(), _outcome(refused="node 4 (KSampler): 'model' is missing"), "different"),
        (_outcome(), _outcome(failed="node 4 (KSampler): run it in ComfyUI"), "refused on the way"),
        (_outcome(), _outcome(failed="node 4 (KSampler): size mismatch"), "different"),
        (_outcome(refused="no outputs"), _outcome(), "different"),
        (
            _outcome(outputs={"4": ["score 1.0001"]}),
            _outcome(outputs={"4": ["score 1.0002"]}),
            "same",
        ),
        (_outcome(outputs={"4": ["score 1"]}), _outcome(outputs={"4": ["score 2"]}), "different"),
    ],
)
def test_verdicts(host: Any, ours: Any, kind: str) -> None:
    assert differential.compare(host, ours, API).kind == kind
