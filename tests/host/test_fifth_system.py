"""A fifth system is files named by one word, and one line in each room that lists the systems.

The toy in tests/toy is laid over a copy of the pack and runs in both hosts; nothing else of the
copy is touched. It is the shortest example of a system: see "Add a system" in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

PACK = Path(__file__).resolve().parents[2]
TOY = PACK / "tests" / "toy"

LISTS = {"loaders/__init__.py": "NAMES", "nodes/__init__.py": "SYSTEMS", "host/api.py": "SYSTEMS"}
"""The one line of each room that names the systems."""

NOT_SHIPPED = (
    *(".*", "__pycache__", "*.egg-info", "tests", "benchmarks", "docs", "output", "input"),
    *("models", "train"),
)

ORANGE, NAVY = (255, 128, 0), (0, 0, 128)

GRAPH: dict[str, Any] = {
    "1": {"class_type": "PriorArtLoadToy", "inputs": {"source": "shapes-toy", "dtype": "auto"}},
    "2": {
        "class_type": "PriorArtToySample",
        "inputs": {"model": ["1", 0], "seed": 3, "steps": 4, "batch_size": 2},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "toy"}},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack with the toy in it."""
    copy = tmp_path_factory.mktemp("fifth") / "prior_art"
    shutil.copytree(PACK, copy, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    for file in sorted(TOY.rglob("*.py")):
        target = copy / file.relative_to(TOY)
        assert file.name == "toy.py" and not target.exists()
        shutil.copy(file, target)
    write_weights(copy / "shapes" / "weights" / "toy" / "decoder")
    for name, entry in LISTS.items():
        text = (copy / name).read_text(encoding="utf-8")
        text, lines = re.subn(rf"(?m)^({entry} = \(.*)\)$", r'\1, "toy")', text)
        assert lines == 1, f"{name} has no one line '{entry} = (...)'"
        (copy / name).write_text(text, encoding="utf-8")
    return copy


def write_weights(folder: Path) -> None:
    """An orange disc on navy blue, in the hub's layout."""
    folder.mkdir(parents=True)
    ground, disc = (torch.tensor(colour) / 127.5 - 1 for colour in (NAVY, ORANGE))
    state = {"paint.weight": (disc - ground)[:, None], "paint.bias": ground}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    config = json.dumps({"_class_name": "ToyDecoder", "grain": 0.02})
    (folder / "config.json").write_text(config, encoding="utf-8")


COMMAND = """
import importlib.util, sys
package = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "prior_art", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["prior_art"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["prior_art"])
from prior_art.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command ``prior-art`` of a package by its path, whichever one is installed."""


def prior_art(package: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """That command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(package), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=package.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def check_pictures(pictures: list[Image.Image]) -> None:
    """Two discs of the weights' colours, each with grain of its own."""
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    for picture in pictures:
        for place, colour in (((16, 16), ORANGE), ((1, 1), NAVY), ((30, 30), NAVY)):
            found = picture.convert("RGB").getpixel(place)
            assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) < 24, (place, found)
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.slow
def test_its_workflow_runs_headless(package: Path, tmp_path: Path) -> None:
    workflow, out = tmp_path / "toy.json", tmp_path / "out"
    workflow.write_text(json.dumps(GRAPH), encoding="utf-8")
    done = prior_art(package, "run", workflow, "--out", out)
    assert done.returncode == 0, done.stderr
    said = [Path(line) for line in done.stdout.splitlines()]
    assert sorted(said) == sorted(out.glob("toy*.png"))
    check_pictures([Image.open(path) for path in said])


@pytest.mark.slow
def test_every_list_of_systems_has_it(package: Path) -> None:
    listed = prior_art(package, "nodes").stdout
    assert re.search(r"PriorArtLoadToy +Load Toy\n(.*\n)*PriorArtToySample +Toy Sample", listed)
    refused = prior_art(package, "download", "nothing").stderr
    assert re.search(r"these can be downloaded: .*\btoy\b", refused), refused


@pytest.mark.slow
def test_a_native_sampler_that_cannot_run_it_headless_says_so(
    package: Path, tmp_path: Path
) -> None:
    workflow = tmp_path / "sampler.json"
    levels = {"model": ["1", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0}
    graph = {
        "1": GRAPH["1"],
        "2": {"class_type": "BasicScheduler", "inputs": levels},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    workflow.write_text(json.dumps(graph), encoding="utf-8")
    done = prior_art(package, "run", workflow, "--out", tmp_path)
    assert done.returncode == 1
    assert "native samplers do not run the toy; sample it with 'Toy Sample'" in done.stderr


@pytest.mark.host
@pytest.mark.slow
def test_its_workflow_runs_in_the_real_host(package: Path, launch: Any, tmp_path: Path) -> None:
    link = tmp_path / "custom_nodes" / "ComfyUI-PriorArt"
    link.parent.mkdir()
    link.symlink_to(package, target_is_directory=True)
    with launch(tmp_path) as comfy:
        run = comfy.run(GRAPH)
        assert run.error is None, comfy.log_text()[-4000:]
        steps = run.steps("2")  # quick ones between are not all told
        assert steps[0] == (1, 4) and steps[-1] == (4, 4)
        check_pictures(comfy.pictures(run, "3"))
