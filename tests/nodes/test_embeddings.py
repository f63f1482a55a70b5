"""Image embeddings mixed, walked between, compared, kept: the arithmetic, the files, the errors."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from prior_art.edges import EdgeError
from prior_art.host import host
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.nodes.embeddings import (
    CompareEmbeddings,
    InterpolateEmbeddings,
    LoadEmbeddings,
    MixEmbeddings,
    SaveEmbeddings,
    TextDifference,
)
from prior_art.samplers.embeddings import MODES, interpolate, slerp

SPACE, DIM = "shapes-vit-l", 64


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(host.session, "output_folder", tmp_path / "output")
    monkeypatch.setattr(host.session, "input_folder", tmp_path / "input")


def rows(count=1, seed=0, dim=DIM):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def embeds(values, space=SPACE):
    return host.clip_vision_output(values, embedding_space=space, made_by="a test")


def mixed(a, b, weight_a=0.5, weight_b=0.5, mode=MODES[0]):
    return MixEmbeddings.execute(embeds(a), embeds(b), weight_a, weight_b, mode).args[0]


def prompt(values, space=SPACE):
    extra = {"pooled_output": values, "embedding_space": space}
    return [[torch.zeros(len(values), 77, DIM), extra]]


def near(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# -- mixing --------------------------------------------------------------------------------------


def test_every_mode_is_its_formula():
    a, b = rows(), rows(3, seed=1)
    near(mixed(a, b, 2, -1).image_embeds, 2 * a - b)
    near(mixed(a, b, 1, 3, "average").image_embeds, 0.25 * a + 0.75 * b)
    near(mixed(a, b, 9, 0.5, "add").image_embeds, a + 0.5 * b)
    near(mixed(a, b, 9, 0.5, "subtract").image_embeds, a - 0.5 * b)
    kept = mixed(a, b, 1, 3, "average, length kept").image_embeds
    near(kept.norm(dim=-1), 0.25 * a.norm() + 0.75 * b.norm(dim=-1))
    near(torch.cosine_similarity(kept, 0.25 * a + 0.75 * b), torch.ones(3))
    near(mixed(a, b, 1, 3, "slerp").image_embeds, slerp(a, b, 0.75))


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_of_nothing_leaves_the_first(mode):
    a, b = rows(2), rows(2, seed=1)
    near(mixed(a, b, 1.0, 0.0, mode).image_embeds, a)


def test_slerp_turns_evenly():
    a, b = torch.eye(2, DIM)[:1], 3 * torch.eye(2, DIM)[1:]
    half = slerp(a, b, 0.5)
    near(half, 2 * (a + b / 3) / 2**0.5)
    near(slerp(a, 2 * a, 0.25), 1.25 * a)  # no angle at all
    c = a + 1e-5 * b
    near(slerp(a, c, 0.5), (a + c) / 2)


@pytest.mark.parametrize("mode", ["slerp", "lerp"])
def test_a_walk_meets_its_points_exactly(mode):
    a, b = rows(2), rows(1, seed=1)
    (walk,) = InterpolateEmbeddings.execute(embeds(a), embeds(b), 5, mode).args
    found = walk.image_embeds
    assert found.shape == (5, DIM) and walk.embedding_space == SPACE
    for place, point in ((0, a[0]), (2, a[1]), (4, b[0])):
        assert torch.equal(found[place], point)
    between = slerp(a[:1], a[1:], 0.5) if mode == "slerp" else a.mean(0, keepdim=True)
    near(found[1:2], between)


def test_text_difference_moves_along_the_difference():
    a, to, away = rows(2), rows(1, seed=1), rows(1, seed=2)
    (moved,) = TextDifference.execute(embeds(a), prompt(to), prompt(away), 0.5).args
    step = moved.image_embeds - a
    near(step.norm(dim=-1), 0.5 * a.norm(dim=-1))
    near(torch.cosine_similarity(step, to - away), torch.ones(2))


def test_compare_gives_numbers_and_a_picture(monkeypatch):
    a = rows(2)
    monkeypatch.setattr(host, "show", lambda picture: {"size": picture().shape})
    output = CompareEmbeddings.execute(embeds(a), embeds(torch.cat([a, -a[:1]])))
    assert output.ui == {"images": [{"size": (1, 136, 184, 3)}]}
    said, image = output.args
    table = torch.tensor([[float(x) for x in line.split()] for line in said.splitlines()])
    near(table[:, :2].diagonal(), torch.ones(2))
    near(table[0, 2], torch.tensor(-1.0))
    assert image.shape == (1, 64, 96, 3)
    assert image[0, 0, 0].tolist() == pytest.approx([1.0] * 3)
    assert image[0, 0, 70].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


# -- on a pad ------------------------------------------------------------------------------------


def on_pad(corners, points, mode=MODES[0], node=MixEmbeddings):
    """A node with corners, by name or in order, and points on its pad."""
    wired = dict(zip("abcd", corners, strict=False)) if isinstance(corners, list) else corners
    wired = {f"image_embeds_{name}": embeds(value) for name, value in wired.items()}
    rest = (0.5, 0.5, mode) if node is MixEmbeddings else (5, mode)
    a, b = wired.pop("image_embeds_a"), wired.pop("image_embeds_b")
    return node.execute(a, b, *rest, pad=points and json.dumps(points), **wired).args[0]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("add", "subtract")])
def test_a_corner_of_the_pad_is_its_embedding(mode):
    corners = [rows(2, seed=i) for i in range(4)]
    for corner, place in zip(corners, ([0, 0], [1, 0], [0, 1], [1, 1]), strict=True):
        near(on_pad(corners, [place], mode).image_embeds, corner)


def test_a_place_on_the_pad_is_bilinear_or_spherical():
    a, b, c, d = corners = [rows(seed=i) for i in range(4)]
    found = on_pad(corners, [[0.25, 0.4]]).image_embeds
    near(found, 0.6 * (0.75 * a + 0.25 * b) + 0.4 * (0.75 * c + 0.25 * d))
    found = on_pad(corners, [[0.25, 0.4]], "slerp").image_embeds
    near(found, slerp(slerp(a, b, 0.25), slerp(c, d, 0.25), 0.4))


def test_an_edge_with_one_corner_is_that_corner():
    a, b, c = (rows(seed=i) for i in range(3))
    near(on_pad([a, b], [[0.3, 0.9]]).image_embeds, 0.7 * a + 0.3 * b)
    near(on_pad([a, b, c], [[0.3, 1]]).image_embeds, c)
    near(on_pad({"a": a, "b": b, "d": c}, [[0.3, 1]]).image_embeds, c)


def test_an_empty_pad_is_the_weights_or_with_a_third_the_middle():
    a, b, c = (rows(seed=i) for i in range(3))
    near(
        MixEmbeddings.execute(embeds(a), embeds(b), 2, 3, pad=" ").args[0].image_embeds,
        2 * a + 3 * b,
    )
    near(on_pad([a, b, c], "").image_embeds, a / 4 + b / 4 + c / 2)


def test_a_path_on_the_pad_is_walked_evenly():
    a, b, c, d = corners = [rows(seed=i) for i in range(4)]
    found = on_pad(corners, [[0, 0], [1, 0], [1, 1]], "lerp", InterpolateEmbeddings).image_embeds
    near(found, torch.cat([a, (a + b) / 2, b, (b + d) / 2, d]))
    found = on_pad(corners, [[0, 0], [0, 1]], "slerp", InterpolateEmbeddings).image_embeds
    near(found[1:2], slerp(a, c, 0.25))


def test_a_walk_without_a_path_goes_through_all_that_is_wired():
    a, b, c = (rows(seed=i) for i in range(3))
    found = on_pad([a, b, c], "", "lerp", InterpolateEmbeddings).image_embeds
    near(found, torch.cat([a, (a + b) / 2, b, (b + c) / 2, c]))


BROKEN_PADS = [
    "here",
    "[",
    "[" * 9999,
    "0.5",
    "[0.5, 0.5]",
    "[[0.5]]",
    "[[0.5, 1.1]]",
    "[[NaN, 0]]",
]
BROKEN_PADS += [
    "[[1e999, 0]]",
    '[["a", 0]]',
    "[[0, -1]]",
    "{}x",
    "[[0, 0, 0]]",
    "[null]",
    "[[[], 0]]",
    "{}",
    '""',
]


@pytest.mark.parametrize("pad", BROKEN_PADS, ids=lambda pad: pad[:12])
def test_what_is_no_place_on_the_pad_is_refused(pad):
    with pytest.raises(EdgeError, match=r"^.pad. is .*list of points"):
        MixEmbeddings.execute(embeds(rows()), embeds(rows()), 1, 1, pad=pad)


# -- files ---------------------------------------------------------------------------------------


def test_a_saved_embedding_comes_back_exactly(tmp_path):
    a = rows(3)
    SaveEmbeddings.execute(embeds(a), "red circle", "a red circle")
    (file,) = (tmp_path / "output" / "image_embeds").iterdir()
    assert file.name == "red circle.safetensors"
    assert LoadEmbeddings.define_schema().inputs[0].options["options"] == [file.name]
    found, note = LoadEmbeddings.execute(file.name).args
    assert torch.equal(found.image_embeds, a)
    assert (found.embedding_space, note) == (SPACE, "a red circle")
    assert "a test" in found.made_by and file.name in found.made_by
    before = LoadEmbeddings.fingerprint_inputs(file.name)
    SaveEmbeddings.execute(embeds(rows(1, seed=4)), "red circle", "")
    assert LoadEmbeddings.fingerprint_inputs(file.name) != before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "output").touch()
    with pytest.raises(EdgeError, match=r"red\.safetensors' cannot be written: .*'name'"):
        SaveEmbeddings.execute(embeds(rows()), "red", "")


def test_normalised_rows_come_back_raw(tmp_path):
    from safetensors.torch import load_file

    a = 7 * rows(3)
    SaveEmbeddings.execute(embeds(a), "unit", "", True)
    kept = load_file(tmp_path / "output" / "image_embeds" / "unit.safetensors")
    near(kept["image_embeds"].norm(dim=-1), torch.ones(3))
    near(LoadEmbeddings.execute("unit.safetensors").args[0].image_embeds, a)


@pytest.mark.parametrize(("factor", "older"), [(50, False), (0, False), (-1, True), (0, True)])
def test_other_lengths_than_those_that_were_saved_are_refused(tmp_path, factor, older):
    from safetensors import safe_open
    from safetensors.torch import load_file

    SaveEmbeddings.execute(embeds(7 * rows(3)), "unit", "", True)
    file = tmp_path / "output" / "image_embeds" / "unit.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    kept = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if older:  # version 0.1 wrote no fingerprint of lengths
        del metadata["fingerprint_of_lengths"]
        save_file(kept, file, metadata)
        near(LoadEmbeddings.execute("unit.safetensors").args[0].image_embeds, 7 * rows(3))
    save_file(kept | {"lengths": factor * kept["lengths"]}, file, metadata)
    with pytest.raises(CheckpointError, match="its lengths are not those"):
        LoadEmbeddings.execute("unit.safetensors")


def test_what_a_friend_sent_lies_in_the_input_folder(tmp_path):
    SaveEmbeddings.execute(embeds(rows()), "sent", "")
    (tmp_path / "input").mkdir()
    saved = tmp_path / "output" / "image_embeds" / "sent.safetensors"
    saved.rename(tmp_path / "input" / "sent.safetensors")
    assert torch.equal(LoadEmbeddings.execute("sent.safetensors").args[0].image_embeds, rows())


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: file.write_bytes(b"a picture, renamed"), "whatever its name says"),
        (lambda file: save_file({"weight": rows()}, file), "no image embeddings of PriorArt"),
        (
            lambda file: altered(file, space="unheard-of"),
            "'unheard-of', which this version of the pack does not know",
        ),
        (lambda file: altered(file, space="openai-vit-l-14"), "768 dimensions, but holds 64"),
        (lambda file: altered(file, fingerprint="0"), "damaged"),
        (lambda file: altered(file, normalised="true"), "without their lengths"),
    ],
)
def test_a_file_that_is_none_is_refused_in_words(tmp_path, write, said):
    (tmp_path / "input").mkdir()
    write(tmp_path / "input" / "bad.safetensors")
    with pytest.raises(CheckpointError, match=said):
        LoadEmbeddings.execute("bad.safetensors")


def altered(file, **changes):
    """A saved embedding with other metadata."""
    from safetensors import safe_open

    SaveEmbeddings.execute(embeds(rows()), "good", "")
    good = file.parents[1] / "output" / "image_embeds" / "good.safetensors"
    with safe_open(good, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"image_embeds": rows()}, file, metadata | changes)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 200, "a\\b", "trailing."])
def test_names_stay_in_their_folder(name, tmp_path):
    with pytest.raises(EdgeError, match="'name'"):
        SaveEmbeddings.execute(embeds(rows()), name, "")
    assert not (tmp_path / "output").exists()


# -- what they refuse ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mixed(rows(2), rows(3)), "2 rows.*3"),
        (lambda: mixed(rows(), rows(), 0, 0, "average"), "add up to nothing"),
        (lambda: mixed(rows(), rows(), 1, -1, "slerp"), "add up to nothing"),
        (lambda: mixed(rows(), rows(), float("nan")), "weight_a"),
        (lambda: mixed(rows(), -rows(), mode="slerp"), "opposite directions"),
        (lambda: mixed(rows(), rows(), mode="other"), "'mode' is 'other'"),
        (lambda: mixed(rows(), rows() * float("nan")), "NaN"),
        (lambda: mixed(rows(0), rows()), "no rows"),
        (lambda: MixEmbeddings.execute(None, embeds(rows()), 1, 1), "image_embeds_a"),
        (
            lambda: MixEmbeddings.execute(embeds(rows()), embeds(rows(), "shapes-vit-g"), 1, 1),
            "shapes-vit-g.*shapes-vit-l",
        ),
        (
            lambda: InterpolateEmbeddings.execute(embeds(rows()), embeds(rows()), 1, "slerp"),
            "'count' is 1",
        ),
        (lambda: interpolate(rows(), 5, "slerp"), "two embeddings or more"),
        (lambda: on_pad([rows(), rows()], [[0, 0], [1, 1]]), "'pad' has 2 points.*Interpolate"),
        (lambda: on_pad([rows(), rows()], [[0, 0]], "add"), "'mode' is 'add'.*choose weighted sum"),
        (lambda: on_pad([rows(2), rows(), rows(3)], ""), "'image_embeds_c' has 3 rows; make them"),
        (
            lambda: on_pad([rows(), rows()], [[0, 0]], "slerp", InterpolateEmbeddings),
            "'pad' has one point.*Mix Image Embeddings",
        ),
        (
            lambda: on_pad([rows(), rows()], [[0, 0]] * 3, "slerp", InterpolateEmbeddings),
            "'pad' stays where it is",
        ),
        (
            lambda: on_pad([rows(), rows(2)], [[0, 0], [1, 1]], "lerp", InterpolateEmbeddings),
            "'image_embeds_b' has 2 rows.*empty 'pad'",
        ),
        (
            lambda: TextDifference.execute(embeds(rows()), prompt(rows()), prompt(rows()), 1.0),
            "are the same",
        ),
        (
            lambda: TextDifference.execute(
                embeds(rows()), prompt(rows(), "openai-vit-l-14"), prompt(rows()), 1.0
            ),
            "'text' got a prompt in the embedding space 'openai-vit-l-14'",
        ),
        (lambda: LoadEmbeddings.execute("absent.safetensors"), "absent.*there are: none"),
    ],
)
def test_refused_in_words(call, said):
    with pytest.raises(EdgeError, match=said):
        call()


def test_no_link_is_followed_out(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    SaveEmbeddings.execute(embeds(rows()), "a", "")
    (tmp_path / "output" / "image_embeds").rename(theirs / "kept")
    (tmp_path / "output" / "image_embeds").symlink_to(theirs)
    with pytest.raises(EdgeError, match=r"image_embeds' is a link to .*out of the output folder"):
        SaveEmbeddings.execute(embeds(rows()), "a", "")
    (tmp_path / "output" / "image_embeds").unlink()
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "a.safetensors").symlink_to(theirs / "kept" / "a.safetensors")
    with pytest.raises(EdgeError, match="lies outside the folders of image embeddings"):
        LoadEmbeddings.execute("a.safetensors")
    assert [p.name for p in theirs.iterdir()] == ["kept"]


def test_a_pipe_and_a_large_file_are_refused(tmp_path, monkeypatch):
    SaveEmbeddings.execute(embeds(rows()), "a", "")
    os.mkfifo(tmp_path / "output" / "image_embeds" / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="is not read: it is a pipe"):
        LoadEmbeddings.execute("pipe.safetensors")
    monkeypatch.setattr("prior_art.loaders.embeddings.LARGEST", 10)
    with pytest.raises(CheckpointError, match=r"is not read: it has 0\.0 MB"):
        LoadEmbeddings.execute("a.safetensors")
