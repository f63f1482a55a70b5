"""minDALL-E's transfer learning: repeatable, resumable, and its output an ordinary source."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from prior_art import cli
from prior_art.edges import UserError
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.mindalle import load_transformer, load_vqgan
from prior_art.training import mindalle_codes as codes_module
from prior_art.training import mindalle_transfer as transfer_module
from prior_art.training.mindalle_codes import coded, find_pictures, read_picture
from prior_art.training.mindalle_lora import LowRank, add_lora, merge_lora
from prior_art.training.mindalle_transfer import Recipe, source_of, start, transfer
from prior_art.training.state import Unfinished

from ..loaders.mindalle_originals import CODES, GRID, SIZE, vqgan, write_original

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
CPU = torch.device("cpu")
SMALL = Recipe("class", epochs=3, batch=6, rate=1e-2, val=0.25, micro_batch=2, save_every=2)


def draw(folder: Path, *classes: str, each: int = 12) -> Path:
    """Pictures of different sizes; a class is a colour with noise on it."""
    numbers = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            picture = numbers.integers(0, 60, (SIZE + i, SIZE + 3, 3)) + 190 * number
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    return source_of(str(write_original(tmp_path_factory.mktemp("m") / "1.3B")), [])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), "dark", "light")


def after(asks: int):
    """A ``stopped`` that says so after ``asks`` asks."""
    left = iter(range(asks))
    return lambda: next(left, None) is None


def weights(folder: Path) -> bytes:
    return (folder / "transformer.safetensors").read_bytes()


# -- a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "unconditional"])
@pytest.mark.parametrize("lora", [None, 2])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path, source, images, kind, lora) -> None:
    recipe = dataclasses.replace(SMALL, kind=kind, lora=lora)
    whole = transfer(source, images, tmp_path / "whole", recipe)
    parts = tmp_path / "parts"
    # While encoding, inside a step, inside a validation, and between two.
    for number, asks in enumerate((1, 4, 12, 14)):
        torch.manual_seed(number)  # nothing may lean on the global generator
        with pytest.raises(Unfinished, match="the same command goes on"):
            transfer(source, images, parts, recipe, stopped=after(asks))
        assert [path.name for path in parts.iterdir()] == [".training"]
    transfer(source, images, parts, recipe)
    assert weights(whole) == weights(parts)
    again = dataclasses.replace(recipe, seed=1)
    assert weights(transfer(source, images, tmp_path / "seed", again)) != weights(whole)


def test_a_killed_run_goes_on_from_the_last_state(tmp_path, source, images, monkeypatch) -> None:
    whole = transfer(source, images, tmp_path / "whole", SMALL)
    calls = iter(range(20))
    real = transfer_module._nats

    def dies(*arguments):
        if next(calls, None) is None:
            raise MemoryError("killed")
        return real(*arguments)

    monkeypatch.setattr(transfer_module, "_nats", dies)
    with pytest.raises(MemoryError):
        transfer(source, images, tmp_path / "killed", SMALL)
    monkeypatch.undo()
    state = torch.load(tmp_path / "killed" / ".training" / "state.pt", weights_only=True)
    assert state["step"] == 4  # two states were written, at 2 and 4
    assert weights(transfer(source, images, tmp_path / "killed", SMALL)) == weights(whole)


@pytest.mark.parametrize("kind", ["class", "unconditional"])
def test_the_output_is_an_ordinary_source(tmp_path, source, images, kind) -> None:
    before = {path: path.read_bytes() for path in source.path.glob("*.ckpt")}
    recipe = dataclasses.replace(SMALL, kind=kind, epochs=1)
    out = transfer(source, images, tmp_path / "models" / "mine", recipe)
    for stage in ("vqgan", "ar_transformer"):
        found = find_source("mine", stage, [tmp_path / "models"])
    network = load_transformer(found)
    assert network.kind == kind and network.tokenizer is None
    assert network.config.classes == (2 if kind == "class" else None)
    assert (network.config.heads, network.config.layers) == (4, 2)
    made, given = load_vqgan(found), load_vqgan(source)
    assert (made.image_size, made.codes) == (SIZE, CODES)
    given = given.network.state_dict()
    assert all(torch.equal(t, given[k]) for k, t in made.network.state_dict().items())
    files = {"config.json", "vqgan.safetensors", "transformer.safetensors", ".training"}
    if kind == "class":
        files.add("classes.json")
        assert json.loads((out / "classes.json").read_text()) == ["dark", "light"]
    assert {path.name for path in out.iterdir()} == files
    assert [path.name for path in (out / ".training").iterdir()] == ["codes.pt"]
    # Weights are mapped from the source's files and trained in place.
    assert all(path.read_bytes() == data for path, data in before.items())
    with pytest.raises(UserError, match=r"is class-cond|is unconditional.*--source"):
        transfer(found, images, tmp_path / "more", recipe)


def test_steps_are_the_published_ones(tmp_path, images) -> None:
    """Against a plain loop: whole batches, torch's own cosine, no accumulation."""
    folder = write_original(tmp_path / "m")
    state = torch.load(folder / "stage2_last.ckpt")
    state["state_dict"]["ln_f.weight"] *= 2000  # gradients so large that they are clipped
    torch.save(state, folder / "stage2_last.ckpt")
    source, recipe = source_of(str(folder), []), dataclasses.replace(SMALL, rate=1e-3)
    out = transfer(source, images, tmp_path / "out", recipe)
    made = load_transformer(source_of(str(out), [])).network.state_dict()
    names, codes = coded(
        images,
        find_pictures(images),
        load_vqgan(source),
        tmp_path / "codes.pt",
        CPU,
        stopped=lambda: False,
        warn=print,
    )
    data = transfer_module._split(names, codes, images, recipe)
    steps = 3 * (18 // 6)
    rows = [transfer_module._rows(data, recipe, step) for step in range(steps)]

    def plain(clip: float, beta: float) -> float:
        """The mean distance of a published training with these numbers. Not the largest: where a
        gradient is all but zero Adam makes a whole step of its rounding."""
        network = start(load_transformer(source), recipe, 2)
        tuned = list(network.parameters())
        optimiser = torch.optim.AdamW(tuned, lr=1e-3, betas=(0.9, beta), weight_decay=0)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for chosen in map(torch.from_numpy, rows):
            tokens = codes[chosen].long()
            logits = network(data.labels[chosen, None], tokens)
            optimiser.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(tuned, clip)
            optimiser.step()
            cosine.step()
        apart = [(made[k] - v).abs().flatten() for k, v in network.state_dict().items()]
        return float(torch.cat(apart).mean())

    right, unclipped, slower = plain(4.0, 0.95), plain(1e9, 0.95), plain(4.0, 0.99)
    assert min(unclipped, slower) > 10 * right, (right, unclipped, slower)
    # Every epoch sees each picture once, in another order, and none of the held ones.
    epochs = [np.concatenate(rows[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(data.train.tolist()) for epoch in epochs)
    assert epochs[0] != epochs[1] and not set(epochs[0]) & set(data.val.tolist())
    assert len(data.val) == 6


def test_what_is_shared_is_loaded_and_the_rest_starts_anew(source) -> None:
    for kind in ("class", "unconditional"):
        recipe = Recipe(kind, seed=3)
        loaded = load_transformer(source)
        old = {key: value.clone() for key, value in loaded.network.state_dict().items()}
        new = start(loaded, recipe, 5).state_dict()
        fresh = {key for key in new if key not in old}
        assert fresh == {"head.weight", "sos.weight" if kind == "class" else "sos"}
        assert all(torch.equal(new[key], old[key]) for key in new if key not in fresh)
        assert not torch.equal(new["head.weight"], old["head_img.weight"])
        assert abs(new["head.weight"].std() - 0.02) < 0.002
        again = start(load_transformer(source), recipe, 5).state_dict()
        assert all(torch.equal(new[key], again[key]) for key in fresh)


@pytest.mark.parametrize("changes", [{}, {"lora": 4}, {"dtype": "bf16"}, {"kind": "unconditional"}])
def test_the_loss_falls(tmp_path, source, images, changes) -> None:
    recipe = dataclasses.replace(SMALL, epochs=12, rate=2e-2, micro_batch=6, **changes)
    losses = []
    transfer(
        source, images, tmp_path / "out", recipe, on_epoch=lambda done, nats: losses.append(nats)
    )
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.2 and losses[-1] < math.log(CODES) - 0.5, losses


def test_without_validation_there_is_no_figure(tmp_path, source, images) -> None:
    seen = []
    recipe = dataclasses.replace(SMALL, val=0, epochs=1)
    transfer(source, images, tmp_path / "out", recipe, on_epoch=lambda *told: seen.append(told))
    assert seen == [(1, None)]


# -- LoRA --------------------------------------------------------------------------------------


def test_merged_lora_equals_unmerged(source) -> None:
    network = start(load_transformer(source), Recipe("class"), 3)
    told, tokens = torch.tensor([[0], [2]]), torch.arange(2 * GRID**2).view(2, -1) % CODES
    plain, keys = network(told, tokens), list(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    add_lora(network, 3, generator)
    layers = [layer for layer in network.modules() if isinstance(layer, LowRank)]
    assert len(layers) == 2 * 6 and all(layer.down.shape[0] == 3 for layer in layers)
    assert torch.equal(network(told, tokens), plain)  # it begins as what it adapts
    for layer in layers:
        torch.nn.init.normal_(layer.up, 0, 0.1, generator=generator)
    unmerged = network(told, tokens)
    merge_lora(network)
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(told, tokens), unmerged, atol=1e-6, rtol=1e-5)
    assert (plain - unmerged).abs().max() > 1e-3


def test_lora_leaves_the_rest_alone(tmp_path, source, images) -> None:
    recipe = dataclasses.replace(SMALL, lora=2)
    out = transfer(source, images, tmp_path / "out", recipe)
    begun = start(load_transformer(source), dataclasses.replace(recipe, lora=None), 2).state_dict()
    made = load_transformer(source_of(str(out), [])).network.state_dict()
    changed = {key for key in made if not torch.equal(made[key], begun[key])}
    linear = {k for k in made if k.endswith(".weight") and (".attn." in k or ".mlp." in k)}
    assert changed == linear | {"head.weight", "sos.weight"}
    difference = made["blocks.0.mlp.0.weight"] - begun["blocks.0.mlp.0.weight"]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2


# -- codes -------------------------------------------------------------------------------------


def test_codes_are_cached(tmp_path, source, monkeypatch) -> None:
    images = draw(tmp_path / "images", "a", "b", each=10)
    tokenizer, cache = load_vqgan(source), tmp_path / "codes.pt"
    encoded = []
    real = codes_module.encode

    def counting(network, pictures):
        encoded.append(len(pictures))
        return real(network, pictures)

    monkeypatch.setattr(codes_module, "encode", counting)

    def run(stopped=lambda: False):
        encoded.clear()
        names = find_pictures(images)
        return coded(images, names, tokenizer, cache, CPU, stopped=stopped, warn=print)

    with pytest.raises(Unfinished, match="16 of 20"):
        run(stopped=after(1))
    assert sum(encoded) == 16
    names, codes = run()
    assert sum(encoded) == 4 and len(names) == 20
    assert codes.shape == (20, GRID**2) and codes.dtype == torch.int16
    for name, row in zip(names, codes, strict=True):
        picture = torch.tensor(read_picture(images / name, SIZE)).permute(2, 0, 1)
        wanted = vqgan().get_codes(picture[None] / 127.5 - 1)
        assert (row.view(GRID, GRID) == wanted[0]).float().mean() > 0.9
    assert torch.equal(run()[1], codes) and not encoded
    (images / "b" / "9.png").unlink()
    os.utime(images / "a" / "3.png", ns=(0, 0))
    Image.new("RGB", (40, 30), "red").save(images / "a" / "new.png")
    names, more = run()
    assert sum(encoded) == 2 and len(names) == 20
    kept = dict(zip(names, more, strict=True))
    assert torch.equal(kept["a/9.png"], codes[9]) and torch.equal(kept["b/8.png"], codes[18])
    tokenizer.network.quantize.embedding.weight[0] += 1
    run()
    assert sum(encoded) == 20
    cache.write_bytes(cache.read_bytes()[:100])
    run()
    assert sum(encoded) == 20


def test_pictures_are_cut_as_published(tmp_path) -> None:
    wide = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    wide[:, SIZE : 2 * SIZE] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_picture(tmp_path / "wide.png", SIZE) == 200).all()
    for mode in ("L", "RGBA", "P", "CMYK"):
        Image.new(mode, (50, 40)).save(tmp_path / f"{mode}.tiff")
        assert read_picture(tmp_path / f"{mode}.tiff", SIZE).shape == (SIZE, SIZE, 3)


def test_a_broken_picture_is_named_and_left_out(tmp_path, source) -> None:
    images = draw(tmp_path / "images", "a", "b")
    (images / "a" / "bad.jpg").write_bytes(b"no picture")
    whole = (images / "a" / "0.png").read_bytes()
    (images / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "a" / "notes.txt").write_text("no picture either")
    (images / ".hidden.png").write_bytes(b"")
    (images / "loose.png").write_bytes(whole)
    warnings = []
    recipe = dataclasses.replace(SMALL, epochs=1)
    transfer(source, images, tmp_path / "out", recipe, warn=warnings.append)
    assert len(warnings) == 3 and "1 pictures lie in no sub-folder" in warnings[0]
    assert {name for name in ("bad.jpg", "cut.png") for w in warnings[1:] if name in w} == {
        "bad.jpg",
        "cut.png",
    }


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 0}, "--batch 0: give 1 or more"),
        ({"micro_batch": 0}, "--micro-batch 0"),
        ({"lora": 0}, "--lora 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"save_every": -1}, "--save-every -1"),
        ({"rate": 0.0}, r"--lr 0\.0"),
        ({"rate": math.nan}, "--lr nan"),
        ({"val": 1.0}, r"--val 1\.0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**70}, "--seed 1180591620717411303424: give 0 to"),
        ({"lora": 1_000_000}, "--lora 1000000 is more than the .* wide"),
        ({"batch": 19}, "leaves 18 pictures.*fewer than a batch of 19.*smaller --batch"),
        ({"rate": 1e30}, "loss is .* at step .*lower --lr"),
    ],
)
def test_options_that_make_no_sense(tmp_path, source, images, changes, said) -> None:
    with pytest.raises(UserError, match=said):
        transfer(source, images, tmp_path / "out", dataclasses.replace(SMALL, **changes))
    assert not (tmp_path / "out" / "config.json").exists()


