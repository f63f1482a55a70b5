"""The data set and the rules that judge pictures."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from prior_art.shapes import grammar, pictures
from prior_art.shapes.check import check


@pytest.mark.slow
def test_the_rules_know_every_drawn_scene():
    for scene in grammar.training_scenes() + grammar.held_out_scenes():
        found = check(pictures.draw(scene, seed=1))
        assert found.all_right(scene), (scene, found)
        assert scene.size in (None, found.size)


def test_the_rules_see_through_soft_edges_and_a_little_noise():
    rng = np.random.default_rng(0)
    scenes = grammar.draw_prompts(60)
    for scene in scenes:
        picture = np.asarray(pictures.draw(scene), np.float32)
        picture += rng.normal(0, 8, picture.shape)
        found = check(picture.clip(0, 255).astype(np.uint8))
        assert found.all_right(scene), (scene, found)


@pytest.mark.parametrize("field", ["colour", "kind", "background"])
def test_the_rules_refuse_the_wrong_picture(field):
    import dataclasses

    rng = random.Random(0)
    values = {"kind": grammar.KINDS}.get(field, tuple(grammar.COLOURS))
    for scene in grammar.draw_prompts(40):
        other = dataclasses.replace(scene, **{field: rng.choice(values)})
        if other != scene and other.colour != other.background:
            assert not check(pictures.draw(other)).all_right(scene)


def test_the_rules_name_nothing_in_noise_and_flat_pictures():
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert check(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).kind is None
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        assert check(coarse).kind is None
    flat = check(Image.new("RGB", (64, 64), grammar.COLOURS["blue"]))
    assert (flat.background, flat.colour, flat.kind) == ("blue", None, None)


def test_the_rules_refuse_two_shapes_and_half_a_shape():
    picture = Image.new("RGB", (64, 64), grammar.COLOURS["white"])
    paint = Image.new("RGB", (64, 64), grammar.COLOURS["red"])
    for x in (16, 46):
        picture.paste(paint, mask=pictures.silhouette("circle", 11, x, 32))
    assert check(picture).kind is None
    half = pictures.draw(grammar.Scene("red", "circle", "white", "large"), 0)
    half.paste(grammar.COLOURS["white"], (0, 0, 32, 64))
    assert check(half).kind is None


def test_the_rules_want_the_right_side():
    with pytest.raises(ValueError, match="64x64"):
        check(np.zeros((32, 32, 3), np.uint8))


def test_floats_and_bytes_are_judged_alike():
    scene = grammar.Scene("cyan", "cross", "black", "medium")
    picture = np.asarray(pictures.draw(scene))
    assert check(picture) == check(picture.astype(np.float32) / 255)


def test_drawing_is_repeatable_and_varied():
    scene = grammar.Scene("red", "square", "blue")
    assert pictures.draw(scene, 3).tobytes() == pictures.draw(scene, 3).tobytes()
    assert len({pictures.draw(scene, i).tobytes() for i in range(20)}) == 20


def test_a_quarter_is_held_out_and_never_trained():
    hidden, everything = grammar.held_out(), set(grammar.combinations())
    assert hidden < everything
    assert len(hidden) * 4 == len(everything)
    assert not {scene.combination for scene in grammar.training_scenes()} & hidden
    # Every colour, kind and background is still seen in training, and every pair of colours.
    seen = {scene.combination for scene in grammar.training_scenes()}
    assert len({(colour, background) for colour, _, background in seen}) == 56
    assert {kind for _, kind, _ in seen} == set(grammar.KINDS)


@pytest.mark.parametrize("count", [20, 200])
def test_prompts_differ_and_a_quarter_is_held_out(count):
    scenes = grammar.draw_prompts(count, seed=5)
    assert len({scene.prompt for scene in scenes}) == count
    assert sum(s.combination in grammar.held_out() for s in scenes) == count // 4
    assert scenes == grammar.draw_prompts(count, seed=5) != grammar.draw_prompts(count, seed=6)
    assert all(grammar.parse(scene.prompt) == scene for scene in scenes)


def test_more_prompts_than_exist_are_refused():
    with pytest.raises(ValueError, match="different prompts"):
        grammar.draw_prompts(10_000)


@pytest.mark.slow
def test_training_batches_show_their_scenes():
    scenes = [scene for scene in grammar.training_scenes() if scene.size][::29]
    batch, masks = pictures.training_batch(scenes, np.random.default_rng(0))
    assert batch.shape == (len(scenes), 3, 64, 64)
    assert masks.shape == (len(scenes), 1, 64, 64)
    assert batch.min() >= -1 and batch.max() <= 1
    for scene, picture in zip(scenes, batch, strict=True):
        assert check((picture.transpose(1, 2, 0) + 1) / 2).all_right(scene)


def test_the_rules_refuse_what_lies_between_two_kinds():
    y, x = np.mgrid[-1:1:64j, -1:1:64j] * 2
    between = (np.abs(x) ** 4 + np.abs(y) ** 4 <= 1)[..., None]  # neither square nor circle
    picture = np.where(between, grammar.COLOURS["red"], grammar.COLOURS["blue"]).astype(np.uint8)
    found = check(picture)
    assert (found.colour, found.kind, found.background) == ("red", None, "blue")
