from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prior_art.loaders.files import catalogue as sources

from ..tiny import tiny_karlo

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Karlo in hub layout at ``<models>/karlo``; tests copy it before they change it."""
    return tiny_karlo(tmp_path_factory.mktemp("models") / "karlo")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No embedded family."""
    monkeypatch.setattr(sources, "EMBEDDED_ROOT", tmp_path / "nowhere")
