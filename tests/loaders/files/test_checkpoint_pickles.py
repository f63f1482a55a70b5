"""Reading hostile and Lightning checkpoints: tensors come out, nothing in the pickle runs."""

from __future__ import annotations

import collections
import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from prior_art.loaders.files.checkpoint import (
    CheckpointError,
    Inert,
    read_component,
    read_state_dict,
    read_tensors,
)

from ..draw import random


class Touch:
    """A pickle that makes a folder when loaded as intended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class DictConfig(dict):
    """As OmegaConf's: filled item by item."""


class Hook:
    """A callable instance with state, as callbacks are."""

    def __init__(self) -> None:
        self.state = {"best": random(2)}

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("constructed")


def lightning(state: dict[str, torch.Tensor]) -> dict:
    return {
        "epoch": 3,
        "callbacks": {Hook: {"best": torch.tensor(0.5)}},
        "hyper_parameters": DictConfig(lr=1e-4),
        "hooks": [Hook(), {1, 2}, (torch.float32, torch.Size([1]))],
        "state_dict": state,
    }


def refuse(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 700


def state() -> dict[str, torch.Tensor]:
    base = random(6, 4)
    return collections.OrderedDict(
        {
            "plain": base,
            "shared": base.view(-1)[5:9],
            "turned": random(3, 5).T,
            "half": random(7).half(),
            "brain": random(2, 2).bfloat16(),
            "whole": torch.arange(4),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "parameter": torch.nn.Parameter(random(2)),
        }
    )


def test_tensors_equal_torch_load(tmp_path: Path) -> None:
    wanted = state()
    torch.save(wanted, tmp_path / "plain.ckpt")
    torch.save(lightning(wanted), tmp_path / "lightning.ckpt")
    for name in ("plain", "lightning"):
        read = read_tensors(tmp_path / f"{name}.ckpt")
        assert list(read.state) == list(wanted)
        for key, tensor in wanted.items():
            assert read.state[key].dtype == tensor.dtype
            assert torch.equal(read.state[key], tensor)
        if name == "plain":
            assert read.ignored == ()
    for name in (Hook, DictConfig):
        assert f"{name.__module__}.{name.__qualname__}" in read.ignored
    assert not any("OrderedDict" in name or "_rebuild" in name for name in read.ignored)


def test_a_state_dict_keeps_its_metadata_to_itself(tmp_path: Path) -> None:
    # Modules write `_metadata` as an attribute of the OrderedDict.
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "w.ckpt")
    assert list(read_tensors(tmp_path / "w.ckpt").state) == ["weight", "bias"]


