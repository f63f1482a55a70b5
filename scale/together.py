"""Rows of a table in one run of a graph: a batch of prompts whose seeds follow on one another.

Image i of a batch has seed + i in every stage of this pack, so that rows whose seeds rise by one
are what a batch draws anyway. What differs from row to row may be a prompt and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..edges import UserError
from ..headless.checking import check, is_link, wires
from ..headless.workflow import to_api

SEEDS = ("seed", "noise_seed")
SAVE, NATIVE = "SaveImage", ("SaveImage", "VAEDecode")
"""What of ComfyUI's own works row by row."""

PREVIEWS = ("PreviewImage", "PreviewAny")
"""What saves nothing, and is left out where nothing is wired to it."""

Prompt = dict[str, dict[str, Any]]


class Apart(UserError):
    """Rows that cannot run together; the message says why."""


@dataclass(frozen=True)
class Merged:
    """Several rows' prompts as one.

    Attributes:
        prompt: whose pictures have a row each.
        saves: the wire that brings them, by the id of the Save Image node that it led to.
    """

    prompt: Prompt
    saves: dict[str, tuple[str, int]]


def merged(prompts: Sequence[Prompt], nodes: Mapping[str, Any]) -> Merged:
    """One prompt that makes what several make: their texts as one batch, the first one's seed.

    Args:
        prompts: of rows that follow on one another, in API format; nodes: classes by name.

    Raises:
        Apart: a stage works on whole batches, the seeds do not rise by one, or more than prompts
            differs.
        WorkflowError: a prompt that saves nothing or cannot run at all.
    """
    needed, _ = check(to_api(prompts[0], nodes), nodes)
    _check_stages(prompts[0], needed, nodes)
    seeds = _seeds(prompts, needed)
    if all(_but_seeds(prompt, seeds) == _but_seeds(prompts[0], seeds) for prompt in prompts):
        raise Apart("nothing but seeds differs; rows of one prompt are a 'batch_size'")
    made = Merged({}, {})
    # What differs has an id for each row; texts that were encoded lie in a batch of one id.
    ids: dict[str, list[str]] = {}
    for key in needed:
        class_type = prompts[0][key]["class_type"]
        rows = [_rewired(prompt[key], row, ids) for row, prompt in enumerate(prompts)]
        same = all(_without(one, key, seeds) == _without(rows[0], key, seeds) for one in rows)
        if class_type == SAVE:
            source, slot = rows[0]["inputs"]["images"]
            if any(one["inputs"]["images"] != [source, slot] for one in rows):
                raise Apart("more than prompts and seeds differs from row to row")
            made.saves[key] = source, slot
            made.prompt[key] = {"class_type": "PreviewAny", "inputs": {"source": [source, slot]}}
        elif same:
            made.prompt[key] = rows[0]
        else:
            ids[key] = [key, *(f"{key}+{row}" for row in range(1, len(rows)))]
            made.prompt.update(zip(ids[key], rows, strict=True))
            outputs = nodes[class_type].define_schema().outputs
            if [socket.io_type for socket in outputs] == ["CONDITIONING"]:
                ids[key] = [_batched(made.prompt, ids[key])] * len(rows)
    return made


def without_previews(prompt: Prompt) -> Prompt:
    """A prompt without what only shows pictures."""
    wired = {source for node in prompt.values() for source, _ in wires(node)}
    return {
        key: node
        for key, node in prompt.items()
        if node["class_type"] not in PREVIEWS or key in wired
    }


def _check_stages(prompt: Prompt, needed: Sequence[str], nodes: Mapping[str, Any]) -> None:
    for key in needed:
        node = prompt[key]
        row_by_row = getattr(nodes[node["class_type"]], "ROW_BY_ROW", False)
        if wires(node) and node["class_type"] not in NATIVE and not row_by_row:
            raise Apart(f"node {key} ({node['class_type']}) works on whole batches")
        if node["inputs"].get("batch_size", 1) != 1:
            raise Apart(f"'batch_size' of node {key} is not 1")


def _seeds(prompts: Sequence[Prompt], needed: Sequence[str]) -> set[tuple[str, str]]:
    """The inputs, by node and name, where seeds are given.

    Raises:
        Apart: one does not rise by one from row to row, or serves as something else too.
    """
    first = prompts[0]
    found, used = set(), set()
    for key in needed:
        for name, value in first[key]["inputs"].items():
            if name in SEEDS:
                found.add((value[0], "value") if is_link(value) else (key, name))
            elif is_link(value):
                used.add(value[0])
    for key, name in found:
        values = [prompt[key]["inputs"].get(name) for prompt in prompts]
        start = values[0]
        if not isinstance(start, int) or values != [start + row for row in range(len(values))]:
            raise Apart(f"seeds of rows that run together rise by one; node {key}'s are {values}")
        if name == "value" and key in used:
            raise Apart(f"node {key} is a seed and something else")
    return found


def _rewired(node: Mapping[str, Any], row: int, ids: Mapping[str, list[str]]) -> dict[str, Any]:
    """A row's node, wired to what its sources became."""
    inputs = {
        name: [ids[value[0]][row], value[1]] if is_link(value) and value[0] in ids else value
        for name, value in node["inputs"].items()
    }
    return {**node, "inputs": inputs}


def _but_seeds(prompt: Prompt, seeds: set[tuple[str, str]]) -> list[dict[str, Any]]:
    return [_without(node, key, seeds) for key, node in prompt.items()]


def _without(node: Mapping[str, Any], key: str, seeds: set[tuple[str, str]]) -> dict[str, Any]:
    return {name: value for name, value in node["inputs"].items() if (key, name) not in seeds}


def _batched(prompt: Prompt, ids: Sequence[str]) -> str:
    """Put some CONDITIONINGs into a batch; the id of what has them all."""
    last = ids[0]
    for one in ids[1:]:
        inputs = {"conditioning_a": [last, 0], "conditioning_b": [one, 0]}
        last = f"{one}+"
        prompt[last] = {"class_type": "PriorArtBatchPrompts", "inputs": inputs}
    return last
