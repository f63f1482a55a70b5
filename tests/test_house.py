"""The house's limits: how much one function takes, and how a title leads to its files.

What is over today stands here by name. Whoever mends it takes it out: a name too many fails too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from prior_art.nodes import NODES

from .test_layers import MODULES, ROOT, room_of

ROOMS = {
    *("cli", "headless", "nodes", "host", "loaders", "samplers", "networks", "edges", "training"),
    "scale",
}

MOST_PARAMETERS = 9
MOST_LINES = 60
"""From ``def`` to the last line, docstring and all."""

KERNEL = "a kernel's: Triton 3.0 takes pointers and sizes one by one"
OTHERS_SIGNATURES = {
    "host/embedded/io.py:Schema.__init__": "the keywords of ComfyUI's io.Schema",
    "networks/fused_kernels.py:_factors": KERNEL,
    "networks/fused_kernels.py:_layer_norm": KERNEL,
    "networks/fused_kernels.py:_scale_cells": KERNEL,
    "networks/few_rows_kernels.py:_one_row": KERNEL,
    "networks/few_rows_kernels.py:_some_rows": KERNEL,
    "networks/few_rows_kernels.py:_attend": KERNEL,
    "networks/few_rows_kernels.py:_look": KERNEL,
}
"""Functions whose parameters somebody else has laid down. A node's ``execute`` is one too: its
parameters are the node's inputs, whose names and order saved workflows hold."""

MANY_PARAMETERS: set[str] = set()
"""None, but those whose signature is another's."""

MANY_LINES: set[str] = {
    "samplers/karlo.py:sample_decoder",
    "samplers/prior.py:sample_prior",
}
"""Samplers that are read from top to bottom beside the paper, under 60 lines without their
docstring of shapes."""


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the runtime rooms by its file and dotted name."""
    for module, path in MODULES.items():
        if room_of(module) in ROOMS:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for name, node in within(tree):
                yield f"{path.relative_to(ROOT).as_posix()}:{name}", node


def within(
    tree: ast.AST, outer: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a syntax tree at any depth, by dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from within(node, f"{name}.")
        else:
            yield from within(node, outer)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """What a caller can give it."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    every += [arg for arg in (node.args.vararg, node.args.kwarg) if arg]
    return [arg.arg for arg in every if arg.arg not in ("self", "cls")]


FUNCTIONS = dict(functions())


def test_functions_are_seen_wherever_they_are():
    tree = ast.parse(
        "class A:\n  def f(self, a, *b, c=1, **d):\n    if a:\n      async def g(x): ...\n"
    )
    found = {name: parameters(node) for name, node in within(tree)}
    assert found == {"A.f": ["a", "c", "b", "d"], "A.f.g": ["x"]}
    assert len(FUNCTIONS) > 800


def test_no_function_takes_too_many_parameters():
    over = {
        name
        for name, node in FUNCTIONS.items()
        if len(parameters(node)) > MOST_PARAMETERS and node.name != "execute"
    }
    assert over == MANY_PARAMETERS | set(OTHERS_SIGNATURES)


def test_no_function_is_too_long():
    lines = {name: node.end_lineno - node.lineno + 1 for name, node in FUNCTIONS.items()}
    assert {name for name, count in lines.items() if count > MOST_LINES} == MANY_LINES


NOT_ITS_OWN = {
    "unclip": {"samplers"},  # clip.py and prior.py: what they run
    "rerank": {"host/comfyui", "host/embedded"},  # unclip's
    "embeddings": {"host/comfyui", "host/embedded"},  # there is no network
}
"""Rooms in which a word that systems share has no file."""


def words() -> dict[str, str]:
    """Each title's word, by the table in docs/ARCHITECTURE.md."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| ([^|`]+) \| `(\w+)` \|$", text)
    found = {}
    for title in (node.define_schema().display_name for node in NODES):
        for parts, word in rows:
            patterns = (rf"(?<!\w){re.escape(part)}(?!\w)" for part in parts.split(", "))
            if any(re.search(pattern, title) for pattern in patterns):
                found[title] = word
                break
    return found


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_title_leads_to_its_files(node):
    title = node.define_schema().display_name
    word = words().get(title)
    assert word is not None, f"no row of the table is for '{title}'"
    assert node.__module__ == f"prior_art.nodes.{word}"
    own = {"loaders", "samplers", "host/comfyui", "host/embedded"} - NOT_ITS_OWN.get(word, set())
    for room in own:
        assert list((ROOT / room).glob(f"{word}*.py")), f"'{title}' has no {room}/{word}*.py"
    assert list((ROOT / "tests/nodes").glob(f"test_{word}*.py"))
