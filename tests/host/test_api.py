"""The host's interface: both doors have it, nodes use nothing else, and every stage has a way
through both. What the door to ComfyUI has at run time is told by places_in_process.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from prior_art.host import api
from prior_art.host.embedded import door as embedded
from prior_art.loaders.files.catalogue import SYSTEMS

from .interface import ROOMS, differences, interface, running, written

WANTED = interface()
DOORS = ("comfyui", "embedded")

ELSEWHERE = {
    "ar_transformer": (),  # an edge type of the pack's own, which no door wraps
    "mclip": ("text_encoder",),
    "reranker": ("text_encoder", "image_encoder"),
}
"""Stages without adapters of their own, and what they are wrapped as instead."""

HOSTS = {"host.wrap": "wrap", "host.open": "open", "host.load_files": "load_files"}


def calls() -> Iterator[tuple[str, str, str]]:
    """Every way through a door that nodes take: where, which, and for which stage."""
    for path in sorted((ROOMS.parent / "nodes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in HOSTS:
                where = f"{path.name}:{node.lineno}"
                yield where, HOSTS[ast.unparse(node.func)], ast.literal_eval(node.args[0])


def adapters(door: str) -> dict[str, set[str]]:
    """The ways of each stage that a door's files of adapters write down; no ComfyUI needed."""
    found = {}
    for system in api.SYSTEMS:
        tree = ast.parse((ROOMS / door / f"{system}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ADAPTERS":
                table = node.value
                assert isinstance(table, ast.Dict)
                for key, made in zip(table.keys, table.values, strict=True):
                    assert key is not None and isinstance(made, ast.Call)
                    ways = ["wrap", "open", "load_files"][: len(made.args)]
                    ways += [word.arg for word in made.keywords if word.arg]
                    found[ast.literal_eval(key)] = set(ways)
    return found


TABLES = {door: adapters(door) for door in DOORS}


def test_the_interface_is_read_as_it_runs():
    names = {name for name in vars(api.Host) if not name.startswith("_")}
    names |= set(api.Host.__annotations__)
    assert set(WANTED) == names
    assert WANTED["use"] == "managed, activations=0, beside=()"


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_written_as_the_interface_says(door):
    assert differences(written(ROOMS / door / "door.py", WANTED), WANTED) == []


def test_the_embedded_door_runs_as_the_interface_says():
    assert differences(running(embedded, WANTED), WANTED) == []
    assert differences(running(embedded, WANTED), written(ROOMS / "comfyui/door.py", WANTED)) == []


def test_a_door_that_differs_is_told():
    door = SimpleNamespace(**{name: getattr(embedded, name) for name in WANTED if name != "warn"})
    door.use = lambda managed, beside=(), activations=0: None
    assert differences(running(door, WANTED), WANTED) == [
        "use(managed, activations=0, beside=()) is managed, beside=(), activations=0",
        "warn(message) is missing",
    ]


def test_nodes_use_nothing_of_the_host_but_the_interface():
    wrong = [
        f"{path.name}:{node.lineno} host.{node.attr}"
        for path in sorted((ROOMS.parent / "nodes").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "host"
        if node.attr not in WANTED
    ]
    assert wrong == []


def test_both_doors_have_adapters_for_the_same_stages():
    assert set(TABLES["comfyui"]) == set(TABLES["embedded"]) == set(embedded.ADAPTERS)
    for stage, ways in TABLES["embedded"].items():
        made = embedded.ADAPTERS[stage]
        assert {way for way in ("wrap", "open", "load_files") if getattr(made, way)} == ways
        # Files of the host's own folders are there in ComfyUI only.
        assert TABLES["comfyui"][stage] - {"load_files"} == ways, stage


def test_every_way_that_nodes_take_is_there():
    taken = list(calls())
    assert {way for _, way, _ in taken} == set(HOSTS.values())
    for where, way, stage in taken:
        assert way in TABLES["comfyui"].get(stage, ()), f"{where}: {way} of {stage} in comfyui"
        if way != "load_files":
            assert way in TABLES["embedded"].get(stage, ()), f"{where}: {way} of {stage}"


def test_every_stage_that_the_host_has_a_type_for_has_an_adapter():
    typed = {
        name
        for system in SYSTEMS.values()
        for name, stage in system.stages.items()
        if stage.role in ("sampled", "encoder", "autoencoder")
    }
    assert typed - set(TABLES["comfyui"]) == set(ELSEWHERE)
    assert {stage for instead in ELSEWHERE.values() for stage in instead} <= set(TABLES["comfyui"])
    assert {stage for _, _, stage in calls()} == set(TABLES["comfyui"])
