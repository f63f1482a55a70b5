"""minDALL-E's nodes on a miniature: the published draws, and every bad input named."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.edges import EdgeError
from prior_art.headless.core_latents import SetLatentNoiseMask
from prior_art.headless.core_nodes import VAEDecode, VAEDecodeTiled, VAEEncode
from prior_art.host import host
from prior_art.host.embedded.door import Interrupted, session
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.loaders.mindalle import tokenize
from prior_art.networks.mindalle_vqgan import codes_of, decode, embeddings, encode
from prior_art.nodes import mindalle as autoregressive
from prior_art.nodes.mindalle import (
    ARComplete,
    ARSample,
    ARScore,
    ARVariations,
    LoadARTransformer,
    LoadVQGAN,
    VQGANDecode,
    VQGANEncode,
    as_text,
)
from prior_art.samplers.mindalle import (
    Draw,
    complete_by_likelihood,
    log_probabilities,
    sample_tokens,
)
from prior_art.samplers.parts.noise import Noise

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
SIZE, GRID, CODES = 32, 8, 24
DRAW = {"seed": 7, "candidates": 3, "top_k": 20, "top_p": 1.0, "temperature": 1.0}


def drawn(count=3):
    return Draw(Noise.seeded(7, count), **CPU, top_k=20)


class Model:
    """A loaded miniature: what travels on the edges, and its networks."""

    def __init__(self, source):
        (self.vae,) = LoadVQGAN.execute("tiny-mindalle", "auto").args
        (self.transformer,) = LoadARTransformer.execute(source, "auto").args
        self.vqgan = host.open("vqgan", self.vae)[0].network
        self.network = self.transformer.managed.network

    def sample(self, text="red cat", **changes):
        return ARSample.execute(self.transformer, self.vae, text, **{**DRAW, **changes}).args[0]

    def tokens(self, latent):
        return codes_of(self.vqgan, latent["samples"]).flatten(1)

    def prompt(self, text):
        return tokenize(self.transformer.tokenizer, [text], self.network.config.text_tokens).ids


@pytest.fixture(autouse=True)
def placed(models, monkeypatch):
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))


@pytest.fixture
def model(placed):
    return Model("tiny-mindalle")


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(host, "warn", said.append)
    return said


def pictures(*shape, seed=0):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))


def masked(latent, *region, size=SIZE):
    """The latent with a noise mask over pixels ``[top:bottom, left:right]``."""
    mask = torch.zeros(1, size, size)
    top, bottom, left, right = region
    mask[:, top:bottom, left:right] = 1
    return SetLatentNoiseMask.execute(latent, mask).args[0]


def complete(model, latent, text="red", keep=0, image=None, **changes):
    inputs = {**DRAW, **changes}
    return ARComplete.execute(
        model.transformer, model.vae, latent, text, keep, image=image, **inputs
    ).args


# -- the VAE -----------------------------------------------------------------------------------


def test_native_nodes_code_and_decode_as_ours(model):
    image = pictures(2, SIZE, SIZE)
    latent, text = VQGANEncode.execute(model.vae, image).args
    (native,) = VAEEncode.execute(image, model.vae).args
    assert torch.equal(latent["samples"], native["samples"])
    codes = encode(model.vqgan, image.permute(0, 3, 1, 2) * 2 - 1)
    assert latent["samples"].shape == (2, 8, GRID, GRID)
    assert torch.equal(model.tokens(latent), codes.flatten(1))
    assert text == as_text(codes) and len(text) == 2
    assert text[0].splitlines()[1].split()[2] == str(int(codes[0, 1, 2]))
    ours, again = VQGANDecode.execute(model.vae, latent).args
    assert again == text
    expected = (decode(model.vqgan, codes) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    for node in (VAEDecode, VAEDecodeTiled):
        torch.testing.assert_close(node.execute(latent, model.vae).args[0], ours)


def test_a_latent_decodes_as_its_nearest_codes_do(model):
    latent = model.sample()
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))
    near = {"samples": latent["samples"] + 0.02 * noise}
    assert torch.equal(
        VAEDecode.execute(near, model.vae).args[0], VAEDecode.execute(latent, model.vae).args[0]
    )


def test_vae_encode_takes_multiples_of_the_factor(model):
    image = pictures(1, 43, 50)
    (latent,) = VAEEncode.execute(image, model.vae).args
    assert latent["samples"].shape == (1, 8, 10, 12)
    (cut,) = VAEEncode.execute(image[:, 1:41, 1:49], model.vae).args
    assert torch.equal(latent["samples"], cut["samples"])
    with pytest.raises(EdgeError, match="3x43 is smaller"):
        VAEEncode.execute(image[:, :, :3], model.vae)


@pytest.mark.parametrize(("height", "width"), [(64, 48), (40, 90)])
def test_a_picture_of_another_size_is_resized_and_cropped_as_published(
    model, warnings, height, width
):
    eight = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    latent, _ = VQGANEncode.execute(model.vae, torch.from_numpy(eight)[None] / 255).args
    assert len(warnings) == 1 and f"'image' is {width}x{height}" in warnings[0]
    picture = Image.fromarray(eight)
    scale = SIZE / min(height, width)
    picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
    cut = np.array(picture.crop((left, top, left + SIZE, top + SIZE)))
    expected, _ = VQGANEncode.execute(model.vae, torch.from_numpy(cut)[None] / 255).args
    assert torch.equal(latent["samples"], expected["samples"])
    assert len(warnings) == 1


def test_decoding_goes_on_in_smaller_chunks_where_memory_runs_out(model, monkeypatch):
    latent = model.sample(candidates=5)
    whole = VQGANDecode.execute(model.vae, latent).args[0]
    sizes = []

    def failing(network, codes):
        sizes.append(len(codes))
        if len(codes) > 2:
            raise torch.cuda.OutOfMemoryError("no memory")
        return decode(network, codes)

    monkeypatch.setattr("prior_art.nodes.mindalle.decode", failing)
    torch.testing.assert_close(VQGANDecode.execute(model.vae, latent).args[0], whole)
    assert sizes == [5, 2, 2, 1]


# -- sampling ----------------------------------------------------------------------------------


def test_tokens_are_the_samplers(model):
    expected = sample_tokens(model.network, model.prompt("red cat"), drawn())
    latent = model.sample()
    assert torch.equal(model.tokens(latent), expected)
    assert latent["samples"].dtype == torch.float32 and set(latent) == {"samples"}
    assert torch.equal(latent["samples"], embeddings(model.vqgan, expected.view(3, GRID, GRID)))


@pytest.mark.slow
def test_a_candidate_can_be_made_alone_whatever_memory_allows(model, monkeypatch):
    together = model.tokens(model.sample(candidates=5))
    assert torch.equal(model.tokens(model.sample(seed=9, candidates=1))[0], together[2])
    chunks = []
    sampler = autoregressive.sample_tokens
    monkeypatch.setattr(
        autoregressive,
        "sample_tokens",
        lambda *a, **k: (chunks.append(a[2].chunk), sampler(*a, **k))[1],
    )
    monkeypatch.setattr(autoregressive, "bytes_per_candidate", lambda *_: 100)
    for free, chunk in ((0, 1), (250, 2), (10**6, 5)):
        monkeypatch.setattr(host, "free_memory", lambda free=free: free)
        assert torch.equal(model.tokens(model.sample(candidates=5)), together)
        assert chunks.pop() == chunk


@pytest.mark.parametrize("kind", ["class", "unconditional"])
def test_models_without_text(placed, warnings, kind):
    model = Model(f"tiny-{kind}")
    context = torch.tensor([[3]]) if kind == "class" else None
    expected = sample_tokens(model.network, context, drawn())
    assert torch.equal(model.tokens(model.sample("", class_id=3)), expected)
    assert not warnings
    model.sample("red", class_id=3)
    assert len(warnings) == 1 and "'text' is not used" in warnings[0]
    if kind == "class":
        with pytest.raises(EdgeError, match=r"'class_id' is 5.*from 0 to 4"):
            model.sample("", class_id=5)


def test_progress_counts_every_token_and_shows_a_row(model, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # every preview is quick
    seen = []
    monkeypatch.setattr(session, "on_progress", lambda *step: seen.append(step))
    chunk = 2
    monkeypatch.setattr(autoregressive, "bytes_per_candidate", lambda *_: 100)
    monkeypatch.setattr(host, "free_memory", lambda: 100 * chunk / 0.9 + 1)
    model.sample(candidates=3)
    total = GRID**2
    assert [step for step, _, _ in seen] == [
        *(2 * (i + 1) for i in range(total)),
        *(2 * total + i + 1 for i in range(total)),
    ]
    assert {most for _, most, _ in seen} == {3 * total}
    shown = [(step, picture.size) for step, _, picture in seen if picture is not None]
    assert shown == [
        *((2 * GRID * (row + 1), (2 * SIZE, SIZE)) for row in range(GRID)),
        *((2 * total + GRID * (row + 1), (SIZE, SIZE)) for row in range(GRID)),
    ]


def test_a_preview_shows_the_rows_so_far(model, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # every preview is quick
    shown = []
    monkeypatch.setattr(
        session, "on_progress", lambda step, total, picture: picture and shown.append(picture)
    )
    latent = model.sample(candidates=1)
    third = np.asarray(shown[2])
    assert third[12:].min() == third[12:].max() == 128 and third[:12].std() > 1
    whole = (VAEDecode.execute(latent, model.vae).args[0][0] * 255).round().numpy()
    assert np.abs(np.asarray(shown[-1]) - whole).max() <= 1


def test_slow_previews_are_left_out(model, monkeypatch):
    clock = iter(range(10**6))  # each look at it is as long as a preview
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    shown = []
    monkeypatch.setattr(
        session, "on_progress", lambda step, total, picture: picture and shown.append(step)
    )
    model.sample(candidates=1)
    assert shown == [GRID, GRID**2]


def test_a_stop_takes_effect_within_one_token(model, monkeypatch):
    steps = []

    def watch(step, total, picture):
        steps.append(step)
        if step == 3:
            session.stop.set()

    monkeypatch.setattr(session, "on_progress", watch)
    try:
        with pytest.raises(Interrupted):
            model.sample(candidates=1)
    finally:
        session.stop.clear()
    assert steps == [1, 2, 3]


def test_inputs_are_left_untouched(model):
    image = pictures(1, SIZE, SIZE)
    latent = masked(VQGANEncode.execute(model.vae, image).args[0], 8, 16, 0, 8)
    before = image.clone(), latent["samples"].clone(), latent["noise_mask"].clone()
    complete(model, latent, image=image)
    ARScore.execute(model.transformer, model.vae, latent, "red")
    after = image, latent["samples"], latent["noise_mask"]
    assert all(map(torch.equal, before, after)) and "noise_mask" in latent


# -- completion --------------------------------------------------------------------------------


def test_variations_keep_rows_and_go_on_exactly(model):
    image = pictures(1, SIZE, SIZE)
    codes = model.tokens(VQGANEncode.execute(model.vae, image).args[0])
    (latent,) = ARVariations.execute(
        model.transformer, model.vae, image, "red", keep_rows=3, **DRAW
    ).args
    kept = codes[:, : 3 * GRID]
    expected = sample_tokens(model.network, model.prompt("red"), drawn(), kept)
    found = model.tokens(latent)
    assert torch.equal(found, expected) and torch.equal(found[:, : 3 * GRID], kept.expand(3, -1))
    assert len(found.unique(dim=0)) == 3
    for rows in (0, GRID):
        with pytest.raises(EdgeError, match=f"'keep_rows' is {rows}"):
            ARVariations.execute(model.transformer, model.vae, image, "red", rows, **DRAW)


def test_a_mask_down_to_the_end_is_completed_exactly(model):
    given = model.sample(candidates=1)
    latent = masked(given, 20, SIZE, 0, SIZE)
    completed, images, weights = complete(model, latent)
    leading = model.tokens(given)[:, : 5 * GRID]
    expected = sample_tokens(model.network, model.prompt("red"), drawn(), leading)
    assert torch.equal(model.tokens(completed), expected)
    assert weights == [0, 0, 0] and len(images) == 3 and "noise_mask" not in completed


def painted(*cells):
    """The token grid's text with these (row, column) drawn anew."""
    rows = [["01"[(row, column) in cells] for column in range(GRID)] for row in range(GRID)]
    return json.dumps(["".join(row) for row in rows])


