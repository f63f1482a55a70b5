"""Karlo out of hub folders: the same networks, tokens and pixels as the libraries' own loading."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prior_art.edges import SPACES, EdgeError
from prior_art.loaders import clip, karlo, unclip
from prior_art.loaders.files import catalogue as sources
from prior_art.loaders.files.catalogue import Source, find_source
from prior_art.loaders.files.checkpoint import CheckpointError

from ..tiny import DIM
from .draw import random

LOADERS = {
    "text_encoder": unclip.load_text_encoder,
    "image_encoder": unclip.load_image_encoder,
    "prior": unclip.load_prior,
    "decoder": karlo.load_decoder,
    "upscaler": karlo.load_upscaler,
}


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, alone: None) -> None:
    """Loading never touches the network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(hub: Path, stage: str, dtype: torch.dtype = torch.float32):
    return LOADERS[stage](find_source(hub.name, stage, [hub.parent]), dtype)


@pytest.fixture
def copy(hub: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hub, tmp_path / "karlo"))


@pytest.mark.parametrize("stage", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ready_for_inference(hub: Path, stage: str, dtype: torch.dtype) -> None:
    network = load(hub, stage, dtype).network
    assert not network.training
    for parameter in network.parameters():
        assert parameter.dtype == dtype and parameter.device.type == "cpu"
        assert not parameter.requires_grad
    assert all(buffer.device.type == "cpu" for buffer in network.buffers())


def test_equal_to_the_libraries_own_loading(hub: Path) -> None:
    from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    pairs = [
        (load(hub, "text_encoder").network, CLIPTextModelWithProjection, "text_encoder"),
        (load(hub, "image_encoder").network, CLIPVisionModelWithProjection, "image_encoder"),
        (load(hub, "prior").network, PriorTransformer, "prior"),
        (load(hub, "decoder").network.unet, UNet2DConditionModel, "decoder"),
        (load(hub, "upscaler").network.first, UNet2DModel, "super_res_first"),
        (load(hub, "upscaler").network.last, UNet2DModel, "super_res_last"),
    ]
    for network, library, folder in pairs:
        oracle = library.from_pretrained(hub / folder, local_files_only=True)
        assert type(network) is type(oracle)
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        theirs = {**dict(oracle.named_parameters()), **dict(oracle.named_buffers())}
        assert set(own) == set(theirs)
        for key, tensor in theirs.items():
            assert torch.equal(own[key], tensor), key
    projection = load(hub, "decoder").network.text_proj.state_dict()
    saved = load_file(hub / "text_proj" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(projection[key], tensor) for key, tensor in saved.items())


def test_outputs_equal_the_libraries(hub: Path) -> None:
    from diffusers import PriorTransformer
    from transformers import CLIPTextModelWithProjection

    encoder = load(hub, "text_encoder")
    ids, mask, _ = clip.tokenize(encoder.tokenizer, ["a red circle", ""])
    oracle = CLIPTextModelWithProjection.from_pretrained(hub / "text_encoder")
    out, theirs = encoder.network(ids), oracle(ids)
    assert torch.equal(out.text_embeds, theirs.text_embeds)
    prior = PriorTransformer.from_pretrained(hub / "prior")
    args = (random(2, DIM), torch.tensor([999, 3]), out.text_embeds, out.last_hidden_state, mask)
    got = load(hub, "prior").network(*args).predicted_image_embedding
    assert torch.equal(got, prior(*args).predicted_image_embedding)


def test_schedules_and_sizes(hub: Path) -> None:
    prior, decoder, upscaler = (load(hub, stage) for stage in ("prior", "decoder", "upscaler"))
    assert (prior.schedule.prediction, prior.schedule.clip_range) == ("sample", 5.0)
    assert (decoder.schedule.prediction, decoder.schedule.variance) == ("epsilon", "learned_range")
    assert upscaler.schedule.variance == "fixed_small_log"
    assert (upscaler.low_size, upscaler.high_size) == (8, 32)
    assert not prior.schedule.double_tables


def test_spaces(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("text_encoder", "image_encoder", "prior", "decoder"):
        space = load(hub, stage).space
        assert (space.name, space.dim) == (f"custom-{DIM}d", DIM)
    for dim, name in ((768, "openai-vit-l-14"), (1280, "laion-vit-bigg-14"), (64, "custom-64d")):
        assert unclip.space_of(Source("x", "folder", hub, "karlo", frozenset()), dim).name == name
    embedded = Source("x", "embedded", hub, "karlo", frozenset())
    assert unclip.space_of(embedded, 64) is SPACES["shapes-vit-l"]


def classical(folder: Path, stage: str) -> None:
    """Rewrite a component as the hub's old files are: prefixed keys and position ids."""
    path = folder / stage / "model.safetensors"
    prefix = {"text_encoder": "text_model.", "image_encoder": "vision_model."}[stage]
    state = {
        k if k.startswith((prefix, "text_projection", "visual_projection")) else prefix + k: v
        for k, v in load_file(path).items()
    }
    count = state[f"{prefix}embeddings.position_embedding.weight"].shape[0]
    state[f"{prefix}embeddings.position_ids"] = torch.arange(count)[None]
    path.unlink()
    torch.save(state, folder / stage / "pytorch_model.bin")


def bare(folder: Path, stage: str) -> None:
    """Rewrite a component without the tower's prefix, as some library versions save it."""
    path = folder / stage / "model.safetensors"
    state = load_file(path)
    save_file({k.split("_model.", 1)[-1]: v for k, v in state.items()}, path)


@pytest.mark.parametrize("stage", ["text_encoder", "image_encoder"])
@pytest.mark.parametrize("rewrite", [classical, bare])
def test_keys_of_other_versions(hub: Path, copy: Path, stage: str, rewrite) -> None:
    rewrite(copy, stage)
    wanted = load(hub, stage).network.state_dict()
    got = load(copy, stage).network.state_dict()
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())
    assert load(copy, stage).network.get_parameter(next(iter(wanted))) is not None


def test_fp16_files_are_cast_up(hub: Path, copy: Path) -> None:
    for path in copy.rglob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path)
    for stage in LOADERS:
        for parameter in load(copy, stage).network.parameters():
            assert parameter.dtype == torch.float32


