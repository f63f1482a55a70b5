"""What is computed from weights once: found again, made anew, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prior_art.loaders.files.cache import cached


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "movq"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class Maker:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> torch.Tensor:
        self.asked += 1
        return torch.full((5, 3), float(self.asked), dtype=torch.float64)


def test_it_is_computed_once(tmp_path, source):
    make, folder = Maker(), tmp_path / "not" / "there"
    first = cached(folder, "factors", source, make)
    assert first.dtype == torch.float32 and torch.equal(first, torch.ones(5, 3))
    assert torch.equal(cached(folder, "factors", source, make), first) and make.asked == 1
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"]  # no half ones
    cached(folder, "others", source, make)
    assert make.asked == 2


def test_other_weights_have_another_answer(tmp_path, source):
    make, folder = Maker(), tmp_path / "cache"
    cached(folder, "factors", source, make)
    (source / "model.safetensors").write_bytes(b"others.")  # as long as before
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert cached(folder, "factors", source, make)[0, 0] == 2
    file = tmp_path / "one.ckpt"
    file.write_bytes(b"weights")
    assert cached(folder, "factors", file, make)[0, 0] == 3


@pytest.mark.parametrize("damaged", [b"", b"no tensors at all, but long enough to be read", None])
def test_a_damaged_file_is_made_anew(tmp_path, source, damaged):
    from safetensors.torch import save

    make, folder = Maker(), tmp_path / "cache"
    cached(folder, "factors", source, make)
    (file,) = folder.iterdir()
    nan = save({"factors": torch.full((5, 3), torch.nan)})
    file.write_bytes(nan if damaged is None else damaged)
    assert cached(folder, "factors", source, make)[0, 0] == 2
    assert cached(folder, "factors", source, make)[0, 0] == 2


def test_a_foreign_tensor_is_not_taken(tmp_path, source):
    from safetensors.torch import save

    make, folder = Maker(), tmp_path / "cache"
    cached(folder, "factors", source, make)
    (file,) = folder.iterdir()
    for foreign in ({"others": torch.ones(5, 3)}, {"factors": torch.ones(3)}):
        file.write_bytes(save(foreign))
        assert cached(folder, "factors", source, make)[0, 0] > 1


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, source):
    make, folder = Maker(), tmp_path / "cache"
    folder.write_bytes(b"")  # a file where the folder should be
    assert cached(folder, "factors", source, make)[0, 0] == 1
    assert cached(folder, "factors", source, make)[0, 0] == 2