LAST_ROWS = painted(*((row, column) for row in range(5, GRID) for column in range(GRID)))
HOLE = painted((2, 1), (2, 2), (3, 1), (3, 2))


@pytest.mark.parametrize(
    ("redraw", "region"), [(LAST_ROWS, (20, 32, 0, 32)), (HOLE, (8, 16, 4, 12))]
)
def test_painted_codes_are_completed_as_the_same_mask(model, redraw, region):
    given, image = model.sample(candidates=1), pictures(1, SIZE, SIZE)
    expected = complete(model, masked(given, *region), candidates=8, image=image)
    found = complete(model, given, candidates=8, image=image, redraw=redraw)
    assert torch.equal(found[0]["samples"], expected[0]["samples"])
    assert torch.equal(found[1], expected[1]) and found[2] == expected[2]


def test_a_noise_mask_wins_over_painted_codes(model, monkeypatch):
    warnings = []
    monkeypatch.setattr(host, "warn", warnings.append)
    latent = masked(model.sample(candidates=1), 20, SIZE, 0, SIZE)
    expected = complete(model, latent)[0]["samples"]
    assert torch.equal(complete(model, latent, redraw=HOLE)[0]["samples"], expected)
    (warning,) = warnings
    assert "the noise mask of 'latent_image' wins" in warning


