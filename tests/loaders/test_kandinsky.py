"""Kandinsky's hub folders against what diffusers itself loads from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from prior_art.edges import UserError
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.loaders.kandinsky import load_mclip, load_movq
from prior_art.networks.kandinsky_mclip import MultilingualCLIP
from prior_art.networks.kandinsky_movq import decode
from prior_art.shapes.train.words import read_multilingual_tokenizer, write_multilingual_tokenizer

from ..networks.test_kandinsky_movq import MOVQ
from .draw import near


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "kandinsky-2-2-decoder"
    torch.manual_seed(0)
    VQModel(**MOVQ).save_pretrained(folder / "movq")
    index = {"_class_name": "KandinskyV22Pipeline", "movq": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_movq_decodes_as_the_library_does(models: Path) -> None:
    loaded = load_movq(find_source("kandinsky-2-2-decoder", "movq", [models]))
    assert (loaded.factor, loaded.channels) == (2, 4)
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    theirs = VQModel.from_pretrained(models / "kandinsky-2-2-decoder" / "movq")
    with torch.no_grad():
        expected = theirs.decode(latents, force_not_quantize=True).sample
    assert near(decode(loaded.network, latents), expected)


def test_a_vqgan_is_no_movq(models: Path) -> None:
    VQModel(**MOVQ | {"norm_type": "group"}).save_pretrained(
        models / "kandinsky-2-2-decoder" / "movq"
    )
    with pytest.raises(CheckpointError, match="without spatial norms"):
        load_movq(find_source("kandinsky-2-2-decoder", "movq", [models]))


def test_what_is_missing_is_named(models: Path) -> None:
    (models / "kandinsky-2-2-decoder" / "movq" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="movq"):
        load_movq(find_source("kandinsky-2-2-decoder", "movq", [models]))
    with pytest.raises(UserError, match="download kandinsky-2-2-decoder"):
        find_source("nowhere", "movq", [models])


def test_the_originals_text_tower_brings_its_tokenizer_and_tells_its_sizes(tmp_path: Path) -> None:
    """Its config names XLM-R large; what is true of the weights is read off them."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    folder = tmp_path / "Kandinsky_2.1" / "text_encoder"
    write_multilingual_tokenizer(folder)
    tokenizer = read_multilingual_tokenizer(folder)
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 96, "max_position_embeddings": 90, "type_vocab_size": 1}
    settings = XLMRobertaConfig(**sizes, vocab_size=len(tokenizer), layer_norm_eps=1e-5)
    tower = MultilingualCLIP(XLMRobertaModel(settings), 64, 48, settings).eval()
    torch.save(tower.state_dict(), folder / "pytorch_model.bin")
    config = {"modelBase": "xlm-roberta-large", "numDims": 48, "transformerDimensions": 64}
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["MultilingualCLIP"]} | config)
    )
    loaded = load_mclip(find_source("Kandinsky_2.1", "mclip", [tmp_path]))
    assert loaded.space.dim == 48
    ids = tokenizer(["a red circle"], return_tensors="pt")
    with torch.no_grad():
        wanted, found = (network(**ids) for network in (tower, loaded.network))
    torch.testing.assert_close(found.text_embeds, wanted.text_embeds)
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state)
    assert loaded.tokenizer("a red circle").input_ids == ids.input_ids[0].tolist()
