"""The weights that the pack ships."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from prior_art.loaders.files.catalogue import find_source
from prior_art.shapes.train import layout

KARLO = layout.WEIGHTS / "karlo"
pytestmark = pytest.mark.skipif(not KARLO.is_dir(), reason="the family is not trained yet")


def test_all_weights_are_small():
    files = [path for path in layout.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 50e6
    assert max(path.stat().st_size for path in files) <= 5e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_no_weights_are_stored_twice():
    """Two tensors of a KiB or more with the same numbers are one network's, stored again."""
    from safetensors.torch import load_file

    seen: dict[bytes, str] = {}
    for file in sorted(layout.WEIGHTS.rglob("*.safetensors")):
        for key, value in load_file(file).items():
            if value.numel() < 512 or value.float().std() == 0:
                continue
            digest = hashlib.sha256(value.numpy().tobytes()).digest()
            assert digest not in seen, f"{file}: {key} is {seen[digest]} again"
            seen[digest] = f"{file}: {key}"


def test_the_folder_is_whole_and_half_precision():
    from safetensors.torch import load_file

    for name in {name for group in layout.KARLO.values() for name in group}:
        assert (KARLO / name).is_dir(), name
    for file in KARLO.rglob("*.safetensors"):
        for key, value in load_file(file).items():
            assert value.dtype == torch.float16, (file, key)
            assert torch.isfinite(value).all(), (file, key)


def test_configurations_match_the_recipe():
    from prior_art.shapes.train import recipe

    for name, wanted in (
        ("decoder", recipe.DECODER),
        ("prior", recipe.PRIOR),
        ("super_res_first", recipe.SUPER_RES),
        ("super_res_last", recipe.SUPER_RES),
        ("text_proj", recipe.TEXT_PROJECTION),
        ("image_encoder", recipe.VISION),
    ):
        stored = json.loads((KARLO / name / "config.json").read_text())
        for key, value in wanted.items():
            assert stored[key] == (list(value) if isinstance(value, tuple) else value), (name, key)
    text = json.loads((KARLO / "text_encoder" / "config.json").read_text())
    assert text["eos_token_id"] == text["vocab_size"] - 1


def test_text_and_image_meet_in_one_space():
    from prior_art.shapes.grammar import Scene
    from prior_art.shapes.pictures import draw
    from prior_art.shapes.train.words import read_tokenizer

    scenes = [
        Scene(colour, kind, ground, size)
        for colour, kind, ground, size in (
            ("red", "circle", "blue", "large"),
            ("green", "square", "black", "medium"),
            ("white", "cross", "purple", "large"),
            ("yellow", "triangle", "cyan", "medium"),
        )
    ]
    import numpy as np

    tokenizer = read_tokenizer(KARLO / "tokenizer")
    ids = tokenizer([s.prompt for s in scenes], padding="max_length", return_tensors="pt").input_ids
    shown = np.stack([np.asarray(draw(scene, 2), np.float32) for scene in scenes])
    pixels = torch.from_numpy(shown).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        text = layout.read_network(KARLO, "text_encoder")(ids).text_embeds
        image = layout.read_network(KARLO, "image_encoder")(pixels).image_embeds
    alike = torch.nn.functional.cosine_similarity(text[:, None], image[None], dim=-1)
    assert alike.argmax(1).tolist() == alike.argmax(0).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_pictures_obey_their_prompts():
    from prior_art.shapes.check import check
    from prior_art.shapes.grammar import draw_prompts
    from prior_art.shapes.painters import KarloPainter
    from prior_art.shapes.score import score

    scenes = draw_prompts(12, seed=3)
    painted = KarloPainter().paint(scenes, seed=11)
    result = score(scenes, [check(picture) for picture in painted])
    assert result.all_right >= 0.75, result


KANDINSKY = layout.WEIGHTS / "kandinsky"


def test_kandinskys_folders_are_whole_and_half_precision():
    from safetensors.torch import load_file

    for name in {name for group in layout.KANDINSKY.values() for name in group}:
        assert (KANDINSKY / name).is_dir(), name
    for file in KANDINSKY.rglob("*.safetensors"):
        half = file.name != "zero_image_embeds.safetensors"
        for key, value in load_file(file).items():
            assert value.dtype == (torch.float16 if half else torch.float32), (file, key)
            assert torch.isfinite(value).all(), (file, key)


