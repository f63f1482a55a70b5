"""A workflow over rows in one process: what is made, what fails, what is made again."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace

import pytest
from PIL import Image

from prior_art import cli
from prior_art.edges import UserError
from prior_art.loaders.files.safe import locked
from prior_art.scale import batch as batches
from prior_art.scale.batch import RECORD, changes, run_batch
from prior_art.scale.manifest import JOURNAL, Journal
from prior_art.scale.worker import SCRATCH, Result, Worker

from .graphs import MAPPING, greys, journal, lines, table, untimed

PATH = "pictures/00000/{:08}-0.png"


def test_each_row_has_its_picture(tmp_path):
    batch = greys(tmp_path, 5)
    done = run_batch(batch)
    assert (done.rows, done.made, done.failed) == (5, 5, 0)
    for row, entry in enumerate(untimed(batch)):
        assert entry["row"] == row and entry["error"] is None
        assert entry["inputs"] == {"SolidMask.value": json.dumps(row / 5)}
        (file,) = entry["files"]
        assert file["path"] == PATH.format(row)
        data = (batch.out / file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        with Image.open(batch.out / file["path"]) as picture:
            assert picture.getpixel((0, 0)) == (int(255 * row / 5),) * 3
    assert (batch.out / "contact_sheet.png").is_file()
    assert not (batch.out / SCRATCH).exists()


def test_a_picture_that_is_gone_is_made_again(tmp_path):
    batch = greys(tmp_path, 3)
    run_batch(batch)
    before, gone = untimed(batch), batch.out / PATH.format(1)
    gone.unlink()
    done = run_batch(batch)
    assert (done.made, done.failed) == (3, 0) and gone.is_file() and untimed(batch) == before
    assert len(journal(batch)) == 4


def test_a_row_that_saves_nothing_is_no_picture(tmp_path):
    batch = greys(tmp_path, 2)
    graph = json.loads(batch.workflow.read_text())
    graph["3"]["class_type"] = "PreviewImage"
    batch.workflow.write_text(json.dumps(graph))
    with pytest.raises(UserError, match="output"):
        run_batch(batch)


def test_a_prefix_may_be_called_previews(tmp_path):
    batch = greys(tmp_path, 1)
    graph = json.loads(batch.workflow.read_text())
    graph["3"]["inputs"]["filename_prefix"] = "previews/x"
    batch.workflow.write_text(json.dumps(graph))
    run_batch(batch)
    assert (batch.out / PATH.format(0)).is_file()


@pytest.mark.parametrize("content", ["[]", "{", "{}", "3"])
def test_a_damaged_record_is_named(tmp_path, content):
    batch = greys(tmp_path, 1)
    batch.out.mkdir()
    (batch.out / RECORD).write_text(content)
    with pytest.raises(UserError, match=r"batch\.json' is damaged; name another folder"):
        run_batch(batch)


@pytest.mark.parametrize("options", [{"max_failures": -1}, {"together": 0}, {"workers": 0}])
def test_numbers_that_cannot_be_are_refused(tmp_path, options):
    batch = greys(tmp_path, 1, **options)
    for run in (run_batch, lambda batch: list(changes(batch))):
        with pytest.raises(UserError, match="or more"):
            run(batch)


def test_equal_rows_have_a_file_each(tmp_path):
    batch = greys(tmp_path, 2)
    table(batch.rows, [{"level": 0.5}] * 2)
    assert run_batch(batch).made == 2
    assert (batch.out / PATH.format(1)).is_file()


def test_a_picture_depends_on_its_row_alone(tmp_path):
    run_batch(greys(tmp_path, 4))
    alone = replace(greys(tmp_path, 4), out=tmp_path / "alone")
    worker = Worker(json.loads(alone.workflow.read_text()), alone.out, alone.pictures)
    worker.run((list(batches.jobs(alone.rows, MAPPING))[2],))
    made = [(folder / PATH.format(2)).read_bytes() for folder in (tmp_path / "out", alone.out)]
    assert made[0] == made[1]


def test_what_did_not_change_is_not_run_again(tmp_path):
    batch = greys(tmp_path, 3)
    run_batch(replace(batch, mapping=("SaveImage.filename_prefix=x{level}",)))
    entries = lines(batch.out / "manifest.jsonl")
    assert ["SolidMask" in entry["seconds"] for entry in entries] == [True, False, False]


def test_the_same_command_makes_what_is_missing(tmp_path, monkeypatch):
    batch = greys(tmp_path, 6)

    def stop(rows, made, failed):
        if made == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(batch, stop)
    before = journal(batch)
    with (batch.out / JOURNAL).open("a") as file:
        file.write('{"row": 3, "inp')  # half a line, as of a process that was killed
    run, again = Worker._alone, []
    monkeypatch.setattr(Worker, "_alone", lambda self, job: again.append(job.row) or run(self, job))
    assert run_batch(batch).made == 6
    assert again == [3, 4, 5]
    assert journal(batch)[:3] == before and len(journal(batch)) == 6
    assert [entry["row"] for entry in untimed(batch)] == list(range(6))


def fails(row):
    """A worker's way of running a row, to which one row is poison."""
    run = Worker._alone

    def failing(self, job):
        return Result(job.row, {}, error="poison") if job.row == row else run(self, job)

    return failing