def vary(model, image, redraw="", **changes):
    inputs = {"keep_rows": 3, **DRAW, **changes}
    (latent,) = ARVariations.execute(
        model.transformer, model.vae, image, "red", **inputs, redraw=redraw
    ).args
    return model.tokens(latent)


def test_variations_draw_the_painted_codes_instead_of_whole_rows(model):
    image = pictures(1, SIZE, SIZE)
    assert torch.equal(vary(model, image, LAST_ROWS), vary(model, image, keep_rows=5))
    codes = model.tokens(VQGANEncode.execute(model.vae, image).args[0])
    changed = vary(model, image, HOLE) != codes
    assert changed.any() and {*changed.any(dim=0).nonzero().flatten().tolist()} <= {17, 18, 25, 26}


def test_each_variation_of_painted_codes_has_its_own_picture(model):
    images = pictures(3, SIZE, SIZE)
    together = vary(model, images, HOLE)
    alone = [vary(model, images[i : i + 1], HOLE, seed=7 + i, candidates=1) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    with pytest.raises(EdgeError, match="'image' holds 3 pictures for 2 candidates"):
        vary(model, images, HOLE, candidates=2)


@pytest.mark.parametrize(
    ("redraw", "words"),
    [
        ("[", r"'redraw' is no JSON; give a text of 0 and 1 for each row"),
        ('"01"', "'redraw' is no grid of codes"),
        ("[[0, 1]]", "'redraw' is no grid of codes"),
        (json.dumps(["012"] * 3), "'redraw' is no grid of codes"),
        ("[]", "'redraw' has 0 rows of up to 0 codes, but this model's pictures have 8x8"),
        (json.dumps(["0" * 16] * 16), "'redraw' has 16 rows of up to 16 codes, but .* 8x8"),
        (json.dumps(["0" * 8] * 7 + ["1"]), "'redraw' has 8 rows of up to 8 codes"),
        (painted(), "'redraw' has no 1"),
    ],
)
def test_a_grid_that_is_not_the_models_is_refused(model, redraw, words):
    with pytest.raises(EdgeError, match=words):
        complete(model, model.sample(candidates=1), redraw=redraw)
    with pytest.raises(EdgeError, match=words):
        vary(model, pictures(1, SIZE, SIZE), redraw)


def test_the_token_grid_is_told_codes_picture_and_what_was_drawn(model, monkeypatch):
    kept = []
    monkeypatch.setattr(host, "show", lambda make: kept.append(make()) or {"filename": "a.jpg"})
    given, image = model.sample(candidates=1), pictures(1, SIZE, SIZE)
    inputs = {"keep": 1, **DRAW}
    outputs = [
        ARComplete.execute(model.transformer, model.vae, given, "red", **inputs, redraw=HOLE),
        ARComplete.execute(
            model.transformer, model.vae, masked(given, 20, SIZE, 0, SIZE), "red", **inputs
        ),
        ARVariations.execute(model.transformer, model.vae, image, "red", keep_rows=5, **DRAW),
    ]
    told = [output.ui["PRIOR_ART_TOKENS"][0] for output in outputs]
    codes = model.tokens(given).view(GRID, GRID).tolist()
    assert [entry["redrawn"] for entry in told] == [*map(json.loads, (HOLE, LAST_ROWS, LAST_ROWS))]
    assert [entry["masked"] for entry in told] == [False, True, False]
    assert told[0]["codes"] == told[1]["codes"] == codes != told[2]["codes"]
    assert torch.equal(kept[0], VAEDecode.execute(given, model.vae).args[0])
    assert torch.equal(kept[2], image)


def test_a_score_tells_each_codes_probability(model):
    latent = model.sample(candidates=2)
    output = ARScore.execute(model.transformer, model.vae, latent, "red")
    told = output.ui["PRIOR_ART_SCORED_TOKENS"]
    assert [entry["codes"] for entry in told] == model.tokens(latent).tolist()
    assert [sum(entry["log_probs"]) for entry in told] == pytest.approx(output.args[0], abs=1e-3)


def test_any_other_mask_gives_the_best_by_likelihood(model):
    given = model.sample(candidates=1)
    codes = model.tokens(given)
    latent = masked(given, 9, 14, 6, 11)  # of rows 2 and 3, columns 1 and 2
    changed = torch.zeros(GRID, GRID, dtype=torch.bool)
    changed[2:4, 1:3] = True
    tokens, likely = complete_by_likelihood(
        model.network,
        model.prompt("red"),
        codes[0],
        ~changed.flatten(),
        drawn(8),
    )
    best = likely.sort(descending=True)
    assert len(set(best.values.tolist())) > 1
    completed, _, weights = complete(model, latent, candidates=8)
    assert torch.equal(model.tokens(completed), tokens[best.indices])
    assert weights == best.values.tolist()
    completed, images, weights = complete(model, latent, candidates=8, keep=2)
    assert torch.equal(model.tokens(completed), tokens[best.indices[:2]])
    assert weights == best.values[:2].tolist() and len(images) == 2


def test_untouched_pixels_are_put_back(model, warnings):
    image = pictures(1, 48, 64)
    latent, _ = VQGANEncode.execute(model.vae, image).args
    mask = torch.zeros(1, 48, 64)
    mask[:, 24:, 8:56] = 1  # the lower half of what is left by the crop
    (latent,) = SetLatentNoiseMask.execute(latent, mask).args
    completed, plain, _ = complete(model, latent)
    _, images, _ = complete(model, latent, image=image)
    fitted, _ = VQGANEncode.execute(model.vae, image).args
    assert torch.equal(
        model.tokens(completed)[:, : 4 * GRID], model.tokens(fitted)[:, : 4 * GRID].expand(3, -1)
    )
    assert (model.tokens(completed)[:, 4 * GRID :] != model.tokens(fitted)[:, 4 * GRID :]).any()
    assert all("'image' is 64x48" in text for text in warnings)
    small = Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8))
    small = small.resize((42, 32), Image.Resampling.BILINEAR).crop((5, 0, 37, 32))
    kept = torch.from_numpy(np.array(small)).float() / 255
    torch.testing.assert_close(images[:, :15], kept[None, :15].expand(3, -1, -1, -1))
    torch.testing.assert_close(images[:, 17:], plain[:, 17:])


