from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..samplers.stages import Stages
from ..tiny import tiny_karlo

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Every stage of a tiny Karlo, loaded by the pack."""
    folder: Path = tmp_path_factory.mktemp("models") / "karlo"
    return Stages(tiny_karlo(folder))
