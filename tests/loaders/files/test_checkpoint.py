"""Reading weight files: what goes wrong is said in one sentence that names file and cure."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prior_art.loaders.files import checkpoint
from prior_art.loaders.files.checkpoint import CheckpointError, load_strict, read_state_dict

from ..draw import random

CURE = r"(Download|Choose|Use)"


def write(path: Path) -> Path:
    state = {"a": random(64, 64), "b": torch.arange(5)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def refuse(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 700


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt", "w.bin", "w.pt", "w.th"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    state = read_state_dict(write(tmp_path / name))
    assert torch.equal(state["a"], random(64, 64)) and state["b"].tolist() == [0, 1, 2, 3, 4]


def test_legacy_format(tmp_path: Path) -> None:
    torch.save({"a": random(3)}, tmp_path / "w.th", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "w.th")["a"], random(3))


class Stopped(BaseException):
    """What a host raises when the user has stopped the run."""


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_reading_one_large_tensor_can_be_stopped(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 256)
    path, state = tmp_path / f"w.{kind}", {"a": random(64, 64)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    asked = []

    def stop_at_the_tenth() -> None:
        asked.append(1)
        if len(asked) == 10:
            raise Stopped

    with pytest.raises(Stopped), checkpoint.asking(stop_at_the_tenth):
        read_state_dict(path)
    assert torch.equal(read_state_dict(path)["a"], state["a"]) and len(asked) == 10


def test_turning_weights_into_another_dtype_can_be_stopped() -> None:
    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped), checkpoint.asking(stop):
        checkpoint.cast({"a": random(3)}, torch.float16)


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated(tmp_path: Path, name: str, keep: float) -> None:
    path = write(tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    refuse(path, CURE)


def test_damaged_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "w.ckpt")
    data = bytearray(path.read_bytes())
    at = data.find(b"data.pkl")
    data[at + 60 : at + 120] = b"\xff" * 60
    path.write_bytes(bytes(data))
    refuse(path, CURE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"", "empty"),
        (b"GGUF\x03\x00\x00\x00" + b"\x00" * 60, "GGUF"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_disguises(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    refuse(path, words)


def test_renamed(tmp_path: Path) -> None:
    write(tmp_path / "w.ckpt").rename(tmp_path / "w.safetensors")
    refuse(tmp_path / "w.safetensors", "torch checkpoint under another name")
    write(tmp_path / "v.safetensors").rename(tmp_path / "v.ckpt")
    refuse(tmp_path / "v.ckpt", "safetensors file under another name")


class Touch:
    """A pickle that would make a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": random(3), "evil": Touch(tmp_path / "ran")}, tmp_path / "w.ckpt")
    refuse(tmp_path / "w.ckpt", "could run code, so it is refused.*safetensors")
    assert not (tmp_path / "ran").exists()


def test_no_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.ckpt")
    refuse(tmp_path / "w.ckpt", "no tensors")
    torch.save([1, 2], tmp_path / "v.ckpt")
    refuse(tmp_path / "v.ckpt", "holds a list")
    refuse(tmp_path / "absent.safetensors", "missing")


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan(tmp_path: Path, name: str, bad: float) -> None:
    state = {"fine": random(3), "broken": random(3).half()}
    state["broken"][1] = bad
    save = save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / name)
    refuse(tmp_path / name, "NaN or infinite numbers in 'broken'")


def test_large_but_finite_numbers_pass(tmp_path: Path) -> None:
    save_file({"a": torch.full((8,), 3e38)}, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors")["a"].isfinite().all()


def test_same_dtype_is_not_copied(tmp_path: Path) -> None:
    state = read_state_dict(write(tmp_path / "w.safetensors"))
    same, other = checkpoint.cast(state, torch.float32), checkpoint.cast(state, torch.float16)
    assert same["a"].data_ptr() == state["a"].data_ptr()
    assert other["a"].dtype == torch.float16 and other["b"].dtype == torch.int64
    network = torch.nn.Linear(64, 64, bias=False, device="meta")
    load_strict(network, {"weight": same["a"]}, "w")
    assert network.weight.data_ptr() == state["a"].data_ptr()


def test_strict_names_keys_and_shapes() -> None:
    network = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"'x' is not a Linear.*lacks bias.*unknown extra"):
        load_strict(network, {"weight": random(3, 2), "extra": random(1)}, "x")
    with pytest.raises(CheckpointError, match=r"weight \[2, 2\] instead of \[3, 2\]"):
        load_strict(network, {"weight": random(2, 2), "bias": random(3)}, "x")


