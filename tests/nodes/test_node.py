"""What is wired into a node is compared with its schema before the node sees it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.host import io
from prior_art.host.embedded.session import Interrupted, session
from prior_art.nodes import NODES
from prior_art.nodes.mindalle import LoadVQGAN
from prior_art.nodes.node import Node

SOCKETS = [
    io.Int.Input("count", min=1, max=64),
    io.Float.Input("weight", min=-10.0, max=10.0),
    io.Boolean.Input("switch"),
    io.String.Input("text"),
    io.Combo.Input("mode", options=["a", "b"]),
    io.Image.Input("image", tooltip="From Load Image."),
    io.Mask.Input("mask", optional=True, tooltip="Any."),
    io.Custom("UNCLIP_PRIOR").Input("prior", tooltip="From Load Prior (unCLIP)."),
    io.AnyType.Input("any", optional=True),
]
seen: list[dict[str, Any]] = []


class Taking(Node):
    """Notes what it gets."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema("Taking", inputs=SOCKETS)

    @classmethod
    def execute(cls, **inputs: Any) -> Any:
        seen.append(inputs)


BAD = [
    *[("count", value) for value in (0, 65, 10**13, 1.5, float("nan"), "3", None, [1])],
    *[("weight", value) for value in (11, float("nan"), float("-inf"), "1", None, 1j)],
    *[("switch", value) for value in ("true", None, [])],
    *[("text", value) for value in (None, 3, ["a"], "half \ud83d", "x" * 10**6)],
    *[("mode", value) for value in (None, 3)],
    *[("image", value) for value in (None, "a.png", np.zeros((1, 4, 4, 3)), [])],
    ("mask", np.zeros((1, 4, 4))),
    *[("prior", value) for value in (None, torch.nn.Linear(2, 2), {"prior": 1})],
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_what_no_input_of_that_type_takes_is_named(name: str, value: Any) -> None:
    seen.clear()
    with pytest.raises(EdgeError, match=rf"^'{name}' ") as error:
        Taking.execute(**{name: value})
    assert not seen and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", np.int64(3), 3),
        ("count", 3.0, 3),
        ("count", torch.tensor(3), 3),
        ("weight", 3, 3.0),
        ("weight", np.float32(0.5), 0.5),
        ("switch", np.bool_(True), True),
        ("mask", None, None),
        ("any", "x", "x"),
    ],
)
def test_numbers_of_other_makes_become_pythons_own(name: str, value: Any, wanted: Any) -> None:
    seen.clear()
    Taking.execute(**{name: value})
    assert seen == [{name: wanted}] and type(seen[0][name]) is type(wanted)


def test_every_node_is_checked() -> None:
    assert all(issubclass(node, Node) for node in NODES)


def test_a_node_that_reads_weights_can_be_stopped(monkeypatch) -> None:
    monkeypatch.setattr(session, "stop", threading.Event())
    session.stop.set()
    with pytest.raises(Interrupted):
        LoadVQGAN.execute("shapes-mindalle", "auto")