def test_embedded_family() -> None:
    """The shipped weights load and speak their own space."""
    root = Path(karlo.__file__).parent.parent / "shapes" / "weights" / "karlo"
    stages = sources._stages_of(root, sources.SYSTEMS["karlo"], sources._Listing(()))
    assert stages == set(LOADERS)
    source = Source("shapes-karlo", "embedded", root, "karlo", stages)
    for stage, loader in LOADERS.items():
        loaded = loader(source, torch.float32)
        assert stage == "upscaler" or loaded.space is SPACES["shapes-vit-l"], stage


# -- tokens ------------------------------------------------------------------------------------

PROMPTS = [
    "",
    "a red circle!",
    "Blue  CIRCLE\n\u00e9\u4e16\U0001f600 !!",
    "red " * 100,
    "b!" * 5000,
]


def test_tokens_equal_the_published_call(hub: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = load(hub, "text_encoder").tokenizer
    ids, mask, cut = clip.tokenize(tokenizer, PROMPTS)
    oracle = CLIPTokenizer.from_pretrained(hub / "tokenizer", local_files_only=True)
    wanted = oracle(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert torch.equal(ids, wanted.input_ids)
    assert torch.equal(mask, wanted.attention_mask.bool())
    assert ids.shape == (len(PROMPTS), 77)
    assert ids[0].tolist()[2:] == [0] * 75  # the published padding is "!", id 0
    assert 0 in ids[1][mask[1]].tolist()  # and so is every "!" of a prompt
    longest = oracle(PROMPTS[3], return_tensors="pt").input_ids[:, 76:-1]
    assert cut[:3] == ["", "", ""] and cut[3] == oracle.batch_decode(longest)[0]
    assert cut[3].split() == ["red"] * 25 and len(cut[4]) > 5000


def test_prompt_must_be_text(hub: Path) -> None:
    with pytest.raises(TypeError, match="must be text, not int"):
        clip.tokenize(load(hub, "text_encoder").tokenizer, ["a", 3])


# -- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (100, 57), (57, 100), (17, 200), (33, 31), (8, 8)])
def test_pixels_equal_the_published_processor(hub: Path, size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(1))
    images = (images * 255).round() / 255
    got = load(hub, "image_encoder").preprocess(images)
    oracle = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    arrays = [np.uint8(np.round(image.numpy() * 255)) for image in images]
    wanted = oracle(arrays, return_tensors="pt").pixel_values
    assert got.dtype == torch.float32 and torch.equal(got, wanted)


def test_pixels_round_and_clamp(hub: Path) -> None:
    preprocess = load(hub, "image_encoder").preprocess
    base = torch.full((1, 32, 32, 3), 100 / 255)
    assert torch.equal(preprocess(base + 0.4 / 255), preprocess(base))
    assert torch.equal(preprocess(base - 0.4 / 255), preprocess(base))
    assert torch.equal(preprocess(base * 0 + 7), preprocess(base * 0 + 1))
    assert torch.equal(preprocess(torch.cat([base, base[..., :1] * 0], -1)), preprocess(base))
    for wrong in (base[0], base[:0], base[..., :2], base * torch.nan):
        with pytest.raises(EdgeError):
            preprocess(wrong)


@pytest.mark.parametrize(
    "config", [{}, {"size": 32, "crop_size": 32}, {"size": {"shortest_edge": 32}}]
)
def test_preprocessor_configs(config: dict) -> None:
    assert clip.preprocess_from_config(config, 32) == clip.Preprocess(32, 32)
    with pytest.raises(CheckpointError, match="sees 224"):
        clip.preprocess_from_config({"size": 32, "crop_size": 32}, 224)


# -- what can be wrong with a folder ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "part", "words"),
    [
        ("prior", "prior_scheduler", "lacks the folder 'prior_scheduler'.*download karlo"),
        ("decoder", "text_proj", "lacks the folder 'text_proj'"),
        ("upscaler", "super_res_last", "lacks the folder 'super_res_last'"),
        ("text_encoder", "tokenizer", "lacks the folder 'tokenizer'"),
        ("prior", "prior/config.json", r"config\.json' is missing"),
        ("prior", "prior/diffusion_pytorch_model.safetensors", "holds no weights"),
        ("text_encoder", "tokenizer/vocab.json", r"no vocab\.json"),
    ],
)
def test_missing(copy: Path, stage: str, part: str, words: str) -> None:
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=words):
        load(copy, stage)


