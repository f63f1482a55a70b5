"""Finding sources: cheap, inside the model folders, with words where nothing is found."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from prior_art.edges import SPACES, UserError
from prior_art.loaders.files import catalogue as sources
from prior_art.loaders.files.catalogue import find_source, list_sources

pytestmark = pytest.mark.usefixtures("alone")
EVERY = tuple(sources.SYSTEMS["karlo"].stages)


def names(stage: str, *folders: Path) -> list[str]:
    return [source.name for source in list_sources(stage, folders)]


def test_hub_folder_holds_every_stage(hub: Path) -> None:
    for stage in EVERY:
        (found,) = list_sources(stage, [hub.parent])
        assert (found.name, found.kind, found.path) == ("karlo", "folder", hub)
        assert found.stages == set(EVERY)
    assert names("prior", hub) == ["karlo"]  # a model folder may be the source itself


def test_order_and_embedded(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "EMBEDDED_ROOT", hub.parent)
    models = tmp_path / "models"
    shutil.copytree(hub, models / "zz")
    (models / "prior-ckpt-step=01000000-of-01000000.ckpt").touch()
    (models / "prior_fp16.ckpt").touch()  # Kandinsky 2.1's
    found = list_sources("prior", [models])
    assert [s.name for s in found] == [
        "shapes-karlo",
        "zz",
        "prior-ckpt-step=01000000-of-01000000.ckpt",
        "prior_fp16.ckpt",
    ]
    assert [s.kind for s in found] == ["embedded", "folder", "checkpoint", "checkpoint"]
    assert [s.system for s in found] == ["karlo", "karlo", "karlo", "kandinsky-prior"]


def test_nothing_is_opened_and_partial_is_never_listed(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub, tmp_path / "karlo-v1-alpha.partial")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "ViT-L-14.pt").write_bytes(b"no checkpoint at all")
    (tmp_path / "empty").mkdir()
    assert names("prior", tmp_path) == []
    # Nothing beside it says whose it is.
    either = ["deep/er/ViT-L-14.pt", "deep/er/ViT-L-14.pt (Kandinsky 2.1)"]
    assert names("text_encoder", tmp_path) == either
    assert names("image_encoder", tmp_path, tmp_path / "absent") == either


def test_partial_hub_folders(hub: Path, tmp_path: Path) -> None:
    for part in ("image_encoder", "feature_extractor"):
        shutil.copytree(hub / part, tmp_path / "variations" / part)
    assert names("image_encoder", tmp_path) == ["variations"]
    assert names("prior", tmp_path) == []
    # Another pipeline's folder has a text encoder of its own.
    shutil.copytree(hub, tmp_path / "other")
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    assert names("text_encoder", tmp_path) == []
    config = json.loads((hub / "prior" / "config.json").read_text())
    config["_class_name"] = "UNet2DModel"
    (tmp_path / "odd" / "prior").mkdir(parents=True)
    (tmp_path / "odd" / "prior" / "config.json").write_text(json.dumps(config))
    assert names("prior", tmp_path) == []


def test_equal_names_are_told_apart(hub: Path, tmp_path: Path) -> None:
    for root in ("a", "b", "c/a"):
        shutil.copytree(hub, tmp_path / root / "karlo")
    roots = [tmp_path / "a", tmp_path / "b", tmp_path / "c" / "a"]
    found = names("prior", *roots)
    assert found[:2] == ["karlo", "b/karlo"] and len(set(found)) == 3
    for name in found:
        assert find_source(name, "prior", roots).name == name
    assert names("prior", roots[0], roots[0]) == ["karlo"]


def test_links_out_of_the_folders_are_not_followed(hub: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "linked").symlink_to(hub)
    (models / "loop").symlink_to(models)
    assert names("prior", models) == []
    with pytest.raises(UserError, match=r"leads out of the model folders.*extra_model_paths"):
        find_source("linked", "prior", [models])
    assert names("prior", models, hub.parent) == ["linked"]


@pytest.mark.parametrize("name", ["../karlo", "/etc/passwd", "karlo/../karlo", "..", "", "x\\y"])
def test_names_are_never_paths(hub: Path, name: str) -> None:
    with pytest.raises(UserError, match="called"):
        find_source(name, "prior", [hub.parent])


def test_words(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prior called 'x'.*There are: karlo.*download karlo"):
        find_source("x", "prior", [hub.parent])
    with pytest.raises(UserError, match=r"There is none.*download karlo"):
        find_source("x", "prior", [tmp_path])
    shutil.copytree(hub / "prior", tmp_path / "some" / "prior")
    with pytest.raises(UserError, match=r"'some' holds no image encoder \(only prior\)"):
        find_source("some", "image_encoder", [tmp_path])
    with pytest.raises(UserError, match="unknown stage 'lens'"):
        list_sources("lens", [])


def test_listing_is_kept_until_something_changes(hub, tmp_path, monkeypatch):
    models = tmp_path / "models"
    shutil.copytree(hub, models / "one")
    walks = []
    walk = sources._walk
    monkeypatch.setattr(sources, "_walk", lambda *a, **k: walks.append(a) or walk(*a, **k))
    monkeypatch.setattr(sources, "SETTLED", -(10**15))  # stamps are taken at their word
    assert names("prior", models) == ["one"]
    count = len(walks)
    assert names("prior", models) == ["one"] and names("decoder", models) == ["one"]
    assert len(walks) == count
    shutil.copytree(hub, models / "two")
    assert names("prior", models) == ["one", "two"]
    config = models / "two" / "model_index.json"
    config.write_text('{"_class_name": "SomethingElseEntirely"}')
    assert names("prior", models) == ["one"]
    shutil.rmtree(models / "one")
    assert names("prior", models) == []


def test_a_list_of_what_was_just_written_is_made_anew(hub, tmp_path):
    """Two writes within a file system's tick leave one stamp."""
    shutil.copytree(hub, tmp_path / "one")
    assert names("prior", tmp_path) == ["one"]
    (listing,) = (one for key, one in sources._listings.items() if tmp_path in key)
    assert not listing.holds


