"""Where weights come from: the embedded family, hub folders, original checkpoint files.

Finding is cheap (no weight file is opened) and stays inside the model folders: whatever a link
leads out of them is not listed. What a stage needs is told by the :class:`System` records, which
``loaders/<system>.py`` hold.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...edges import EmbeddingSpace, Role, UserError
from .checkpoint import STEMS, inside
from .safe import read_bytes

EMBEDDED_ROOT = Path(__file__).resolve().parents[2] / "shapes" / "weights"
SHARED = "shared.json"
"""In an embedded member's folder: component to the folder where it lies, relative to the member's.
Weights that members share are stored once; other sources have no such file, or it is not read."""

SMALL = 1_000_000
"""Bytes of a JSON file that may say what a folder is."""

DEPTH = 4
"""How deep below a model folder sources are looked for (a hub cache needs 3)."""


@dataclass(frozen=True)
class Source:
    """One place where the weights of some stages of a system are.

    Attributes:
        name: what the loader nodes' combo shows.
        kind: embedded family, folder, or file (an original checkpoint, or an archive).
        path: the folder, or the file.
        system: a key of :data:`SYSTEMS`.
        stages: what can be loaded from it.
        folders: the model folders that no link in it may leave; empty for the embedded family.
        prefix: of the names of this system's component folders in a combined pipeline's.
    """

    name: str
    kind: Literal["embedded", "folder", "checkpoint"]
    path: Path
    system: str
    stages: frozenset[str]
    folders: tuple[Path, ...] = ()
    prefix: str = ""

    def folder(self, component: str) -> Path:
        """Where a component lies, whether it is there or not."""
        return _folder(self.path, f"{self.prefix}{component}", self.kind == "embedded")


@dataclass(frozen=True)
class Stage:
    """One stage of a system: what it is to the host, and where its weights are told apart.

    Attributes:
        role: how the host treats the network.
        component: folder in the hub's layout and the class in its ``config.json``; ``""`` is the
            source's folder itself. types: ``model_type`` there that says the same as the class.
        original: a file of an original folder, which alone makes that a source.
        own: a weight file of our own layout, and the class in the ``config.json`` beside it.
        full: half precision changes what this small network finds, so that ``auto`` is fp32.
        instead: a source of all of these stages can be loaded as this one too.
    """

    role: Role
    component: tuple[str, str] | None = None
    types: tuple[str, ...] = ()
    original: str | None = None
    own: tuple[str, str] | None = None
    full: bool = False
    instead: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Published:
    """A folder that ``prior-art download`` makes.

    Attributes:
        folder: its name below the model folder.
        repositories: repository to the component folders taken from it; ``""`` is its top.
    """

    folder: str
    repositories: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class System:
    """How the sources of one system, or of one of its published repositories, are recognised.

    Attributes:
        name: the key of :data:`SYSTEMS`.
        title: what people call it.
        stages: by name.
        pipelines: ``_class_name`` in ``model_index.json``.
        combined: those in whose folders another system lies too, so that the components' names
            begin with ``prefix``.
        checkpoints: original file name pattern to the stages in that file.
        beside: pattern of the original files among which a file that other systems have too is this
            system's; ``label``: what it is called otherwise; ``readme``: where they are linked.
        squashes: the original squeezes CLIP's pictures square; others crop them.
        indexed: only a folder with a ``model_index.json`` is one: another system has components of
            the same names.
        zero_image: its prior gives the embedding of a picture of zeros too, which is what its
            decoders take for nothing.
        places: further folders of the hub's layout that loaders read, by what they hold.
        embedded: name of each embedded member and its folder under ``shapes/weights``.
        spaces: the embedding spaces that this system brings.
        speaks: names of spaces that its networks were published in, and which of them were, in
            words: who else reads an embedding.
        published: what can be downloaded, by the name that the command takes.
        together: names for several of those.
        download: the command that fetches it; empty where there is none.
        place: what to do instead of that command.
    """

    name: str
    title: str
    stages: Mapping[str, Stage]
    pipelines: frozenset[str] = frozenset()
    combined: frozenset[str] = frozenset()
    prefix: str = ""
    checkpoints: tuple[tuple[re.Pattern[str], frozenset[str]], ...] = ()
    beside: re.Pattern[str] | None = None
    label: str = ""
    readme: str = ""
    squashes: bool = False
    indexed: bool = False
    zero_image: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    embedded: tuple[tuple[str, str], ...] = ()
    spaces: tuple[EmbeddingSpace, ...] = ()
    speaks: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    together: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    download: str = ""
    place: str = ""

    @property
    def cure(self) -> str:
        """How to get the published weights."""
        return self.place or f"Get the published weights with `{self.download}`"

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """Stages of the hub's layout."""
        return {name: s.component for name, s in self.stages.items() if s.component is not None}