@pytest.mark.parametrize("size", [GRID, 20, SIZE, 100])
def test_masks_of_any_size(model, size):
    given = model.sample(candidates=1)
    latent = masked(given, 0, 1, 0, 1, size=size)  # one pixel makes its code new
    found = model.tokens(complete(model, latent, candidates=8)[0])
    assert torch.equal(found[:, 1:], model.tokens(given)[:, 1:].expand(8, -1))
    assert len(found[:, 0].unique()) > 1


def test_scores_are_the_log_likelihoods(model):
    latent = model.sample()
    scores, report = ARScore.execute(model.transformer, model.vae, latent, "red").args
    expected = log_probabilities(
        model.network, model.prompt("red"), model.tokens(latent), **CPU
    ).sum(dim=1)
    assert scores == pytest.approx(expected.tolist())
    best = max(range(3), key=scores.__getitem__)
    assert report.splitlines()[0] == f"picture {best + 1}: {scores[best]:.2f}"


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidates": 0}, "'candidates' is 0"),
        ({"top_k": -1}, "'top_k' is -1"),
        ({"top_p": 0.0}, "'top_p' is 0.0"),
        ({"top_p": 1.5}, "'top_p' is 1.5"),
        ({"temperature": -1.0}, "'temperature' is -1.0"),
    ],
    ids=str,
)
def test_impossible_numbers_are_named(model, changes, words):
    with pytest.raises(EdgeError, match=words):
        model.sample(**changes)


