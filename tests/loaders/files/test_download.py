"""Downloads, against a hub of our own on 127.0.0.1: resume, checksums, full disks, one rename."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from prior_art.edges import UserError
from prior_art.loaders.files import catalogue as sources
from prior_art.loaders.files import download as module
from prior_art.loaders.files.catalogue import list_sources
from prior_art.loaders.files.download import (
    File,
    choose,
    download,
    is_safe,
)

pytestmark = pytest.mark.usefixtures("alone")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUBLISHED, TOGETHER = module.published(), module.together()
MAIN, VARIATIONS = PUBLISHED["karlo"].repositories


class Hub:
    """What is published, what was asked for, and where it breaks."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, dict[str, bytes]] = {MAIN: {}, VARIATIONS: {}}
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            name = path.relative_to(root).as_posix()
            part = name.split("/")[0]
            repository = VARIATIONS if part in ("image_encoder", "feature_extractor") else MAIN
            self.files[repository][name] = path.read_bytes()
        self.files[MAIN]["prior/diffusion_pytorch_model.bin"] = b"duplicate"
        self.files[MAIN]["prior/diffusion_pytorch_model.fp16.safetensors"] = b"duplicate"
        self.files[MAIN]["README.md"] = b"# Karlo"
        self.files[VARIATIONS]["prior/config.json"] = b"not this one"
        self.commit = COMMIT
        self.asked: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        self.ranges = True
        self.gone = ""
        self.endpoint = ""

    def info(self, repository: str) -> dict:
        siblings = []
        for name, data in self.files[repository].items():
            entry = {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if name.endswith((".safetensors", ".bin")):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": repository, "sha": self.commit, "siblings": siblings}

    def gets(self) -> list[str]:
        return [name for name, _ in self.asked]


@pytest.fixture
def published(hub: Path):
    """A running hub."""
    state = Hub(hub)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, code: int, data: bytes, headers: dict, body: bool) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def serve(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/"):
                repository = "/".join(path.split("/")[3:5])
                data = json.dumps(state.info(repository)).encode()
                return self.answer(200, data, {"Content-Type": "application/json"}, body)
            repository, _, rest = path[1:].partition("/resolve/")
            name = rest.split("/", 1)[1]
            data = state.files[repository][name]
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": state.commit,
                "Accept-Ranges": "bytes",
            }
            if not body:
                return self.answer(200, data, headers, False)
            asked = self.headers.get("Range")
            state.asked.append((name, asked))
            if name == state.gone:
                return self.answer(404, b"", {}, True)
            asked = asked if state.ranges else None
            start = int(asked.split("=")[1].split("-")[0]) if asked else 0
            code = 206 if asked else 200
            if asked:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            rest_of_it = data[start:]
            if state.break_after is not None and len(rest_of_it) > state.break_after:
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(rest_of_it)))
                self.end_headers()
                self.wfile.write(rest_of_it[: state.break_after])
                self.wfile.flush()
                self.close_connection = True
                return None
            return self.answer(code, rest_of_it, headers, True)

        def do_GET(self) -> None:
            self.serve(True)

        def do_HEAD(self) -> None:
            self.serve(False)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def real_api(published: Hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=published.endpoint, token=False)


class FakeApi:
    """The hub's listing without a server."""

    def __init__(self, state: Hub) -> None:
        self.state = state
        self.revisions: list[str | None] = []

    def model_info(self, repository: str, *, revision=None, files_metadata=False, timeout=None):
        assert files_metadata
        self.revisions.append(revision)
        info = self.state.info(repository)
        entries = [
            SimpleNamespace(
                rfilename=e["rfilename"], size=e["size"], blob_id=e["blobId"], lfs=e.get("lfs")
            )
            for e in info["siblings"]
        ]
        return SimpleNamespace(sha=info["sha"], siblings=entries)


@pytest.fixture
def state(hub: Path) -> Hub:
    return Hub(hub)


def putter(state: Hub, log: list[str] | None = None):
    def put(file: File, path: Path, arrived) -> None:
        if log is not None:
            log.append(file.path)
        path.write_bytes(state.files[file.repository][file.path])

    return put


