"""Configurations that nothing sound can be built of: refused at once, with key, value and range."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.loaders import clip, kandinsky, karlo, koala, mindalle, rerank, unclip
from prior_art.loaders.files.catalogue import EMBEDDED_ROOT, Source
from prior_art.loaders.files.checkpoint import CheckpointError, load_strict
from prior_art.loaders.files.configs import TABLES, Rule, check_config
from prior_art.loaders.files.libraries import LibraryError

CLEAR = (CheckpointError, EdgeError, LibraryError)
"""What a user can mend."""

VALUES: list[Any] = [
    *(None, "abc", "", True, -1, 0, 1.5, 1e5, 10**5, 10**9, 10**30),
    *(float("nan"), float("inf"), [], [None], [[[]]], [1] * 100, {}, {"a": 1}),
]

Load = Callable[[Source], Any]


def _encode(source: Source) -> None:
    _encode_by(unclip.load_text_encoder(source))


def _encode_by(encoder: unclip.TextEncoder) -> None:
    ids, mask, _ = clip.tokenize(encoder.tokenizer, ["a red circle"])
    told = {"attention_mask": mask} if getattr(encoder.network, "reads_mask", False) else {}
    with torch.no_grad():
        made = encoder.network(input_ids=ids, **told)
    hidden = made[0] if isinstance(made, tuple) else made.last_hidden_state
    assert bool(torch.isfinite(hidden).all())


def _look(source: Source) -> None:
    encoder = unclip.load_image_encoder(source)
    with torch.no_grad():
        pixels = encoder.preprocess(torch.zeros(1, 40, 30, 3))
        assert bool(torch.isfinite(encoder.network(pixel_values=pixels)[0]).all())


FILES: dict[str, Load] = {
    "karlo/text_encoder/config.json": _encode,
    "karlo/tokenizer/tokenizer_config.json": _encode,
    "karlo/image_encoder/config.json": _look,
    "karlo/feature_extractor/preprocessor_config.json": _look,
    "karlo/prior/config.json": unclip.load_prior,
    "karlo/prior_scheduler/scheduler_config.json": lambda s: unclip.load_prior(s).schedule.betas(),
    "karlo/decoder/config.json": karlo.load_decoder,
    "karlo/text_proj/config.json": karlo.load_decoder,
    "karlo/super_res_first/config.json": karlo.load_upscaler,
    "karlo/super_res_last/config.json": karlo.load_upscaler,
    "kandinsky/decoder/unet/config.json": kandinsky.load_latent_decoder,
    "kandinsky/decoder/movq/config.json": kandinsky.load_movq,
    "kandinsky/decoder/scheduler/scheduler_config.json": lambda s: kandinsky.load_latent_decoder(
        s
    ).schedule.timesteps(5),
    "kandinsky/2-1/text_encoder/config.json": lambda s: _encode_by(kandinsky.load_mclip(s)),
    "koala/700m/unet/config.json": lambda s: koala.facts_of(koala.load_unet(s), None),
    "koala/700m/scheduler/scheduler_config.json": lambda s: koala.load_unet(s).schedule.steps(5),
    "koala/700m/vae/config.json": koala.load_vae,
    "mindalle/config.json": lambda s: (mindalle.load_vqgan(s), mindalle.load_transformer(s)),
    "clip/config.json": rerank.load_reranker,
}
"""A configuration of each component, and what reads it."""

MEMBERS = ("karlo", "kandinsky/decoder", "kandinsky/2-1", "koala/700m", "mindalle", "clip")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for member in MEMBERS:
        shutil.copytree(EMBEDDED_ROOT / member, root / member)
    return root


def read(file: str, weights: Path) -> None:
    member = next(name for name in MEMBERS if file.startswith(f"{name}/"))
    system = member.partition("/")[0]
    source = Source(member, "folder", weights / member, system, frozenset(), (weights,))
    FILES[file](source)


@pytest.fixture
def changed(weights: Path) -> Any:
    """Write a configuration with some changes; it is as it was afterwards."""
    kept: dict[Path, bytes] = {}

    def change(file: str, **changes: Any) -> None:
        path = weights / file
        kept.setdefault(path, path.read_bytes())
        path.write_text(json.dumps(json.loads(kept[path]) | changes))

    yield change
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize("file", FILES)
def test_each_is_read_or_refused_in_words(file: str, weights: Path, changed: Any) -> None:
    read(file, weights)
    numbers = random.Random(file)
    keys = [key for key in json.loads((weights / file).read_text()) if not key.startswith("_")]
    for _ in range(8):
        key, value = numbers.choice(keys), numbers.choice(VALUES)
        changed(file, **{key: value})
        started = time.monotonic()
        try:
            read(file, weights)
        except CLEAR as error:
            assert "\n" not in str(error) and len(str(error)) < 900
        except Exception as error:
            pytest.fail(f"{file}: {key} = {value!r}: {error!r}")
        assert time.monotonic() - started < 10, (key, value)


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("karlo/prior/config.json", "num_layers", 10**5, "whole number from 1 to 10000"),
        ("karlo/prior/config.json", "num_layers", 9000, r"less: its weights are \d+ tensors"),
        ("karlo/text_encoder/config.json", "num_hidden_layers", 9000, "less: its weights are"),
        ("karlo/text_encoder/config.json", "architectures", 5, "text, or a list of such, or null"),
        ("karlo/text_encoder/config.json", "layer_norm_eps", float("nan"), "a number from 1e-12"),
        ("karlo/text_encoder/config.json", "layer_norm_eps", None, "a number from 1e-12"),
        ("karlo/text_encoder/config.json", "eos_token_id", None, "a whole number from 0"),
        ("karlo/super_res_first/config.json", "sample_size", 7, "a multiple of 4"),
        ("karlo/super_res_last/config.json", "sample_size", [7, 7], "a multiple of 4"),
        ("karlo/decoder/config.json", "sample_size", 18, "a multiple of 4"),
        ("karlo/decoder/config.json", "sample_size", None, "one number for both sides"),
        ("karlo/super_res_first/config.json", "sample_size", [8], "one number for both sides"),
        ("karlo/super_res_first/config.json", "sample_size", [], "a list of such"),
        ("kandinsky/2-1/text_encoder/config.json", "pad_token_id", None, "a whole number from 0"),
        ("koala/700m/unet/config.json", "layers_per_block", 9000, "less: its weights are"),
        ("koala/700m/unet/config.json", "layers_per_block", [9000, 1, 1], "less: its weights are"),
        ("koala/700m/vae/config.json", "scaling_factor", float("nan"), "a number from 1e-06"),
        ("kandinsky/decoder/movq/config.json", "layers_per_block", 9000, "less: its weights are"),
        (
            "karlo/prior_scheduler/scheduler_config.json",
            "num_train_timesteps",
            10**9,
            "a whole number from 2 to 10000",
        ),
        ("karlo/feature_extractor/preprocessor_config.json", "size", 10**5, "from 1 to 4096"),
        (
            "karlo/feature_extractor/preprocessor_config.json",
            "image_mean",
            [None],
            "a list of 3, each a number from -10 to 10",
        ),
        ("karlo/tokenizer/tokenizer_config.json", "model_max_length", "abc", "a whole number"),
        ("karlo/tokenizer/tokenizer_config.json", "model_max_length", 512, "at most the encoder's"),
    ],
)
def test_file_key_value_and_range(
    file: str, key: str, value: Any, said: str, weights: Path, changed: Any
) -> None:
    changed(file, **{key: value})
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"says {key} .*{said}.*Download") as seen:
        read(file, weights)
    assert str(weights / file.rpartition("/")[0]) in str(seen.value) or "preprocessor" in file
    assert time.monotonic() - started < 5


def test_tokens_beyond_the_table(weights: Path) -> None:
    path = weights / "karlo" / "tokenizer" / "tokenizer.json"
    kept = path.read_bytes() if path.is_file() else None
    names = [path] if kept else [path.with_name("vocab.json")]
    before = names[0].read_bytes()
    value = json.loads(before)
    words = value["model"]["vocab"] if kept else value
    words[next(word for word in words if word.isalpha())] = 10**6
    names[0].write_text(json.dumps(value))
    try:
        with pytest.raises(CheckpointError, match="a token's id 1000000, but it must be one of"):
            read("karlo/text_encoder/config.json", weights)
    finally:
        names[0].write_bytes(before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_plain_numbers(dtype: torch.dtype) -> None:
    network = torch.nn.Linear(2, 2)
    state = {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"no plain numbers: weight in \w+.*fp32, fp16"):
        load_strict(network, state, "a.safetensors")


def test_everything_published_is_within_the_tables() -> None:
    for path in EMBEDDED_ROOT.rglob("*config.json"):
        config = json.loads(path.read_text())
        kind = config.get("_class_name", "")
        if path.name == "config.json" and kind in TABLES:
            check_config(kind, config, str(path), None)
        elif path.name == "scheduler_config.json":
            check_config("scheduler", config, str(path), None)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (Rule("whole", 1, 9), [1, 9], [0, 10, 1.0, True, None, [1], "1", float("nan")]),
        (Rule("number", 0, 1), [0, 0.5, 1], [float("nan"), float("inf"), -0.1, True, "0"]),
        (Rule("number", 0, 1, none=True, listed=True), [None, [0, [1]]], [[2], [0] * 17, {}]),
        (Rule("number", 0, 1, length=3), [[0, 1, 0]], [[0, 1], 0, None, [0, 1, [0]]]),
        (Rule("switch"), [True, False], [0, 1, None, "true"]),
        (Rule("text"), ["a"], [None, 5, ["a"], "a" * 201]),
    ],
)
def test_rules(rule: Rule, good: list[Any], bad: list[Any]) -> None:
    assert all(rule.holds(value) for value in good)
    assert not any(rule.holds(value) for value in bad) and "\n" not in str(rule)