def test_links_to_folders_that_are_there_are_entered_once(hub, tmp_path):
    shutil.copytree(hub, tmp_path / "m")
    for number in range(10):
        (tmp_path / f"a{number}").symlink_to(".", target_is_directory=True)
    (tmp_path / "m" / "l").symlink_to("..", target_is_directory=True)
    assert names("prior", tmp_path) == ["m"]


def test_only_an_embedded_member_may_say_that_a_component_lies_elsewhere(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, models = tmp_path / "family", tmp_path / "models"
    shutil.copytree(hub, family / "karlo")
    shutil.move(family / "karlo" / "prior", family / "prior")
    (family / "karlo" / "shared.json").write_text('{"prior": "../prior"}')
    monkeypatch.setattr(sources, "EMBEDDED_ROOT", family)
    (member,) = list_sources("prior", [])
    assert member.folder("prior") == family / "prior"
    assert member.folder("decoder") == family / "karlo" / "decoder"
    shutil.copytree(family / "karlo", models / "karlo")
    assert names("prior", models) == ["shapes-karlo"]
    found = find_source("karlo", "decoder", [models])
    assert found.folder("prior") == models / "karlo" / "prior"


def test_pipes_devices_and_large_files_are_no_sources_and_hold_nothing_up(
    hub: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for name in ("pipe", "zero", "large"):
        (models / name / "prior").mkdir(parents=True)
    for config in ("config.json", "model_index.json", "prior/config.json"):
        os.mkfifo(models / "pipe" / config)
        (models / "zero" / config).symlink_to("/dev/zero")
        (models / "large" / config).write_text('{"_class_name": "PriorTransformer"' + " " * 2**20)
    shutil.copytree(hub, models / "m")
    started = time.monotonic()
    found = names("prior", models)
    assert "m" in found and not {"pipe", "zero"} & set(found)
    assert time.monotonic() - started < 5


def test_a_folder_without_a_telling_name_costs_one_look(tmp_path: Path, monkeypatch) -> None:
    for i in range(50):
        (tmp_path / f"lora{i}").mkdir()
        (tmp_path / f"lora{i}" / "x.safetensors").touch()
    asked: list[Path] = []
    monkeypatch.setattr(sources, "_stages_of", lambda folder, *_: asked.append(folder) or set())
    list_sources("prior", [tmp_path])
    assert not [folder for folder in asked if folder.name.startswith("lora")]


def test_who_has_what_is_read_off_the_records():
    assert sources.titles("text_encoder") == "Karlo or Kandinsky"
    assert sources.titles("movq") == "Kandinsky"
    assert sources.download_of("text_encoder") == "prior-art download karlo"
    assert sources.repository_of("tokenizer") == "kakaobrain/karlo-v1-alpha"
    assert SPACES["openai-vit-l-14"].encoder == "OpenAI CLIP ViT-L/14 (Karlo, Kandinsky 2.1)"
    assert SPACES["laion-vit-bigg-14"].encoder == "OpenCLIP ViT-bigG/14 (Kandinsky 2.2)"


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff{broken"])
def test_a_damaged_index_makes_no_second_source_of_a_name(
    hub: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(hub, tmp_path / "karlo")
    (tmp_path / "karlo" / "model_index.json").write_text(text, encoding="utf-8")
    assert names("prior", tmp_path) == ["karlo"]


def test_a_config_may_begin_with_a_byte_order_mark(hub: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(hub, tmp_path / "models" / "one")) / "model_index.json"
    index.write_text('{"_class_name": "KandinskyV22PriorPipeline"}', encoding="utf-8-sig")
    (found,) = list_sources("prior", [tmp_path / "models"])
    assert found.system == "kandinsky-prior"
