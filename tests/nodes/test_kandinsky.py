"""Kandinsky's nodes over a miniature of random weights: what they hand on, and what they refuse."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from prior_art.edges import EdgeError, Prior
from prior_art.host import host
from prior_art.loaders import kandinsky, unclip
from prior_art.loaders.files.cache import keep
from prior_art.loaders.files.catalogue import find_source
from prior_art.networks.kandinsky_movq import encode
from prior_art.nodes.embeddings import MixEmbeddings
from prior_art.nodes.kandinsky import (
    NEGATIVE,
    ZERO,
    KandinskyConditioning,
    KandinskyDecoder,
    KandinskyDepth,
    KandinskyImage,
    KandinskyInpaint,
    KandinskyPrior,
    KandinskyPriorImage,
    KandinskySchedule,
    LoadLatentDecoder,
)
from prior_art.nodes.unclip import LoadPrior, TextEncode
from prior_art.samplers.clip import encode_zero_image

SPACE, DIM = "custom-32d", 32
FAST = {"seed": 3, "steps": 3, "cfg": 4.0, "batch_size": 1}


@pytest.fixture(scope="module")
def stages(models):
    """The loaded stages of the miniature, as the loader nodes hand them out."""

    def source(part, stage):
        return find_source(f"tiny-kandinsky/{part}", stage, [models])

    prior = unclip.load_prior(source("prior", "prior"))
    zero = encode_zero_image(
        unclip.load_image_encoder(source("prior", "image_encoder")).network, "cpu"
    )
    text = unclip.load_text_encoder(source("prior", "text_encoder"))
    found = {
        mode: host.wrap(
            "latent_decoder", kandinsky.load_latent_decoder(source(mode, "latent_decoder"))
        )
        for mode in ("decoder", "inpaint", "depth")
    }
    return SimpleNamespace(
        clip=host.wrap("text_encoder", text),
        prior=Prior(host.manage(prior.network), prior.schedule, prior.space, zero),
        vae=host.wrap("movq", kandinsky.load_movq(source("decoder", "movq"))),
        **found,
    )


def embedding(rows=1, seed=0, dim=DIM, space=SPACE):
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return host.clip_vision_output(values, embedding_space=space, made_by="a test")


def picture(height=64, width=64, rows=1):
    return torch.rand(rows, height, width, 3, generator=torch.Generator().manual_seed(1))


def decode(stages, **changes):
    inputs = {"model": stages.decoder, "width": 64, "height": 64, **FAST}
    inputs |= {"image_embeds": embedding(), "negative_image_embeds": embedding(seed=9)}
    return KandinskyDecoder.execute(**inputs | changes).args


def repaint(stages, **changes):
    inputs = {"model": stages.inpaint, "vae": stages.vae, "width": 0, "height": 0, **FAST}
    inputs |= {"image_embeds": embedding(), "negative_image_embeds": embedding(seed=9)}
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :32] = 1
    return KandinskyInpaint.execute(**inputs | {"image": picture(), "mask": mask} | changes).args


def vary(stages, **changes):
    inputs = {"model": stages.decoder, "vae": stages.vae, "width": 0, "height": 0, **FAST}
    inputs |= {"image_embeds": embedding(), "negative_image_embeds": embedding(seed=9)}
    return KandinskyImage.execute(**inputs | {"image": picture(), "strength": 0.7} | changes).args


def prompt(stages, text=""):
    return TextEncode.execute(stages.clip, text).args[0]


def sample_prior(stages, node=KandinskyPrior, **changes):
    inputs = {"prior": stages.prior, "negative_embeds": ZERO, **FAST}
    inputs |= {"positive": prompt(stages, "a cat"), "negative": prompt(stages)}
    return node.execute(**inputs | changes).args


# -- what they hand on ---------------------------------------------------------------------------


def test_the_prior_hands_on_the_embedding_of_a_picture_of_zeros(stages):
    embeds, negative, offset = sample_prior(stages, batch_size=2)
    assert embeds.image_embeds.shape == negative.image_embeds.shape == (2, DIM)
    assert torch.equal(negative.image_embeds, stages.prior.zero_image.expand(2, -1))
    assert offset == 3 * DIM


def test_the_prior_hands_on_what_it_makes_of_the_negative_prompt(stages):
    embeds, negative, _ = sample_prior(
        stages, negative_embeds=NEGATIVE, negative=prompt(stages, "blurry")
    )
    zero, _, _ = sample_prior(stages, negative=prompt(stages, "blurry"))
    # Not to the bit: a step runs three rows here and two there.
    torch.testing.assert_close(embeds.image_embeds, zero.image_embeds, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(negative.image_embeds, stages.prior.zero_image)


@pytest.mark.parametrize("wired", [False, True])
def test_a_negative_embedding_does_not_depend_on_the_batch(stages, wired):
    away = {"negative_decoder_prompt": prompt(stages, "blurry")}
    changes = away if wired else {"negative_embeds": NEGATIVE}
    both = sample_prior(stages, batch_size=2, seed=5, **changes)[:2]
    for i in (0, 1):
        alone = sample_prior(stages, seed=5 + i, **changes)[:2]
        for one, row in zip(alone, both, strict=True):
            row = row.image_embeds[i : i + 1]
            torch.testing.assert_close(one.image_embeds, row, atol=1e-4, rtol=1e-4)


def test_each_run_of_the_prior_shows_the_cosine_to_its_own_prompt(stages, monkeypatch):
    seen = []
    monkeypatch.setattr("prior_art.nodes.kandinsky.cosine_to", lambda text: seen.append(text))
    away = prompt(stages, "blurry")
    sample_prior(stages, negative_decoder_prompt=away)
    texts = [part[0][1]["pooled_output"] for part in (away, prompt(stages, "a cat"))]
    assert all(map(torch.equal, seen, texts))


def test_image_to_image_prior_keeps_the_embedding_at_strength_0(stages):
    given = embedding(seed=5)
    kept, _, offset = sample_prior(
        stages, KandinskyPriorImage, image_embeds=given, strength=0.0, noise_offset=7
    )
    assert torch.equal(kept.image_embeds, given.image_embeds) and offset == 7
    moved, _, _ = sample_prior(stages, KandinskyPriorImage, image_embeds=given, strength=1.0)
    assert not torch.allclose(moved.image_embeds, given.image_embeds)


def test_every_picture_of_a_batch_can_be_made_alone(stages):
    (both, offset), (second, _) = decode(stages, batch_size=2), decode(stages, seed=4)
    torch.testing.assert_close(both["samples"][1:], second["samples"], atol=1e-5, rtol=1e-5)
    assert both["samples"].shape == (2, 4, 8, 8)
    # The start, and all steps but the one at t = 0.
    assert offset == 3 * 4 * 8 * 8


@pytest.mark.parametrize(("width", "height", "shape"), [(65, 64, (8, 16)), (1, 130, (24, 8))])
def test_sizes_are_rounded_up_to_64(stages, width, height, shape):
    assert decode(stages, width=width, height=height)[0]["samples"].shape[2:] == shape


def test_image_to_image_keeps_the_picture_at_strength_0(stages):
    latent, offset = vary(stages, strength=0.0, noise_offset=5)
    managed, _ = host.open("movq", stages.vae)
    wanted = encode(managed.network, picture().movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(latent["samples"], wanted)
    assert offset == 5
    assert not torch.allclose(vary(stages, strength=1.0)[0]["samples"], wanted)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (70, 33), (64, 128)])
def test_pictures_of_any_size_are_resized_as_they_lie(stages, height, width):
    image = picture(height, width)
    samples = vary(stages, image=image)[0]["samples"]
    assert samples.shape[2:] == (-(-height // 64) * 8, -(-width // 64) * 8)


def test_what_is_not_repainted_comes_back_exactly(stages):
    latent = repaint(stages, image=picture(rows=2))[0]["samples"]
    managed, _ = host.open("movq", stages.vae)
    pixels = picture(rows=2).movedim(-1, 1) * 2 - 1
    kept = torch.cat([encode(managed.network, row[None]) for row in pixels])
    assert torch.equal(latent[:, :, 5:, :], kept[:, :, 5:, :])
    assert not torch.allclose(latent[:, :, :4, :4], kept[:, :, :4, :4])


def test_a_mask_of_another_size_is_resized_and_a_full_one_repaints_all(stages):
    half = torch.zeros(1, 128, 128)
    half[:, :64, :64] = 1
    torch.testing.assert_close(
        repaint(stages, mask=half)[0]["samples"], repaint(stages)[0]["samples"]
    )
    whole = repaint(stages, mask=torch.ones(64, 64))[0]["samples"]
    other = repaint(stages, mask=torch.ones(64, 64), image=picture() * 0)[0]["samples"]
    torch.testing.assert_close(whole, other)


def test_depth_leads_the_decoder(stages):
    inputs = {"model": stages.depth, "width": 0, "height": 0, **FAST}
    inputs |= {"image_embeds": embedding(), "negative_image_embeds": embedding(seed=9)}
    near, far = (
        KandinskyDepth.execute(depth=depth, **inputs).args[0]["samples"]
        for depth in (picture(), picture() * 0)
    )
    assert near.shape == (1, 4, 8, 8) and not torch.allclose(near, far)


@pytest.fixture
def apart(models, monkeypatch, tmp_path):
    """Loaders see the miniatures, and a cache folder in which nothing is yet."""
    monkeypatch.setenv("PRIOR_ART_MODELS", str(models))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "prior_art"


def test_a_prior_has_its_zero_image_through_the_hosts_memory_once(
    apart, models, stages, monkeypatch
):
    used, use = [], host.use
    monkeypatch.setattr(host, "use", lambda managed, **more: used.append(managed) or use(managed))
    for _ in range(2):
        (prior,) = LoadPrior.execute("tiny-kandinsky/prior", "fp32").args
        torch.testing.assert_close(prior.zero_image, stages.prior.zero_image)
        assert len(used) == 1
    assert [file.name.partition("-")[0] for file in apart.iterdir()] == ["zero_image_embeds"]
    assert not list(models.rglob("zero_image_embeds*"))


def test_a_zero_image_beside_the_prior_is_taken(apart, models, tmp_path):
    folder = tmp_path / "models" / "prior"
    shutil.copytree(models / "tiny-kandinsky" / "prior", folder)
    keep(folder / "zero_image_embeds.safetensors", "zero_image_embeds", torch.ones(1, DIM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIOR_ART_MODELS", str(folder.parent))
        (prior,) = LoadPrior.execute("prior", "fp32").args
    assert torch.equal(prior.zero_image, torch.ones(1, DIM)) and not apart.exists()


def test_a_decoder_reads_its_movq_for_previews_once(apart, monkeypatch):
    (model,) = LoadLatentDecoder.execute("tiny-kandinsky/decoder", "fp32", "published").args
    factors = host.open("latent_decoder", model)[1].latent_rgb_factors
    assert factors.shape == (5, 3) and bool(torch.isfinite(factors).all())
    monkeypatch.setattr(kandinsky, "load_movq", None)
    (model,) = LoadLatentDecoder.execute("tiny-kandinsky/decoder", "fp32", "published").args
    assert torch.equal(host.open("latent_decoder", model)[1].latent_rgb_factors, factors)


def test_previews_show_the_latents_colours(stages, apart):
    (model,) = LoadLatentDecoder.execute("tiny-kandinsky/decoder", "fp32", "published").args
    stages = SimpleNamespace(decoder=model)
    seen = []
    host.session.on_progress = lambda step, total, image: seen.append((step, total, image))
    try:
        decode(stages)
    finally:
        host.session.on_progress = None
    assert [told[:2] for told in seen] == [(i, 3) for i in (1, 2, 3)]
    assert seen[0][2].size == seen[-1][2].size == (64, 64)


def test_the_schedule_is_the_published_one(stages):
    (sigmas,) = KandinskySchedule.execute(stages.decoder, 10, 1.0).args
    alphas = host.open("latent_decoder", stages.decoder)[1].schedule.alphas_cumprod()
    wanted = [((1 - alphas[t]) / alphas[t]) ** 0.5 for t in range(900, -1, -100)]
    torch.testing.assert_close(sigmas, torch.tensor([*wanted, 0.0]))
    (sigmas,) = KandinskySchedule.execute(stages.decoder, 10, 0.3).args
    assert len(sigmas) == 4


def test_mixing_is_the_weighted_sum(stages):
    a, b = embedding(seed=1), embedding(2, seed=2)
    (mixed,) = MixEmbeddings.execute(a, b, 0.3, 0.7).args
    assert mixed.embedding_space == SPACE
    torch.testing.assert_close(mixed.image_embeds, 0.3 * a.image_embeds + 0.7 * b.image_embeds)


def test_kandinsky_21_reads_the_prompt_too(tiny, tmp_path):
    """Its decoder gets the prompt from mCLIP beside the image embedding, in every mode."""
    tiny.tiny_kandinsky_21(tmp_path / "old")

    def source(mode, stage):
        return find_source(f"old/{mode}", stage, [tmp_path])

    clip = host.wrap("text_encoder", kandinsky.load_mclip(source("decoder", "mclip")))
    vae = host.wrap("movq", kandinsky.load_movq(source("decoder", "movq")))
    stages = SimpleNamespace(vae=vae, clip=clip)
    for mode in ("decoder", "inpaint"):
        loaded = kandinsky.load_latent_decoder(source(mode, "latent_decoder"))
        setattr(stages, mode, host.wrap("latent_decoder", loaded))
    said = {"positive": prompt(stages, "a red cat"), "negative": prompt(stages)}
    other = said | {"positive": prompt(stages, "a dog")}
    for run in (decode, vary, repaint):
        (first, _), (second, _) = run(stages, **said), run(stages, **other)
        assert not torch.allclose(first["samples"], second["samples"]), run
        with pytest.raises(EdgeError, match="reads the prompt too"):
            run(stages)
    foreign = [[torch.zeros(1, 77, 32), {"pooled_output": torch.zeros(1, 32)}]]
    with pytest.raises(EdgeError, match="mCLIP"):
        decode(stages, positive=foreign, negative=foreign)


# -- what they refuse ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: decode(s, image_embeds=embedding(dim=768, space="openai-vit-l-14")),
            r"openai-vit-l-14.*Karlo, Kandinsky 2\.1.*custom-32d.*encode the picture again",
        ),
        (lambda s: decode(s, model=s.inpaint), "inpainting decoder.*text-to-image"),
        (lambda s: decode(s, model=s.depth), "depth decoder.*text-to-image"),
        (lambda s: repaint(s, model=s.decoder), "text-to-image decoder.*inpainting"),
        (lambda s: decode(s, model="a string"), "Load Decoder"),
        (lambda s: decode(s, batch_size=0), "batch_size"),
        (lambda s: decode(s, width=0), "width"),
        (lambda s: decode(s, steps=0), "'steps' is 0"),
        (lambda s: decode(s, cfg=float("nan")), "cfg"),
        (lambda s: decode(s, image_embeds=embedding(0)), "no rows"),
        (lambda s: decode(s, positive=prompt(s), negative=prompt(s)), r"2\.2.*reads no prompt"),
        (lambda s: vary(s, vae="a string"), "Load MoVQ"),
        (lambda s: vary(s, strength=1.5), "strength"),
        (lambda s: vary(s, strength=-0.1), "strength"),
        (lambda s: vary(s, image=picture() * float("nan")), "NaN"),
        (lambda s: vary(s, image=picture()[0]), "must be an IMAGE"),
        (lambda s: repaint(s, mask=torch.zeros(1, 64, 64)), "'mask' is empty"),
        (lambda s: repaint(s, mask=torch.ones(3, 64, 64)), "3 masks for 1 pictures"),
        (lambda s: repaint(s, mask=torch.full((1, 64, 64), float("nan"))), "NaN"),
        (lambda s: sample_prior(s, negative_embeds="other"), "negative_embeds"),
        (lambda s: sample_prior(s, batch_size=0), "batch_size"),
        (
            lambda s: sample_prior(s, negative_embeds=NEGATIVE, cfg=1.0),
            "leaves the negative prompt out",
        ),
        (
            lambda s: sample_prior(s, KandinskyPriorImage, image_embeds=embedding(), strength=2.0),
            "strength",
        ),
        (lambda s: MixEmbeddings.execute(embedding(2), embedding(3), 0.5, 0.5), "2 rows.*3"),
        (lambda s: MixEmbeddings.execute(embedding(), embedding(dim=64, space="b"), 1, 1), "'b'"),
        (lambda s: MixEmbeddings.execute(embedding(), embedding(), float("nan"), 1), "weight_a"),
    ],
)
def test_refused_in_words(stages, call, message):
    with pytest.raises(EdgeError, match=message):
        call(stages)


def test_a_prior_without_an_image_encoder_says_what_to_do(stages):
    bare = Prior(stages.prior.managed, stages.prior.schedule, stages.prior.space)
    with pytest.raises(EdgeError, match=r"image_encoder.*negative prompt"):
        sample_prior(stages, prior=bare)


def test_conditioning_carries_space_and_depth():
    positive, negative = KandinskyConditioning.execute(
        embedding(), embedding(seed=9), picture()
    ).args
    assert positive[0][0].shape == negative[0][0].shape == (1, 1, DIM)
    assert positive[0][1]["embedding_space"] == SPACE
    assert positive[0][1]["depth_hint"].shape == (1, 3, 64, 64)
