"""Workflows of any length run; what has no end, or would take all memory, is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prior_art.headless.core_nodes import SaveImage, VAEEncodeTiled
from prior_art.headless.core_sampling import _sigmas
from prior_art.headless.editor_text import dynamic_prompt
from prior_art.headless.runner import NodeError, Runner, node_classes
from prior_art.headless.workflow import WorkflowError, read_workflow, to_api

from .graphs import graph, node

NODES = node_classes()
LONG = 3000


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(NODES, tmp_path / "out", tmp_path / "in")


def inverted(times: int, first: Any = None) -> dict[str, Any]:
    """A mask that is inverted so often, one node behind another, and shown."""
    size = {"width": 4, "height": 4}
    prompt = {"m": first or {"class_type": "SolidMask", "inputs": {"value": 0.25, **size}}}
    last = "m"
    for i in range(times):
        prompt[f"i{i}"] = {"class_type": "InvertMask", "inputs": {"mask": [last, 0]}}
        last = f"i{i}"
    prompt["p"] = {"class_type": "MaskToImage", "inputs": {"mask": [last, 0]}}
    prompt["s"] = {"class_type": "PreviewImage", "inputs": {"images": ["p", 0]}}
    return prompt


def test_a_chain_of_thousands_runs(runner: Runner) -> None:
    assert len(runner.run(inverted(LONG)).seconds) == LONG + 3


def test_a_fault_at_the_far_end_of_a_chain_is_named(runner: Runner) -> None:
    with pytest.raises(WorkflowError, match=r"node m 'SolidMask' .*'value' \(FLOAT\) is missing"):
        runner.run(inverted(LONG, {"class_type": "SolidMask", "inputs": {}}))
    circle = {"class_type": "InvertMask", "inputs": {"mask": [f"i{LONG - 1}", 0]}}
    with pytest.raises(WorkflowError, match="go round in a circle"):
        runner.run(inverted(LONG, circle))


def test_many_faults_are_not_all_listed(runner: Runner) -> None:
    lost = {f"{i}": {"class_type": "PreviewImage", "inputs": {}} for i in range(300)}
    with pytest.raises(WorkflowError, match="and 295 more like these"):
        runner.run(lost)


def test_a_chain_of_reroutes_is_followed() -> None:
    nodes = [node(0, "LoadImage", ["a.png", "image"], outputs="IMAGE MASK")]
    links = []
    for i in range(1, LONG):
        nodes.append(node(i, "Reroute", wires={"": ("*", i)}, outputs="*"))
        links.append((i, i - 1, 0, i, 0, "IMAGE"))
    nodes.append(node(LONG, "PreviewImage", wires={"images": ("IMAGE", LONG)}))
    links.append((LONG, LONG - 1, 0, LONG, 0, "IMAGE"))
    assert to_api(graph(nodes, links), NODES)[str(LONG)]["inputs"] == {"images": ["0", 0]}


def nested(depth: int, width: int) -> dict[str, Any]:
    """A graph of a subgraph that holds ``width`` of the next, and so on."""
    keys = [f"{i:08}-1111-4111-8111-111111111111" for i in range(depth)]
    made = graph([node(1, keys[0]), node(2, "PreviewImage")])
    made["definitions"] = {"subgraphs": []}
    for i, key in enumerate(keys):
        inside = [node(n, keys[i + 1]) for n in range(width)] if i + 1 < depth else []
        part = {"id": key, "name": key, "nodes": inside, "links": [], "inputs": [], "outputs": []}
        made["definitions"]["subgraphs"].append(part)
    return made


@pytest.mark.parametrize(
    ("depth", "width", "said"),
    [(9, 10, "has 111,111,112 nodes"), (60, 1, "more than 50 deep"), (40, 2, "at most 20,000")],
)
def test_subgraphs_in_subgraphs_have_an_end(depth: int, width: int, said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        to_api(nested(depth, width), NODES)


def test_lists_within_lists_are_refused_however_they_come(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    prompt = {"1": {"class_type": "PreviewAny", "inputs": {"source": deep}}}
    with pytest.raises(WorkflowError, match="more than 100 deep"):
        to_api(prompt, NODES)
    saved = graph([node(1, "PreviewImage", properties={"a": deep})])
    with pytest.raises(WorkflowError, match="more than 100 deep"):
        to_api(saved, NODES)
    file = tmp_path / "deep.json"
    file.write_text("[" * 10**5)
    with pytest.raises(WorkflowError, match="is no JSON"):
        read_workflow(file)
    assert json.loads(json.dumps(to_api(inverted(1), NODES)))


def test_choices_within_choices_have_an_end() -> None:
    assert dynamic_prompt("{" * 50 + "a" + "}" * 50) == "a"
    with pytest.raises(WorkflowError, match="more than 100 deep"):
        dynamic_prompt("{" * 5000)


@pytest.mark.parametrize(
    ("class_type", "name", "value", "others"),
    [
        ("EmptyLatentImage", "width", 10**6, {"height": 64, "batch_size": 1}),
        ("EmptyLatentImage", "batch_size", 10**6, {"height": 64, "width": 64}),
        ("SolidMask", "height", -1, {"value": 1.0, "width": 64}),
    ],
)
def test_a_number_that_is_wired_keeps_to_the_widgets_bounds(
    runner: Runner, class_type: str, name: str, value: int, others: dict[str, Any]
) -> None:
    prompt = {
        "n": {"class_type": "PrimitiveInt", "inputs": {"value": value}},
        "1": {"class_type": class_type, "inputs": {name: ["n", 0], **others}},
        "s": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises(NodeError, match=rf"node 1 .*'{name}' is {value}; the (larg|small)est is"):
        runner.run(prompt)


def test_a_broken_number_of_steps_is_no_whole_one(runner: Runner) -> None:
    prompt = inverted(1)
    prompt["m"]["inputs"]["width"] = 4.0
    assert runner.run(prompt).pictures
    prompt["m"]["inputs"]["width"] = 4.9
    with pytest.raises(WorkflowError, match=r"'width' is 4\.9, which is no whole number"):
        runner.run(prompt)


def test_a_picture_of_nan_is_not_saved_as_black(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkflowError, match="'images' holds NaN"):
        SaveImage.execute(torch.full((1, 4, 4, 3), float("nan")), "a")
    assert not list(tmp_path.rglob("*.png"))


def test_a_schedule_of_billions_is_refused(runner: Runner) -> None:
    with pytest.raises(WorkflowError, match=r"'denoise' is 1e-09 with 20 steps: the last of 2"):
        _sigmas(None, "simple", 20, 1e-9)


@pytest.mark.parametrize(("tile", "overlap"), [(63, 0), (64, -1), (4097, 64)])
def test_tiles_keep_to_their_bounds(tile: int, overlap: int) -> None:
    assert "est is" in str(VAEEncodeTiled.validate_inputs(tile, overlap))