def test_zeros_and_ones_are_defined(model):
    assert torch.equal(model.tokens(model.sample(top_k=0)), model.tokens(model.sample(top_k=CODES)))
    likeliest = model.tokens(model.sample(temperature=0))
    assert len(likeliest.unique(dim=0)) == 1
    assert torch.equal(likeliest, model.tokens(model.sample(top_k=1)))


def test_an_empty_prompt_is_padding(model, warnings):
    assert model.sample("")["samples"].shape == (3, 8, GRID, GRID)
    assert (model.prompt("") == 0).all() and not warnings


def test_unknown_characters_and_cut_prompts_are_warned_about(model, warnings):
    latent = model.sample("red \U0001f438 \u043a\u0440\u043e\u0442")
    assert torch.isfinite(latent["samples"]).all()
    assert any("'\U0001f438" in text and "[UNK]" in text for text in warnings), warnings
    warnings.clear()
    model.sample("red " * 6 + "cat")
    assert warnings == ["the prompt has more than 6 tokens; not seen by the model: 'cat'"]


def test_foreign_latents_are_named(model):
    foreign = {"samples": torch.zeros(1, 4, GRID, GRID)}
    small = VAEEncode.execute(pictures(1, 16, 16), model.vae).args[0]
    nan = {"samples": torch.full((1, 8, GRID, GRID), float("nan"))}
    for latent, words in (
        (foreign, r"LATENT of shape \[1, 4, 8, 8\].*VQGAN Encode"),
        (small, "'samples' is 4x4 codes, but this transformer writes 8x8"),
        (nan, "'samples' holds NaN"),
        ({}, "'samples' got a LATENT without samples"),
    ):
        with pytest.raises(EdgeError, match=words):
            ARScore.execute(model.transformer, model.vae, latent, "red")
    for latent, words in ((foreign, "LATENT of shape"), (nan, "NaN")):
        with pytest.raises(EdgeError, match=words):
            VQGANDecode.execute(model.vae, latent)


