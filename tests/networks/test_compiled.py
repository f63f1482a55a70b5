"""Regions of the networks by torch.compile: without a graph break, to the same result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from prior_art.networks import karlo, koala, prior, unet

from ..tiny import DIM, KOALA, KOALAS, PRIOR, TOKENS
from .test_unet import TIMESTEPS, conditions, make_decoder, shake

Region = Callable[..., Any]
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def same(work: Region, *given: Any, backend: str) -> None:
    wanted = work(*given)
    found = torch.compile(work, backend=backend, fullgraph=True)(*given)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def pixel_decoder() -> tuple[unet.Run, tuple[int, ...]]:
    given = {name: part.to(torch.float32) for name, part in conditions(2).items()}
    given["mask"] = conditions(2)["mask"]
    run = karlo.prepare_decoder(make_decoder().float(), *given.values(), TIMESTEPS)
    assert isinstance(run, unet.Run)
    return run, (2, 3, 16, 16)


def sdxl() -> tuple[unet.Run, tuple[int, ...]]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = shake(UNet2DConditionModel(**KOALA | KOALAS["koala-1b"])).float()
    pooled = network.add_embedding.linear_1.in_features
    pooled -= 6 * network.config.addition_time_embed_dim
    told = torch.randn(2, TOKENS, network.config.cross_attention_dim), torch.randn(2, pooled)
    run = koala.prepare_sdxl(network, *told, torch.ones(2, 6), [999.0, 1.0])
    assert isinstance(run, unet.Run)
    return run, (2, 4, 8, 8)


def embeddings() -> tuple[prior.Run, tuple[int, ...]]:
    from diffusers import PriorTransformer

    torch.manual_seed(0)
    network = shake(PriorTransformer(**PRIOR)).float()
    told = torch.randn(2, TOKENS, DIM), torch.randn(2, DIM), torch.ones(2, TOKENS).bool()
    return prior.Run(network, prior.prepare(network, *told, [999, 1]), 1), (2, 1, DIM)


@pytest.mark.parametrize("make", [pixel_decoder, sdxl, embeddings])
def test_a_whole_step_is_one_graph(make: Callable[[], tuple[Any, tuple[int, ...]]]) -> None:
    run, shape = make()
    same(run.__call__, torch.randn(shape), run.at(1), backend="eager")


def test_a_step_of_a_hosts_own_loop_is_one_graph() -> None:
    run, shape = pixel_decoder()
    told = conditions(2)
    given = [told[name].float() for name in ("context", "class_labels")]

    def step(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return karlo.call_decoder(run.unet, x, timesteps, *given, told["mask"])

    same(step, torch.randn(shape), torch.tensor([500, 500]), backend="eager")


def resnet(run: unet.Run) -> tuple[Region, nn.Module, tuple[int, ...]]:
    block = run.unet.down_blocks[0].resnets[0]
    return run._resnet, block, (2, block.conv1.in_channels, 8, 8)


def attention(run: unet.Run) -> tuple[Region, nn.Module, tuple[int, ...]]:
    block = run.unet.mid_block.attentions[0]
    channels = getattr(block, "in_channels", None) or block.query_dim
    return run._attend, block, (2, channels, 4, 4)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="Inductor needs a C++ compiler; there is none here")
@pytest.mark.parametrize("make", [pixel_decoder, sdxl])
@pytest.mark.parametrize("region", [resnet, attention])
def test_inductor_compiles_the_repeated_blocks(region: Region, make: Callable[[], Any]) -> None:
    run, _ = make()
    work, block, shape = region(run)
    told = (run.at(1),) if region is resnet else ()
    same(work, block, torch.randn(shape), *told, backend="inductor")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="Inductor needs a C++ compiler; there is none here")
def test_inductor_compiles_the_prior() -> None:
    run, shape = embeddings()
    same(run.__call__, torch.randn(shape), run.at(1), backend="inductor")


def test_fused_operations_are_traced() -> None:
    """On a meta tensor networks take the path of a GPU, which a host's compiler must follow."""
    run, shape = pixel_decoder()
    given = {name: part.to("meta") for name, part in conditions(2).items() if name != "mask"}
    given = {name: part.to(torch.float32) for name, part in given.items()}
    mask = conditions(2)["mask"].to("meta")
    run = karlo.prepare_decoder(run.unet.to("meta"), **given, mask=mask, timesteps=TIMESTEPS)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Region:
        calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
        seen.extend(str(node.target) for node in calls)
        return graph.forward

    compiled = torch.compile(run.__call__, backend=backend, fullgraph=True)
    assert compiled(torch.empty(shape, device="meta"), run.at(0)).shape == (2, 6, 16, 16)
    assert any("prior_art.group_norm" in name for name in seen)
    assert not any("group_norm" in name and "prior_art" not in name for name in seen)