SYSTEMS: dict[str, System] = {}
"""Every record by name, in the order in which sources are listed; ``loaders/__init__.py`` fills
it."""


def stage_of(name: str) -> Stage:
    """The stage called ``name``, of the first system that has it.

    Raises:
        UserError: no system has it.
    """
    for system in SYSTEMS.values():
        if name in system.stages:
            return system.stages[name]
    known = sorted({stage for system in SYSTEMS.values() for stage in system.stages})
    raise UserError(f"unknown stage '{name}'; known are {', '.join(known)}")


def titles(stage: str) -> str:
    """Who has a stage, in words, as "A, B or C"."""
    found = dict.fromkeys(s.title for s in SYSTEMS.values() if stage in s.stages)
    *most, last = found
    return f"{', '.join(most)} or {last}" if most else last


def download_of(stage: str) -> str:
    """The command that fetches ``stage``, of the first system that has one."""
    return next(s.download for s in SYSTEMS.values() if stage in s.stages and s.download)


def repository_of(component: str) -> str:
    """The first repository that a component folder is downloaded from."""
    return next(
        repository
        for system in SYSTEMS.values()
        for published in system.published.values()
        for repository, components in published.repositories.items()
        if component in components
    )


def list_sources(stage: str, folders: Sequence[Path]) -> list[Source]:
    """Every source of ``stage``: the embedded family first, then folders, then checkpoint files.

    What is made for the stage comes before what can stand in for it.

    Args:
        stage: of one of :data:`SYSTEMS`.
        folders: the host's model folders; missing ones are skipped.

    Returns:
        Sources with unique names; a name is the path below its model folder, led by that folder's
        name where two would be equal.

    Raises:
        UserError: an unknown stage.
    """
    instead = stage_of(stage).instead
    offering = [source for source in _all_sources(folders) if _offers(source, stage, instead)]
    if instead:  # what several systems read in their own ways stands in once
        offering = list({source.path: source for source in reversed(offering)}.values())[::-1]
    return sorted(offering, key=lambda s: (s.kind != "embedded", stage not in s.stages))


def find_source(name: str, stage: str, folders: Sequence[Path]) -> Source:
    """The source called ``name``, if ``stage`` can be loaded from it.

    Names are only ever compared with what :func:`list_sources` finds, never joined to a path.

    Raises:
        UserError: no such source for this stage; says what is there and how to get more.
    """
    instead = stage_of(stage).instead
    everything = _all_sources(folders)
    for source in everything:
        if source.name == name and _offers(source, stage, instead):
            return source
    fitting = [source.name for source in everything if _offers(source, stage, instead)]
    there = f"There are: {', '.join(fitting)}" if fitting else "There is none"
    words = stage.replace("_", " ")
    other = next((source for source in everything if source.name == name), None)
    system = next(system for system in SYSTEMS.values() if stage in system.stages)
    cure = f"{system.cure}, or choose another source"
    if other is not None:
        raise UserError(
            f"'{name}' holds no {words} (only {', '.join(sorted(other.stages))}). {there}. {cure}"
        )
    escaped = next((path for root in folders if (path := _escape(root, name))), None)
    if escaped is not None:
        raise UserError(
            f"'{name}' leads out of the model folders to '{escaped}', so it is not used. Move it"
            " into the model folder, or register its folder with the host"
            " (extra_model_paths.yaml)"
        )
    where = ", ".join(f"'{folder}'" for folder in folders) or "no model folder"
    raise UserError(f"no {words} called '{name}' in {where}. {there}. {cure}")


def _offers(source: Source, stage: str, instead: frozenset[str]) -> bool:
    return stage in source.stages or (bool(instead) and source.stages >= instead)


def _escape(root: Path, name: str) -> Path | None:
    """Where a link ``root/name`` leads, if that is out of the model folder."""
    if re.fullmatch(r"[^/\\:]+", name) is None or name in (".", ".."):
        return None
    path = root / name
    return path.resolve() if path.is_symlink() and not inside(path, [root]) else None