def test_empty_and_missing_masks_are_named(model):
    given = model.sample(candidates=1)
    edge = torch.zeros(1, 32, 96)
    edge[:, :, :20] = 1
    for latent, words in (
        (given, "'latent_image' has no noise mask.*Set Latent Noise Mask"),
        (masked(given, 0, 0, 0, 0), "is empty"),
        (SetLatentNoiseMask.execute(given, edge).args[0], "cropped away"),
        ({**given, "noise_mask": torch.eye(2).view(2, 1, 1, 2)}, "2 noise masks"),
        (masked(model.sample(candidates=2), 0, 9, 0, 9), "holds 2 pictures"),
    ):
        with pytest.raises(EdgeError, match=words):
            complete(model, latent)
    with pytest.raises(EdgeError, match="'keep' is -1"):
        complete(model, masked(given, 0, 9, 0, 9), keep=-1)


def test_networks_of_two_models_are_refused(models, tiny, model):
    for name, sizes in (("codes", {"image_vocab": CODES + 8}), ("grid", {"image_tokens": 16})):
        if not (models / f"other-{name}").exists():
            tiny.tiny_mindalle(models / f"other-{name}", **sizes)
        (other,) = LoadARTransformer.execute(f"other-{name}", "auto").args
        words = f"8x8 codes out of 24.*other-{name}.*from one source"
        with pytest.raises(EdgeError, match=words):
            ARSample.execute(other, model.vae, "red", **DRAW)


