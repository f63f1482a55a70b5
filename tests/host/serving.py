"""Graphs for a running ComfyUI, and what is asked of their runs."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Graph = dict[str, Any]
SOURCE, OTHER = "tiny", "tiny-48d"
"""Miniature Karlos of two embedding spaces; the fixture ``karlo_weights`` writes them."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def with_inputs(graph: Graph, name: str, **inputs: Any) -> Graph:
    """A copy of ``graph`` with other inputs on one node."""
    changed = copy.deepcopy(graph)
    changed[name]["inputs"].update(inputs)
    return changed


def levels(a: Any, b: Any) -> int:
    """The largest difference of two pictures, in levels of 255."""
    assert a.size == b.size
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def bar_fills(run: Any, name: str, total: int) -> None:
    """A node's progress bar rises to its end, however many of its steps the host shows."""
    values, ends = zip(*run.steps(name), strict=True)
    assert set(ends) == {total}
    assert list(values) == sorted(set(values)) and values[-1] == total, values


def previews_of(run: Any, name: str) -> list[Any]:
    """The pictures that a node showed while it ran."""
    return [picture for node_id, picture in run.previews if node_id == name]


def is_a_picture(picture: Any) -> bool:
    pixels = np.asarray(picture, dtype=float)
    return pixels.std() > 1.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Spare a busy machine the spinning threads, as the host's environment does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shown(run: Any, name: str) -> list[str]:
    """What a Preview Any node showed."""
    return run.history["outputs"][name]["text"]


def stops_before_its_end(comfy: Any, graph: Graph, stage: str) -> None:
    """Interrupts a run of 1000 steps as soon as its bar moves. That it takes no further step is
    counted in in_process.py: here messages and clicks are on their way."""
    graph = with_inputs(graph, stage, steps=1000, seed=int(time.time()))
    asked: list[int] = []

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == stage and not asked:
            comfy.interrupt()
            asked.append(data["value"])

    run = comfy.run(graph, on_event=watch)
    assert asked, "the stage never began"
    assert run.of("execution_interrupted"), run.events[-3:]
    assert run.steps(stage)[-1][0] < 1000
    assert run.history["status"]["status_str"] == "error"
    assert comfy.alive()


def one_clear_error(comfy: Any, graph: Graph, *words: str) -> None:
    run = comfy.run(graph)
    assert run.error is not None
    for word in words:
        assert word in run.error, run.error
    (message,) = (m for m in run.history["status"]["messages"] if m[0] == "execution_error")
    assert message[1]["exception_message"] == run.error
    assert comfy.alive()


def told_no(comfy: Any, graph: Graph, *words: str) -> None:
    """Refused in words: by the server before anything runs (newer hosts know a node's choices), or
    by the node."""
    status, answer = comfy.post("/prompt", {"prompt": graph})
    if status == 200:
        one_clear_error(comfy, graph, *words)
        return
    assert status == 400, (status, answer)
    said = json.dumps(answer["node_errors"])
    assert all(word in said for word in words), said
    assert comfy.alive()