def test_from_a_real_server(published: Hub, hub: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    models = tmp_path / "models"
    target = download(
        "karlo", models, api=real_api(published), progress=lambda *args: steps.append(args)
    )
    assert target == models / "karlo-v1-alpha"
    wanted = {p.relative_to(hub).as_posix() for p in hub.rglob("*") if p.is_file()}
    got = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert got == wanted | {module.MANIFEST}
    assert all((target / name).read_bytes() == (hub / name).read_bytes() for name in wanted)
    assert [p.name for p in models.iterdir()] == ["karlo-v1-alpha"]
    dones = [done for _, done, _ in steps]
    assert dones == sorted(dones) and steps[-1][1] == steps[-1][2] > 0
    manifest = json.loads((target / module.MANIFEST).read_text())
    assert {f["commit"] for f in manifest["files"]} == {COMMIT}
    for stage in ("prior", "image_encoder", "upscaler"):
        assert [s.name for s in list_sources(stage, [models])] == ["karlo-v1-alpha"]
    # A second run fetches nothing and only verifies.
    published.asked.clear()
    assert download("karlo", models, api=real_api(published)) == target
    assert published.asked == []


def test_broken_connection_resumes(published: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    name = max(published.files[MAIN], key=lambda n: len(published.files[MAIN][n]))
    size = len(published.files[MAIN][name])
    published.break_after = size // 8
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(UserError, match=r"could not be downloaded.*resumes") as caught:
        download("karlo", tmp_path, api=real_api(published))
    first = str(caught.value).split("'")[1]
    part = tmp_path / "karlo-v1-alpha.partial" / f"{first}.part"
    assert part.stat().st_size == published.break_after
    assert not (tmp_path / "karlo-v1-alpha").exists()
    assert list_sources("prior", [tmp_path]) == []
    already = set(published.gets())
    # Later runs go on where the connection broke; a run with retries survives every break.
    monkeypatch.setattr(module, "TRIES", 3)
    published.asked.clear()
    target = download("karlo", tmp_path, api=real_api(published))
    assert (target / name).read_bytes() == published.files[MAIN][name]
    assert not (set(published.gets()) & (already - {first}))
    ranges = [asked for asked_name, asked in published.asked if asked_name == first]
    assert ranges[0] == f"bytes={published.break_after}-"
    assert len([n for n in published.gets() if n == name]) >= 7
    assert not list(target.rglob("*.part"))


def test_server_without_ranges(published: Hub, tmp_path: Path) -> None:
    published.ranges = False
    name = "prior/config.json"
    part = tmp_path / "karlo-v1-alpha.partial" / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"old")
    (tmp_path / "karlo-v1-alpha.partial" / module.MANIFEST).write_text("{")  # killed then
    target = download("karlo", tmp_path, api=real_api(published))
    assert (target / name).read_bytes() == published.files[MAIN][name]


def test_file_gone_from_the_hub_is_no_endless_retry(published: Hub, tmp_path: Path) -> None:
    published.gone = "prior/config.json"
    with pytest.raises(UserError, match=r"'prior/config\.json'.*404"):
        download("karlo", tmp_path, api=real_api(published))
    assert published.gets().count("prior/config.json") == 1


def test_checksum_mismatch(state: Hub, tmp_path: Path) -> None:
    name = "prior/diffusion_pytorch_model.safetensors"
    good = putter(state)

    def bad(file: File, path: Path, arrived) -> None:
        good(file, path, arrived)
        if file.path == name:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))

    with pytest.raises(UserError, match=f"'{name}' arrived damaged.*run the command again"):
        download("karlo", tmp_path, api=FakeApi(state), fetch=bad)
    partial = tmp_path / "karlo-v1-alpha.partial"
    assert partial.is_dir() and not (partial / name).exists()
    log: list[str] = []
    download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state, log))
    assert name in log and "decoder/config.json" not in log


def test_small_files_have_checksums_too(state: Hub, tmp_path: Path) -> None:
    good = putter(state)

    def bad(file: File, path: Path, arrived) -> None:
        good(file, path, arrived)
        if file.path == "prior/config.json":
            path.write_bytes(b" " * file.size)

    with pytest.raises(UserError, match=r"'prior/config\.json' arrived damaged"):
        download("karlo", tmp_path, api=FakeApi(state), fetch=bad)


@pytest.mark.parametrize("wrapped", [False, True])
def test_disk_full_while_writing(state: Hub, tmp_path: Path, wrapped: bool) -> None:
    good = putter(state)

    def full(file: File, path: Path, arrived) -> None:
        if file.path.startswith("super_res_last"):
            error = OSError(errno.ENOSPC, "No space left on device")
            if wrapped:
                raise RuntimeError("download failed") from error
            raise error
        good(file, path, arrived)

    with pytest.raises(UserError, match=r"is full\. Free some space.*resumes from") as caught:
        download("karlo", tmp_path, api=FakeApi(state), fetch=full)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "karlo-v1-alpha.partial" / "decoder" / "config.json").is_file()
    assert not (tmp_path / "karlo-v1-alpha").exists()
    assert list_sources("prior", [tmp_path]) == []
    log: list[str] = []
    download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state, log))
    assert log and "decoder/config.json" not in log


def test_free_space_is_checked_first(state: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    log: list[str] = []
    with pytest.raises(UserError, match=r"0\.0 GB free, but .* still to be downloaded"):
        download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state, log))
    assert log == []