def test_previews_of_latents_have_the_pictures_colours():
    from prior_art.loaders.files.catalogue import find_source
    from prior_art.loaders.kandinsky import load_movq
    from prior_art.networks.kandinsky_movq import decode, encode
    from prior_art.networks.latent_rgb import fit_rgb_factors
    from prior_art.shapes.grammar import COLOURS

    movq = load_movq(find_source("shapes-kandinsky", "movq", [])).network
    factors = fit_rgb_factors(lambda latents: decode(movq, latents))
    palette = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    plain = palette[:, :, None, None].expand(-1, -1, 64, 64)
    latents = encode(movq, plain)[:, :, 2:6, 2:6].mean(dim=(2, 3))
    found = latents @ factors[:-1] + factors[-1]
    assert torch.cdist(found, palette).argmin(1).tolist() == list(range(len(palette)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "least"), [("decoder", 0.6), ("inpaint", 0.6), ("depth", 0.6), ("2-1", 0.6)]
)
def test_kandinskys_pictures_obey_their_prompts(mode, least):
    """Not worse than they were when the weights were made (figures: docs/BENCHMARKS.md)."""
    from prior_art.shapes.check import check
    from prior_art.shapes.grammar import draw_prompts
    from prior_art.shapes.painters import KandinskyPainter
    from prior_art.shapes.score import score

    scenes = draw_prompts(12, seed=3)
    painter = KandinskyPainter(mode=mode)
    result = score(scenes, [check(picture) for picture in painter.paint(scenes, seed=11)])
    assert result.all_right >= least and result.colours >= 0.85, result
    assert painter.outside == 0


KOALA = layout.WEIGHTS / "koala"


def _part(kind: str, name: str) -> Path:
    """A component's folder: the variant's own, or where it shares it."""
    member = find_source(f"shapes-koala-{kind}", "koala_unet", [])
    return member.folder(name)


def test_koalas_folders_are_whole_and_half_precision():
    from safetensors.torch import load_file

    index = json.loads((KOALA / "1b" / "model_index.json").read_text())
    parts = {name for name in index if not name.startswith("_")} - {"force_zeros_for_empty_prompt"}
    for kind in ("1b", "700m"):
        assert all(any(_part(kind, name).iterdir()) for name in parts)
    for file in KOALA.rglob("*.safetensors"):
        for key, value in load_file(file).items():
            assert value.dtype == torch.float16, (file, key)
            assert torch.isfinite(value).all(), (file, key)


@pytest.mark.parametrize("kind", ["1b", "700m"])
def test_koalas_configurations_match_the_recipe(kind):
    from prior_art.shapes.train import recipe

    for name, wanted in (
        ("unet", recipe.KOALA_UNETS[kind]),
        ("vae", recipe.KOALA_VAE),
        ("scheduler", recipe.KOALA_SCHEDULER),
    ):
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        stored = json.loads((_part(kind, name) / file).read_text())
        for key, value in wanted.items():
            assert stored[key] == (list(value) if isinstance(value, tuple) else value), (name, key)


def test_koalas_text_encoders_are_the_familys():
    """SDXL's are Karlo's and Kandinsky 2.2's, so embeddings made with either must agree."""
    ids = torch.tensor([[608, 320, 547, 609] + [0] * 73])
    for kind in ("1b", "700m"):
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        for loaded, known in (
            (CLIPTextModel.from_pretrained(_part(kind, "text_encoder")),
             layout.read_network(KARLO, "text_encoder")),
            (CLIPTextModelWithProjection.from_pretrained(_part(kind, "text_encoder_2")),
             layout.read_network(KANDINSKY, "prior/text_encoder")),
        ):  # fmt: skip
            with torch.no_grad():
                found = loaded.float()(ids, output_hidden_states=True).hidden_states[-2]
                wanted = known(ids, output_hidden_states=True).hidden_states[-2]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "least"), [("700m", 0.7), ("1b", 0.8)])
def test_koalas_pictures_obey_their_prompts(variant, least):
    """Not worse than they were when the weights were made (figures: docs/BENCHMARKS.md)."""
    from prior_art.shapes.check import check
    from prior_art.shapes.grammar import draw_prompts
    from prior_art.shapes.painters import KoalaPainter
    from prior_art.shapes.score import score

    scenes = draw_prompts(24, seed=3)
    painted = KoalaPainter(variant=variant).paint(scenes, seed=11)
    result = score(scenes, [check(picture) for picture in painted])
    assert result.all_right >= least and result.colours >= 0.85, result
