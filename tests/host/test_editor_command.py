"""`make host`: says how to get a ComfyUI, or opens a template in the one it finds."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from . import editor


def test_without_a_comfyui_it_says_how_to_get_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert editor.main() == 1
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "git clone --branch v0.33.0" in said


@pytest.mark.host
def test_it_opens_a_template_of_the_pack(host_paths: Any, monkeypatch, capsys, tmp_path):
    found: dict[str, Any] = {}

    def open_browser(url: str) -> None:
        host, query = url.split("/?")
        for path in ("workflow_templates", "object_info/PriorArtPrior"):
            with urllib.request.urlopen(f"{host}/{path}", timeout=60) as answer:
                found[path] = json.load(answer)
        found["query"] = query
        raise KeyboardInterrupt  # what ends it

    monkeypatch.setattr(editor, "BASE", tmp_path)
    monkeypatch.setattr(editor.webbrowser, "open", open_browser)
    assert editor.main() == 0
    assert found["object_info/PriorArtPrior"]
    name, pack = (part.split("=")[1] for part in found["query"].split("&"))
    assert name in found["workflow_templates"][pack]
    assert (tmp_path / "input" / "example.png").is_file()
