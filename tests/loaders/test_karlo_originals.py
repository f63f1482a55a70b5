"""Key maps: a network in the original layout and what is loaded from it compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prior_art.loaders import karlo, unclip
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import SYSTEMS, find_source
from prior_art.loaders.files.checkpoint import CheckpointError, read_state_dict
from prior_art.loaders.unclip_keys import read_stats

from ..tiny import write_tokenizer
from . import karlo_originals as originals
from .draw import near, random

HEAD = 16
DECODER = "decoder-ckpt-step=01000000-of-01000000.ckpt"
PRIOR = "prior-ckpt-step=01000000-of-01000000.ckpt"
UPSCALER = "improved-sr-ckpt-step=1.2M.ckpt"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the four original files of a tiny Karlo and a tokenizer."""
    root = tmp_path_factory.mktemp("originals")
    size = write_tokenizer(root / "tokenizer")[1] + 1
    wrap = {PRIOR: originals.OriginalPrior(), DECODER: originals.OriginalDecoder()}
    for seed, (name, network) in enumerate(wrap.items()):
        state = originals.scramble(network, seed).state_dict()
        torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, root / name)
    pair = originals.scramble(originals.original_upscaler(), 3)
    torch.save({"state_dict": pair.state_dict()}, root / UPSCALER)
    torch.save((random(24, seed=8), random(24, seed=9).abs()), root / "ViT-L-14_stats.th")
    clip = originals.scramble(originals.OriginalClip(size), 4)
    torch.jit.script(clip).save(root / "ViT-L-14.pt")
    return root


def source(root: Path, name: str, stage: str):
    return find_source(name, stage, [root])


def test_prior(root: Path) -> None:
    loaded = unclip.load_prior(source(root, PRIOR, "prior"), head_dim=8)
    original = originals.scramble(originals.OriginalPrior(), 0)
    x, pooled, hidden = random(2, 24), random(2, 24, seed=1), random(2, 7, 24, seed=2)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    t = torch.tensor([999, 10])
    wanted = original(x, t, pooled, hidden, mask)
    got = loaded.network(
        x, t, proj_embedding=pooled, encoder_hidden_states=hidden, attention_mask=mask
    ).predicted_image_embedding
    assert near(got, wanted)
    assert torch.equal(loaded.network.clip_mean[0], random(24, seed=8))
    assert torch.equal(loaded.network.clip_std[0], random(24, seed=9).abs())
    assert (loaded.schedule.prediction, loaded.schedule.clip_range) == ("sample", 10.0)
    assert loaded.schedule.double_tables
    assert loaded.space.name == "custom-24d"


def test_decoder(root: Path) -> None:
    loaded = karlo.load_decoder(source(root, DECODER, "decoder"), head_dim=HEAD)
    original = originals.scramble(originals.OriginalDecoder(), 1)
    x, pooled, image = random(2, 3, 8, 8), random(2, 24, seed=1), random(2, 24, seed=3)
    hidden = random(2, 7, 24, seed=2)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    t = torch.tensor([999, 10])
    wanted = original(x, t, pooled, hidden, mask, image)
    context, labels = loaded.network.text_proj(image, pooled, hidden)
    full = torch.nn.functional.pad(mask, (4, 0), value=True)
    got = loaded.network.unet(
        x, t, encoder_hidden_states=context, class_labels=labels, attention_mask=full
    ).sample
    assert near(got, wanted)
    learned = loaded.network.text_proj.learned_classifier_free_guidance_embeddings
    assert torch.equal(learned, original.cf_param)
    assert loaded.schedule.variance == "learned_range"


def test_upscaler(root: Path) -> None:
    loaded = karlo.load_upscaler(source(root, UPSCALER, "upscaler"))
    original = originals.scramble(originals.original_upscaler(), 3)
    x, t = random(1, 6, 8, 8), torch.tensor([166])
    first, last = original.model_first_steps(x, t), original.model_last_step(x, t)
    assert near(loaded.network.first(x, t).sample, first)
    assert near(loaded.network.last(x, t).sample, last)
    assert (first - last).abs().max() > 0.1
    assert (loaded.low_size, loaded.high_size) == (64, 256)


