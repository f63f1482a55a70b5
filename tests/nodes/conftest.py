"""The nodes over miniatures of random weights, run by the headless runner."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from prior_art.headless.runner import Runner, node_classes
from prior_art.headless.workflow import to_api

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "tiny-karlo"


def load_tiny():
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(prompt, node):
    """What a primitive says, or a node's ``text`` on its own widget or out of a primitive."""
    text = node["inputs"].get("text", node["inputs"].get("value"))
    return text if isinstance(text, str) else text_of(prompt, prompt[text[0]])


@pytest.fixture(scope="session")
def tiny():
    return load_tiny()


@pytest.fixture(scope="session")
def models(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.tiny_karlo(folder / SOURCE)
    tiny.tiny_kandinsky(folder / "tiny-kandinsky")
    tiny.tiny_koala(folder / "tiny-koala")
    tiny.tiny_mindalle(folder / "tiny-mindalle")
    for kind in ("class", "unconditional"):
        tiny.tiny_mindalle(folder / f"tiny-{kind}", kind)
    return folder


@pytest.fixture
def runner(models, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))
    return Runner(node_classes(), tmp_path / "output", tmp_path / "input")


@pytest.fixture
def template(runner):
    """A template in API format, its loaders on the miniature or another source; None: their own."""

    def read(name, source=SOURCE):
        path = ROOT / "example_workflows" / f"{name}.json"
        prompt = to_api(json.loads(path.read_text()), runner.nodes)
        for node in prompt.values():
            if source and "source" in node["inputs"]:
                node["inputs"]["source"] = source
        return prompt

    return read


@pytest.fixture
def find():
    """The one node of a class in a prompt, or the one with a title."""

    def by(prompt, name):
        return next(
            node for node in prompt.values() if name in (node["class_type"], node["_meta"]["title"])
        )

    return by
