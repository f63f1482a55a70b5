"""minDALL-E's sources, folders, configs and tokenizer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prior_art.edges import EdgeError, UserError
from prior_art.loaders.files import catalogue as sources
from prior_art.loaders.files.catalogue import Source, find_source, list_sources
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.loaders.mindalle import (
    Settings,
    load_tokenizer,
    load_transformer,
    load_vqgan,
    read_settings,
    tokenize,
    write_settings,
)
from prior_art.networks.mindalle_vqgan import encode

from .draw import random
from .mindalle_originals import (
    CODES,
    GRID,
    SIZE,
    TEXT,
    VOCABULARY,
    WIDTH,
    transformer,
    vqgan,
    write_original,
    write_tokenizer,
)

pytestmark = pytest.mark.usefixtures("alone")


def source_of(folder: Path) -> Source:
    return find_source(folder.name, "ar_transformer", [folder.parent])


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_original(tmp_path / "models" / "1.3B")


def write_own(folder: Path, kind: str = "text") -> Path:
    write_tokenizer(folder)
    save_file(vqgan().state_dict(), folder / "vqgan.safetensors")
    save_file(transformer(kind), folder / "transformer.safetensors")
    write_settings(folder, Settings(SIZE, 4))
    return folder


# -- sources -----------------------------------------------------------------------------------


def test_both_layouts_are_listed(original: Path) -> None:
    models = original.parent
    write_own(models / "mine")
    (models / "other").mkdir()
    (models / "other" / "vqgan.safetensors").touch()  # not ours: nothing says so
    (models / "half").mkdir()
    (models / "half" / "stage1_last.ckpt").touch()
    (models / "more").mkdir()
    for name in ("1.3B.tar.gz", "minDALL-E.zip", "mindalle_weights.tgz", "karlo.zip"):
        (models / "more" / name).touch()
    archives = ["more/1.3B.tar.gz", "more/minDALL-E.zip", "more/mindalle_weights.tgz"]

    def names(stage: str) -> list[str]:
        return [source.name for source in list_sources(stage, [models])]

    assert names("ar_transformer") == ["1.3B", "mine", *archives]
    assert names("vqgan") == ["1.3B", "half", "mine", *archives]
    assert names("prior") == names("reranker") == []
    found = find_source("1.3B", "vqgan", [models])
    assert (found.kind, found.system, found.path) == ("folder", "mindalle", original)
    with pytest.raises(UserError, match=r"'half' holds no ar transformer \(only vqgan\)"):
        find_source("half", "ar_transformer", [models])
    with pytest.raises(UserError, match=r"no vqgan called 'x'.*There are: 1.3B.*1.3B\.tar\.gz"):
        find_source("x", "vqgan", [models])


def test_loose_files_hide_nothing(original: Path, hub: Path) -> None:
    models = original.parent
    for file in original.iterdir():
        file.rename(models / file.name)
    shutil.copytree(hub, models / "karlo")
    assert [s.name for s in list_sources("vqgan", [models])] == ["models"]
    assert [s.name for s in list_sources("prior", [models])] == ["karlo"]


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "EMBEDDED_ROOT", tmp_path)
    assert list_sources("vqgan", []) == []
    write_own(tmp_path / "mindalle")
    (found,) = list_sources("ar_transformer", [])
    assert (found.name, found.kind) == ("shapes-mindalle", "embedded")
    assert load_vqgan(found).image_size == SIZE


# -- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_original, write_own])
def test_layouts_hold_the_same(tmp_path: Path, write) -> None:
    folder = write(tmp_path / "m")
    source = source_of(folder)
    tokenizer, network = load_vqgan(source), load_transformer(source)
    assert (tokenizer.image_size, tokenizer.factor, tokenizer.codes) == (SIZE, 4, CODES)
    assert tokenizer.name.startswith(str(folder))
    pictures = random(2, 3, SIZE, SIZE)
    assert torch.equal(encode(tokenizer.network, pictures), vqgan().get_codes(pictures))
    config = network.config
    assert (config.layers, config.width, config.heads) == (2, WIDTH, 4)
    assert (config.image_vocab, config.image_tokens) == (CODES, GRID**2)
    assert (config.text_vocab, config.text_tokens) == (len(VOCABULARY), TEXT)
    assert network.kind == "text" and network.tokenizer is not None
    loaded = network.network.state_dict()
    wanted = transformer("text")
    assert set(loaded) == set(wanted)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in wanted.items())
    assert not any(p.requires_grad for p in network.network.parameters())


@pytest.mark.parametrize("kind", ["class", "unconditional"])
def test_variants_are_recognised(tmp_path: Path, kind: str) -> None:
    folder = write_original(tmp_path / "m", kind)
    shutil.rmtree(folder / "tokenizer")  # they have none
    network = load_transformer(source_of(folder), torch.bfloat16)
    assert network.kind == kind and network.tokenizer is None
    assert network.config.classes == (5 if kind == "class" else None)
    context = torch.tensor([[3]]) if kind == "class" else None
    logits = network.network(context, torch.zeros(1, GRID**2, dtype=torch.long))
    assert logits.shape == (1, GRID**2, CODES) and logits.dtype == torch.bfloat16


def test_without_config_the_published_numbers_hold(original: Path) -> None:
    (original / "config.yaml").unlink()
    torch.save({"state_dict": transformer("text")}, original / "stage2_last.ckpt")
    assert load_vqgan(source_of(original)).image_size == 64  # 16 codes of 4 pixels
    assert load_transformer(source_of(original)).config.heads == 1  # as if 64 wide
    # A config.json of something else says nothing.
    (original / "config.json").write_text('{"heads": 2}')
    assert load_transformer(source_of(original)).config.heads == 1


def test_configs(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = original / "config.yaml"
    assert read_settings(original) == Settings(SIZE, 4)
    for text, words in (
        ("stage2: {hparams: {n_heads: many}}", r"config\.yaml' says 'many' where a positive"),
        ("stage2: {hparams: {n_heads: 0}}", "says 0 where"),
        ("stage2: {hparams: {gelu_use_approx: true}}", "approximate GELU"),
        ("{", r"config\.yaml' is not YAML"),
        ("a: !!python/object/apply:os.mkdir [ran]", r"config\.yaml' is not YAML"),
    ):
        yaml.write_text(text)
        with pytest.raises(CheckpointError, match=words):
            read_settings(original)
    assert not Path("ran").exists()
    for text in ("", "[1]", "stage2: 3"):
        yaml.write_text(text)
        assert read_settings(original) == Settings()
    yaml.write_text("stage2: {hparams: {n_heads: 5}}")
    with pytest.raises(CheckpointError, match=f"{WIDTH} wide, which 5 attention heads"):
        load_transformer(source_of(original))
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert read_settings(original) == Settings()
    write_settings(original, Settings(SIZE, 2, 16))
    assert read_settings(original) == Settings(SIZE, 2, 16)


def test_strict(original: Path) -> None:
    state = transformer("text")
    del state["blocks.1.attn.key.bias"]
    torch.save({"state_dict": state | {"extra": random(1)}}, original / "stage2_last.ckpt")
    words = r"stage2_last.*lacks blocks\.1\.attn\.key\.bias and holds unknown extra"
    with pytest.raises(CheckpointError, match=words):
        load_transformer(source_of(original))
    torch.save({"state_dict": vqgan().state_dict()}, original / "stage2_last.ckpt")
    with pytest.raises(CheckpointError, match=r"no minDALL-E transformer: it lacks tok_emb_img"):
        load_transformer(source_of(original))
    torch.save({"state_dict": transformer("text")}, original / "stage1_last.ckpt")
    with pytest.raises(CheckpointError, match="no VQGAN"):
        load_vqgan(source_of(original))


def test_damaged_weights(original: Path) -> None:
    path = original / "stage2_last.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"stage2_last\.ckpt' is truncated"):
        load_transformer(source_of(original))
    state = transformer("text")
    state["ln_f.bias"][3] = float("nan")
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"stage2_last.*NaN or infinite numbers in 'ln_f"):
        load_transformer(source_of(original))
    source = source_of(original)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds neither transformer.safetensors nor stage2"):
        load_transformer(source)
    shutil.rmtree(original)
    with pytest.raises(CheckpointError, match=r"1\.3B' is missing"):
        load_transformer(source)


class Callback:
    """Stands for Lightning's."""