@dataclass
class _Listing:
    """One walk over the model folders, and the stamps of everything that it looked at.

    A folder's stamp changes when something is added, removed or renamed in it, a file's when it is
    written: while all are as they were, so is the list.
    """

    roots: tuple[Path, ...]
    stamps: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    entered: set[Path] = field(default_factory=set)
    sources: list[Source] = field(default_factory=list)
    started: int = field(default_factory=time.time_ns)

    _names: dict[Path, frozenset[str]] = field(default_factory=dict)
    telling: frozenset[str] = field(default_factory=lambda: _telling())

    def names(self, folder: Path) -> frozenset[str]:
        """What lies in a folder, whose stamp tells when that changes."""
        if folder not in self._names:
            try:
                found = frozenset(os.listdir(self.see(folder)))
            except OSError:
                found = frozenset()
            self._names[folder] = found
        return self._names[folder]

    def see(self, path: Path) -> Path:
        """Note a path's stamp, once."""
        if path not in self.stamps:
            self.stamps[path] = _stamp(path)
        return path

    @property
    def holds(self) -> bool:
        """Whether nothing has changed since. What was written just before the walk could be
        written again without a new stamp: such a list is made anew."""
        return all(
            stamp == _stamp(path) and (stamp is None or stamp[0] < self.started - SETTLED)
            for path, stamp in self.stamps.items()
        )


SETTLED = 10**9
"""Nanoseconds after which a file system's stamps tell two writes apart, generously."""

_listings: dict[tuple[Path, ...], _Listing] = {}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _telling() -> frozenset[str]:
    """The names by which any system's folder is told; one without them is none."""
    found = {"model_index.json", "config.json"}
    for system in SYSTEMS.values():
        for stage in system.stages.values():
            found |= {name for name in (stage.original, *(stage.own or ())[:1]) if name}
        parts = {component for component, _ in system.components.values() if component}
        found |= parts | {f"{system.prefix}{component}" for component in parts}
    return frozenset(found)


def _all_sources(folders: Sequence[Path]) -> list[Source]:
    roots = tuple(Path(folder) for folder in folders)
    key = (EMBEDDED_ROOT, *(root.absolute() for root in roots))
    listing = _listings.get(key)
    if listing is None or not listing.holds:
        listing = _listings[key] = _Listing(roots)
        listing.sources = _list(listing)
    return listing.sources


def _list(listing: _Listing) -> list[Source]:
    embedded: list[Source] = []
    hub: list[Source] = []
    files: list[Source] = []
    for system in SYSTEMS.values():
        for name, member in system.embedded:
            stages = _stages_of(EMBEDDED_ROOT / member, system, listing)
            if stages:
                path = EMBEDDED_ROOT / member
                embedded.append(Source(name, "embedded", path, system.name, stages))
    taken = {source.name for source in embedded}
    seen: set[Path] = set()
    for root in listing.roots:
        for path in _walk(root, listing):
            real = path.resolve()
            if real in seen:
                continue
            folder = path.is_dir()
            found = _stages_by_system(path, listing) if folder else _owners(path)
            if not found:
                continue
            seen.add(real)
            relative = path.relative_to(root).as_posix()
            name = root.name if relative == "." else relative
            if name in taken:
                name = f"{root.name}/{name}"
            if name in taken:
                name = path.as_posix()
            taken.add(name)
            kind: Literal["folder", "checkpoint"] = "folder" if folder else "checkpoint"
            for place, (key, stages) in enumerate(found.items()):
                # Systems of one folder have different stages and can share its name; of one file
                # they have the same.
                system = SYSTEMS[key]
                own = name if folder or not place else f"{name} ({system.label})"
                taken.add(own)
                prefix = _prefix(path, system, listing) if folder else ""
                source = Source(own, kind, path, key, stages, listing.roots, prefix)
                (hub if folder else files).append(source)
    return embedded + hub + files


def _walk(root: Path, listing: _Listing, depth: int = 0) -> Iterator[Path]:
    """``root`` if it is a source folder itself, and what is below it, sorted.

    Component folders are no sources of their own; anything else may lie beside them. Each real
    folder is entered once: by its own name, as links are looked at last.
    """
    listing.see(root)
    if depth > DEPTH or not root.is_dir():
        return
    real = root.resolve()
    if real in listing.entered:
        return
    listing.entered.add(real)
    here = _stages_by_system(root, listing)
    if here:
        yield root
    own = {
        _prefix(root, SYSTEMS[key], listing) + component
        for key in here
        for component, _ in SYSTEMS[key].components.values()
    }
    for path in _entries(root, listing.roots):
        if path.is_dir() and path.name not in own:
            if path.name.startswith("models--"):
                # The hub's cache: the model's files are links in a folder for each revision.
                for revision in _entries(listing.see(path / "snapshots"), listing.roots):
                    yield from _walk(revision, listing, depth + 1)
            else:
                yield from _walk(path, listing, depth + 1)
        elif path.is_file():
            yield path


