"""The prior's steps by few_rows' operations, whose kernels run on a GPU only."""

from __future__ import annotations

import pytest
import torch
from diffusers import PriorTransformer

from prior_art.networks import prior
from prior_art.networks.prior import Prefix, Run, prefill, prefill_times, time_embeddings

from ..tiny import DIM, PRIOR
from .recorder import record_on_cpu


def make() -> PriorTransformer:
    torch.manual_seed(0)
    return PriorTransformer(**PRIOR).eval().requires_grad_(False)


def constants(network: PriorTransformer) -> tuple[Prefix, torch.Tensor]:
    """Of a schedule of three steps, for two prompts, the second shorter."""
    length = prior.text_length(network)
    hidden = torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([[length - 4], [5]])
    prefix = prefill(network, hidden, hidden[:, 0], mask)
    times = time_embeddings(network, [900, 500, 20], torch.device("cpu"), torch.float32)
    return prefix, prefill_times(network, prefix, times)


@pytest.mark.parametrize("images", [1, 3, 5])  # four rows to twenty, which are not few
@torch.no_grad()
def test_the_operations_compute_what_the_network_does(
    monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    network, x = make(), torch.randn(2, images, DIM, generator=torch.Generator().manual_seed(2))
    plain = Run(network, *constants(network), images)
    expected = [plain(x, index) for index in range(3)]
    record_on_cpu(monkeypatch)
    monkeypatch.setattr(prior, "_fits", lambda *_: True)
    run = Run(network, *constants(network), images)
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
    """Keys and values are joined, attended to, and four products made."""

    def attend(q: torch.Tensor, *_: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        assert attn_mask.dtype == q.dtype  # neither made nor laid out by attention itself
        assert all(step % 8 == 0 for step in attn_mask.stride()[:-1])
        return torch.empty_like(q)

    network = make()
    prefix, times = constants(network)
    monkeypatch.setattr(prior.F, "scaled_dot_product_attention", attend)
    network, times = network.to("meta", torch.float16), times.to("meta", torch.float16)
    prefix = Prefix(
        *([part.to(times) for part in parts] for parts in (prefix.keys, prefix.values)),
        prefix.valid.to("meta"),
    )
    counts = []
    for blocks in (PRIOR["num_layers"], 1):
        network.transformer_blocks = network.transformer_blocks[:blocks]
        kept = Prefix(prefix.keys[:blocks], prefix.values[:blocks], prefix.valid)
        run = Run(network, kept, times[:, :, :blocks], 1)
        with Launches() as seen:
            run(torch.zeros(2, 1, DIM).to(times), 0)
        counts.append(len(seen.names))
    assert counts[0] - counts[1] == 7 * (PRIOR["num_layers"] - 1)