def test_pictures_that_do_not_fit(tmp_path, source, images) -> None:
    def refused(folder: Path, said: str, kind: str = "class") -> None:
        with pytest.raises(UserError, match=said):
            transfer(source, folder, tmp_path / "out", dataclasses.replace(SMALL, kind=kind))

    refused(tmp_path / "none", r"none' is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty' holds no pictures")
    refused(images / "dark", "no sub-folder with pictures.*--kind unconditional")
    refused(draw(tmp_path / "one", "lonely"), r"one class \('lonely'\).*at least two")
    # A class whose pictures are all broken is none.
    (tmp_path / "one" / "broken").mkdir()
    (tmp_path / "one" / "broken" / "a.png").write_bytes(b"no")
    refused(tmp_path / "one", r"one class \('lonely'\)")
    refused(tmp_path / "one" / "broken", "no picture in .* can be read", "unconditional")


def test_output_folders_that_do_not_fit(tmp_path, source, images) -> None:
    out = tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        transfer(source, images, out, SMALL)
    out.unlink()
    out.mkdir()
    (out / "thesis.doc").touch()
    with pytest.raises(UserError, match=r"holds something else.*new folder"):
        transfer(source, images, out, SMALL)
    (out / "thesis.doc").unlink()
    transfer(source, images, out, SMALL)  # an empty folder is fine
    with pytest.raises(UserError, match="finished model already"):
        transfer(source, images, out, SMALL)


