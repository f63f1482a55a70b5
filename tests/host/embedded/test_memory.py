"""The embedded host's memory management, with a device that is none."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from prior_art.host.embedded import memory


class Network(nn.Conv2d):
    """Tells where it was put, and stays where it is."""

    def __init__(self) -> None:
        super().__init__(2, 3, 3)
        self.place = "cpu"

    def to(self, device) -> Network:
        self.place = str(device)
        return self


@pytest.fixture
def forgotten(monkeypatch):
    """The networks whose recordings were dropped."""
    said = []
    monkeypatch.setattr(memory, "_on_device", weakref.WeakSet())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "forget", said.append)
    monkeypatch.setattr(memory, "_has_room", lambda needed: False)
    return said


def test_where_there_is_room_networks_stay_with_what_was_recorded(forgotten, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_has_room", lambda needed: asked.append(needed) or True)
    one, two = (memory.manage(Network()) for _ in range(2))
    memory.use(one)
    memory.use(two, activations=7)
    memory.use(one)
    assert [m.network.place for m in (one, two)] == ["cuda", "cuda"] and not forgotten
    weights = sum(weight.numel() for weight in Network().parameters())
    assert asked == [4 * (weights + 7), 0], "bytes of what is not there yet, and of activations"


def test_room_is_what_is_left_beside_a_share_of_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 2**30, 9 * 2**30))
    assert [memory._has_room(n * 2**30) for n in (1, 2, 3)] == [True, True, False]


def test_without_room_a_stage_puts_the_others_back_with_what_was_recorded(forgotten):
    one, two, three = (memory.manage(Network()) for _ in range(3))
    assert memory.use(one, beside=[two])[:2] == (one.network, torch.device("cuda"))
    assert (one.network.place, two.network.place) == ("cuda", "cuda") and not forgotten
    memory.use(three, beside=[two])
    assert [m.network.place for m in (one, two, three)] == ["cpu", "cuda", "cuda"]
    assert forgotten == [one.network]


def test_a_network_goes_with_its_owner(forgotten):
    managed = memory.manage(Network())
    memory.use(managed)
    network = weakref.ref(managed.network)
    del managed
    gc.collect()
    assert network() is None


def test_convolutions_are_laid_out_for_the_device_only(forgotten, monkeypatch):
    plain = memory.manage(Network())
    memory.use(plain)  # its weights are still on the CPU
    assert plain.network.weight.is_contiguous()
    monkeypatch.setattr("prior_art.networks.leaf._reads_channels_last", lambda device: True)
    moved = memory.manage(Network())
    before = moved.network.weight.clone()
    memory.use(moved)
    assert moved.network.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.network.weight, before)
