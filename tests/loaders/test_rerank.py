"""The reranker: both towers of a CLIP, whatever folder or file holds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prior_art.edges import UserError
from prior_art.loaders.clip import MEAN, STD, tokenize
from prior_art.loaders.files import catalogue as sources
from prior_art.loaders.files.catalogue import find_source, list_sources
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.loaders.rerank import load_reranker
from prior_art.samplers.clip import encode_image, encode_text
from prior_art.samplers.rerank import preprocess, rerank_scores

from ..tiny import DIM, TEXT, TOKENS, VISION, randomise, write_tokenizer
from .draw import random
from .karlo_originals import OriginalClip, scramble

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel as openai/clip-vit-base-patch32 lies on the hub, at ``<models>/vit``."""
    from transformers import CLIPConfig as Config
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("clips") / "vit"
    start, end = write_tokenizer(folder)
    sizes = {"vocab_size": end + 1, "bos_token_id": start, "eos_token_id": end, "pad_token_id": 0}
    text = CLIPTextConfig(**TEXT, **sizes)
    config = Config(text_config=text, vision_config=CLIPVisionConfig(**VISION), projection_dim=DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
        for part in model.children():
            randomise(part)
    model.save_pretrained(folder, safe_serialization=True)
    edge = VISION["image_size"]
    CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
    ).save_pretrained(folder)
    return folder


def scores(found, prompt: str, images: torch.Tensor) -> torch.Tensor:
    ids, mask, _ = tokenize(found.tokenizer, [prompt])
    text = encode_text(found.network["text"], ids, mask, found.space, CPU, torch.float32)
    pixels = preprocess(images, found.size, found.mean, found.std)
    return rerank_scores(
        text.pooled, encode_image(found.network["vision"], pixels, CPU, torch.float32)
    )


@pytest.mark.usefixtures("alone")
def test_equals_the_library_s_model(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel

    source = find_source("vit", "reranker", [folder.parent])
    assert (source.kind, source.system) == ("folder", "clip")
    found = load_reranker(source)
    assert (found.size, found.mean, found.std) == (VISION["image_size"], MEAN, STD)
    assert found.space.name == f"custom-{DIM}d" and found.name == str(folder / "model.safetensors")
    images = random(3, 40, 50, 3).sigmoid()
    images = (images * 255).floor() / 255  # where rounding and truncating to 8 bits agree
    prompt = "a red cat"
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(list((images * 255).round().byte().numpy()), return_tensors="pt")
    ids, _, _ = tokenize(found.tokenizer, [prompt])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels["pixel_values"])
    wanted = (out.logits_per_image / model.logit_scale.exp())[:, 0]
    assert (scores(found, prompt, images + 1e-4) - wanted).abs().max() < 1e-5


@pytest.mark.usefixtures("alone")
def test_half_precision_and_old_files(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "vit")
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    state["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(state, copy / "pytorch_model.bin")
    (copy / "preprocessor_config.json").unlink()
    found = load_reranker(find_source("vit", "reranker", [tmp_path]), torch.float16)
    assert {p.dtype for p in found.network.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in found.network.parameters())
    assert (found.size, found.mean) == (VISION["image_size"], MEAN)


@pytest.mark.usefixtures("alone")
def test_towers_of_a_karlo_folder(hub: Path) -> None:
    (source,) = list_sources("reranker", [hub.parent])
    assert source == find_source("karlo", "text_encoder", [hub.parent])
    found = load_reranker(source)
    assert found.size == VISION["image_size"] and found.space.dim == DIM
    assert scores(found, "a red cat", random(2, 40, 40, 3).sigmoid()).shape == (2,)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["ViT-B-32.pt", "ViT-L-14.pt"])
def test_towers_of_openai_s_file(tmp_path: Path, name: str) -> None:
    size = write_tokenizer(tmp_path / "tokenizer")[1] + 1
    torch.jit.script(scramble(OriginalClip(size), 4)).save(tmp_path / name)
    found = load_reranker(find_source(name, "reranker", [tmp_path]))
    assert (found.size, found.mean, found.std) == (32, MEAN, STD)
    assert scores(found, "a red cat", random(2, 40, 40, 3).sigmoid()).unique().numel() == 2


def test_embedded_family() -> None:
    source = find_source("shapes-karlo", "reranker", [])
    assert source.path == sources.EMBEDDED_ROOT / "karlo"
    assert load_reranker(source).space.name == "shapes-vit-l"


@pytest.mark.usefixtures("alone")
def test_listing(folder: Path, hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "text_encoder", tmp_path / "half" / "text_encoder")
    (tmp_path / "ViT-B-32.pt").touch()
    (tmp_path / "ViT-L-14.pt").touch()
    shutil.copytree(folder, tmp_path / "deep" / "vit")
    found = [source.name for source in list_sources("reranker", [tmp_path])]
    assert found == ["deep/vit", "ViT-B-32.pt", "ViT-L-14.pt"]
    words = r"no reranker called 'x'.*There are: deep/vit.*openai/clip-vit-base-patch32"
    with pytest.raises(UserError, match=words):
        find_source("x", "reranker", [tmp_path])
    # A pipeline's own folder is no CLIP, even if it does not say what it is.
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert "pipe" not in [source.name for source in list_sources("reranker", [tmp_path])]


@pytest.mark.usefixtures("alone")
def test_damaged(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "vit")
    source = find_source("vit", "reranker", [tmp_path])

    def refuse(words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            load_reranker(source)

    state = load_file(copy / "model.safetensors")
    save_file(state | {"extra": random(1)}, copy / "model.safetensors")
    refuse(r"model\.safetensors' is no CLIPModel: it holds unknown extra")
    lost = "visual_projection.weight"
    save_file({k: v for k, v in state.items() if k != lost}, copy / "model.safetensors")
    refuse(f"lacks {lost}")
    save_file(state, copy / "model.safetensors")
    preparation = copy / "preprocessor_config.json"
    preparation.write_text(json.dumps({"size": 64, "crop_size": 64}))
    refuse("makes pictures of 64 pixels")
    preparation.unlink()
    (copy / "vocab.json").unlink()
    refuse(r"holds no vocab\.json and merges\.txt")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    refuse("describes no CLIP that can be built")