def test_commit_stays_pinned(state: Hub, tmp_path: Path) -> None:
    api = FakeApi(state)

    def down(file: File, path: Path, arrived) -> None:
        raise ConnectionError("reset")

    with pytest.raises(UserError, match="could not be downloaded"):
        download("karlo", tmp_path, api=api, fetch=down)
    state.commit = "f" * 40  # the hub moved on meanwhile
    target = download("karlo", tmp_path, api=api, fetch=putter(state))
    assert api.revisions == [None, None]  # one listing per repository, on the first run only
    files = json.loads((target / module.MANIFEST).read_text())["files"]
    assert {file["commit"] for file in files} == {COMMIT}
    # Another revision by hand lists again, fetches only what differs and drops what is gone.
    state.files[MAIN]["prior/config.json"] += b"\n"
    del state.files[MAIN]["tokenizer/special_tokens_map.json"]
    log: list[str] = []
    again = download("karlo", tmp_path, api=api, fetch=putter(state, log), revision="f" * 40)
    assert again == target and log == ["prior/config.json"]
    assert api.revisions[2:] == ["f" * 40, None]
    assert not (target / "tokenizer" / "special_tokens_map.json").exists()


def test_damaged_folder_is_mended(state: Hub, tmp_path: Path) -> None:
    target = download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state))
    (target / "decoder" / "config.json").write_text("{}")
    log: list[str] = []
    download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state, log))
    assert log == ["decoder/config.json"]


def test_a_folder_in_the_way_is_left_alone(state: Hub, hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub, tmp_path / "karlo-v1-alpha")
    with pytest.raises(UserError, match="was not made by this command"):
        download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state))
    assert (tmp_path / "karlo-v1-alpha" / "model_index.json").is_file()


def test_offline_words(tmp_path: Path) -> None:
    class Down:
        def model_info(self, *args: object, **kwargs: object) -> None:
            raise ConnectionError("Name or service not known")

    with pytest.raises(UserError, match=r"did not answer for 'kakaobrain/.*Check the conn"):
        download("karlo", tmp_path, api=Down())
    with pytest.raises(UserError, match=r"unknown system 'dalle'; .*karlo"):
        download("dalle", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/x", "a/../b.json", "a//b", "C:/x", "a\\b.json", ".ssh/x", "a/.x", "a/b.", ""],
)
def test_unsafe_names(name: str) -> None:
    assert not is_safe(name)


def test_hostile_listing_downloads_nothing(state: Hub, tmp_path: Path) -> None:
    state.files[MAIN]["prior/..\\..\\evil.json"] = b"{}"
    log: list[str] = []
    with pytest.raises(UserError, match="not a safe file name"):
        download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state, log))
    assert log == []


def test_choice_of_files() -> None:
    names = ["a/config.json", "a/model.fp16.safetensors", "a/pytorch_model.bin", "b/x.ckpt", "z/y"]
    assert choose(names, ["a"]) == ["a/config.json", "a/model.fp16.safetensors"]
    names += ["a/model-00001-of-00001.safetensors", "a/model.safetensors.index.json"]
    assert choose(names, ["a"]) == [
        "a/config.json",
        "a/model-00001-of-00001.safetensors",
        "a/model.safetensors.index.json",
    ]
    with pytest.raises(UserError, match="lacks absent"):
        choose(names, ["absent"])


def test_systems_of_several_folders_name_what_there_is() -> None:
    """Every folder is a source of its own, with the components that its stages are read from."""
    for names in TOGETHER.values():
        assert set(names) <= set(PUBLISHED)
    for name in (n for n in PUBLISHED if n.startswith("kandinsky")):
        (components,) = PUBLISHED[name].repositories.values()
        table = sources.SYSTEMS["kandinsky-prior" if name.endswith("prior") else "kandinsky"]
        old = "2-1" in name
        parts = {
            folder for stage, (folder, _) in table.components.items() if old or stage != "mclip"
        }
        assert parts <= set(components)
        assert "scheduler" in components and "" in components


def test_a_koala_is_one_folder_of_all_its_parts() -> None:
    table = sources.SYSTEMS["koala"]
    for name in (n for n in PUBLISHED if n.startswith("koala")):
        (components,) = PUBLISHED[name].repositories.values()
        assert {folder for folder, _ in table.components.values()} <= set(components)
        assert {"", "scheduler", "text_encoder_2", "tokenizer", "tokenizer_2"} <= set(components)
    assert table.download.split()[-1] in PUBLISHED


def test_console_progress() -> None:
    out = io.StringIO()
    tell = module.console_progress(out)
    tell("prior/config.json", 0, 2_000_000_000)
    tell("prior/config.json", 1, 2_000_000_000)
    tell("", 2_000_000_000, 2_000_000_000)
    lines = out.getvalue().split("\r")[1:]
    assert len(lines) == 2 and "prior/config.json" in lines[0]
    assert lines[1].strip() == "2.00 of 2.00 GB"