def test_python_objects_are_refused_with_the_cure(original: Path) -> None:
    content = {"state_dict": vqgan().state_dict(), "callbacks": {Callback: 1}}
    torch.save(content, original / "stage1_last.ckpt")
    words = rf"objects beside its tensors \(.*Callback\).*convert mindalle '{original}' '.*-safe'"
    with pytest.raises(CheckpointError, match=words):
        load_vqgan(source_of(original))


def test_links_out_of_the_model_folder(original: Path, tmp_path: Path) -> None:
    source = source_of(original)
    for name in ("stage1_last.ckpt", "config.yaml"):
        (original / name).rename(tmp_path / name)
        (original / name).symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name}' leads out of the model folders"):
            load_vqgan(source)
        (original / name).unlink()
        (tmp_path / name).rename(original / name)


# -- tokenizer ---------------------------------------------------------------------------------


def test_tokens_equal_the_published_calls(original: Path) -> None:
    from tokenizers import CharBPETokenizer

    files = (original / "tokenizer" / f"bpe-16k-{name}" for name in ("vocab.json", "merges.txt"))
    published = CharBPETokenizer.from_file(*map(str, files), unk_token="[UNK]", lowercase=True)
    published.add_special_tokens(["[PAD]"])
    published.enable_padding(length=TEXT, pad_id=published.token_to_id("[PAD]"))
    published.enable_truncation(max_length=TEXT)
    prompts = [
        "Red",
        "",
        "red  bed\tcab, red a red",
        "a \u65e5\u672c \U0001f408 b",
        "[PAD] red [UNK]",
        "\x00",
    ]
    tokens = tokenize(load_tokenizer(original), prompts, TEXT)
    assert tokens.ids.tolist() == [published.encode(prompt).ids for prompt in prompts]
    assert tokens.ids.dtype == torch.long and tokens.ids.shape == (len(prompts), TEXT)
    assert tokens.ids[0].tolist() == [VOCABULARY.index("red</w>"), 0, 0, 0, 0, 0]
    assert tokens.ids[1].tolist() == [0] * TEXT


