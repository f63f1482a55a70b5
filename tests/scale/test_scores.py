"""CLIP-score and FID: equal to torchmetrics' and torch-fidelity's, and the same however they are
split up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.edges import UserError
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import find_source
from prior_art.loaders.rerank import load_reranker
from prior_art.samplers.rerank import preprocess
from prior_art.scale import inception
from prior_art.scale.scorer import Measure, Part, Scorer
from prior_art.scale.scores import Moments, Scores, frechet_distance
from prior_art.shapes.grammar import draw_prompts
from prior_art.shapes.pictures import draw

from .peers import peer


def features(count, dim, seed):
    """As Inception's: positive, skewed, correlated."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) / dim**0.5 + 0.4)


@pytest.mark.parametrize(("count", "dim"), [(500, 64), (40, 64)])
def test_the_distance_is_torch_fidelitys(count, dim):
    """Also where there are fewer pictures than dimensions."""
    theirs = peer("torch_fidelity.metric_fid")
    sides = [features(count, dim, seed) for seed in (0, 1)]
    statistics = [theirs.fid_features_to_statistics(torch.from_numpy(side)) for side in sides]
    expected = theirs.fid_statistics_to_metric(*statistics, verbose=False)
    ours = frechet_distance(*(Moments.of(side) for side in sides))
    assert ours == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)


def test_parts_add_up_to_the_whole():
    whole = features(300, 16, 0)
    parts = [Moments.of(part) for part in np.split(whole, [10, 11, 200])]
    total = sum(parts[1:], parts[0])
    assert total.count == 300
    np.testing.assert_allclose(total.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(whole, rowvar=False), rtol=1e-9)
    assert frechet_distance(total, Moments.of(whole)) == pytest.approx(0, abs=1e-9)


def test_a_distance_takes_two_pictures_on_each_side():
    one, many = Moments.of(np.ones((1, 3))), Moments.of(features(9, 3, 0))
    with pytest.raises(ValueError, match="two pictures on each side"):
        frechet_distance(one, many)


def test_scores_add_up_with_moments_and_without():
    moments = Moments.of(np.ones((2, 3)))
    total = Scores(None, 2, 0.5, 0.5, 1, 2) + Scores(moments) + Scores(moments, 1, -0.25, 0.0)
    assert total.moments.count == 4
    assert (total.count, total.cosine, total.positive) == (3, 0.25, 0.5)
    assert (total.right, total.colours) == (1, 2)


@pytest.fixture
def pictures(tmp_path):
    """Drawn scenes with their captions."""
    found = []
    for number, scene in enumerate(draw_prompts(40)):
        path = tmp_path / f"{number}.png"
        draw(scene, number).resize((80, 72)).save(path)
        found.append((path, scene.prompt))
    return tuple(found)


@pytest.fixture
def shapes_clip():
    return find_source("shapes-clip", "reranker", [])


def test_clip_score_is_torchmetrics(pictures, shapes_clip):
    theirs = peer("torchmetrics.functional.multimodal.clip_score")
    transformers = pytest.importorskip("transformers")
    clip = load_reranker(shapes_clip)

    def processor(text=None, images=None, **_):
        if text is not None:
            ids, mask, _ = tokenize(clip.tokenizer, text)
            return {"input_ids": ids, "attention_mask": mask.long()}
        levels = (one.permute(1, 2, 0)[None].float() / 255 for one in images)
        rows = [preprocess(one, clip.size, clip.mean, clip.std) for one in levels]
        return {"pixel_values": torch.cat(rows)}

    class Model(transformers.CLIPModel):
        """Whose features are tensors, as in the versions that torchmetrics knows."""

        def get_text_features(self, ids, mask):
            return super().get_text_features(input_ids=ids, attention_mask=mask).pooler_output

        def get_image_features(self, pixels):
            return super().get_image_features(pixel_values=pixels).pooler_output

    model = Model.from_pretrained(shapes_clip.path).float().eval()
    levels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, _ in pictures]
    captions = [caption for _, caption in pictures]
    with torch.no_grad():
        expected = theirs.clip_score(levels, captions, lambda: (model, processor))
    found = Scorer(Measure(shapes_clip, features=False)).run(Part(0, pictures))
    assert found.count == 40
    assert 100 * found.positive / 40 == pytest.approx(float(expected), rel=1e-6)
    assert found.cosine == pytest.approx(found.positive)


def test_without_captions_only_features_are_summed(pictures, shapes_clip):
    references = tuple((path, None) for path, _ in pictures)
    found = Scorer(Measure(shapes_clip, features=True)).run(Part(0, references))
    assert (found.count, found.moments.count) == (0, 40)


def test_the_rules_judge_drawn_scenes_right(tmp_path, shapes_clip):
    scenes = draw_prompts(5)
    for number, scene in enumerate(scenes):
        draw(scene, number).save(tmp_path / f"{number}.png")
    some = tuple((tmp_path / f"{i}.png", scene.prompt) for i, scene in enumerate(scenes))
    found = Scorer(Measure(shapes_clip, features=False, rules=True)).run(Part(0, some))
    assert (found.right, found.colours) == (5, 5)


def test_a_picture_that_cannot_be_read_is_named(tmp_path, shapes_clip):
    (tmp_path / "a.png").write_text("")
    with pytest.raises(UserError, match=r"a\.png' cannot be read"):
        Scorer(Measure(shapes_clip, features=False)).run(Part(0, ((tmp_path / "a.png", "a"),)))


@pytest.fixture
def random_inception(tmp_path):
    """Random weights in the published file's layout, and the file."""
    theirs = peer("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    # Its constructor reads weights: the class's own modules say which.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: None)
        network = theirs.FeatureExtractorInceptionV3("made", ["2048"], "anywhere")
    path = tmp_path / inception.WEIGHTS
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.slow
def test_inceptions_features_are_torch_fidelitys(random_inception, pictures, shapes_clip):
    network, path = random_inception
    pictures = pictures[:3]
    measure = Measure(shapes_clip, features=True, inception=path)
    found = Scorer(measure).run(Part(0, tuple((path, None) for path, _ in pictures)))
    levels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, _ in pictures]
    expected = Moments.of(network(torch.stack(levels))[0].numpy())
    np.testing.assert_allclose(found.moments.total, expected.total, rtol=1e-4)
    np.testing.assert_allclose(found.moments.outer, expected.outer, rtol=1e-4)


def test_a_file_that_is_no_inception_is_refused(tmp_path):
    peer("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / inception.WEIGHTS
    torch.save({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="does not hold the Inception"):
        inception.load_inception(path)


def test_where_inception_is_missing_the_message_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=rf"{inception.WEIGHTS}.* `prior-art download inception`"):
        inception.find_inception([tmp_path])