def test_poison_is_neutralised(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    poisoned = lightning({"w": random(3), "evil": Touch(target)}) | {"evil": Touch(target)}
    torch.save(poisoned, tmp_path / "w.ckpt")
    read = read_tensors(tmp_path / "w.ckpt")
    assert list(read.state) == ["w"] and torch.equal(read.state["w"], random(3))
    assert f"{os.mkdir.__module__}.mkdir" in read.ignored
    assert not target.exists()
    with pytest.raises(CheckpointError, match="could run code"):
        read_state_dict(tmp_path / "w.ckpt")
    pickle.loads(pickle.dumps(Touch(target)))
    assert target.exists()  # or this test would prove nothing


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_trainer")
    thing = type("Thing", (), {"__module__": "some_trainer"})
    module.Thing = thing
    monkeypatch.setitem(sys.modules, "some_trainer", module)
    torch.save({"state_dict": {"w": random(2)}, "thing": thing()}, tmp_path / "w.ckpt")
    monkeypatch.delitem(sys.modules, "some_trainer")
    (tmp_path / "some_trainer.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_tensors(tmp_path / "w.ckpt").ignored == ("some_trainer.Thing",)
    assert "some_trainer" not in sys.modules


def write(path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)
    return path


GADGETS = {
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\nlist\nV__class__\ntR.",
    "eval": b"cbuiltins\neval\n(Vopen('ran', 'w')\ntR.",
    "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "instance": b"(Vran\nios\nmkdir\n.",
    "reduce of a result": b"cfunctools\npartial\n(cos\nmkdir\nVran\ntR)R.",
    "new object": b"\x80\x02csubprocess\nPopen\n(Vtrue\nt\x81.",
    "state": b"\x80\x02ccollections\nOrderedDict\n)R}Vitems\ncos\nsystem\nsb.",
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_gadgets(tmp_path: Path, gadget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "w.ckpt", GADGETS[gadget])
    refuse(path, r"holds no tensors|damaged")
    assert not (tmp_path / "ran").exists()


def test_inert_takes_everything() -> None:
    thing = Inert(1, a=2)
    assert thing(3, b=4) is thing
    thing["x"] = 1
    thing.__setstate__({"append": 1})
    thing.append(1), thing.extend([1]), thing.add(1)
    assert vars(thing) == {}


def rebuild(offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4) -> bytes:
    """The pickle of {"w": a tensor in storage 0}, as torch writes it but with any numbers."""
    import io

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

        def reducer_override(self, value):
            if isinstance(value, View):
                rebuilt = torch._utils._rebuild_tensor_v2
                hooks: dict = {}
                return rebuilt, (Storage(), offset, size, stride, False, hooks)
            return NotImplemented

    class View:
        pass

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"w": View()})
    return stream.getvalue()


def test_sizes_are_checked(tmp_path: Path) -> None:
    four = b"".join(bytes(torch.tensor([float(i)]).numpy()) for i in range(4))
    good = write(tmp_path / "good.ckpt", rebuild(1, (3,), (1,)), _0=four)
    assert read_tensors(good).state["w"].tolist() == [1, 2, 3]
    for offset, size, stride in (
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (10**12,), (0,)),
        (0, (2.0,), (1,)),
    ):
        bad = write(tmp_path / "bad.ckpt", rebuild(offset, size, stride), _0=four)
        refuse(bad, "damaged checkpoint")
    refuse(write(tmp_path / "lost.ckpt", rebuild(0, (1,), (1,))), "damaged checkpoint")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.ckpt", rebuild(0, (1,), (1,)), zipfile.ZIP_DEFLATED, _0=bytes(99))
    refuse(path, "is compressed")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "w.ckpt"
    torch.save(lightning(state()), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    refuse(path, "truncated.*(Download|save it again)")


def test_no_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "hook": Hook()}, tmp_path / "w.ckpt")
    refuse(tmp_path / "w.ckpt", r"holds no tensors beside .*Hook\. Choose")
    torch.save([random(2)], tmp_path / "v.ckpt")
    refuse(tmp_path / "v.ckpt", "holds no tensors. Choose")
    refuse(write(tmp_path / "u.ckpt", b"\x80\x02"), "damaged")
    with zipfile.ZipFile(tmp_path / "z.ckpt", "w") as archive:
        archive.writestr("readme", "hello")
    refuse(tmp_path / "z.ckpt", "no data.pkl")
    refuse(tmp_path / "absent.ckpt", "missing")
    torch.save({"w": random(2)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "old.ckpt", "no checkpoint of torch 1.6 or newer")


def tuples(levels: int) -> bytes:
    """A pickle of {t: 0} where t = ((... , ...), (... , ...)), ``levels`` deep."""
    return b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * levels + b"K\x00s."


BOMBS = {
    "a tuple to be hashed": tuples(200),
    "the same by DUP": b"\x80\x02})" + b"2\x86" * 200 + b"K\x00s.",
    "a frozenset of it": b"\x80\x04)" + b"q\x00h\x00\x86" * 60 + b"(h\x00\x91.",
    "a memo of a billion": b"\x80\x02}r\xff\xff\xff\x3f.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_pickles_cost_little(tmp_path: Path, bomb: str) -> None:
    refuse(write(tmp_path / "w.ckpt", BOMBS[bomb]), "damaged checkpoint")
    script = write(tmp_path / "m.pt", BOMBS[bomb])
    with zipfile.ZipFile(script, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="damaged TorchScript"):
        read_state_dict(script)


def test_tuples_of_a_checkpoint_are_no_bomb(tmp_path: Path) -> None:
    few = lightning(state()) | {"betas": ((0.9, 0.95), [(1, (2, (3, 4)))] * 50)}
    torch.save(few, tmp_path / "w.ckpt")
    assert list(read_tensors(tmp_path / "w.ckpt").state) == list(state())


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_torch_is_to_read_is_looked_at_first(tmp_path: Path, bomb: str) -> None:
    path = write(tmp_path / "w.ckpt", BOMBS[bomb])
    with pytest.raises(CheckpointError, match=r"damaged .*(tuples in tuples|memo place)"):
        read_state_dict(path)
    old = tmp_path / "old.pt"
    torch.save({"w": random(2)}, old, _use_new_zipfile_serialization=False)
    assert list(read_state_dict(old)) == ["w"]
    # torch's old format: what was saved is the fourth pickle.
    head = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    old.write_bytes(head + BOMBS[bomb])
    with pytest.raises(CheckpointError, match=r"damaged .*(tuples in tuples|memo place)"):
        read_state_dict(old)


def test_small_files_of_large_tensors(tmp_path: Path) -> None:
    four = bytes(16)
    for size, stride in (((10**12,), (0,)), ((2, 10**9), (1, 0))):
        path = write(tmp_path / "w.ckpt", rebuild(0, size, stride), _0=four)
        refuse(path, "larger than its storage")
    packed = write(tmp_path / "p.ckpt", rebuild(0, (1,), (1,)), zipfile.ZIP_DEFLATED, _0=bytes(99))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_state_dict(packed)
    torch.save({"w": torch.zeros(2, 3).expand(2, 2, 3)}, tmp_path / "e.ckpt")
    with pytest.raises(CheckpointError, match="larger than its storage"):
        read_state_dict(tmp_path / "e.ckpt")


def test_one_storage_under_many_names(tmp_path: Path) -> None:
    tied = random(1000, 1000)
    few, many = tmp_path / "few.ckpt", tmp_path / "many.ckpt"
    torch.save({str(i): tied for i in range(8)}, few)
    torch.save({str(i): tied for i in range(40)}, many)
    assert len(read_state_dict(few)) == len(read_tensors(few).state) == 8
    for read in (read_state_dict, read_tensors):
        with pytest.raises(CheckpointError, match="far larger than the file"):
            read(many)


@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised"])
def test_tensors_of_other_kinds(tmp_path: Path, kind: str) -> None:
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(10**9, device="meta"),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }[kind]()
    torch.save({"w": tensor}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_state_dict(tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    "name", ["a\0b.safetensors", "", "..", "a\nb", "../a.safetensors", "\x1b[31m"]
)
def test_names_of_shards(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="which is no plain file name") as seen:
        read_component(tmp_path, torch.float32)
    assert str(seen.value).isprintable()
