"""The prior's steps by few_rows' operations, whose kernels run on a GPU only."""

from __future__ import annotations

import pytest
import torch
from diffusers import PriorTransformer

from prior_art.networks import prior
from prior_art.networks.prior import Constants, Run, prepare

from ..tiny import DIM, PRIOR
from .recorder import record_on_cpu


def make() -> PriorTransformer:
    torch.manual_seed(0)
    return PriorTransformer(**PRIOR).eval().requires_grad_(False)


def constants(network: PriorTransformer) -> Constants:
    """Of a schedule of three steps, for two prompts, the second shorter."""
    length = prior.text_length(network)
    hidden = torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([[length - 4], [5]])
    return prepare(network, hidden, hidden[:, 0], mask, [900, 500, 20])


@pytest.mark.parametrize("images", [1, 3, 5])  # four rows to twenty, which are not few
@torch.no_grad()
def test_the_operations_compute_what_the_network_does(
    monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    network, x = make(), torch.randn(2, images, DIM, generator=torch.Generator().manual_seed(2))
    plain = Run(network, constants(network), images)
    expected = [plain(x, index) for index in range(3)]
    record_on_cpu(monkeypatch)
    monkeypatch.setattr(prior, "_fits", lambda *_: True)
    run = Run(network, constants(network), images)
    for index, wanted in enumerate(expected):
        (found,) = run.recording("step", lambda place: (run(x, place),), run.at(index))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


class Launches(torch.utils._python_dispatch.TorchDispatchMode):
    """What a GPU would be told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_block_is_seven_launches_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are put behind the prompt's, attended to, and four products made."""

    def attend(q: torch.Tensor, *_: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        assert attn_mask.dtype == q.dtype  # neither made nor laid out by attention itself
        assert all(step % 8 == 0 for step in attn_mask.stride()[:-1])
        return torch.empty_like(q)

    network = make()
    made = constants(network)
    monkeypatch.setattr(prior.F, "scaled_dot_product_attention", attend)
    network = network.to("meta", torch.float16)
    past, times = (part.to("meta", torch.float16) for part in (made.past, made.times))
    valid = made.valid.to("meta")
    counts = []
    for blocks in (PRIOR["num_layers"], 1):
        network.transformer_blocks = network.transformer_blocks[:blocks]
        run = Run(network, Constants(past[:, :blocks], valid, times[:, :, :blocks], True), 1)
        with Launches() as seen:
            run(torch.zeros(2, 1, DIM).to(times), 0)
        counts.append(len(seen.names))
    assert counts[0] - counts[1] == 7 * (PRIOR["num_layers"] - 1)


@torch.no_grad()
def test_what_is_constant_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And serves other prompts, of other lengths."""
    network, recorders = make(), record_on_cpu(monkeypatch)
    length = prior.text_length(network)
    for seed, real in ((1, 5), (2, length), (3, 2)):
        hidden = torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(seed))
        told = hidden, hidden[:, 0], torch.arange(length)[None] < real, [900, 20]
        found = prepare(network, *told)
        with monkeypatch.context() as plain:
            plain.setattr(prior, "prepared", lambda network, work, given: work(*given))
            plain.setattr(prior, "can_record", lambda *_: False)
            expected = prepare(network, *told)
        count = real + 1
        assert found.valid.sum() == expected.valid.sum() == count
        torch.testing.assert_close(found.past[..., :count, :], expected.past, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.times, expected.times, atol=1e-5, rtol=0)
    assert len(recorders) == 1 and recorders[0].replays == 2
