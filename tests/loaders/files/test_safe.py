"""Files of others and broken moments: what is opened, what is written, who is at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from prior_art.loaders.files import safe
from prior_art.loaders.files.checkpoint import CheckpointError, read_json
from prior_art.loaders.files.safe import (
    Busy,
    NoPicture,
    Unreadable,
    locked,
    open_picture,
    read_bytes,
    remove_left,
    write_whole,
    written,
)

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe that nobody writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_pipes_devices_folders_and_large_files_are_not_read(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b" " * 100)
    for path in (pipe, tmp_path / "zero", tmp_path):
        with pytest.raises(Unreadable, match="a pipe, a device or a folder"):
            read_bytes(path, 1000)
        with pytest.raises(CheckpointError, match=rf"'{path}' is not read: it is a pipe"):
            read_json(path)
    with pytest.raises(Unreadable, match=r"has 0\.0 MB, but at most"):
        read_bytes(tmp_path / "large", 99)
    assert read_bytes(tmp_path / "large", 100) == b" " * 100


def test_a_long_number_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(CheckpointError, match=r"is not JSON .*digits"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["cute.png", "zz.jpg", "a.eps"])
def test_no_picture_starts_a_program(tmp_path: Path, name: str, monkeypatch) -> None:
    (tmp_path / name).write_bytes(EPS)
    ran: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **_: ran.append(args))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: ran.append(args))
    with pytest.raises(NoPicture, match="it is none of PNG, JPEG"), open_picture(tmp_path / name):
        pass
    assert not ran


def test_every_picture_of_the_pack_is_opened_by_the_one_function() -> None:
    """``Image.open`` takes whatever Pillow knows; only :func:`open_picture` names the kinds."""
    root = Path(safe.__file__).parents[2]
    rooms = ("nodes", "loaders", "samplers", "networks", "host", "headless", "training", "shapes")
    files = [root / "cli.py", *(path for room in rooms for path in (root / room).rglob("*.py"))]
    found = [p.name for p in files if "Image.open(" in p.read_text(encoding="utf-8")]
    assert found == ["safe.py"]


def test_small_files_of_large_pictures(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(safe, "PIXELS", 10_000)
    Image.new("1", (13_000, 13_000)).save(tmp_path / "bomb.png")
    frames = [Image.new("RGB", (50, 50), (30 * i, 0, 0)) for i in range(8)]
    frames[0].save(tmp_path / "many.gif", save_all=True, append_images=frames[1:], duration=40)
    for name, said in (("bomb.png", "1 x 13000 x 13000"), ("many.gif", "8 x 50 x 50")):
        with (
            pytest.raises(Unreadable, match=f"has {said} pixels.*make it smaller"),
            open_picture(tmp_path / name, pixels=10_000),
        ):
            pass
    Image.new("RGB", (20_000, 20_000)).resize((1, 1)).save(tmp_path / "one.png")
    with open_picture(tmp_path / "one.png") as picture:
        assert picture.size == (1, 1)


# -- writing -----------------------------------------------------------------------------------


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    write_whole(file, b"old")
    with pytest.raises(OSError, match="full"), written(file) as scratch:
        scratch.write_bytes(b"ne")
        raise OSError("full")
    assert file.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    with written(file) as scratch:
        scratch.write_bytes(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    for name in ("a.bin", f"a.bin.{os.getpid()}.part"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    write_whole(tmp_path / "a.bin", b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (tmp_path / "a.bin").is_symlink() and (tmp_path / "a.bin").read_bytes() == b"ours"


KILLED = """
import sys, time
from pathlib import Path
from prior_art.loaders.files.safe import locked, written
file = Path(sys.argv[1])
with locked(file), written(file) as scratch:
    scratch.write_bytes(b"half")
    print("there", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        part = tmp_path / f"a.bin.{process.pid}.part"
        remove_left(tmp_path, "a.bin")
        assert part.read_bytes() == b"half"
        with pytest.raises(Busy, match="another process is at work on"), locked(file):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert file.read_bytes() == b"old" and part.is_file()
    (tmp_path / "a.bin.part").touch()  # not one of ours
    with locked(file):
        write_whole(file, b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.bin.part"]


def test_a_lock_is_for_threads_too_and_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        with pytest.raises(Busy), locked(tmp_path / "a"):
            pass
        with locked(tmp_path / "b"):
            pass
    with locked(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())
