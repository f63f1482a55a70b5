"""``prior-art download``: published weights from the Hugging Face hub into a model folder.

Only what the pack loads is fetched: safetensors instead of ``.bin`` and ``.ckpt`` duplicates, full
precision instead of ``fp16`` duplicates. Files go to ``<name>.partial``, which no loader lists;
when every file has its published checksum the folder gets its name in one step.

The commit is pinned: the first run resolves ``main`` (or ``revision``) once, and writes the commit
and every file's checksum into ``prior-art.json`` inside the folder before the first byte; later
runs resume and verify against that. The commits of the hub's repositories could not be learnt when
this was written (no network), so none is built in; ``revision`` pins one by hand.

Sources: the hub's model API (``siblings`` with ``size``, ``blobId`` and ``lfs.sha256``), git's blob
hash for files outside LFS.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from ...edges import UserError, reason_of
from .catalogue import SYSTEMS, Published
from .checkpoint import inside
from .libraries import LibraryError, require
from .safe import CONFIG_BYTES, Busy, digest_of, locked, read_bytes, write_whole

MANIFEST = "prior-art.json"
PART = ".part"
MARGIN = 256 * 2**20
"""Bytes that stay free on the disk."""

BLOCK = 2**20

FILES = {
    "inception": (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    )
}
"""What lies outside of the hub and is no system's, the network of FID: address, and how its sha256
begins."""

TRIES = 5

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes done, bytes in total) as bytes arrive, and with "" at the end."""

Fetch = Callable[["File", Path, Callable[[int], None]], None]
"""``(file, path, arrived)``: puts one file at ``path``, telling how many of its bytes are there."""


def published() -> dict[str, Published]:
    """What can be downloaded, by name."""
    return {name: one for s in SYSTEMS.values() for name, one in s.published.items()}


def together() -> dict[str, tuple[str, ...]]:
    """Systems that are published as several folders, by the name for all of them."""
    return {name: names for s in SYSTEMS.values() for name, names in s.together.items()}


@dataclass(frozen=True)
class File:
    """One file to fetch: where from, how large, and its published checksum."""

    path: str
    repository: str
    commit: str
    size: int
    sha256: str | None
    git: str | None