def test_unknown_buffer_is_named() -> None:
    network = torch.nn.Module()
    network.register_buffer("novelty", torch.zeros(1, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match="novelty"):
        load_strict(network, {}, "x")


# -- TorchScript -------------------------------------------------------------------------------


class Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.scale = torch.nn.Parameter(random(2, 5).T.half())
        self.ids = [1, 2, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_torchscript_equals_state_dict(tmp_path: Path) -> None:
    module = Scripted().eval()
    torch.jit.script(module).save(tmp_path / "m.pt")
    state, wanted = read_state_dict(tmp_path / "m.pt"), module.state_dict()
    assert set(state) == set(wanted)
    for key, tensor in wanted.items():
        assert state[key].dtype == tensor.dtype and torch.equal(state[key], tensor)


def rewrite(path: Path, **records: bytes) -> None:
    """Replace records of an archive; keys name the file below the archive's folder."""
    with zipfile.ZipFile(path) as old:
        items = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in items.items():
            new.writestr(name, records.get(name.split("/")[-1].replace(".", "_"), data))


def test_torchscript_never_runs_code(tmp_path: Path) -> None:
    path, target = tmp_path / "m.pt", tmp_path / "ran"
    torch.jit.script(Scripted()).save(path)
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=2).dump({"w": Touch(target)})
    rewrite(path, data_pkl=stream.getvalue())
    refuse(path, "no tensors|damaged")
    assert not target.exists()


@pytest.mark.parametrize("cut", ["data.pkl", "0"])
def test_torchscript_damaged(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "m.pt"
    torch.jit.script(Scripted()).save(path)
    rewrite(path, **{cut.replace(".", "_"): b"\x80\x02"})
    refuse(path, f"TorchScript.*{CURE}")


# -- component folders -------------------------------------------------------------------------


def component(tmp_path: Path, **files: dict[str, torch.Tensor]) -> Path:
    for name, state in files.items():
        path = tmp_path / name.replace("__", ".")
        (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return tmp_path


def test_safetensors_before_bin_and_variant_by_dtype(tmp_path: Path) -> None:
    folder = component(
        tmp_path,
        model__safetensors={"a": torch.full((1,), 1.0)},
        model__fp16__safetensors={"a": torch.full((1,), 2.0).half()},
        pytorch_model__bin={"a": torch.full((1,), 3.0)},
    )

    def read(dtype: torch.dtype) -> float:
        return float(checkpoint.read_component(folder, dtype)[0]["a"])

    assert (read(torch.float32), read(torch.bfloat16), read(torch.float16)) == (1, 1, 2)
    (folder / "model.safetensors").unlink()
    assert read(torch.float32) == 2
    (folder / "model.fp16.safetensors").unlink()
    assert read(torch.float32) == 3
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights.*prior-art download"):
        read(torch.float32)


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
def test_shards(tmp_path: Path, index: str) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": random(2)}, tmp_path / one)
    save_file({"b": random(3)}, tmp_path / two)
    path = tmp_path / index
    path.write_text(f'{{"weight_map": {{"a": "{one}", "b": "{two}"}}}}')
    state, name = checkpoint.read_component(tmp_path, torch.float32)
    assert set(state) == {"a", "b"} and name == str(path)
    path.write_text(f'{{"weight_map": {{"a": "{one}", "c": "{two}"}}}}')
    with pytest.raises(CheckpointError, match="promises c"):
        checkpoint.read_component(tmp_path, torch.float32)
    path.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="no plain file name"):
        checkpoint.read_component(tmp_path, torch.float32)
    (tmp_path / two).unlink()
    path.write_text(f'{{"weight_map": {{"b": "{two}"}}}}')
    with pytest.raises(CheckpointError, match=f"{two}' is missing"):
        checkpoint.read_component(tmp_path, torch.float32)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        checkpoint.read_component(tmp_path, torch.float32)


def test_link_out_of_the_model_folders(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write(tmp_path / "secret.safetensors")
    (models / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="leads out of the model folders"):
        checkpoint.read_component(models, torch.float32, [models])
    assert checkpoint.read_component(models, torch.float32, [tmp_path])


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.read_json(path)
    for content, words in ((b"{", "not JSON"), (b"\xff\xfe{", "not JSON"), (b"[]", "object")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.read_json(path)
