"""Evaluations: protocols that fit their templates, figures beside the published ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from prior_art import cli
from prior_art.edges import UserError
from prior_art.headless.runner import node_classes
from prior_art.headless.workflow import read_workflow, to_api
from prior_art.scale import evaluate as evaluations
from prior_art.scale.evaluate import Evaluation, evaluate
from prior_art.scale.protocols import WORKFLOWS, Protocol, protocol_called, protocols
from prior_art.scale.report import FIGURES, chart
from prior_art.scale.rows import apply, job_of

from .graphs import GREY, MAPPING, table

CAPTIONS = [
    {"caption": "a large white circle on a black background", "level": i / 4} for i in (1, 2, 3)
]


@pytest.mark.parametrize("protocol", protocols().values(), ids=lambda protocol: protocol.name)
def test_a_protocol_fits_its_template(protocol):
    """Every input that it sets is there, and the caption and the seed arrive."""
    saved = read_workflow(WORKFLOWS / f"{protocol.workflow}.json")
    prompt = to_api(saved, node_classes())
    changed, keys = apply(prompt, job_of(77, {"caption": "a newt"}, protocol.mapping).settings)
    values = [value for key in keys for value in changed[key]["inputs"].values()]
    assert values.count("a newt") == len(protocol.caption) > 0
    assert values.count(77) == len(protocol.seed) > 0
    assert set(protocol.published) <= set(FIGURES)
    if protocol.stage:
        titles = {nodes[node["class_type"]].define_schema().display_name
                  for nodes in [node_classes()] for node in prompt.values()}  # fmt: skip
        assert protocol.stage in titles


def test_a_protocol_that_is_like_another_has_its_values_and_its_own():
    first, second = (protocol_called(f"karlo-{name}") for name in ("cc3m-25", "coco-50"))
    assert second.settings == (
        *first.settings,
        "PriorArtKarloDecoder.steps=50",
    )
    assert (second.encoder, second.count, second.published["fid"]) == (first.encoder, 30000, 14.43)


@pytest.fixture
def quick(tmp_path):
    """An evaluation of a graph that takes no time."""
    workflow = tmp_path / "grey.json"
    workflow.write_text(json.dumps(GREY), encoding="utf-8")
    captions = table(tmp_path / "captions.jsonl", CAPTIONS)
    out = tmp_path / "out"
    return Evaluation(str(workflow), out, captions, None, "shapes-clip", MAPPING)


def test_a_workflow_is_scored_without_a_protocol(quick):
    path = evaluate(quick)
    report = json.loads((quick.out / "report.json").read_text(encoding="utf-8"))
    assert set(report["measured"]) == {"clip_score", "clip_score_100"}
    assert (report["rows"], report["failed"], report["published"]) == (3, 0, {})
    text = path.read_text(encoding="utf-8")
    for name in ("chart.png", "contact_sheet.png"):
        assert f"({name})" in text and (quick.out / name).is_file()


def test_captions_that_reach_no_picture_are_refused(quick):
    for mapping in ((), ("SolidMask.value=0.5",), ("SolidMask.width={row}",)):
        with pytest.raises(UserError, match="no input gets a column"):
            evaluate(replace(quick, mapping=mapping))


@pytest.fixture
def published(quick, monkeypatch):
    """The same as a protocol with a figure and more captions."""
    protocol = Protocol(
        "grey", "Grey", "grey", (), (), (), "30k of somebody's", 30000, "shapes-clip",
        {"clip_score": 0.3, "fid": 7.0}, "a card", ("a note",),
    )  # fmt: skip
    monkeypatch.setattr(evaluations, "WORKFLOWS", quick.out.parent)
    monkeypatch.setattr(evaluations, "protocol_called", lambda name: protocol)
    return replace(quick, system="grey")


def test_published_figures_stand_beside_what_was_measured(published):
    text = evaluate(published).read_text(encoding="utf-8")
    report = json.loads((published.out / "report.json").read_text(encoding="utf-8"))
    measured = report["measured"]["clip_score"]
    assert f"| CLIP-score, mean cosine | 0.3 | {measured:.4g} |" in text
    assert "| FID | 7 | - |" in text
    differs = "\n".join(report["differs"])
    for said in ("3 captions, published: 30,000", "not measured: fid", "30k of", "a note"):
        assert said in differs and said in text


def test_another_encoder_and_lost_pictures_are_named(published):
    mapping = ("SaveImage.filename_prefix={level}",)
    table(published.captions, [{**CAPTIONS[0], "level": "grey"}, {**CAPTIONS[1], "level": "../a"}])
    evaluate(replace(published, encoder="shapes-karlo", mapping=mapping))
    report = json.loads((published.out / "report.json").read_text(encoding="utf-8"))
    differs = "\n".join(report["differs"])
    assert "by shapes-karlo, published: shapes-clip" in differs
    assert "1 captions without a picture" in differs
    assert "set with --set: SaveImage.filename_prefix={level}" in differs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system": "nothing"}, "neither a workflow's file nor one of shapes-karlo, karlo-cc3m-25"),
        ({"system": "karlo-cc3m-25"}, "clip-vit-base-patch16'.* `prior-art download clip-vit-b-16"),
        ({"encoder": None}, "--encoder is missing"),
        ({"captions": None}, "--captions is missing"),
        ({"mapping": ("SolidMask.value={size}",)}, "3 of 3 rows .* no column 'size'"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_made(quick, changes, said):
    if "system" in changes:
        changes = {"encoder": None, **changes}
    with pytest.raises(UserError, match=said):
        evaluate(replace(quick, **changes))
    assert not (quick.out / "pictures").exists()


def test_references_without_inception_are_refused_first(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIOR_ART_MODELS", str(tmp_path / "models"))
    with pytest.raises(UserError, match="prior-art download inception"):
        evaluate(replace(quick, references=tmp_path))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "row 0 .* has no column 'caption'"),
        ({"caption": "a newt"}, "row 0 .* 'a newt'; give captions as"),
    ],
)
def test_captions_that_nobody_can_draw_are_refused_first(tmp_path, row, said):
    captions = table(tmp_path / "captions.jsonl", [row])
    with pytest.raises(UserError, match=said):
        evaluate(Evaluation("shapes-karlo", tmp_path / "out", captions))


def test_references_of_no_pictures_are_refused_first(tmp_path):
    captions = table(tmp_path / "captions.jsonl", CAPTIONS)
    with pytest.raises(UserError, match=r"holds 0 pictures .* some thousands"):
        evaluate(Evaluation("shapes-karlo", tmp_path / "out", captions, tmp_path))


def test_a_chart_has_a_bar_for_each_figure():
    def colours(picture):
        return {colour for _, colour in picture.getcolors(2**16)}

    grey, blue = (153, 153, 153), (51, 102, 204)
    assert {grey, blue} <= colours(chart({"fid": 9.0}, {"fid": 8.0}))
    assert grey not in colours(chart({"fid": 9.0}, {}))


@pytest.mark.slow
def test_the_embedded_family_is_evaluated_without_anything_else(tmp_path, capsys):
    """Captions of its own, references that rules draw, a distance that is called no FID."""
    scenes = ["a large red circle on a blue background", "a green square on a white background"]
    captions = table(tmp_path / "captions.jsonl", ({"caption": scene} for scene in scenes))
    out = tmp_path / "out"
    command = ["evaluate", "shapes-karlo", "--captions", str(captions), "--out", str(out)]
    assert cli.main(command) == 0
    first = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert set(first["measured"]) == {*("clip_score", "clip_score_100", "frechet_clip"),
                                      *("right", "colours")}  # fmt: skip
    assert first["measured"]["colours"] == 1
    assert "no FID" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    with Image.open(next(iter(made))) as picture:
        assert picture.size == (64, 64)
    assert cli.main(command) == 0
    again = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert again["measured"] == first["measured"]
    assert made == {path: path.stat().st_mtime_ns for path in made}