def test_text_tower_and_tokenizer(root: Path) -> None:
    loaded = unclip.load_text_encoder(source(root, "ViT-L-14.pt", "text_encoder"), head_dim=HEAD)
    ids, mask, _ = tokenize(loaded.tokenizer, ["a red circle!", ""])
    original = originals.scramble(originals.OriginalClip(loaded.network.config.vocab_size), 4)
    hidden, pooled = original(ids)
    out = loaded.network(ids)
    assert near(out.last_hidden_state[mask], hidden[mask])
    assert near(out.text_embeds, pooled)
    bang = loaded.tokenizer.convert_tokens_to_ids("!</w>")
    assert bang in ids[0].tolist()  # the original has no "!" padding token


def test_image_tower(root: Path) -> None:
    found = source(root, "ViT-L-14.pt", "image_encoder")
    loaded = unclip.load_image_encoder(found, head_dim=HEAD)
    size = loaded.network.config.image_size
    original = originals.scramble(originals.OriginalClip(read_vocabulary(root)), 4)
    pixels = loaded.preprocess(torch.rand(2, 20, 40, 3))
    assert pixels.shape == (2, 3, size, size) and loaded.preprocess.squash
    got = loaded.network(pixels).image_embeds
    assert near(got, original.visual(pixels))


def read_vocabulary(root: Path) -> int:
    return read_state_dict(root / "ViT-L-14.pt")["token_embedding.weight"].shape[0]


def test_missing_statistics(root: Path, tmp_path: Path) -> None:
    (tmp_path / PRIOR).write_bytes((root / PRIOR).read_bytes())
    with pytest.raises(CheckpointError, match=r"ViT-L-14_stats\.th.*missing.*Download"):
        unclip.load_prior(source(tmp_path, PRIOR, "prior"), head_dim=8)


def test_missing_tokenizer(root: Path, tmp_path: Path) -> None:
    (tmp_path / "ViT-L-14.pt").write_bytes((root / "ViT-L-14.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"no tokenizer along.*Put"):
        unclip.load_text_encoder(source(tmp_path, "ViT-L-14.pt", "text_encoder"), head_dim=HEAD)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        (PRIOR, unclip.load_prior),
        (DECODER, karlo.load_decoder),
        (UPSCALER, karlo.load_upscaler),
    ],
)
def test_foreign_checkpoint(root: Path, tmp_path: Path, name: str, load) -> None:
    stage = {PRIOR: "prior", DECODER: "decoder", UPSCALER: "upscaler"}[name]
    torch.save({"state_dict": {"unet.conv.weight": torch.ones(2)}}, tmp_path / name)
    torch.save((torch.ones(24), torch.ones(24)), tmp_path / "ViT-L-14_stats.th")
    with pytest.raises(CheckpointError, match=r"unet\.conv\.weight.*(karlo|Karlo)"):
        load(source(tmp_path, name, stage))


def test_leftover_and_missing_keys_are_named(root: Path, tmp_path: Path) -> None:
    state = torch.load(root / DECODER, weights_only=True)["state_dict"]
    torch.save({"state_dict": {**state, "model.extra": torch.ones(1)}}, tmp_path / DECODER)
    with pytest.raises(CheckpointError, match="holds unknown extra"):
        karlo.load_decoder(source(tmp_path, DECODER, "decoder"), head_dim=HEAD)
    state.pop("model.input_blocks.1.0.in_layers.2.weight")
    torch.save({"state_dict": state}, tmp_path / DECODER)
    with pytest.raises(CheckpointError, match=r"lacks input_blocks\.1\.0\.in_layers\.2\.weight"):
        karlo.load_decoder(source(tmp_path, DECODER, "decoder"), head_dim=HEAD)


def test_wrong_head_width_is_named(root: Path) -> None:
    with pytest.raises(CheckpointError, match="heads"):
        unclip.load_prior(source(root, PRIOR, "prior"))


def test_statistics_outside_the_model_folders_are_not_read(tmp_path: Path) -> None:
    models, theirs = tmp_path / "models", tmp_path / "theirs.th"
    models.mkdir()
    torch.save((torch.zeros(2), torch.ones(2)), theirs)
    (models / "ViT-L-14_stats.th").symlink_to(theirs)
    with pytest.raises(CheckpointError, match=r"stats\.th' leads out of the model folders to"):
        read_stats(models / "prior.ckpt", (models,), SYSTEMS["karlo"])
    assert read_stats(models / "prior.ckpt", (tmp_path,), SYSTEMS["karlo"])[1].tolist() == [1, 1]
