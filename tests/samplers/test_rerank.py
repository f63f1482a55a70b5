"""CLIP reranking: the published preparation of pictures, cosines and their order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.edges import EdgeError
from prior_art.samplers.rerank import MEAN, STD, order, preprocess, rerank_scores


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(1))


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """Back to 0..255, ``[B, S, S, 3]``."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    return ((pixels * std + mean) * 255).permute(0, 2, 3, 1)


def test_as_published() -> None:
    """256 -> 224 by Pillow, against the steps written out."""
    images = pictures(2, 256, 256)
    found = preprocess(images)
    assert found.shape == (2, 3, 224, 224) and found.dtype == torch.float32
    for image, ours in zip(images, found, strict=True):
        pixels = Image.fromarray((image.numpy() * 255).astype(np.uint8)).resize((224, 224), 3)
        x = np.asarray(pixels).astype(np.float32) / 255
        expected = (x - np.float32(MEAN)) / np.float32(STD)
        np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_equals_the_library_on_square_pictures() -> None:
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    images = pictures(2, 256, 256)
    given = [Image.fromarray(x) for x in (images.numpy() * 255).astype(np.uint8)]
    theirs = processors.CLIPImageProcessorPil()(given, return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocess(images), theirs, atol=1e-5, rtol=0)


def test_truncates_to_8_bits() -> None:
    images = torch.full((1, 8, 8, 3), 0.999)  # 254.7
    assert bool((levels(preprocess(images, 8)).round() == 254).all())


def test_clamps() -> None:
    images = torch.tensor([-0.5, 1.5]).view(2, 1, 1, 1).expand(2, 8, 8, 3)
    assert levels(preprocess(images, 8)).round().unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((8, 13), (slice(None), slice(2, 10))),  # 2.5 to the even 2
        ((15, 8), (slice(4, 12), slice(None))),  # 3.5 to the even 4
        ((8, 8), (slice(None), slice(None))),
    ],
)
def test_cuts_the_centre_out(shape: tuple[int, int], crop: tuple[slice, slice]) -> None:
    images = pictures(1, *shape)
    expected = (images[0].numpy() * 255).astype(np.uint8)[crop]
    assert np.array_equal(levels(preprocess(images, 8))[0].round().numpy(), expected)


@pytest.mark.parametrize(("shape", "resized"), [((30, 17), (10, 17)), ((17, 30), (17, 10))])
def test_shorter_side_first(shape: tuple[int, int], resized: tuple[int, int]) -> None:
    """10 pixels of 17, and 17.6 of 30 cut off to 17."""
    images = pictures(1, *shape)
    whole = Image.fromarray((images[0].numpy() * 255).astype(np.uint8)).resize(resized, 3)
    expected = np.asarray(whole)
    expected = expected[4:14] if resized[0] == 10 else expected[:, 4:14]  # 3.5 to the even 4
    assert np.array_equal(levels(preprocess(images, 10))[0].round().numpy(), expected)


def test_another_clips_numbers() -> None:
    found = preprocess(torch.ones(1, 8, 8, 3), 8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert found.unique().tolist() == [2]


def test_refuses_pictures() -> None:
    for bad in (torch.ones(1, 8, 8, 4), torch.ones(8, 8, 3), torch.ones(0, 8, 8, 3)):
        with pytest.raises(EdgeError, match="RGB"):
            preprocess(bad)
    with pytest.raises(EdgeError, match="NaN"):
        preprocess(torch.full((1, 8, 8, 3), math.nan))


def test_scores_are_cosines() -> None:
    text = torch.tensor([[3.0, 4.0]])
    images = torch.tensor([[30.0, 40.0], [-3.0, -4.0], [4.0, -3.0], [1.0, 0.0]])
    scores = rerank_scores(text, images)
    torch.testing.assert_close(scores, torch.tensor([1.0, -1.0, 0.0, 0.6]))
    assert rerank_scores(text.half(), images.half()).dtype == torch.float32


def test_order_is_descending_and_stable() -> None:
    assert order(torch.tensor([0.2, 0.5, 0.2, 0.9, 0.5])).tolist() == [3, 1, 4, 0, 2]


def test_refuses_features() -> None:
    with pytest.raises(EdgeError, match="one prompt"):
        rerank_scores(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(EdgeError, match="4 dimensions and the pictures' 6"):
        rerank_scores(torch.ones(1, 4), torch.ones(2, 6))
    with pytest.raises(EdgeError, match="NaN"):
        rerank_scores(torch.ones(1, 4), torch.full((2, 4), math.nan))
