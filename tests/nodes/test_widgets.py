"""What sampling nodes share: a bar that the sampler sizes, errors in the node's own words."""

from __future__ import annotations

import pytest

from prior_art.edges import EdgeError
from prior_art.host import host
from prior_art.nodes import widgets
from prior_art.nodes.widgets import Bar, named


@pytest.fixture
def told(monkeypatch):
    """What the host's progress bars were told: (steps, of so many, picture)."""
    seen = []
    monkeypatch.setattr(
        host, "progress", lambda total: lambda step, picture: seen.append((step, total, picture))
    )
    return seen


def test_a_bar_is_as_long_as_the_sampler_says(told):
    bar = Bar(preview=str.upper)
    assert not told
    for step in (1, 2, 3, 4):
        bar(step, 4, "x0")
    # To look at a picture is to wait for it, so between the first and the last few are.
    assert told == [(1, 4, "X0"), (2, 4, None), (3, 4, None), (4, 4, "X0")]


def test_slow_steps_are_all_shown(told, monkeypatch):
    monkeypatch.setattr(widgets, "SHOWN_SECONDS", 0.0)
    bar = Bar(preview=str.upper)
    for step in (1, 2, 3):
        bar(step, 3, "x0")
    assert [picture for *_, picture in told] == ["X0"] * 3


def test_two_samplers_share_a_bar(told):
    bar = Bar(runs=2)
    for step in (1, 2, 3, 4):
        bar(step, 4, None)
    for step in (1, 2):  # the second runs half of the steps: twice as far with each
        bar(step, 2, None)
    assert [step for step, _, _ in told] == [1, 2, 3, 4, 6, 8]
    assert {total for _, total, _ in told} == {8}


def test_an_error_speaks_of_the_nodes_inputs():
    with (
        pytest.raises(EdgeError, match=r"^'cfg' is 2, so 'image' needs 'steps', not 'strength'$"),
        named(**{"known.latents": "image"}),
    ):
        raise EdgeError(
            "'guidance_scale' is 2, so 'known.latents' needs 'num_inference_steps', not 'strength'"
        )


def test_other_errors_pass():
    with pytest.raises(KeyError, match="guidance_scale"), named():
        raise KeyError("'guidance_scale'")
