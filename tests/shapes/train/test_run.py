"""Training: repeatable, resumable, and written in the hub's layout."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from prior_art.loaders import kandinsky, koala, mindalle, rerank, unclip
from prior_art.loaders.files.catalogue import Source
from prior_art.networks.koala import prepare_sdxl
from prior_art.samplers.koala import SDXLText
from prior_art.shapes import grammar, painters, score
from prior_art.shapes.check import Finding
from prior_art.shapes.grammar import KINDS, Scene
from prior_art.shapes.pictures import silhouette, training_batch
from prior_art.shapes.train import kandinsky as stages_latent
from prior_art.shapes.train import karlo_decoder as stages_decoder
from prior_art.shapes.train import koala as stages_koala
from prior_art.shapes.train import layout, loop, mended, recipe
from prior_art.shapes.train import mclip as stages_mclip
from prior_art.shapes.train import mindalle_vqgan as stages_vqgan
from prior_art.shapes.train import movq as stages_movq
from prior_art.shapes.train import prior as stages_prior
from prior_art.shapes.train import run as train
from prior_art.training.state import read_state


def run(tmp_path, name, stops, steps=8):
    """The averaged weights of a small network, trained with interruptions."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    plan = loop.Plan("toy", steps=steps, batch=16, rate=1e-2, warmup=2, save_every=3)

    def loss_of(draw):
        x = draw.randn(plan.batch, 4)
        return (network(x) - x.sum(1, keepdim=True)).pow(2).mean(), {}

    for stop in (*stops, None):
        torch.manual_seed(len(name))  # a resumed run must not lean on the global generator
        path = tmp_path / f"{name}.pt"
        if stop is None:
            return loop.train(plan, network, loss_of, path)
        with pytest.raises(loop.Unfinished):
            loop.train(plan, network, loss_of, path, stop_after=stop)
    raise AssertionError("unreachable")


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole = run(tmp_path, "whole", [])
    parts = run(tmp_path, "parts", [1, 4])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_state_holds_tensors_only_and_leaves_no_scratch(tmp_path):
    run(tmp_path, "state", [])
    assert loop.read_state(tmp_path / "state.pt")["step"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_timesteps_cover_the_range():
    steps = loop.draw_for("toy", 0, 3).timesteps(50)
    assert sorted((steps // 20).tolist()) == list(range(50))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So small networks gain nothing from more, and on a busy machine these would only spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A family trained for three steps a stage."""
    out = tmp_path_factory.mktemp("karlo")
    for stage in train.STAGES["karlo"]:
        train.train_stage("karlo", stage, out, out / ".state", steps=3)
    return out


@pytest.mark.slow
def test_every_stage_writes_its_folders(trained):
    index = json.loads((trained / "model_index.json").read_text())
    folders = {name for group in layout.KARLO.values() for name in group}
    assert folders == {path.name for path in trained.iterdir() if path.is_dir()} - {".state"}
    assert {name for name in index if not name.startswith("_")} < folders
    for name in ("text_encoder", "image_encoder", "prior", "decoder", "super_res_last"):
        assert isinstance(layout.read_network(trained, name), torch.nn.Module)


@pytest.mark.slow
def test_a_stage_resumes_to_the_same_weights(trained, tmp_path):
    again = tmp_path / "karlo"
    shutil.copytree(trained, again, ignore=shutil.ignore_patterns(".state", "super_res_*"))
    with pytest.raises(loop.Unfinished):
        train.train_stage("karlo", "sr", again, tmp_path / ".state", steps=3, stop_after=2)
    train.train_stage("karlo", "sr", again, tmp_path / ".state", steps=3)
    for name in ("super_res_first", "super_res_last"):
        one, two = (layout.read_network(out, name).state_dict() for out in (trained, again))
        assert all(torch.allclose(one[key], two[key], atol=1e-3) for key in one)


@pytest.mark.slow
def test_minDALLE_is_written_as_the_loaders_read_it(tmp_path):
    out = tmp_path / "mindalle"
    for stage in train.STAGES["mindalle"]:
        train.train_stage("mindalle", stage, out, tmp_path / ".state", steps=2)

    def source(folder):
        return Source(folder.name, "folder", folder, "mindalle", frozenset())

    vqgan = mindalle.load_vqgan(source(out))
    assert (vqgan.image_size, vqgan.factor, vqgan.codes) == (64, 8, 512)
    for kind in ("text", "class", "unconditional"):
        folder = out if kind == "text" else tmp_path / f"mindalle-{kind}"
        assert mindalle.load_transformer(source(folder)).kind == kind
    clip = tmp_path / "clip"
    judge = rerank.load_reranker(Source("clip", "folder", clip, "clip", frozenset()))
    assert (judge.size, judge.mean) == (64, (0.5, 0.5, 0.5))


@pytest.mark.slow
def test_kandinsky_is_written_as_the_loaders_read_it(tmp_path, monkeypatch):
    """Every stage, in hub folders; the modes begin as the decoder."""
    known = grammar.training_scenes()[::40]
    monkeypatch.setattr(stages_prior, "training_scenes", lambda: known)
    monkeypatch.setattr(stages_latent, "training_scenes", lambda: known)
    monkeypatch.setattr(stages_mclip, "training_scenes", lambda: known)
    monkeypatch.setattr(stages_decoder, "training_scenes", lambda: known)
    monkeypatch.setattr(mended, "_STEPS", 2)
    out, state = tmp_path / "kandinsky", tmp_path / ".state"
    for stage in train.STAGES["kandinsky"]:
        train.train_stage("kandinsky", stage, out, state, steps=2)
    folders = {name for group in layout.KANDINSKY.values() for name in group}
    assert folders == {
        path.relative_to(out).as_posix() for path in out.glob("*/*") if path.is_dir()
    }

    def source(part, system="kandinsky"):
        return Source(part, "embedded", out / part, system, frozenset())

    for mode, channels in (("decoder", 4), ("inpaint", 9), ("depth", 8)):
        loaded = kandinsky.load_latent_decoder(source(mode))
        assert loaded.network.config.in_channels == channels
        assert loaded.space.name == "shapes-vit-g"
    assert kandinsky.load_movq(source("decoder")).factor == 8
    assert unclip.stored_zero_image(source("prior", "kandinsky-prior")).shape == (1, recipe.WIDER)
    old = kandinsky.load_latent_decoder(source("2-1"))
    assert (old.space.name, old.text_space.dim) == ("shapes-vit-l", recipe.SPACE_WIDTH)
    assert kandinsky.load_mclip(source("2-1")).space == old.text_space
    assert unclip.stored_zero_image(source("2-1-prior")).shape == (1, recipe.SPACE_WIDTH)
    assert unclip.load_prior(source("2-1-prior", "kandinsky-prior")).space == old.space


@pytest.mark.slow
def test_a_kandinsky_stage_resumes_to_the_same_weights(tmp_path):
    whole = stages_movq.train_movq(tmp_path / "whole", "cpu", steps=2)
    with pytest.raises(loop.Unfinished):
        stages_movq.train_movq(tmp_path / "parts", "cpu", steps=2, stop_after=1)
    parts = stages_movq.train_movq(tmp_path / "parts", "cpu", steps=2)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_koala_is_written_as_the_loaders_read_it(tmp_path):
    out, state = tmp_path / "koala", tmp_path / ".state"
    for stage in train.STAGES["koala"]:
        train.train_stage("koala", stage, out, state, steps=2)
    folders = {name for group in layout.KOALA.values() for name in group}
    assert folders < {path.relative_to(out).as_posix() for path in out.glob("*/*")}
    for kind, name in (("1b", "KOALA-1B"), ("700m", "KOALA-700M")):
        source = Source(kind, "embedded", out / kind, "koala", frozenset())
        loaded = koala.load_unet(source, wanted=name)
        assert loaded.schedule.spacing == "leading" and loaded.schedule.offset == 1
        assert koala.load_vae(source).network.config.force_upcast
        pair = koala.load_text_encoders(source)
        assert not any("projection" in key for key in pair.first.state_dict())
        assert source.folder("vae") == out / "700m" / "vae"
        assert pair.second.config.projection_dim == recipe.WIDER
    scenes = grammar.draw_prompts(2)
    painted = painters.KoalaPainter(out, variant="700m").paint(scenes, 0)
    assert painted.shape == (2, 64, 64, 3)


@pytest.mark.slow
def test_a_koala_stage_resumes_to_the_same_weights(tmp_path):
    whole = stages_koala.train_vae(tmp_path / "whole", "cpu", steps=2)
    with pytest.raises(loop.Unfinished):
        stages_koala.train_vae(tmp_path / "parts", "cpu", steps=2, stop_after=1)
    parts = stages_koala.train_vae(tmp_path / "parts", "cpu", steps=2)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-3, rtol=1e-3)


def koala_conditions(count=2):
    """Texts in the table's form: rows of random states."""
    context = recipe.SPACE_WIDTH + recipe.WIDER
    return SDXLText(torch.randn(count, 77, context), torch.randn(count, recipe.WIDER))


def test_settled_latents_have_the_published_deviation_and_no_variance():
    """Settling scales latents and their use alike, so that pictures stay as they are."""
    torch.manual_seed(0)
    vae = recipe.koala_vae().eval()
    scenes = grammar.training_scenes()[::40]
    pictures = torch.from_numpy(training_batch(scenes, np.random.default_rng(0))[0])
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist.mode()
        drawn = vae.decode(before).sample
    stages_koala.settle(vae)
    with torch.no_grad():
        found = vae.encode(pictures).latent_dist
        torch.testing.assert_close(vae.decode(found.mode()).sample, drawn, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.mode() * vae.config.scaling_factor, before)
    assert found.std.max() < 1e-3


def test_true_latents_have_a_deviation_of_about_one():
    pool = stages_koala.latent_pool(512)
    assert 0.85 < pool.latents.std() < 1.15
    assert pool.latents.shape == (512, 4, 8, 8)
    again = stages_koala.latent_pool(512)
    assert torch.equal(pool.latents, again.latents) and torch.equal(pool.rows, again.rows)


def test_outlines_count_where_colours_are_near():
    """A wrong outline costs the same whatever the contrast; the true one costs almost nothing."""
    masks = {
        kind: torch.from_numpy(np.asarray(silhouette(kind, 22, 32, 32)) / 255.0)
        for kind in ("square", "triangle")
    }

    def picture(kind, paint):
        ground = torch.tensor([0.5, -0.2, 0.1])[:, None, None]
        return (ground + (paint[:, None, None] - ground) * masks[kind])[None].float()

    costs = []
    for paint in (torch.tensor([-0.9, 0.9, -0.9]), torch.tensor([0.5, -0.2, 0.5])):
        true, wrong = picture("square", paint), picture("triangle", paint)
        assert stages_koala.outline_loss(true, true) < 0.08
        costs.append(stages_koala.outline_loss(wrong, true))
    torch.testing.assert_close(costs[0], costs[1], atol=1e-3, rtol=0)
    assert costs[0] > 0.25


@pytest.mark.parametrize("kind", ["1b", "700m"])
def test_students_begin_with_the_teachers_weights(kind):
    torch.manual_seed(0)
    teacher, student = recipe.koala_unet("teacher"), recipe.koala_unet(kind)
    stages_koala.begin_as(student, teacher)
    weights = student.state_dict()
    theirs = teacher.state_dict()
    for key in (
        "conv_in.weight",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    ):
        assert torch.equal(weights[key], theirs[key])
    last = "up_blocks.2.resnets.{}.conv1.weight"
    assert torch.equal(weights[last.format(1)], theirs[last.format(2)])


@pytest.mark.parametrize("kind", ["1b", "700m"])
def test_a_students_self_attention_is_met_with_the_teachers(kind):
    """Every one of its blocks has a match, of the same place and width."""
    torch.manual_seed(0)
    text, x = koala_conditions(), torch.randn(2, 4, 8, 8)
    rows = steps = torch.tensor([0, 1])
    seen = {}
    for which in ("teacher", kind):
        unet = recipe.koala_unet(which)
        with torch.no_grad(), stages_koala.self_attention(unet) as seen[which]:
            stages_koala.predict(unet, x, steps, text, rows)
        assert not any(module._forward_hooks for module in unet.modules())
    assert len(seen[kind]) == {"1b": 11, "700m": 6}[kind]
    for name, out in seen[kind].items():
        assert seen["teacher"][stages_koala.in_teacher(name)].shape == out.shape


def test_training_asks_the_network_what_sampling_asks_it():
    torch.manual_seed(0)
    unet, text = recipe.koala_unet("700m").eval(), koala_conditions(3)
    x, rows, side = torch.randn(2, 4, 8, 8), torch.tensor([2, 0]), recipe.FINAL_SIDE
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * 2)
    with torch.no_grad():
        wanted = prepare_sdxl(unet, text.hidden[rows], text.pooled[rows], sizes, [500.0])(x, 0)
        found = stages_koala.predict(unet, x, torch.tensor([500, 500]), text, rows)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_modes_begin_as_the_decoder_paints():
    """Further channels start at nothing: the same prediction, whatever they hold."""
    torch.manual_seed(0)
    decoder = recipe.latent_decoder()
    x, embeds = torch.randn(1, 4, 8, 8), torch.randn(1, recipe.WIDER)
    for mode, extra in (("inpaint", {}), ("depth", {"hint": torch.rand(1, 3, 64, 64)})):
        unet = recipe.latent_decoder(mode)
        stages_latent.begin_as(unet, decoder)
        beside = torch.randn(1, 5, 8, 8) if mode == "inpaint" else x[:, :0]
        with torch.no_grad():
            given = {"image_embeds": embeds}
            wanted = decoder(x, 500, None, added_cond_kwargs=given).sample
            found = unet(torch.cat([x, beside], 1), 500, None, added_cond_kwargs=given | extra)
        torch.testing.assert_close(found.sample, wanted)


def test_what_is_kept_is_anything_but_a_box():
    masks = stages_latent.keep_masks(loop.draw_for("toy", 0, 1), 200, 8)
    assert masks.shape == (200, 1, 8, 8) and set(masks.unique().tolist()) == {0.0, 1.0}
    for mask in 1 - masks[:, 0]:
        rows, columns = mask.amax(1), mask.amax(0)
        assert torch.equal(mask, rows[:, None] * columns)
    painted = (1 - masks).mean((1, 2, 3))
    assert (painted == 1).sum() >= 10 and 0.1 < painted.mean() < 0.7


@pytest.mark.slow
def test_learning_to_draw_sharply_leaves_the_codes_alone(tmp_path):
    weights = stages_vqgan.train_vqgan(tmp_path, "cpu", steps=1)
    coded = read_state(tmp_path / "vqgan.pt")["average"]
    same = {key for key, value in coded.items() if torch.equal(value, weights[key])}
    drawing = {key for key in coded if key.startswith(("decoder.", "post_quant_conv."))}
    assert same == coded.keys() - drawing


def test_unused_codes_move_to_where_pictures_are():
    torch.manual_seed(0)
    network = recipe.vqgan()
    book = network.quantize.embedding.weight
    places = torch.randn(2000, book.shape[1])
    with torch.no_grad():
        book[:] = 100.0 + torch.arange(len(book))[:, None]
    assert stages_vqgan.move_unused(network, places, loop.draw_for("toy", 0, 0)) == len(book) - 1
    assert book[1:].abs().max() < 10


def test_the_short_prior_equals_the_full_one():
    from prior_art.shapes.train.prior import short_forward

    torch.manual_seed(0)
    prior = recipe.prior().eval()
    torch.nn.init.normal_(prior.positional_embedding)
    x, pooled, hidden = torch.randn(2, 64), torch.randn(2, 64), torch.randn(2, 77, 64)
    mask = torch.arange(77)[None] < torch.tensor([[10], [2]])
    steps = torch.tensor([999, 3])
    with torch.no_grad():
        full = prior(
            x, steps, proj_embedding=pooled, encoder_hidden_states=hidden, attention_mask=mask
        ).predicted_image_embedding
        short = short_forward(prior, x, steps, pooled, hidden[:, :10], mask[:, :10])
    torch.testing.assert_close(full, short, atol=1e-5, rtol=1e-5)


def test_the_nearest_true_picture_is_the_picture_itself():
    from prior_art.shapes.train.mended import nearest_true

    rng = np.random.default_rng(3)
    for kind in KINDS:
        scene = Scene("red", kind, "cyan", "medium")
        picture = torch.from_numpy(training_batch([scene], rng)[0])[0]
        found = nearest_true(torch.nn.functional.avg_pool2d(picture, 4), kind)
        torch.testing.assert_close(found, picture, atol=1e-3, rtol=0)


def test_scores_count_what_was_asked():
    scenes = [Scene("red", "circle", "blue"), Scene("red", "cross", "blue", "small")]
    findings = [Finding("red", "circle", "blue"), Finding("red", "square", "blue")]
    result = score.score(scenes, findings)
    assert (result.all_right, result.colours, result.prompts) == (0.5, 1.0, 2)
    assert set(json.loads(result.as_json())) == {"all_right", "colours", "prompts", "held_out"}