def test_a_foreign_vae_is_named(model):
    with pytest.raises(EdgeError, match=r"'vae' is another kind of VAE.*Load VQGAN"):
        VQGANEncode.execute(object(), pictures(1, SIZE, SIZE))
    with pytest.raises(EdgeError, match="Load VQGAN"):
        ARSample.execute(model.transformer, object(), "red", **DRAW)


def test_a_tokenizer_of_another_size_is_refused_by_the_loader(models, tiny):
    broken = tiny.tiny_mindalle(models / "broken-tokenizer", text_vocab=40)
    with pytest.raises(EdgeError, match=r"the tokenizer has \d+ entries.*trained with 40"):
        LoadARTransformer.execute(broken.name, "auto")


@pytest.mark.parametrize(("choice", "dtype"), [("auto", "float32"), ("bf16", "bfloat16")])
def test_a_vqgan_is_full_precision_unless_asked(placed, choice, dtype):
    (vae,) = LoadVQGAN.execute("tiny-mindalle", choice).args
    assert str(next(host.open("vqgan", vae)[0].network.parameters()).dtype) == f"torch.{dtype}"


def test_unpacking_an_archive_is_shown_and_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIOR_ART_MODELS", str(tmp_path))
    archive = tmp_path / "1.3B.tar"
    with tarfile.open(archive, "w") as out:
        for name in ("stage1_last.ckpt", "stage2_last.ckpt"):
            info = tarfile.TarInfo(f"1.3B/{name}")
            info.size = 1000
            out.addfile(info, io.BytesIO(bytes(1000)))
    steps = []
    monkeypatch.setattr(session, "on_progress", lambda *step: steps.append(step[:2]))
    monkeypatch.setattr(session, "stop", threading.Event())
    session.stop.set()
    with pytest.raises(Interrupted):
        LoadVQGAN.execute("1.3B.tar", "auto")
    assert list(tmp_path.iterdir()) == [archive]
    session.stop.clear()
    steps.clear()
    with pytest.raises(CheckpointError, match="stage1_last"):
        LoadVQGAN.execute("1.3B.tar", "auto")  # unpacked, but no checkpoint
    assert steps[:2] == [(1000, 1000)] * 2
