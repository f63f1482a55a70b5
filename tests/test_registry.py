"""What the registry publishes: the tools of the ecosystem pass on it, and it holds what it should.

comfy-cli and comfy-test are the extra ``registry`` of pyproject.toml; without them their tests are
skipped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 45_000_000
"""Bytes of the archive. It is over the 30 MB that one would like: 41 of them are the embedded
family's weights, in fp16, each stored once, which no compression makes smaller."""


def run(tool: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """One of the tools, in a folder."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install .[registry]")
    return subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `comfy node publish` would upload, as committed and staged."""
    copy = tmp_path_factory.mktemp("pack")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={copy}/"], cwd=ROOT, check=True)
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    subprocess.run(["git", "add", "--all"], cwd=copy, check=True)
    packed = run("comfy_cli", "--skip-prompt", "node", "pack", folder=copy)
    (made,) = copy.glob("*.zip")
    assert packed.returncode == 0, packed.stdout
    return made


def test_python_sources_are_ascii():
    """Validators refuse anything else, as it cannot be printed on every Windows."""
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    other = [name for name in tracked if not (ROOT / name).read_bytes().isascii()]
    assert tracked and not other


def test_icon_and_banner_have_the_registrys_shapes():
    with (
        Image.open(ROOT / "docs" / "icon.png") as icon,
        Image.open(ROOT / "docs" / "banner.png") as banner,
    ):
        assert icon.size == (400, 400)
        assert banner.width * 9 == banner.height * 21


def test_the_registry_would_accept_it():
    result = run("comfy_cli", "--skip-prompt", "node", "validate")
    assert result.returncode == 0, result.stdout
    assert "warning" not in result.stdout.lower(), result.stdout


def test_what_is_published_passes_the_lint(archive: Path, tmp_path: Path):
    zipfile.ZipFile(archive).extractall(tmp_path)
    result = run("comfy_test", "lint", str(tmp_path))
    assert result.returncode == 0, result.stdout


def test_what_is_published_is_what_runs(archive: Path):
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        weights = [name for name in names if name.endswith(".safetensors")]
        prints = {hashlib.sha256(packed.read(name)).hexdigest() for name in weights}
    for left_out in ("tests/", "benchmarks/", "shapes/train/", ".ci/", "Makefile"):
        assert not [name for name in names if name.startswith(left_out)]
    assert "__init__.py" in names and len(weights) == len(prints) > 20
    assert archive.stat().st_size < LARGEST