def test_a_state_of_another_training_is_refused(tmp_path, source, images) -> None:
    out = tmp_path / "out"
    with pytest.raises(Unfinished):
        transfer(source, images, out, SMALL, stopped=after(9))

    def refused(said: str, images=images, source=source, **changes) -> None:
        with pytest.raises(UserError, match=said):
            transfer(source, images, out, dataclasses.replace(SMALL, **changes))

    refused(r"--lr 0\.01 instead of 0\.02", rate=0.02)
    refused("--lora None instead of 2", lora=2)
    refused("--kind class instead of unconditional", kind="unconditional")
    refused("other images", images=draw(tmp_path / "other", "dark", "light", each=11))
    refused("other classes", images=draw(tmp_path / "named", "dark", "pale"))
    folder = write_original(tmp_path / "again")
    state = torch.load(folder / "stage2_last.ckpt")
    state["state_dict"]["ln_f.bias"] += 1
    torch.save(state, folder / "stage2_last.ckpt")
    refused("with other source", source=source_of(str(folder), []))
    # What changes rounding or nothing is free.
    transfer(source, images, out, dataclasses.replace(SMALL, micro_batch=3, save_every=1))


def test_a_poisoned_state_runs_nothing(tmp_path, source, images) -> None:
    class Poison:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    out = tmp_path / "out"
    (out / ".training").mkdir(parents=True)
    for name in ("state.pt", "codes.pt"):
        torch.save({"step": Poison(), "vqgan": Poison()}, out / ".training" / name)
    with pytest.raises(UserError, match=r"state\.pt' cannot be read.*Remove it"):
        transfer(source, images, out, SMALL)
    assert not (tmp_path / "ran").exists()


