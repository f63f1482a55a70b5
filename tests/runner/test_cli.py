"""The command prior-art: settings by name, one-line errors."""

from __future__ import annotations

import json

import pytest

from prior_art import cli
from prior_art.host.workflow import WorkflowError, assign


def prompt():
    return {
        "1": {"class_type": "Text", "inputs": {"text": "a"}, "_meta": {"title": "Prompt"}},
        "2": {"class_type": "Text", "inputs": {"text": "b"}, "_meta": {"title": "Negative"}},
        "3": {"class_type": "Prior", "inputs": {"steps": 25, "text": ["1", 0]}},
    }


@pytest.mark.parametrize("name", ["3", "Prior"])
def test_set_finds_a_node_by_id_or_class(name):
    graph = prompt()
    assign(graph, f"{name}.steps=7")
    assert graph["3"]["inputs"]["steps"] == 7


def test_set_finds_a_node_by_title_and_keeps_text_as_text():
    graph = prompt()
    assign(graph, "Prompt.text=42")
    assert graph["1"]["inputs"]["text"] == "42"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("Text.text=x", "2 nodes are called 'Text'"),
        ("Nobody.text=x", "no node is called 'Nobody'"),
        ("3.cfg=1", "no input 'cfg'"),
        ("3.text=x", "'text' is wired"),
        ("steps", "NODE.INPUT=VALUE"),
    ],
)
def test_set_says_what_it_cannot_do(setting, said):
    with pytest.raises(WorkflowError) as error:
        assign(prompt(), setting)
    assert said in str(error.value)


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["run", str(tmp_path / "bad.json")]) == 1
    assert cli.main(["run", str(tmp_path / "none.json")]) == 1
    (tmp_path / "odd.json").write_text(json.dumps({"1": {"class_type": "Odd", "inputs": {}}}))
    assert cli.main(["run", str(tmp_path / "odd.json")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "is no JSON" in lines[0] and "cannot read" in lines[1] and "Odd" in lines[2]


def test_nodes_are_listed(capsys):
    assert cli.main(["nodes"]) == 0
    assert "PriorArtKarloDecoder" in capsys.readouterr().out