def download(
    system: str,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    revision: str | None = None,
    fetch: Fetch | None = None,
    api: Any = None,
) -> Path:
    """Fetch a published system, or verify one that was fetched.

    Args:
        system: one of :func:`published`.
        folder: the model folder, e.g. ``models/prior_art``; made if missing.
        progress: told about every file.
        revision: branch, tag or commit of the system's main repository; ``None`` takes the pinned
            commit of an earlier run, or resolves ``main``.
        fetch: puts one file in place; ``None`` reads it from the hub, resuming within the file.
        api: an ``HfApi``; ``None`` makes one.

    Returns:
        The folder with the weights, verified.

    Raises:
        UserError: unknown system, no connection, no space, a checksum that does not match, a
            folder in the way. What was fetched stays in ``<name>.partial`` and is resumed.
        LibraryError: huggingface_hub cannot be imported.
    """
    wanted = _wanted(system)
    target = Path(folder) / wanted.folder
    partial = target.with_name(f"{target.name}.partial")
    tell = progress or (lambda name, done, total: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            known = _begun(target, partial, wanted)
            if target.exists():
                if known and _same_revision(known, revision) and not _damaged(target, known, tell):
                    return target
                if os.path.lexists(partial):
                    raise UserError(
                        f"'{target}' is damaged or of another revision, and '{partial}' is in the"
                        " way of mending it. Remove one of the two"
                    )
            files = known
            if not files or not _same_revision(files, revision):
                files = _published_files(wanted, revision, api)
            if target.exists():
                target.rename(partial)
            partial.mkdir(exist_ok=True)
            _forget(partial, known or [], files)
            _write_manifest(partial, system, files)
            _fetch_all(partial, files, tell, fetch or _hub_fetch(api))
            _clean(partial, files)
            partial.rename(target)
    except Busy as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise _unwritable(target, partial, error) from error
    return target


def download_file(url: str, folder: Path, sha256: str, *, progress: Progress | None = None) -> Path:
    """Fetch one file that lies outside of the hub, or verify one that was fetched.

    Args:
        url: its last part is the file's name.
        folder: the model folder; made if missing.
        sha256: how the published checksum begins.
        progress: told as bytes arrive.

    Raises:
        UserError: no connection, no space, or another checksum. What was fetched stays beside the
            file and is resumed.
    """
    name = url.rpartition("/")[2]
    target, tell = folder / name, progress or (lambda name, done, total: None)
    fetched = target.with_name(f"{name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if not target.exists():
                request = urllib.request.Request(url, method="HEAD")
                with urllib.request.urlopen(request, timeout=60) as answer:
                    said = answer.headers["Content-Length"]
                if said is None:
                    raise http.client.HTTPException("the server does not say how long it is")
                size = int(said)
                _refuse_links(fetched, folder)
                _read_all(url, fetched, size, _counted(tell, name, 0, size))
                tell("", size, size)
                if digest_of(fetched).startswith(sha256):
                    fetched.rename(target)
                else:
                    fetched.unlink()
            if not target.exists() or not digest_of(target).startswith(sha256):
                raise UserError(
                    f"'{target}' does not have its published checksum ({sha256}...). Remove it if"
                    " it is there, and run the command again"
                )
    except Busy as error:
        raise UserError(str(error)) from error
    except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"'{url}' could not be downloaded ({reason_of(error)}). Check the connection and run"
            f" the command again, or put the file into '{folder}' yourself"
        ) from error
    except OSError as error:
        raise _unwritable(target, fetched, error) from error
    return target


def _wanted(system: str) -> Published:
    offered = published()
    if system not in offered:
        there = ", ".join(sorted([*offered, *together(), *FILES]))
        raise UserError(f"unknown system '{system}'; these can be downloaded: {there}")
    return offered[system]


def _begun(target: Path, partial: Path, wanted: Published) -> list[File] | None:
    """What an earlier run wanted, finished or not; see :func:`_known`."""
    for folder in (target, partial):
        if folder.exists() if folder is target else os.path.lexists(folder):
            return _known(folder, wanted)
    return None


def _known(folder: Path, wanted: Published) -> list[File] | None:
    """What an earlier run of this command wanted to be in ``folder``; ``None`` where its manifest
    lacks files, or an unfinished folder's is damaged, so that the hub is to be asked again.

    Raises:
        UserError: somebody else's folder, or a link.
    """
    if folder.is_symlink():
        raise UserError(
            f"'{folder}' is a link to '{folder.resolve()}'. Nothing is written through it: name the"
            " folder that it leads into with --models"
        )
    files = _read_manifest(folder)
    begun = folder.name.endswith(".partial") and (
        folder.is_dir()
        and (
            (folder / MANIFEST).is_file()
            or all(p.name.startswith(MANIFEST) for p in folder.iterdir())
        )
    )
    if files is None and not begun:
        raise UserError(
            f"'{folder}' exists and was not made by this command. Move it away, or use it as it is"
        )
    return files if files and _is_whole(files, wanted) else None


def _is_whole(files: list[File], wanted: Published) -> bool:
    """Whether a list of files has every component that is published, and a network's weights."""
    networks = {name for system in SYSTEMS.values() for name, _ in system.components.values()}
    for repository, components in wanted.repositories.items():
        for component in filter(None, components):
            own = [
                file.path
                for file in files
                if file.repository == repository and file.path.rpartition("/")[0] == component
            ]
            weights = [path for path in own if path.endswith((".safetensors", ".bin"))]
            if not own or (component in networks and not weights):
                return False
    return True


def _unwritable(target: Path, partial: Path, error: OSError) -> UserError:
    if _is_disk_full(error):
        return UserError(
            f"the disk of '{target.parent}' is full. Free some space and run the command again;"
            f" it resumes from '{partial}'"
        )
    return UserError(
        f"'{target.parent}' cannot be written ({error}). Mend that and run the command again;"
        f" it resumes from '{partial}'"
    )


def console_progress(out: TextIO | None = None) -> Progress:
    """A progress line for a terminal, rewritten at most five times a second."""
    stream = out or sys.stderr
    last = 0.0

    def tell(name: str, done: int, total: int) -> None:
        nonlocal last
        if name and time.monotonic() - last < 0.2:
            return
        last = time.monotonic()
        line = f"{done / 1e9:6.2f} of {total / 1e9:.2f} GB  {name}"
        stream.write(f"\r{line:<78.78}" + ("" if name else "\n"))
        stream.flush()

    return tell


def _published_files(published: Published, revision: str | None, api: Any) -> list[File]:
    """What the hub lists, with checksums, at one commit per repository."""
    api = api or require("huggingface_hub", "HfApi")()
    files: list[File] = []
    for i, (repository, components) in enumerate(published.repositories.items()):
        asked = revision if i == 0 else None
        try:
            info = api.model_info(repository, revision=asked, files_metadata=True, timeout=30)
        except Exception as error:
            raise UserError(
                f"the hub did not answer for '{repository}'"
                f"{f' at {asked}' if asked else ''} ({reason_of(error)})."
                " Check the connection and run the command again"
            ) from error
        entries = {entry.rfilename: entry for entry in info.siblings or []}
        for path in choose(entries, components):
            entry = entries[path]
            lfs = getattr(entry, "lfs", None)
            sha256 = _field(lfs, "sha256")
            size = entry.size if entry.size is not None else _field(lfs, "size")
            if size is None or not (sha256 or entry.blob_id):
                raise UserError(
                    f"the hub lists no size or checksum for '{path}' of '{repository}'. Run the"
                    " command again later"
                )
            git = None if sha256 else entry.blob_id
            files.append(File(path, repository, info.sha, int(size), sha256, git))
    return files


def choose(names: Iterable[str], components: Iterable[str]) -> list[str]:
    """The files of ``components`` that the pack loads, out of everything a repository lists.

    Raises:
        UserError: a name that is no plain relative path, or a component without weights.
    """
    wanted = set(components)
    by_component: dict[str, list[str]] = {}
    for name in names:
        component, _, file = name.rpartition("/")
        if component not in wanted:
            continue
        if not is_safe(name):
            raise UserError(
                f"the hub lists a file called '{name}', which is not a safe file name. Nothing was"
                " downloaded"
            )
        if component == "" and wanted != {""}:
            if file == "model_index.json":
                by_component.setdefault(component, []).append(file)
        elif re.search(r"\.(json|txt|safetensors|bin)$", file):
            by_component.setdefault(component, []).append(file)
    chosen = []
    for component, found in by_component.items():
        weights = [f for f in found if re.search(r"\.(safetensors|bin)(\.index.*\.json)?$", f)]
        best = _best(weights)
        for file in found:
            if file in best or file not in weights:
                chosen.append(f"{component}/{file}" if component else file)
    missing = [c for c in wanted if c and c not in by_component]
    if missing:
        raise UserError(
            f"the hub's repository lacks {', '.join(sorted(missing))}; it changed since this pack"
            " was written. Name an older commit with --revision"
        )
    return sorted(chosen)


def _best(weights: list[str]) -> list[str]:
    """One set of weights: safetensors before .bin, full precision before fp16."""
    for kind in ("safetensors", "bin"):
        same = [f for f in weights if f".{kind}" in f]
        full = [f for f in same if ".fp16" not in f]
        for group in (full, same):
            known = [f for f in group if re.match(r"(diffusion_pytorch_|pytorch_)?model\b", f)]
            if any(f.endswith(f".{kind}") for f in known):
                return known
    return []


def is_safe(name: str) -> bool:
    """Whether a listed name is a plain relative path of harmless characters."""
    parts = name.split("/")
    return all(
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", part) and not part.endswith(".")
        for part in parts
    )


def _counted(tell: Progress, name: str, before: int, total: int) -> Callable[[int], None]:
    """What a fetch tells its own bytes to, so that ``tell`` hears those of all files."""
    return lambda bytes_read: tell(name, before + bytes_read, total)


def _fetch_all(partial: Path, files: list[File], tell: Progress, fetch: Fetch) -> None:
    total = sum(file.size for file in files)
    done = 0
    pending = []
    for file in files:
        path = partial / file.path
        if path.is_file() and path.stat().st_size == file.size and _checksum_fits(path, file):
            done += file.size
        else:
            pending.append(file)
    _check_space(partial, pending)
    for file in pending:
        tell(file.path, done, total)
        path = partial / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_links(path, partial)
        path.unlink(missing_ok=True)
        try:
            fetch(file, path, _counted(tell, file.path, done, total))
        except LibraryError:
            raise
        except OSError as error:
            if _is_disk_full(error):
                raise
            raise _broken_off(file, partial, error) from error
        except Exception as error:
            if _is_disk_full(error):
                raise OSError(errno.ENOSPC, "no space left") from error
            raise _broken_off(file, partial, error) from error
        if not path.is_file() or path.stat().st_size != file.size or not _checksum_fits(path, file):
            path.unlink(missing_ok=True)
            raise UserError(
                f"'{file.path}' arrived damaged: it does not have its published checksum. It was"
                " removed; run the command again"
            )
        done += file.size
    tell("", done, total)


def _refuse_links(path: Path, partial: Path) -> None:
    """Write nothing through a link that somebody put into the folder."""
    if not inside(path.parent, [partial]):
        raise UserError(
            f"'{path.parent}' is a link to '{path.parent.resolve()}'. Remove it and run the command"
            " again"
        )
    part = path.with_name(path.name + PART)
    if part.is_symlink() or (part.exists() and not part.is_file()):
        part.unlink()


def _broken_off(file: File, partial: Path, error: BaseException) -> UserError:
    return UserError(
        f"'{file.path}' of '{file.repository}' could not be downloaded ({reason_of(error)})."
        f" Check the connection and run the command again; it resumes from '{partial}'"
    )


def _hub_fetch(api: Any) -> Fetch:
    """Reads files from the hub's resolve addresses.

    huggingface_hub lists; the bytes are read here, because its own download (since 2.4) starts a
    file of gigabytes over when the command is run again.
    """
    address = require("huggingface_hub", "hf_hub_url")
    endpoint = getattr(api, "endpoint", None)

    def fetch(file: File, path: Path, arrived: Callable[[int], None]) -> None:
        url = address(file.repository, file.path, revision=file.commit, endpoint=endpoint)
        _read_all(url, path, file.size, arrived)

    return fetch


def _read_all(url: str, path: Path, size: int, arrived: Callable[[int], None]) -> None:
    """Read ``size`` bytes into ``path``, going on where a connection broke off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _read_on(url, part, size, arrived)
            break
        except (OSError, http.client.HTTPException) as error:
            if _is_disk_full(error) or _is_final(error):
                raise
            gained = part.exists() and part.stat().st_size > before
            failures = 1 if gained else failures + 1
            if failures >= TRIES:
                raise
            time.sleep(2 ** (failures - 1))
    part.replace(path)


def _read_on(url: str, part: Path, size: int, arrived: Callable[[int], None]) -> None:
    """Append to ``part`` until it has ``size`` bytes."""
    start = part.stat().st_size if part.exists() else 0
    if start > size:
        part.unlink()
        start = 0
    with part.open("ab") as out:
        if start < size:
            headers = {"User-Agent": "prior-art", "Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=60) as response:
                if start and response.status != 206:  # the server sends everything again
                    out.truncate(0)
                    start = 0
                while start < size and (block := response.read1(BLOCK)):
                    out.write(block)
                    start += len(block)
                    arrived(start)
    if start < size:
        raise ConnectionError(f"the connection ended after {start} of {size} bytes")


def _is_final(error: BaseException) -> bool:
    """Whether trying again cannot help: the hub says that there is no such file, or no access."""
    return isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)


def _forget(folder: Path, known: list[File], files: list[File]) -> None:
    """Remove files of an earlier revision that the new one does not have."""
    named = {file.path for file in files}
    for file in known:
        if file.path not in named and inside((folder / file.path).parent, [folder]):
            (folder / file.path).unlink(missing_ok=True)


def _check_space(partial: Path, pending: list[File]) -> None:
    started = sum(f.stat().st_size for f in partial.glob(f"**/*{PART}") if f.is_file())
    needed = sum(file.size for file in pending) - started
    free = shutil.disk_usage(partial).free
    if pending and needed + MARGIN > free:
        raise UserError(
            f"'{partial.parent}' has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are still"
            " to be downloaded. Free some space, or choose a folder on another disk with --models"
        )


def _damaged(folder: Path, files: list[File], tell: Progress) -> list[str]:
    """Files of a finished folder that are not what was published."""
    total = sum(file.size for file in files)
    done = 0
    bad = []
    for file in files:
        tell(file.path, done, total)
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size or not _checksum_fits(path, file):
            bad.append(file.path)
        done += file.size
    tell("", done, total)
    return bad


def _checksum_fits(path: Path, file: File) -> bool:
    if file.sha256 is not None:
        return digest_of(path) == file.sha256
    # Outside LFS the hub publishes git's blob hash.
    blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return digest_of(path, blob) == file.git


def _clean(partial: Path, files: list[File]) -> None:
    """Remove what interrupted runs of another revision left behind, and nothing else."""
    for part in partial.glob(f"**/*{PART}"):
        part.unlink()
    for file in files:
        if not (partial / file.path).is_file():
            raise UserError(f"'{file.path}' vanished. Run the command again")


def _same_revision(files: list[File], revision: str | None) -> bool:
    return bool(files) and (revision is None or files[0].commit == revision)


def _write_manifest(folder: Path, system: str, files: list[File]) -> None:
    text = json.dumps({"system": system, "files": [asdict(file) for file in files]}, indent=1)
    write_whole(folder / MANIFEST, text.encode())


def _read_manifest(folder: Path) -> list[File] | None:
    try:
        value = json.loads(read_bytes(folder / MANIFEST, CONFIG_BYTES).decode())
        files = [File(**entry) for entry in value["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return files if files and all(_is_sound(file) for file in files) else None


def _is_sound(file: File) -> bool:
    """Whether an entry of a manifest, which anybody may have written, is one of ours."""
    texts = (file.path, file.repository, file.commit)
    if not all(isinstance(text, str) for text in texts) or not is_safe(file.path):
        return False
    if type(file.size) is not int or file.size < 0:
        return False
    sums = [(file.sha256, 64), (file.git, 40)]
    return any(found for found, _ in sums) and all(
        found is None or (isinstance(found, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", found))
        for found, length in sums
    )


def _field(lfs: Any, name: str) -> Any:
    return lfs.get(name) if isinstance(lfs, dict) else getattr(lfs, name, None)


def _is_disk_full(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