def test_models_that_do_not_belong_together(tmp_path, images) -> None:
    folder = write_original(tmp_path / "m")
    torch.save({"state_dict": vqgan(codes=30).state_dict()}, folder / "stage1_last.ckpt")
    with pytest.raises(UserError, match=r"4x4 of 30 codes.*reads 16 of 24.*one model"):
        transfer(source_of(str(folder), []), images, tmp_path / "out", SMALL)


def test_a_device_that_is_not_there(tmp_path, source, images) -> None:
    with pytest.raises(UserError, match="--device abacus cannot be used"):
        transfer(source, images, tmp_path / "out", SMALL, "abacus")


# -- the command -------------------------------------------------------------------------------


def command(source, images: Path, out: Path, *more: str) -> list[str]:
    where = ["--source", str(source.path), "--images", str(images), "--out", str(out)]
    small = ["--batch", "6", "--micro-batch", "2", "--epochs", "2", "--lr", "0.01"]
    return ["train", "mindalle-transfer", *where, *small, "--device", "cpu", *more]


def test_the_command_stops_at_ctrl_c_and_goes_on(
    tmp_path, source, images, capsys, monkeypatch
) -> None:
    assert cli.main(command(source, images, tmp_path / "whole")) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "whole")
    assert "epoch 2 of 2: validation" in told.err
    calls = iter(range(7))
    real = transfer_module._nats

    def pressed(*arguments):
        if next(calls, None) == 6:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(transfer_module, "_nats", pressed)
    handler = signal.getsignal(signal.SIGINT)
    assert cli.main(command(source, images, tmp_path / "parts")) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopped at step 2 of 6; the same command goes on" in capsys.readouterr().err
    assert cli.main(command(source, images, tmp_path / "parts")) == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, source, images, capsys) -> None:
    assert cli.main(command(source, tmp_path / "none", tmp_path / "out")) == 1
    assert cli.main(command(source, images, tmp_path / "out", "--lora", "0")) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("prior-art: '") for line in lines[:1])
    assert "--lora 0" in lines[1]


