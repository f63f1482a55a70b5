"""Archives: known files come out, under known names, and nothing half done stays behind."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from prior_art.loaders.files import archive
from prior_art.loaders.files.archive import MAKING, unpack, unpacked
from prior_art.loaders.files.checkpoint import CheckpointError

WANTED = ("config.yaml", "tokenizer/vocab.json", "stage1_last.ckpt")
CONTENT = {
    "1.3B/config.yaml": b"a: 1",
    "1.3B/tokenizer/vocab.json": b"{}",
    "1.3B/stage1_last.ckpt": bytes(range(256)) * 40,
    "1.3B/readme.md": b"not wanted",
}
KINDS = ["1.3B.tar.gz", "1.3B.TGZ", "1.3B.tar", "1.3B.zip"]


def pack(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in content.items():
                out.writestr(name, data)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as out:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


UNPACKED = {name: CONTENT[f"1.3B/{name}"] for name in WANTED}


@pytest.mark.parametrize("name", KINDS)
def test_known_files_come_out(tmp_path: Path, name: str) -> None:
    told = []
    path = pack(tmp_path / name)
    folder = unpacked(path, WANTED, lambda *args: told.append(args))
    assert folder == tmp_path / "1.3B"
    mark = json.loads((folder / "prior-art.json").read_text())
    assert mark["archive"] == name
    (folder / "prior-art.json").unlink()
    assert files(folder) == UNPACKED
    assert ("stage1_last.ckpt", 10240, 10240) in told and told[-1] == ("", 10246, 10246)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["1.3B", name])


def test_unpacked_once(tmp_path: Path) -> None:
    path = pack(tmp_path / "1.3B.zip")
    folder = unpacked(path, WANTED)
    (folder / "config.yaml").write_text("changed")
    assert unpacked(path, WANTED) == folder
    assert (folder / "config.yaml").read_text() == "changed"
    # Another archive of that name, or a folder that was there before, is not mixed up with it.
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"in the way of unpacking.*was not unpacked from it"):
        unpacked(path, WANTED)
    (folder / "prior-art.json").unlink()
    with pytest.raises(CheckpointError, match="in the way of unpacking"):
        unpacked(path, WANTED)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "member",
    [
        "../stage1_last.ckpt",
        "1.3B/../../stage1_last.ckpt",
        "..\\stage1_last.ckpt",
        "/a/x/../stage1_last.ckpt",
    ],
)
def test_members_never_leave_the_folder(tmp_path: Path, name: str, member: str) -> None:
    path = pack(tmp_path / name, {"a/config.yaml": b"", member: b"evil"})
    assert set(files(unpacked(path, WANTED))) == {"config.yaml", "prior-art.json"}
    assert not list(tmp_path.parent.glob("stage1_last.ckpt"))


@pytest.mark.parametrize("member", ["/etc/config.yaml", "C:\\config.yaml"])
def test_absolute_names_become_relative(tmp_path: Path, member: str) -> None:
    path = pack(tmp_path / "1.3B.tar", {member: b"x"})
    assert files(unpacked(path, WANTED))["config.yaml"] == b"x"
    assert not Path("C:\\config.yaml").exists()


def test_links_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "1.3B.tar", "w") as out:
        for name, kind in (("config.yaml", tarfile.SYMTYPE), ("stage1_last.ckpt", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret")
            out.addfile(info)
    with pytest.raises(CheckpointError, match=r"holds none of config.yaml"):
        unpacked(tmp_path / "1.3B.tar", WANTED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.3B.tar", "secret"]


def damage(data: bytes, how: str) -> bytes:
    if how == "flipped":
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    return {"empty": b"", "half": data[: len(data) // 2], "tail": data[:-4], "text": b"hello" * 99}[
        how
    ]


@pytest.mark.parametrize("name", ["1.3B.tar.gz", "1.3B.zip"])
@pytest.mark.parametrize("how", ["empty", "half", "tail", "text", "flipped"])
def test_damaged_archives_leave_nothing(tmp_path: Path, name: str, how: str) -> None:
    path = pack(tmp_path / name, CONTENT | {"1.3B/stage1_last.ckpt": os.urandom(10000)})
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(
        CheckpointError, match=r"truncated, damaged or no archive.*Download"
    ) as seen:
        unpacked(path, WANTED)
    assert str(path) in str(seen.value) and "\n" not in str(seen.value)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    path = pack(tmp_path / "1.3B.zip")
    (tmp_path / "1.3B.partial").mkdir()  # of a run that was killed
    (tmp_path / "1.3B.partial" / "old").touch()
    (tmp_path / "1.3B.partial" / MAKING).touch()

    def stop(name: str, done: int, total: int) -> None:
        assert not (tmp_path / "1.3B.partial" / "old").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpacked(path, WANTED, stop)
    assert [p.name for p in tmp_path.iterdir()] == ["1.3B.zip"]


def test_twice_and_none(tmp_path: Path) -> None:
    path = pack(tmp_path / "1.3B.tar", {"a/config.yaml": b"1", "b/config.yaml": b"2"})
    with pytest.raises(CheckpointError, match=r"holds 'config\.yaml' twice"):
        unpack(path, tmp_path, WANTED)
    path = pack(tmp_path / "1.3B.zip", {"myconfig.yaml": b"1", "vocab.json": b"2"})
    with pytest.raises(CheckpointError, match=r"holds none of config\.yaml, tokenizer"):
        unpack(path, tmp_path, WANTED)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "1.3B.zip")
    monkeypatch.setattr(archive, "MARGIN", 2**60)
    with pytest.raises(CheckpointError, match=r"cannot be unpacked: 'config.yaml' has .* GB free"):
        unpacked(path, WANTED)
    assert [p.name for p in tmp_path.iterdir()] == ["1.3B.zip"]


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = pack(tmp_path / "1.3B.zip")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=r"1\.3B' cannot be written: Permission denied; give"):
        unpacked(path, WANTED)


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_somebody_else_called_partial_stays(tmp_path: Path, what: str) -> None:
    path = pack(tmp_path / "1.3B.zip")
    partial = tmp_path / "1.3B.partial"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    if what == "folder":
        (tmp_path / "elsewhere").rename(partial)
    elif what == "file":
        partial.touch()
    else:
        partial.symlink_to(tmp_path / "elsewhere")
    before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"partial' is in the way.*left as it is. Rename it"):
        unpacked(path, WANTED)
    assert sorted(p.as_posix() for p in tmp_path.rglob("*")) == before


def test_two_at_once(tmp_path: Path) -> None:
    path = pack(tmp_path / "1.3B.zip")

    def tell(name: str, done: int, total: int) -> None:
        if done:
            with pytest.raises(CheckpointError, match="another process is at work"):
                unpacked(path, WANTED)

    assert unpacked(path, WANTED, tell).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.3B", "1.3B.zip"]
