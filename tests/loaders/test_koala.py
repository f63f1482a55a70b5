"""Loading KOALA: which variant it is, single U-Net files, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prior_art.loaders import koala
from prior_art.loaders.files.catalogue import find_source, list_sources
from prior_art.loaders.files.checkpoint import CheckpointError

from ..tiny import KOALA, tiny_koala


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_koala(tmp_path_factory.mktemp("models"))


def unet_source(folder: Path, name: str):
    return find_source(name, "koala_unet", [folder])


def copied(models: Path, tmp_path: Path, name: str = "koala-1b") -> Path:
    shutil.copytree(models / name, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("layers", "depths", "middle", "name", "millions"),
    [
        (1, (1, 2, 5), None, "KOALA-700M", 782),
        (1, (1, 2, 6), "UNetMidBlock2DCrossAttn", "KOALA-1B", 1161),
        (2, (1, 2, 10), "UNetMidBlock2DCrossAttn", "SDXL-Base", 2567),
    ],
)
def test_the_published_variants_are_known_and_as_large_as_their_card_says(
    layers, depths, middle, name, millions
):
    from diffusers import UNet2DConditionModel

    config = KOALA | {
        "layers_per_block": layers,
        "transformer_layers_per_block": depths,
        "mid_block_type": middle,
        "block_out_channels": koala.WIDTHS,
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    variant = koala.variant_of(network, torch.float16)
    assert variant.name == name
    assert abs(variant.parameters / 1e6 - millions) <= 1
    assert variant.transformer_blocks == (0, *depths[1:])
    assert variant.mid_block == (middle is not None)
    assert variant.size == 2 * variant.parameters
    # A U-Net file is told apart by its tensors alone.
    found = koala.config_of(network.state_dict(), "file")
    with torch.device("meta"):
        again = UNet2DConditionModel(**found)
    assert koala.variant_of(again, torch.float16) == variant
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    assert [a.heads for a in again.modules() if hasattr(a, "heads")] == [
        a.heads for a in network.modules() if hasattr(a, "heads")
    ]


def test_folders_are_listed_with_their_stages(models):
    names = {s.name for s in list_sources("koala_unet", [models]) if s.kind == "folder"}
    assert names == {"koala-1b", "koala-700m", "sdxl"}


@pytest.mark.parametrize(
    ("name", "variant"),
    [("koala-1b", "KOALA-1B (miniature)"), ("koala-700m", "KOALA-700M (miniature)")],
)
def test_any_koala_is_the_default(models, name, variant):
    assert koala.load_unet(unet_source(models, name)).variant.name == variant


def test_sdxl_is_refused_by_name_and_loaded_if_the_user_says_so(models):
    with pytest.raises(CheckpointError, match=r"SDXL-Base.*any KOALA.*'any SDXL'"):
        koala.load_unet(unet_source(models, "sdxl"))
    found = koala.load_unet(unet_source(models, "sdxl"), wanted=koala.ANY_SDXL)
    assert found.variant.name == "SDXL-Base (miniature)"


def test_the_other_koala_is_refused_by_name(models):
    with pytest.raises(CheckpointError, match=r"KOALA-1B.*asks for KOALA-700M"):
        koala.load_unet(unet_source(models, "koala-1b"), wanted="KOALA-700M")
    koala.load_unet(unet_source(models, "koala-1b"), wanted="KOALA-1B")


@pytest.fixture
def narrow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(koala, "HEAD_DIM", 8)


def test_a_unet_file_is_the_folders_unet(models, tmp_path, narrow_heads):
    file = tmp_path / "my-koala-700m.safetensors"
    shutil.copy(models / "koala-700m/unet/diffusion_pytorch_model.safetensors", file)
    loaded = koala.load_unet(unet_source(tmp_path, file.name))
    whole = koala.load_unet(unet_source(models, "koala-700m"))
    assert loaded.variant == whole.variant
    assert loaded.schedule == whole.schedule
    x, hidden = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 80)
    extra = {"text_embeds": torch.randn(1, 40), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        one, two = (
            u.network(x, 7, hidden, added_cond_kwargs=extra).sample for u in (loaded, whole)
        )
    assert torch.equal(one, two)


def test_the_hosts_own_layout_is_sent_to_the_hosts_loader(tmp_path):
    save_file({"input_blocks.0.0.weight": torch.ones(1)}, tmp_path / "koala.safetensors")
    with pytest.raises(CheckpointError, match=r"ComfyUI's own key layout.*Load Checkpoint"):
        koala.load_unet(unet_source(tmp_path, "koala.safetensors"))


def test_a_file_that_is_no_unet_says_so(tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "koala.safetensors")
    with pytest.raises(CheckpointError, match=r"no U-Net of SDXL's kind.*conv_in.weight"):
        koala.load_unet(unet_source(tmp_path, "koala.safetensors"))


def test_a_unet_of_another_kind_says_so(models, tmp_path):
    folder = copied(models, tmp_path)
    file = folder / "unet/config.json"
    config = json.loads(file.read_text()) | {"addition_embed_type": None}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="addition_embed_type is None"):
        koala.load_unet(unet_source(tmp_path, "koala-1b"))


def test_a_missing_tensor_is_named(models, tmp_path):
    folder = copied(models, tmp_path)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("mid_block.resnets.0.conv1.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"mid_block\.resnets\.0\.conv1\.weight"):
        koala.load_unet(unet_source(tmp_path, "koala-1b"))


def test_a_missing_second_encoder_is_named(models, tmp_path):
    folder = copied(models, tmp_path)
    shutil.rmtree(folder / "text_encoder_2")
    source = find_source("koala-1b", "koala_text", [tmp_path])
    with pytest.raises(CheckpointError, match=r"lacks the folder 'text_encoder_2'.*download koala"):
        koala.load_text_encoders(source)


@pytest.mark.parametrize("change", [{"latent_channels": 16}, {"scaling_factor": 0.18215}])
def test_a_vae_of_another_family_is_refused(models, tmp_path, change):
    folder = copied(models, tmp_path)
    file = folder / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    source = find_source("koala-1b", "koala_vae", [tmp_path])
    with pytest.raises(CheckpointError, match=r"VAE of another family.*0\.13025"):
        koala.load_vae(source)


def test_the_vae_stays_out_of_fp16(models):
    source = find_source("koala-1b", "koala_vae", [models])
    weights = [koala.load_vae(source, dtype).network for dtype in (torch.float16, torch.bfloat16)]
    assert [next(w.parameters()).dtype for w in weights] == [torch.float32, torch.bfloat16]


def test_a_schedule_that_is_no_koalas_is_refused(models, tmp_path):
    folder = copied(models, tmp_path)
    file = folder / "scheduler/scheduler_config.json"
    for change in (
        {"prediction_type": "v_prediction"},
        {"_class_name": "LCMScheduler"},
        {"use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
        {"timestep_spacing": "odd"},
    ):
        before = json.loads(file.read_text())
        file.write_text(json.dumps(before | change))
        with pytest.raises(CheckpointError, match="scheduler"):
            koala.load_unet(unet_source(tmp_path, "koala-1b"))
        file.write_text(json.dumps(before))


def test_the_first_text_encoder_may_bring_a_projection_that_is_not_read(
    models: Path, tmp_path: Path
) -> None:
    """As Karlo's folder has the same encoder: unCLIP's pooled embedding needs one, SDXL's not."""
    source = find_source("koala-1b", "koala_text", [models])
    plain = koala.load_text_encoders(source).first.state_dict()
    part = copied(models, tmp_path) / "text_encoder"
    config = json.loads((part / "config.json").read_text())
    config["architectures"] = ["CLIPTextModelWithProjection"]
    (part / "config.json").write_text(json.dumps(config))
    tensors = load_file(part / "model.safetensors")
    width = config["hidden_size"]
    save_file(tensors | {"text_projection.weight": torch.eye(width)}, part / "model.safetensors")
    found = koala.load_text_encoders(find_source("koala-1b", "koala_text", [tmp_path])).first
    assert found.state_dict().keys() == plain.keys()
    assert all(torch.equal(found.state_dict()[key], plain[key]) for key in plain)