def test_sources_have_names_too(tmp_path, monkeypatch, capsys) -> None:
    write_original(tmp_path / "models" / "1.3B")
    assert source_of("1.3B", [tmp_path / "models"]).path == tmp_path / "models" / "1.3B"
    with pytest.raises(UserError, match=r"no ar transformer called 'x'.*There are: .*1\.3B"):
        source_of("x", [tmp_path / "models"])


def test_help_says_what_starts_anew(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "mindalle-transfer", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "'sos' (the classes, or the one start) and 'head' start anew" in said


def test_each_folder_of_pictures_once(tmp_path) -> None:
    images = draw(tmp_path / "images", "a", "b", each=2)
    before = find_pictures(images)
    (images / "a" / "up").symlink_to(images)
    (images / "b" / "l").symlink_to(".")
    (images / "0").symlink_to(images / "b")  # sorts before it, and is not its own name
    assert find_pictures(images) == before == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    draw(tmp_path / "elsewhere", "c", each=1)
    (images / "c").symlink_to(tmp_path / "elsewhere" / "c")
    assert find_pictures(images) == [*before, "c/0.png"]


def test_what_is_no_file_is_named_and_left_out(tmp_path, source) -> None:
    images = draw(tmp_path / "images", "a", "b")
    (images / "a" / "gone.png").symlink_to(tmp_path / "gone")
    os.mkfifo(images / "b" / "pipe.png")
    (images / "b" / "zz.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    warnings: list[str] = []
    recipe = dataclasses.replace(SMALL, epochs=1)
    transfer(source, images, tmp_path / "out", recipe, warn=warnings.append)
    assert sorted(w.split("'")[1].rpartition("/")[2] for w in warnings) == [
        "gone.png",
        "pipe.png",
        "zz.jpg",
    ]


def test_what_a_killed_training_left_is_removed(tmp_path, source, images) -> None:
    work = tmp_path / "out" / ".training"
    work.mkdir(parents=True)
    (work / "state.pt.4194999.part").write_bytes(b"15 GB")
    with pytest.raises(Unfinished):
        transfer(source, images, tmp_path / "out", SMALL, stopped=after(9))
    assert sorted(p.name for p in work.iterdir()) == ["codes.pt", "state.pt"]


def test_two_trainings_at_once(tmp_path, source, images) -> None:
    def twice() -> bool:
        with pytest.raises(UserError, match="another process is at work"):
            transfer(source, images, tmp_path / "out", SMALL)
        return True

    with pytest.raises(Unfinished):
        transfer(source, images, tmp_path / "out", SMALL, stopped=twice)