def test_a_row_that_fails_ends_nothing_and_is_tried_again(tmp_path, monkeypatch):
    batch = greys(tmp_path, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_alone", fails(1))
        done = run_batch(batch)
    assert (done.made, done.failed) == (3, 1)
    assert [e["error"] for e in untimed(batch)] == [None, "poison", None, None]
    assert run_batch(batch).made == 4
    assert [e["error"] for e in untimed(batch)] == [None] * 4


def test_what_a_node_says_is_the_rows_error(tmp_path):
    batch = greys(tmp_path, 2)
    table(batch.rows, [{"level": "../grey"}, {"level": "grey"}])
    done = run_batch(replace(batch, mapping=("SaveImage.filename_prefix={level}",)))
    assert (done.made, done.failed) == (1, 1)
    assert "leads out of the output folder" in untimed(batch)[0]["error"]


def test_too_many_failures_end_the_run(tmp_path):
    batch = greys(tmp_path, 5, max_failures=1)
    table(batch.rows, [{"level": f"../{i}"} for i in range(5)])
    done = run_batch(replace(batch, mapping=("SaveImage.filename_prefix={level}",)))
    assert (done.made, done.failed) == (0, 2)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), PermissionError(errno.EACCES, "no", "{out}/pictures")]
)
def test_a_full_or_unwritable_folder_ends_the_run_and_leaves_the_journal_whole(
    tmp_path, monkeypatch, error
):
    batch = greys(tmp_path, 3)
    placed = Worker._placed

    def refuses(self, row, pictures):
        if row == 1:
            error.filename = (error.filename or "").format(out=self.out) or None
            raise error
        return placed(self, row, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_placed", refuses)
        with pytest.raises(UserError, match="run the command again"):
            run_batch(batch)
    assert [entry["row"] for entry in journal(batch)] == [0]
    assert run_batch(batch).made == 3


class Full:
    """A file on a disk that has room for five bytes more."""

    def __init__(self, file):
        self._file = file

    def write(self, line):
        return self._file.write(line[:5])

    def fileno(self):
        return self._file.fileno()

    def close(self):
        self._file.close()


def test_a_journal_that_cannot_grow_is_what_it_was(tmp_path):
    written = Journal(tmp_path, 2)
    written.add(Result(0, {}))
    written._file = Full(written._file)
    with pytest.raises(UserError, match="free some space"):
        written.add(Result(1, {}))
    written.close()
    assert len(lines(tmp_path / JOURNAL)) == 1


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    batch = greys(tmp_path, 1)
    command = ["batch", str(batch.workflow), "--rows", str(batch.rows)]
    assert cli.main([*command, "--out", str(tmp_path / "file" / "out")]) == 1
    said = capsys.readouterr().err
    assert "Not a directory" in said and "not foreseen" not in said


@pytest.mark.parametrize("name", ["workflow", "rows"])
def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path, name):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match=f"'{path}' cannot be read"):
            run_batch(replace(greys(tmp_path, 1), **{name: path}))


def test_a_second_driver_is_refused(tmp_path):
    batch = greys(tmp_path, 1)
    batch.out.mkdir()
    with locked(batch.out / RECORD), pytest.raises(UserError, match="another process"):
        run_batch(batch)


def test_a_folder_of_another_batch_is_refused(tmp_path):
    batch = greys(tmp_path, 1)
    run_batch(batch)
    with pytest.raises(UserError, match="whose mapping are not these"):
        run_batch(replace(batch, mapping=("SolidMask.value=1",)))


def test_nothing_is_made_where_a_row_does_not_fit(tmp_path):
    batch = greys(tmp_path, 2)
    table(batch.rows, [{"level": 0}, {"level": 7}])
    with pytest.raises(UserError, match="1 of 2 rows"):
        run_batch(batch)
    assert [path.name for path in batch.out.iterdir()] == []


def test_an_editors_choices_fall_once(tmp_path):
    """Another worker, or a second start, must not draw another of ``{a|b}``."""
    batch = greys(tmp_path, 1)
    run_batch(batch)
    record = json.loads((batch.out / RECORD).read_text())
    record["prompt"]["1"]["inputs"]["width"] = 48
    (batch.out / RECORD).write_text(json.dumps(record))
    (batch.out / JOURNAL).unlink()
    run_batch(batch)
    with Image.open(batch.out / PATH.format(0)) as picture:
        assert picture.width == 48


def test_a_manifest_may_be_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    batch = greys(tmp_path, 3, manifest="parquet")
    found = parquet.read_table(run_batch(batch).manifest).to_pylist()
    for row, entry in zip(found, journal(batch), strict=True):
        assert {**row, "inputs": dict(row["inputs"]), "seconds": dict(row["seconds"])} == entry


def test_a_dry_run_shows_the_first_changes_and_makes_nothing(tmp_path):
    batch = greys(tmp_path, 5)
    assert list(changes(batch)) == [
        "row 0: node 1 value: 0.5 -> 0.0",
        "row 1: node 1 value: 0.5 -> 0.2",
        "row 2: node 1 value: 0.5 -> 0.4",
    ]
    assert not batch.out.exists()


def test_the_command_says_what_came_of_it(tmp_path, capsys):
    batch = greys(tmp_path, 3)
    command = ["batch", str(batch.workflow), "--rows", str(batch.rows), "--out", str(batch.out)]
    assert cli.main([*command, "--set", MAPPING[0]]) == 0
    assert "3 of 3 rows are made, 0 failed" in capsys.readouterr().out
