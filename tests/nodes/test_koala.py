"""KOALA's nodes over a miniature of random weights: what they hand on, and what they refuse."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from prior_art.edges import EdgeError, conditioning_to_sdxl, sizes_beside
from prior_art.headless.core_nodes import VAEDecode, VAEEncode
from prior_art.headless.core_prompts import CLIPTextEncode
from prior_art.headless.core_sampling import KSampler
from prior_art.host import host
from prior_art.loaders import koala
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.networks.koala import prepare_sdxl
from prior_art.nodes.koala import (
    INFO,
    NEGATIVE,
    OWN,
    KoalaInfo,
    KoalaSample,
    KoalaTextEncode,
    LoadKoala,
)
from prior_art.samplers.koala import sample_koala
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling

FAST = {"width": 64, "height": 96, "seed": 3, "steps": 3, "cfg": 7.5, "batch_size": 1}
FAST |= {"timestep_spacing": "as published"}


@pytest.fixture
def loaded(models, monkeypatch):
    """MODEL, CLIP and VAE of a folder, as a user loads them."""
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))

    def load(name="koala-1b", variant=koala.ANY_KOALA, clip_l=OWN, clip_g=OWN, vae=OWN):
        source = name if name.endswith(".safetensors") else f"tiny-koala/{name}"
        return LoadKoala.execute(source, "fp32", variant, clip_l, clip_g, vae).args

    return load


def said(clip, text="the red cat", **sizes):
    names = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
    given = {name: 0 for name in names} | {"width": 64, "height": 96} | sizes
    return KoalaTextEncode.execute(clip=clip, text=text, **given).args[0]


def sampled(model, positive, **changes):
    return KoalaSample.execute(model=model, positive=positive, **FAST | changes).args[0]["samples"]


def test_a_prompt_carries_its_sizes_under_the_hosts_names(loaded):
    _, clip, _ = loaded()
    ((hidden, extra),) = said(clip, crop_w=1, crop_h=2, target_height=3)
    assert hidden.shape == (1, 77, 80)
    sizes = {k: int(v) for k, v in extra.items() if k != "pooled_output"}
    assert sizes == {
        "width": 64,
        "height": 96,
        "crop_w": 1,
        "crop_h": 2,
        "target_width": 64,
        "target_height": 3,
    }
    text = conditioning_to_sdxl([[hidden, extra]], (80, 40), "positive")
    assert text.time_ids.tolist() == [[96, 64, 2, 1, 3, 64]]


def test_sizes_that_a_prompt_does_not_name_are_the_hosts():
    """Those of the latents, and the target is the original, as in the host's ``encode_adm``."""
    assert sizes_beside({}, (96, 64)) == [96, 64, 0, 0, 96, 64]
    some = {"width": 200, "crop_w": 5}
    assert sizes_beside(some, (96, 64)) == [96, 200, 0, 5, 96, 200]
    assert sizes_beside(some | {"target_height": 32}, (96, 64)) == [96, 200, 0, 5, 32, 200]


def test_native_text_encode_gives_the_same_prompt_without_sizes(loaded):
    _, clip, _ = loaded()
    ((native, extra),) = CLIPTextEncode.execute("the red cat", clip).args[0]
    ((own, more),) = said(clip)
    assert torch.equal(native, own)
    assert torch.equal(extra["pooled_output"], more["pooled_output"])
    assert "width" not in extra


def test_a_prompt_of_ten_thousand_characters_is_cut_with_a_warning(loaded, monkeypatch):
    heard = []
    monkeypatch.setattr("prior_art.host.embedded.session.session.on_warning", heard.append)
    _, clip, _ = loaded()
    ((long, _),) = said(clip, "a cat " * 1700)
    assert long.shape == (1, 77, 80)
    assert len(heard) == 1
    assert "more than 77 tokens" in heard[0]


def test_the_sample_node_is_the_sampler(loaded, models):
    model, clip, _ = loaded("koala-700m")
    positive, negative = said(clip), said(clip, NEGATIVE)
    made = sampled(model, positive, negative=negative, batch_size=2)
    unet = koala.load_unet(find_source("tiny-koala/koala-700m", "koala_unet", [models]))
    texts = [conditioning_to_sdxl(c, (80, 40), "") for c in (positive, negative)]
    wanted = sample_koala(
        partial(prepare_sdxl, unet.network),
        unet.schedule,
        *texts,
        (12, 8),
        Sampling(Noise.seeded(3, 2), torch.device("cpu"), torch.float32, 3),
    )
    assert torch.equal(made, wanted)


def test_every_input_of_the_sample_node_matters(loaded):
    model, clip, _ = loaded()
    positive, negative = said(clip), said(clip, NEGATIVE)
    plain = sampled(model, positive, negative=negative)
    for change in (
        {"negative": None},
        {"seed": 4},
        {"steps": 4},
        {"cfg": 2.0},
        {"timestep_spacing": "trailing"},
        {"positive": said(clip, "the bird")},
        {"positive": said(clip, width=1024)},
    ):
        other = sampled(model, **{"positive": positive, "negative": negative} | change)
        assert (other - plain).abs().max() > 1e-3, change


