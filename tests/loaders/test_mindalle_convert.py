"""``prior-art convert mindalle``: what it writes loads and equals; what it reads never runs."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prior_art.cli import main
from prior_art.edges import EdgeError
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.loaders.mindalle import load_transformer, load_vqgan
from prior_art.loaders.mindalle_convert import convert, write_safetensors

from .draw import random
from .mindalle_originals import SIZE, YAML, transformer, vqgan, write_original, write_tokenizer

pytestmark = pytest.mark.usefixtures("alone")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_original(tmp_path / "models" / "1.3B")


def same(path: Path, state: dict[str, torch.Tensor]) -> bool:
    found = load_file(path)
    return set(found) == set(state) and all(torch.equal(found[k], v) for k, v in state.items())


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


WHOLE = [
    "config.json",
    "tokenizer/bpe-16k-merges.txt",
    "tokenizer/bpe-16k-vocab.json",
    "transformer.safetensors",
    "vqgan.safetensors",
]


def test_folder(original: Path, tmp_path: Path) -> None:
    target, told = tmp_path / "models" / "mine", []
    made = convert(original, target, lambda *args: told.append(args))
    assert made.path == target and made.ignored == ()
    assert listing(target) == WHOLE
    assert same(target / "vqgan.safetensors", vqgan().state_dict())
    assert same(target / "transformer.safetensors", transformer("text"))
    config = json.loads((target / "config.json").read_text())
    assert config["heads"] == 4 and config["image_size"] == SIZE
    for name in WHOLE[1:3]:
        assert (target / name).read_bytes() == (original / name).read_bytes()
    size = sum(tensor.numel() for tensor in transformer("text").values()) * 4
    assert (
        ("transformer.safetensors", size, size) in told and told[-1][0] == "" and told[-1][1] > size
    )
    source = find_source("mine", "ar_transformer", [tmp_path / "models"])
    assert load_transformer(source).config.heads == 4
    assert load_vqgan(source).image_size == SIZE
    # Its own output can be converted again.
    assert listing(convert(target, tmp_path / "again").path) == WHOLE


@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_archive(original: Path, tmp_path: Path, suffix: str) -> None:
    shutil.make_archive(
        str(tmp_path / "1.3B"), {"tar.gz": "gztar"}.get(suffix, suffix), original.parent, "1.3B"
    )
    path = tmp_path / f"1.3B.{suffix}"
    assert listing(convert(path, tmp_path / "mine").path) == WHOLE
    assert not (tmp_path / "1.3B").exists()  # unlike loading from it, which keeps what it unpacks
    assert same(tmp_path / "mine" / "transformer.safetensors", transformer("text"))
    source = find_source(path.name, "vqgan", [tmp_path])
    folder = tmp_path / "1.3B"
    assert load_transformer(source).name == str(folder / "stage2_last.ckpt")
    assert load_vqgan(source).name == str(folder / "stage1_last.ckpt")
    listed = find_source("1.3B", "vqgan", [tmp_path])
    assert listed.path == folder


def test_lightning_checkpoint_of_the_transfer_recipe(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    state = {f"stage1.{k}": v for k, v in vqgan().state_dict().items()}
    state |= {f"stage2.{k}": v for k, v in transformer("class").items()}
    content = {"epoch": 7, "callbacks": {Touch: 1}, "hyper_parameters": Touch(ran)}
    source = tmp_path / "run" / "imagenet-clscond-gen-07.ckpt"
    source.parent.mkdir()
    torch.save(content | {"state_dict": state}, source)
    (source.parent / "config.yaml").write_text(YAML)
    made = convert(source, tmp_path / "mine")
    assert listing(made.path) == ["config.json", "transformer.safetensors", "vqgan.safetensors"]
    assert same(made.path / "vqgan.safetensors", vqgan().state_dict())
    assert same(made.path / "transformer.safetensors", transformer("class"))
    assert f"{os.mkdir.__module__}.mkdir" in made.ignored and not ran.exists()
    found = find_source("mine", "ar_transformer", [tmp_path])
    assert load_transformer(found).kind == "class"


def test_command(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran, target = tmp_path / "ran", tmp_path / "mine"
    content = {"state_dict": vqgan().state_dict(), "evil": Touch(ran)}
    torch.save(content, original / "stage1_last.ckpt")
    assert main(["convert", "mindalle", str(original), str(target)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(target)
    assert f"not read, being no tensors: {os.mkdir.__module__}.mkdir" in shown.err
    assert "GB  vqgan.safetensors" in shown.err
    assert not ran.exists() and listing(target) == WHOLE
    assert main(["convert", "mindalle", str(original), str(target)]) == 1
    assert "prior-art: " in (err := capsys.readouterr().err) and "exists already" in err


def test_one_network_alone(original: Path, tmp_path: Path) -> None:
    made = convert(original / "stage1_last.ckpt", tmp_path / "a")
    assert "transformer.safetensors" not in listing(made.path)
    # A plain file of safetensors, or of torch's old format, holds tensors only.
    save_file(transformer("unconditional"), tmp_path / "w.safetensors")
    convert(tmp_path / "w.safetensors", tmp_path / "b")
    old = tmp_path / "old.ckpt"
    torch.save(transformer("unconditional"), old, _use_new_zipfile_serialization=False)
    convert(old, tmp_path / "c")
    for name in "bc":
        assert same(tmp_path / name / "transformer.safetensors", transformer("unconditional"))


def damaged(folder: Path, how: str) -> None:
    path = folder / "stage2_last.ckpt"
    state = transformer("text")
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
        return
    if how == "nan":
        state["ln_f.bias"][0] = float("nan")
    if how == "strict":
        del state["ln_f.bias"]
    if how == "foreign":
        state = {"weight": random(3)}
    if how == "tokenizer":
        write_tokenizer(folder, ["[PAD]", "[UNK]", *"redt", "e</w>", "d</w>", "re", "red</w>"])
    if how == "dtype":
        state["ln_f.bias"] = state["ln_f.bias"].to(torch.complex64)
    torch.save({"state_dict": state}, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", r"stage2_last\.ckpt' is truncated"),
        ("nan", r"1\.3B' cannot be converted: .*NaN or infinite numbers in 'ln_f.bias'"),
        ("strict", r"1\.3B' cannot be converted: .*lacks ln_f\.bias"),
        ("foreign", r"stage2_last\.ckpt' is no checkpoint of minDALL-E: it holds weight"),
        ("tokenizer", r"1\.3B' cannot be converted: the tokenizer has 10 entries"),
        ("dtype", r"stage2_last\.ckpt' "),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(
    original: Path, tmp_path: Path, how: str, words: str
) -> None:
    damaged(original, how)
    with pytest.raises((CheckpointError, EdgeError), match=words):
        convert(original, tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_wrong_arguments(original: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'.*absent' does not exist"):
        convert(tmp_path / "absent", tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"exists already.*nothing is overwritten"):
        convert(original, original)
    with pytest.raises(CheckpointError, match=r"holds none of vqgan\.safetensors, stage1_last"):
        convert(tmp_path, tmp_path / "mine")
    with tarfile.open(tmp_path / "w.tar.gz", "w:gz"):
        pass
    with pytest.raises(CheckpointError, match=r"w\.tar\.gz' holds none of"):
        convert(tmp_path / "w.tar.gz", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_written_files_equal_the_library_s(tmp_path: Path) -> None:
    state = {
        "turned": random(3, 5).T,
        "brain": random(5).bfloat16(),
        "half": random(2, 2).half(),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "flags": torch.tensor([True, False]),
        "long name \u00e9": random(1).double(),
    }
    write_safetensors(state, tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert set(found) == set(state)
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)
    for length in range(8):  # of names; the numbers start aligned whatever they are
        write_safetensors({"n" * length: torch.zeros(1)}, tmp_path / "n.safetensors")
        assert (tmp_path / "n.safetensors").stat().st_size % 8 == 4
    with pytest.raises(CheckpointError, match=r"'c' is torch\.complex64, which is not converted"):
        write_safetensors({"c": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "v.safetensors")


def test_what_is_called_partial_is_neither_removed_nor_a_source(
    original: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "models" / "mine.partial"
    original.rename(partial)
    before = listing(partial)
    for source in (partial, partial / "stage1_last.ckpt"):
        with pytest.raises(CheckpointError, match=r"lies where .* is written first"):
            convert(source, tmp_path / "models" / "mine")
    write_original(original)
    with pytest.raises(CheckpointError, match=r"mine\.partial' is in the way"):
        convert(original, tmp_path / "models" / "mine")
    assert listing(partial) == before