def test_image_encoder_without_feature_extractor(hub: Path, copy: Path) -> None:
    shutil.rmtree(copy / "feature_extractor")
    assert load(copy, "image_encoder").preprocess == load(hub, "image_encoder").preprocess


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("prior/config.json", "{", "not JSON"),
        ("prior/config.json", '{"_class_name": "UNet2DModel"}', "is a UNet2DModel, but"),
        ("prior/config.json", '{"num_layers": "many"}', "no network that can be built"),
        (
            "prior/config.json",
            '{"num_layers": 1, "embedding_dim": 8}',
            "lacks|unknown|does not fit",
        ),
        ("prior_scheduler/scheduler_config.json", "nope", "not JSON"),
        ("prior_scheduler/scheduler_config.json", '{"prediction_type": "v"}', "prediction_type"),
        ("prior_scheduler/scheduler_config.json", '{"_class_name": "DDIMScheduler"}', "DDIM"),
    ],
)
def test_damaged_configs(copy: Path, file: str, content: str, words: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(copy, "prior")
    assert "karlo" in str(caught.value)


def test_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json' is not JSON"):
        load(copy, "text_encoder")


def test_foreign_weights(copy: Path) -> None:
    path = copy / "prior" / "diffusion_pytorch_model.safetensors"
    shutil.copy(copy / "decoder" / path.name, path)
    with pytest.raises(CheckpointError, match=r"not a PriorTransformer.*lacks.*and \d+ more"):
        load(copy, "prior")


def test_component_linked_out(hub: Path, copy: Path) -> None:
    shutil.rmtree(copy / "prior")
    (copy / "prior").symlink_to(hub / "prior")
    with pytest.raises(CheckpointError, match="leads out of the model folders"):
        load(copy, "prior")


def test_old_config_arguments_are_fine(copy: Path) -> None:
    path = copy / "decoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "an_argument_of_old": 3, "_diffusers_version": "0.10"}))
    load(copy, "decoder")