def test_a_latent_becomes_a_picture_and_back(loaded):
    model, clip, vae = loaded()
    latent = {"samples": sampled(model, said(clip))}
    picture = VAEDecode.execute(latent, vae).args[0]
    assert picture.shape == (1, 96, 64, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    again = VAEEncode.execute(picture, vae).args[0]["samples"]
    assert again.shape == latent["samples"].shape


def test_the_native_sampler_runs_it(loaded):
    model, clip, _ = loaded("koala-700m")
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    shared = (1, 4, 5.0, "euler", "normal")
    made = KSampler.execute(model, *shared, said(clip), said(clip, ""), latent, 1.0).args[0]
    assert made["samples"].shape == (2, 4, 8, 8)
    assert made["samples"].isfinite().all()
    assert not torch.equal(made["samples"][0], made["samples"][1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("koala-1b", ("KOALA-1B (miniature)", "[0, 1, 2]", "mid block: yes")),
        ("koala-700m", ("KOALA-700M (miniature)", "[0, 1, 2]", "mid block: no")),
    ],
)
def test_the_info_node_tells_the_variant(loaded, name, words):
    model, _, _ = loaded(name)
    output = KoalaInfo.execute(model)
    same, info = output.args
    assert same is model and output.ui == {INFO: [info]}
    millions = sum(p.numel() for p in model.managed.network.parameters()) / 1e6
    for word in (*words, f"{millions:,.1f}M", "GiB in float32", "memory at 1024x1024"):
        assert word in info


def test_previews_show_the_latents_colours(loaded, monkeypatch):
    shown = []
    monkeypatch.setattr(host, "progress", lambda total: lambda step, picture: shown.append(picture))
    model, clip, _ = loaded()
    sampled(model, said(clip))
    assert len(shown) == 3 and shown[0].size == shown[-1].size == (64, 96)


def test_a_stop_ends_it_within_a_step(loaded, monkeypatch):
    class Stopped(Exception):
        pass

    steps = []

    def update(step, picture):
        steps.append(step)
        raise Stopped

    monkeypatch.setattr(host, "progress", lambda total: update)
    model, clip, _ = loaded()
    with pytest.raises(Stopped):
        sampled(model, said(clip))
    assert steps == [1]


# -- bad input -----------------------------------------------------------------------------------


def test_sdxl_in_the_loader(loaded):
    with pytest.raises(CheckpointError, match=r"SDXL-Base.*'any SDXL'"):
        loaded("sdxl")
    model, _, _ = loaded("sdxl", variant=koala.ANY_SDXL)
    assert model.facts.variant.name == "SDXL-Base (miniature)"


def test_a_unet_file_needs_to_be_told_where_the_rest_is(loaded, models, monkeypatch):
    monkeypatch.setattr(koala, "HEAD_DIM", 8)
    file = models / "my-koala.safetensors"
    weights = models / "tiny-koala/koala-700m/unet/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, file)
    other = "tiny-koala/koala-1b"
    try:
        with pytest.raises(CheckpointError, match=r"U-Net alone.*'clip_l'"):
            loaded(file.name)
        with pytest.raises(CheckpointError, match=r"U-Net alone.*'vae'"):
            loaded(file.name, clip_l=other, clip_g=other)
        model, clip, vae = loaded(file.name, clip_l=other, clip_g=other, vae=other)
        whole, _, _ = loaded("koala-700m")
        assert torch.equal(sampled(model, said(clip)), sampled(whole, said(clip)))
        assert vae.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 64, 64, 3)
    finally:
        file.unlink()


@pytest.mark.parametrize(("width", "height"), [(60, 64), (64, 12), (1020, 1024)])
def test_sizes_that_are_no_multiples_of_eight(loaded, width, height):
    model, clip, _ = loaded()
    with pytest.raises(EdgeError, match=r"multiples of 8; take \d+x\d+"):
        sampled(model, said(clip), width=width, height=height)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "'batch_size' is 0; give a number from 1 to 64"),
        ({"steps": 1001}, "'steps' is 1001"),
        ({"cfg": float("nan")}, "'cfg' is nan"),
        ({"positive": []}, "'positive' got an empty CONDITIONING"),
    ],
)
def test_numbers_out_of_range(loaded, change, words):
    model, clip, _ = loaded()
    with pytest.raises(EdgeError, match=words):
        sampled(model, **{"positive": said(clip)} | change)


def test_prompts_of_other_kinds(loaded):
    model, clip, _ = loaded()
    ((hidden, extra),) = said(clip)
    for bad, words in (
        ([[hidden, extra]] * 2, "2 combined prompts"),
        ([[hidden[..., :32], extra]], "32 dimensions.*both of SDXL's text encoders"),
        ([[hidden, {}]], "pooled embedding of 0"),
        ([[hidden, extra | {"control": object()}]], "native KSampler"),
        ([[hidden * float("nan"), extra]], "NaN"),
    ):
        with pytest.raises(EdgeError, match=words):
            sampled(model, bad)


def test_models_and_encoders_of_other_kinds(loaded, models):
    model, clip, _ = loaded()
    for run in (lambda: sampled(clip, said(clip)), lambda: KoalaInfo.execute(clip)):
        with pytest.raises(EdgeError, match=r"'model' is another kind.*Load KOALA"):
            run()
    with pytest.raises(EdgeError, match=r"'clip' is another kind.*Load KOALA"):
        said(model)