def test_what_was_cut_and_what_is_unknown(original: Path) -> None:
    prompts = [
        "Red red red RED red red",
        "red red red red Red red red, Bed",
        "\U0001f408 red \u672c\U0001f408",
    ]
    tokens = tokenize(load_tokenizer(original), prompts, TEXT)
    assert tokens.cut == ["", "red, Bed", ""]
    assert tokens.unknown == ["", "", "\U0001f408\u672c"]
    with pytest.raises(TypeError, match="must be text, not int"):
        tokenize(load_tokenizer(original), [3], TEXT)


def test_wrong_tokenizers(original: Path) -> None:
    source = source_of(original)
    write_tokenizer(original, [*VOCABULARY, "z"])
    size = len(VOCABULARY)
    with pytest.raises(EdgeError, match=f"has {size + 1} entries, but .*trained with {size}"):
        load_transformer(source)
    vocabulary = original / "tokenizer" / "bpe-16k-vocab.json"
    for ids in ({"a": 0, "b": 1}, {"[UNK]": 0, "a": 7}, {"[UNK]": 0, "a": "x"}, {"[UNK]": [0]}):
        vocabulary.write_text(json.dumps(ids))
        with pytest.raises(CheckpointError, match=r"vocab\.json' is no vocabulary"):
            load_transformer(source)
    write_tokenizer(original)
    merges = original / "tokenizer" / "bpe-16k-merges.txt"
    merges.write_text("#version\nno such words\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt' is damaged"):
        load_transformer(source)
    merges.unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt' is missing. Copy the folder"):
        load_transformer(source)
