"""The rooms' order: who may import whom. Imports inside functions count, and so do lazy ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "__init__": {"nodes"},
    "cli": {"headless", "host", "nodes", "loaders", "samplers", "networks", "edges", "training"},
    "headless": {"nodes", "host", "loaders", "samplers", "networks", "edges"},
    "nodes": {"host", "loaders", "samplers", "networks", "edges"},
    "host": {"loaders", "samplers", "networks", "edges"},
    "loaders": {"samplers", "networks", "edges"},
    "samplers": {"networks", "edges"},
    "networks": {"edges"},
    "edges": set(),
    "training": {"host", "loaders", "samplers", "networks", "edges"},
    "shapes": {"loaders", "samplers", "networks", "edges"},
    "shapes.train": {"shapes", "training", "loaders", "samplers", "networks", "edges"},
}
"""Each room and the others that it may import: headless, nodes, host; loaders, samplers, networks.
No runtime room knows the embedded family's training, and none but itself its pictures."""

FAMILY_TRAINING = "prior_art.shapes.train"

DOORS = {"host.comfyui", "host.embedded"}
"""Neither imports the other."""

COMFYUI = {
    *("comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("execution", "folder_paths", "latent_preview", "main", "node_helpers", "nodes", "server"),
    *("app", "comfyui_version", "api_server", "utils"),
}
"""ComfyUI's top-level modules."""


_NAME = re.compile(r"prior_art(\.\w+)+")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the pack by its dotted name below ``prior_art``."""
    rooms = [ROOT / room for room in MAY_IMPORT if (ROOT / room).is_dir()]
    for path in sorted([*ROOT.glob("*.py"), *(p for room in rooms for p in room.rglob("*.py"))]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def imported(name: str, path: Path) -> Iterator[tuple[int, str, bool]]:
    """What a module imports anywhere in it: line, dotted name, and whether it is the pack's."""
    parts = [] if name == "__init__" else name.split(".")
    package = parts if path.stem == "__init__" else parts[:-1]
    yield from imports(ast.parse(path.read_text(encoding="utf-8")), package)


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str, bool]]:
    """The same for a syntax tree in ``package``, given by its names below ``prior_art``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                own = alias.name.split(".")[0] == "prior_art"
                yield node.lineno, alias.name.removeprefix("prior_art."), own
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            own = bool(node.level) or module[0] == "prior_art"
            if node.level:
                module = package[: len(package) + 1 - node.level] + module
            elif own:
                module = module[1:]
            for alias in node.names:
                yield node.lineno, ".".join([*module, alias.name]), own
        elif isinstance(node, ast.Constant) and _NAME.fullmatch(str(node.value)):
            # For importlib: a module by its name.
            yield node.lineno, node.value.removeprefix("prior_art."), True


def room_of(name: str) -> str:
    """The room of a module: the longest entry of the table that it lies in."""
    rooms = [room for room in MAY_IMPORT if name == room or name.startswith(f"{room}.")]
    return max(rooms, key=len, default=name.split(".")[0])


MODULES = dict(modules())


def test_every_room_is_in_the_table():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert {room_of(name) for name in MODULES} | rooms == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "line",
    [
        "from ..host import host",
        "from ..host.embedded import door",
        "from .. import host",
        "import prior_art.host.embedded",
        "from prior_art.host import io",
        "from prior_art import host",
        "importlib.import_module('prior_art.host.embedded.door')",
    ],
)
def test_every_way_to_import_is_seen(line):
    tree = ast.parse(f"def later():\n    if True:\n        {line}\n")
    assert "host" in {room_of(target) for _, target, own in imports(tree, ["loaders"]) if own}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_module_imports_upwards(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in MODULES.items()
        if room_of(name) == room
        for line, target, own in imported(name, path)
        if own and room_of(target) not in MAY_IMPORT[room] | {room}
    ]
    assert not wrong, f"{room} may import {sorted(MAY_IMPORT[room])}:\n" + "\n".join(wrong)


def test_only_the_door_to_comfyui_imports_comfyui():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in MODULES.items()
        if not f"{name}.".startswith("host.comfyui.")
        for line, target, own in imported(name, path)
        if not own and target.split(".")[0] in COMFYUI
    ]
    assert not wrong, "\n".join(wrong)


def test_the_doors_do_not_know_each_other():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in MODULES.items()
        for line, target, own in imported(name, path)
        for door in DOORS
        for other in DOORS - {door}
        if own and f"{name}.".startswith(f"{door}.") and f"{target}.".startswith(f"{other}.")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", ["karlo", "kandinsky", "koala", "mindalle"])
def test_a_system_is_named_where_it_lives(word):
    """In files that bear its name, and in few others: the rooms' lists, the command."""
    files = [
        path.relative_to(ROOT).as_posix()
        for name, path in MODULES.items()
        if word in path.read_text(encoding="utf-8").lower()
        if word not in name and not name.startswith("shapes")
    ]
    assert len(files) <= 4, files


def test_what_a_user_installs_is_every_package_but_training_of_the_family():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {".".join(["prior_art", *name.split(".")]) if name != "__init__" else "prior_art"
                for name, path in MODULES.items() if path.stem == "__init__"}  # fmt: skip
    assert settings["tool"]["setuptools"]["packages"] == sorted(packages - {FAMILY_TRAINING})
    left_out = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert "shapes/train/" in left_out
