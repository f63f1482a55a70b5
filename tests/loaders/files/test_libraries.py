"""A broken library is named with its cause and cure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prior_art.loaders.files.libraries import LibraryError, require


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> str:
        (tmp_path / "brokenlib.py").write_text(code)
        sys.modules.pop("brokenlib", None)
        return "brokenlib"

    yield write
    sys.modules.pop("brokenlib", None)


def test_works() -> None:
    assert require("json", "loads")("1") == 1
    assert require("json").dumps(1) == "1"
    assert len(require("json", "loads", "dumps")) == 2


def test_torchvision_does_not_match(package) -> None:
    name = package(
        "try:\n    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "except RuntimeError as e:\n    raise RuntimeError('Failed to import brokenlib') from e\n"
    )
    with pytest.raises(LibraryError, match="torchvision is broken or does not match torch") as e:
        require(name, "Thing")
    assert "RuntimeError: operator torchvision::nms does not exist" in str(e.value)
    assert "pip install -U torchvision" in str(e.value) and "brokenlib (Thing)" in str(e.value)


def test_a_dependency_is_missing(package) -> None:
    name = package("import absent_dependency.part")
    with pytest.raises(LibraryError, match=r"absent_dependency.*pip install -U absent_dependency"):
        require(name)


def test_not_installed() -> None:
    with pytest.raises(LibraryError, match="pip install -U no_such_package"):
        require("no_such_package")


def test_too_old(package) -> None:
    with pytest.raises(LibraryError, match=r"too old or too new.*pip install -U brokenlib"):
        require(package("x = 1"), "Missing")


def test_anything_else(package) -> None:
    with pytest.raises(LibraryError, match=r"OSError: libcudart.*pip install -U brokenlib"):
        require(package("raise OSError('libcudart.so.12: cannot open')"))


def test_loader_names_the_broken_library(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prior_art.loaders import unclip
    from prior_art.loaders.files.catalogue import find_source

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(LibraryError, match="diffusers"):
        unclip.load_prior(find_source("karlo", "prior", [hub.parent]))


def test_goes_on_without_a_companion_that_is_broken(package, tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "torchaudio.py").write_text("raise RuntimeError('TorchAudio: other CUDA')")
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    name = package(
        "try:\n    import torchaudio\nexcept ModuleNotFoundError:\n    pass\nThing = 7\n"
    )
    try:
        assert require(name, "Thing") == 7
        assert sys.modules["torchaudio"] is None
    finally:
        sys.modules.pop("torchaudio", None)
    assert "torchaudio is broken" in caplog.text and "pip install -U torchaudio" in caplog.text