def _entries(folder: Path, roots: Sequence[Path]) -> list[Path]:
    """What lies in a folder, sorted, links last, without what is hidden, unfinished or leads
    out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: (e.is_symlink(), e.name.lower()))
    except OSError:
        return []
    return [
        Path(entry.path)
        for entry in entries
        if not entry.name.startswith(".")
        and not entry.name.endswith(".partial")
        and inside(Path(entry.path), roots)
    ]


def _owners(file: Path) -> dict[str, frozenset[str]]:
    """The systems whose original file this is by its name, and the stages in it.

    Where several have it, the one whose other originals lie beside it; all of them where that
    tells nothing.
    """
    found = {key: stages for key, system in SYSTEMS.items() if (stages := _stages_in(file, system))}
    if len(found) < 2:
        return found
    names = os.listdir(file.parent)
    near = {
        key: stages
        for key, stages in found.items()
        if (beside := SYSTEMS[key].beside) and any(beside.fullmatch(name) for name in names)
    }
    return near if len(near) == 1 else found


def _stages_in(file: Path, system: System) -> frozenset[str]:
    for pattern, stages in system.checkpoints:
        if pattern.fullmatch(file.name):
            return stages
    return frozenset()


def _folder(path: Path, component: str, embedded: bool) -> Path:
    """A component's folder: in ``path``, or where that member of the embedded family shares it."""
    if embedded:
        component = _read(path / SHARED).get(component, component)
    return Path(os.path.normpath(path / component))


def _stages_by_system(folder: Path, listing: _Listing) -> dict[str, frozenset[str]]:
    if listing.telling.isdisjoint(listing.names(folder)):
        return {}
    found = {key: _stages_of(folder, system, listing) for key, system in SYSTEMS.items()}
    return {key: stages for key, stages in found.items() if stages}


def _prefix(folder: Path, system: System, listing: _Listing) -> str:
    """Of the names of a system's component folders here."""
    if "model_index.json" not in listing.names(folder):
        return ""
    index = listing.see(folder / "model_index.json")
    return system.prefix if _class_name(index) in system.combined else ""


def _stages_of(folder: Path, system: System, listing: _Listing) -> frozenset[str]:
    """The stages of ``system`` that a folder in hub layout holds."""
    names = listing.names(folder)
    index = listing.see(folder) / "model_index.json"
    name = _class_name(listing.see(index)) if index.name in names else None
    # Without an index, or with a damaged one, the folder is of the system whose word is enough.
    if system.indexed if name is None else name not in system.pipelines | system.combined:
        return frozenset()
    found, prefix = _loose_stages(folder, system, listing), _prefix(folder, system, listing)
    embedded = folder.is_relative_to(EMBEDDED_ROOT)
    for stage, (component, wanted) in system.components.items():
        if not embedded and component and f"{prefix}{component}" not in names:
            continue
        part = listing.see(_folder(folder, f"{prefix}{component}", embedded))
        config = part / "config.json"
        if not part.is_dir():
            continue
        if not (index.is_file() and component):
            # A bare component, or a bare collection of them: each must say what it is.
            if not _says(listing.see(config), wanted, system.stages[stage].types):
                continue
        elif not config.is_file() and not _has_weights(part):
            continue
        found.add(stage)
    return frozenset(found)


def _loose_stages(folder: Path, system: System, listing: _Listing) -> set[str]:
    """The stages that a folder holds as files by their names, which need no component folders."""
    found = set()
    for name, stage in system.stages.items():
        names = listing.names(folder)
        if stage.original in names and (folder / stage.original).is_file():
            found.add(name)
        if stage.own is not None and stage.own[0] in names and (folder / stage.own[0]).is_file():
            config = listing.see(folder / "config.json")
            if _class_name(config) == stage.own[1]:
                found.add(name)
    return found


def _has_weights(folder: Path) -> bool:
    try:
        return any(entry.name.startswith(STEMS) for entry in os.scandir(folder))
    except OSError:
        return False


def _says(path: Path, wanted: str, types: tuple[str, ...]) -> bool:
    """Whether a config is of this class, or of one of these model types whatever its class."""
    return _class_name(path) == wanted or _read(path).get("model_type") in types


def _class_name(path: Path) -> str | None:
    """What a config says it is: diffusers' ``_class_name`` or transformers' ``architectures``."""
    value = _read(path)
    name = value.get("_class_name")
    architectures = value.get("architectures")
    if name is None and isinstance(architectures, list) and architectures:
        name = architectures[0]
    return name if isinstance(name, str) else None


def _read(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        value = json.loads(read_bytes(path, SMALL).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
