"""The command prior-art: settings by name, one-line errors."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prior_art import cli
from prior_art.edges import EdgeError
from prior_art.headless.runner import NodeError, Runner, node_classes
from prior_art.headless.workflow import WorkflowError, assign, read_workflow, to_api
from prior_art.host.embedded.session import session
from prior_art.loaders.files.checkpoint import CheckpointError

from .graphs import FLAT, save


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
    ("typed", "value"),
    [
        *((text, False) for text in ("False", "false", "no", "No", "off", "OFF", "0", " false ")),
        *((text, True) for text in ("True", "true", "yes", "on", "1")),
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_set_takes_every_word_for_a_switch(old, typed, value):
    graph = {"1": {"class_type": "Load", "inputs": {"compile": old}}}
    assign(graph, f"1.compile={typed}")
    assert graph["1"]["inputs"]["compile"] is value


def test_set_takes_whole_and_broken_numbers():
    graph = {"1": {"class_type": "Prior", "inputs": {"cfg": 4}}}
    for typed, value in (("2.5", 2.5), ("-3", -3), ("1e2", 100.0)):
        assign(graph, f"1.cfg={typed}")
        assert graph["1"]["inputs"]["cfg"] == value


@pytest.mark.parametrize("typed", ["maybe", "", "2", "null"])
def test_set_refuses_what_is_no_switch(typed):
    graph = {"1": {"class_type": "Load", "inputs": {"compile": False}}}
    with pytest.raises(WorkflowError, match="give true or false"):
        assign(graph, f"1.compile={typed}")


@pytest.mark.parametrize("typed", ["many", "true", "NaN", "Infinity", "null", "[1]", ""])
def test_set_refuses_what_is_no_number(typed):
    with pytest.raises(WorkflowError, match="give a number"):
        assign(prompt(), f"3.steps={typed}")


def test_set_changes_a_widget_before_its_text_is_resolved():
    graph = copy.deepcopy(FLAT["file name"])
    settings = ["SaveImage.filename_prefix=%KSampler.cfg%_%date%", "8.cfg=3"]
    converted = to_api(graph, node_classes(), settings)
    assert converted["2"]["inputs"]["filename_prefix"] == "3_%date%"
    text = to_api(FLAT["choices"], node_classes(), ["CLIPTextEncode.text={red|red} // x"])
    assert text["3"]["inputs"]["text"] == "red "


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_workflow_may_be_in_any_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"\u00e9": "\u00df"}, ensure_ascii=False), encoding=encoding)
    assert read_workflow(path) == {"\u00e9": "\u00df"}


def carrying(path, **texts):
    """A picture with texts, as ComfyUI writes them into that format."""
    picture = Image.new("RGB", (4, 4))
    if path.suffix == ".png":
        notes = PngInfo()
        for key, text in texts.items():
            notes.add_text(key, text)
        picture.save(path, pnginfo=notes)
    else:
        exif = picture.getexif()
        for tag, (key, text) in zip((0x010F, 0x0110), texts.items(), strict=False):
            exif[tag] = f"{key}:{text}"
        picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_picture_that_carries_a_workflow_is_one(tmp_path, suffix):
    api, saved = json.dumps(prompt()), json.dumps({"nodes": []})
    both = carrying(tmp_path / f"both.{suffix}", prompt=api, workflow=saved)
    assert read_workflow(both) == {"nodes": []}
    assert read_workflow(carrying(tmp_path / f"api.{suffix}", prompt=api)) == prompt()
    with pytest.raises(WorkflowError, match="carries no workflow"):
        read_workflow(carrying(tmp_path / f"none.{suffix}"))
    with pytest.raises(WorkflowError, match=r"the workflow in .* is no JSON"):
        read_workflow(carrying(tmp_path / f"bad.{suffix}", workflow="{"))


@pytest.mark.parametrize("nothing", ["null", "{}", "[]"])
def test_a_picture_whose_graph_is_empty_gives_its_prompt(tmp_path, nothing):
    api = json.dumps(prompt())
    path = carrying(tmp_path / "queued.png", prompt=api, workflow=nothing)
    assert read_workflow(path) == prompt()
    with pytest.raises(WorkflowError, match="carries no workflow"):
        read_workflow(carrying(tmp_path / "empty.png", workflow=nothing))


def test_a_picture_that_cannot_be_opened_is_not_called_json(tmp_path, monkeypatch):
    notes = PngInfo()
    notes.add_text("prompt", "z" * 3_000_000, zip=True)  # Pillow unpacks a million
    path = tmp_path / "long.png"
    Image.new("RGB", (4, 4)).save(path, pnginfo=notes)
    with pytest.raises(WorkflowError, match=r"cannot read the workflow.*too large"):
        read_workflow(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    path = carrying(tmp_path / "large.png", prompt=json.dumps(prompt()))
    with pytest.raises(WorkflowError, match=r"pixels|too large|more than"):
        read_workflow(path)


def test_a_cut_picture_still_carries_its_workflow(tmp_path):
    path = carrying(tmp_path / "cut.png", workflow=json.dumps({"nodes": []}))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_workflow(path) == {"nodes": []}


def test_the_runners_own_picture_runs_again(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "example.png")
    graph = FLAT["plain"]
    first = Runner(node_classes(), tmp_path / "out", tmp_path).run(graph).pictures[0]
    assert read_workflow(first) == graph
    assert cli.main(["run", str(first), "--out", str(tmp_path), "--input", str(tmp_path)]) == 0
    assert (tmp_path / "x_00001_.png").read_bytes() == first.read_bytes()


def test_left_out_outputs_are_told_in_one_line(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "example.png")
    (tmp_path / "w.json").write_text(
        json.dumps(FLAT["plain"] | {"nodes": [*FLAT["plain"]["nodes"], save(5, None, "stray")]})
    )
    folders = ["--out", str(tmp_path / "o"), "--input", str(tmp_path)]
    assert cli.main(["run", str(tmp_path / "w.json"), *folders]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "o" / "x_00001_.png")
    [line] = [line for line in shown.err.splitlines() if "warning" in line]
    assert line.startswith("warning: an output is left out: node 5 'Save Image'")
    assert "'images' (IMAGE) is missing" in line


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


@pytest.mark.parametrize(
    ("error", "hinted"),
    [
        (EdgeError("too wide"), False),
        (CheckpointError("cut off"), False),
        (ZeroDivisionError("by zero"), True),
        (NodeError("node 3 (X): too wide"), False),
        (NodeError("node 3 (X): by zero"), True),
    ],
    ids=str,
)
def test_only_what_nobody_foresaw_asks_for_a_traceback(monkeypatch, capsys, error, hinted):
    error.__cause__ = ZeroDivisionError() if hinted else EdgeError()

    def fail(options):
        raise error

    monkeypatch.setattr(cli, "_nodes", fail)
    assert cli.main(["nodes"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"prior-art: {error}" and len(said) == 1 + hinted
    assert not hinted or said[1].endswith("prior-art --debug nodes")


def test_download_alone_says_what_there_is(capsys):
    assert cli.main(["download"]) == 0
    assert {"karlo", "kandinsky-2-2", "koala-700m"} <= set(capsys.readouterr().out.split())


def test_nodes_are_listed(capsys):
    assert cli.main(["nodes"]) == 0
    assert "PriorArtKarloDecoder" in capsys.readouterr().out


def test_the_first_ctrl_c_asks_and_the_second_ends_the_process(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    try:
        cli._runner({}, tmp_path, tmp_path)
        signal.raise_signal(signal.SIGINT)
        assert session.stop.is_set()
        # Whatever is being computed: Python itself would wait for its end.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert "a second Ctrl-C ends it at once" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)
        session.stop.clear()


def test_what_a_terminal_would_obey_is_not_printed(tmp_path, capsys):
    title = "\x1b[2J\x1b]0;mine\x07a\x9bb\u202e"
    prompt = {"1": {"class_type": "PreviewImage", "inputs": {}, "_meta": {"title": title}}}
    prompt |= {"\x1b[31m2": {"class_type": "\x1b[1mNo", "inputs": {}}}
    for changed in (prompt, {"1": prompt["1"]}):
        file = tmp_path / "a.json"
        file.write_text(json.dumps(changed))
        assert cli.main(["run", str(file)]) == 1
        said = capsys.readouterr().err
        assert said.isprintable() or set(c for c in said if not c.isprintable()) == {"\n"}
    assert "'a\\x9bb\\x202e'" in said


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "give yourself the right to it"),
        (errno.ENAMETOOLONG, "give a shorter one"),
        (errno.EIO, "mend that or name another place"),
    ],
)
def test_errors_of_the_operating_system_say_what_to_do(monkeypatch, capsys, code, cure):
    def fails(options):
        raise OSError(code, os.strerror(code), "/a/b")

    monkeypatch.setattr(cli, "_nodes", fails)
    assert cli.main(["nodes"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"prior-art: '/a/b': {os.strerror(code)}; {cure}")
    assert "not foreseen" not in said
