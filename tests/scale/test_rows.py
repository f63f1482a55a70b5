"""Tables of rows, and how their columns become settings."""

from __future__ import annotations

import pytest

from prior_art.edges import UserError
from prior_art.headless.runner import node_classes
from prior_art.scale.rows import check_rows, job_of, jobs, read_rows

from .graphs import GREY, MAPPING, table

ROWS = [{"text": "a, b", "n": 1}, {"text": 'say "c"', "n": 2}]


def written(folder, kind):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return table(path, ROWS)
    if kind == "csv":
        path.write_text('\ufefftext,n\n"a, b",1\n"say ""c""",2\n', encoding="utf-8")
        return path
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_of_table_gives_the_same_settings(tmp_path, kind):
    found = list(jobs(written(tmp_path, kind), ["A.text=x {text}", "B.n={n}", "C.n={row}"]))
    assert [job.settings for job in found] == [
        ("A.text=x a, b", "B.n=1", "C.n=0"),
        ('A.text=x say "c"', "B.n=2", "C.n=1"),
    ]


@pytest.mark.parametrize(
    ("row", "template", "value"),
    [
        ({"a": True}, "{a}", "true"),
        ({"a": 0.5}, "{a}", "0.5"),
        ({"a": "{b}"}, "{a} {x|y}", "{b} {x|y}"),
        ({"row": "own"}, "{row}", "own"),
    ],
)
def test_a_value_goes_in_as_it_is(row, template, value):
    assert job_of(7, row, [f"A.b={template}"]).settings == (f"A.b={value}",)


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, float("nan")])
def test_a_value_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"column 'a' is .* give each row"):
        job_of(0, {"a": value}, ["A.b={a}"])


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("SolidMask.value={size}", "3 of 3 rows .* row 0: there is no column 'size'.* level"),
        ("SolidMask.value={level}", "2 of 3 rows .* row 1: .*give a number; row 2: .*largest is 1"),
        ("SolidMask.wide={level}", "3 of 3 rows .* has no input 'wide'; it has value, width"),
        ("Mask.value={level}", "no node is called 'Mask'"),
        ("MaskToImage.mask={level}", "'mask' is wired"),
        ("SolidMask.value", "is not of the form"),
    ],
)
def test_rows_that_do_not_fit_are_counted_before_anything_runs(tmp_path, mapping, said):
    rows = table(tmp_path / "rows.jsonl", [{"level": 0.5}, {"level": "light"}, {"level": 2}])
    with pytest.raises(UserError, match=said):
        check_rows(rows, [mapping], GREY, node_classes())


def test_rows_that_fit_are_counted(tmp_path):
    rows = table(tmp_path / "rows.jsonl", [{"level": 0}, {"level": "1"}])
    assert check_rows(rows, MAPPING, GREY, node_classes()) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.txt", "", r"give a file \.jsonl"),
        ("rows.jsonl", '{"a": 1}\n{"a"', "line 2 .* no JSON"),
        ("rows.jsonl", "[1]", "line 1 .* is no row"),
        ("rows.jsonl", "\xff", "no UTF-8"),
        ("rows.csv", "a,b\n1\n", "line 2 .* as many fields"),
        ("rows.csv", "a,b\n1,2,3\n", "line 2 .* as many fields"),
        ("rows.csv", 'a,b\n"1"x,2\n', "line 2 .* no CSV"),
        ("rows.csv", "a,b,a\n1,2,3\n", "'a' twice"),
        ("rows.parquet", "a", "no Parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        list(read_rows(tmp_path / name))


def test_a_node_that_is_not_there_is_named(tmp_path):
    rows = table(tmp_path / "rows.jsonl", [{"level": 0}])
    with pytest.raises(UserError, match=r"node 1 \(PriorArtNewt\) is unknown here"):
        check_rows(rows, [], {"1": {"class_type": "PriorArtNewt", "inputs": {}}}, node_classes())


def test_a_missing_or_empty_table_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"rows\.csv' cannot be read"):
        list(read_rows(tmp_path / "rows.csv"))
    with pytest.raises(UserError, match="has no rows"):
        check_rows(table(tmp_path / "rows.jsonl", []), MAPPING, GREY, node_classes())
