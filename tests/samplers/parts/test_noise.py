from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.samplers.parts import noise
from prior_art.samplers.parts.noise import ExponentialNoise, Noise, generators


def test_image_i_is_seeded_seed_plus_i() -> None:
    batch = Noise.seeded(41, 3).normal((3, 8, 8))
    assert batch.dtype == torch.float32 and batch.shape == (3, 3, 8, 8)
    for i, image in enumerate(batch):
        alone = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(41 + i))
        assert torch.equal(image, alone)


@pytest.mark.parametrize("burnt_at_once", [32, 2**20])
def test_offset_continues_the_stream(monkeypatch, burnt_at_once: int) -> None:
    monkeypatch.setattr(noise, "_BURN", burnt_at_once)
    streams = Noise.seeded(5, 2)
    for _ in range(3):
        streams.normal((16,))
    streams.normal((3, 8, 8))
    assert streams.drawn == 3 * 16 + 3 * 8 * 8
    wound = Noise.seeded(5, 2, offset=streams.drawn)
    assert torch.equal(streams.normal((3, 4, 4)), wound.normal((3, 4, 4)))


def test_draws_leave_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    Noise.seeded(0, 2, offset=64).normal((4,))
    assert torch.equal(before, torch.get_rng_state())


def test_the_largest_seed_wraps_around() -> None:
    streams = generators(2**64 - 1, 2)
    assert torch.equal(Noise(streams[1:]).normal((16,)), Noise.seeded(0, 1).normal((16,)))


@pytest.mark.parametrize("count", [0, -1])
def test_refuses_no_images(count: int) -> None:
    with pytest.raises(EdgeError, match=f"'count' is {count}; at least 1"):
        generators(0, count)


def test_refuses_a_negative_offset() -> None:
    with pytest.raises(EdgeError, match="'offset' is -1"):
        generators(0, 1, -1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_exponential_noise_is_what_multinomial_draws_one_row_a_stream(mode: type) -> None:
    """Over several calls, however many threads draw the rows, in a host's inference mode too."""
    with mode():
        check_exponential_noise()


def check_exponential_noise() -> None:
    drawing = ExponentialNoise(generators(3, 5), 1000, torch.device("cpu"))
    threaded = ExponentialNoise(generators(3, 5), 1000, torch.device("cpu"))
    threaded._threads, threaded._pool = 3, ThreadPoolExecutor(3)
    alone = generators(3, 5)
    (source,) = generators(1, 1)
    for _ in range(20):
        found = drawing()
        assert found.dtype == torch.float32 and found.shape == (5, 1000)
        assert torch.equal(threaded(), found)
        p = torch.rand(5, 1000, generator=source)
        for row, noise_row, stream in zip(p, found, alone, strict=True):
            theirs = torch.multinomial(row, 1, generator=stream)
            assert torch.equal((row / noise_row).argmax(-1, keepdim=True), theirs)


def test_winding_a_stream_forward_can_be_stopped() -> None:
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Noise.seeded(0, 1, offset=10**13, between=stop)