def test_a_damaged_manifest_asks_the_hub_again(state: Hub, tmp_path: Path) -> None:
    target = download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state))
    manifest = target / module.MANIFEST
    whole = json.loads(manifest.read_text())
    partial = target.with_name(f"{target.name}.partial")
    one = {**whole, "files": whole["files"][:1]}
    (target / whole["files"][-1]["path"]).unlink()
    manifest.write_text(json.dumps(one))  # what it lists is there, and is not everything
    api = FakeApi(state)
    assert download("karlo", tmp_path, api=api, fetch=putter(state)) == target and api.revisions
    assert (target / whole["files"][-1]["path"]).is_file()
    for wrong in (
        {"files": [{**whole["files"][0], "size": "1"}]},
        {"files": [{**whole["files"][0], "path": 5}]},
        {"files": [{**whole["files"][0], "path": "../../a"}]},
        {"files": [{**whole["files"][0], "sha256": None, "git": None}]},
        {"files": [{**whole["files"][0], "sha256": 7}]},
        {"files": 5},
        [],
        None,
    ):
        manifest.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="was not made by this command"):
            download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state))
        target.rename(partial)  # an unfinished one is gone on with
        assert download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state)) == target


def test_somebody_elses_partial_stays(state: Hub, tmp_path: Path) -> None:
    partial = tmp_path / "karlo-v1-alpha.partial"
    partial.mkdir()
    (partial / "precious.part").touch()
    with pytest.raises(UserError, match="was not made by this command"):
        download("karlo", tmp_path, api=FakeApi(state), fetch=putter(state))
    assert (partial / "precious.part").is_file()


def test_no_link_is_followed_out(published: Hub, tmp_path: Path) -> None:
    models, theirs = tmp_path / "models", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_bytes(b"theirs")
    partial = models / "karlo-v1-alpha.partial"
    (partial / "prior").mkdir(parents=True)
    (partial / module.MANIFEST).write_text("{}")
    (partial / "prior" / "config.json.part").symlink_to(theirs / "file")
    (partial / "prior" / "scheduler_config.json").symlink_to(theirs / "file")
    (partial / "decoder").symlink_to(theirs)
    with pytest.raises(UserError, match=r"decoder' is a link to .*Remove it"):
        download("karlo", models, api=real_api(published))
    (partial / "decoder").unlink()
    download("karlo", models, api=real_api(published))
    assert [p.name for p in theirs.iterdir()] == ["file"]
    assert (theirs / "file").read_bytes() == b"theirs"


def test_two_at_once(state: Hub, tmp_path: Path) -> None:
    good = putter(state)

    def put(file: File, path: Path, arrived) -> None:
        with pytest.raises(UserError, match="another process is at work"):
            download("karlo", tmp_path, api=FakeApi(state), fetch=good)
        good(file, path, arrived)

    target = download("karlo", tmp_path, api=FakeApi(state), fetch=put)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.fixture
def plain_server(tmp_path: Path):
    """A folder over HTTP; its address."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler

    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "file.pth").write_bytes(b"weights")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/file.pth"
    server.shutdown()


def test_who_asks_for_something_unknown_is_told_of_single_files_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown system 'nope'; .*inception"):
        module.download("nope", tmp_path)


def test_a_single_file_is_fetched_once_and_verified(plain_server: str, tmp_path: Path) -> None:
    begins, folder = hashlib.sha256(b"weights").hexdigest()[:8], tmp_path / "models"
    path = module.download_file(plain_server, folder, begins)
    assert path == folder / "file.pth" and path.read_bytes() == b"weights"
    assert module.download_file("http://127.0.0.1:9/file.pth", folder, begins) == path
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="does not have its published checksum"):
        module.download_file(plain_server, folder, begins)


def test_a_single_file_of_another_checksum_is_not_kept(plain_server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not have its published checksum"):
        module.download_file(plain_server, tmp_path / "models", "00000000")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_single_file_that_nobody_sends_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not be downloaded .* put the file into"):
        module.download_file("http://127.0.0.1:9/file.pth", tmp_path, "00000000")


def test_a_repository_that_is_one_component_is_fetched_whole() -> None:
    names = ["README.md", "config.json", "flax_model.msgpack", "merges.txt", "pytorch_model.bin"]
    assert choose(names, [""]) == ["config.json", "merges.txt", "pytorch_model.bin"]
    assert choose([*names, "model.safetensors"], [""])[-2:] == ["merges.txt", "model.safetensors"]
    assert {"clip-vit-b-16", "clip-vit-b-32"} <= set(module.published())
