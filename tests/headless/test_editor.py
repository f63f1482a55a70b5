"""Saved graphs become what the editor of ComfyUI v0.33.0 queues; each value here was seen there
(tests/host/test_editor_graphs.py compares all of them with the real one)."""

from __future__ import annotations

import copy

import pytest

from prior_art.headless.errors import Unsupported
from prior_art.headless.runner import node_classes
from prior_art.headless.workflow import WorkflowError, to_api

from .graphs import FLAT, SUBGRAPHS, graph, instance, load, nested, node, picture, save

NODES = node_classes()


def queued(kind, graphs=FLAT):
    return {key: one["inputs"] for key, one in to_api(graphs[kind], NODES).items()}


@pytest.mark.parametrize(
    ("kind", "images"),
    [
        ("plain", ["1", 0]),
        ("slots in another order", ["1", 0]),
        ("reroute", ["1", 0]),
        ("bypassed reroute", ["1", 0]),
        ("reroute of nothing", None),
        ("reroute on a link", ["1", 0]),
        ("links as objects", ["1", 0]),
        ("notes", ["1", 0]),
        ("muted", None),
        ("modes of events", ["1", 0]),
        ("bypass: nothing fits", None),
    ],
)
def test_a_wire_is_followed(kind, images):
    assert queued(kind)["2"].get("images") == images


@pytest.mark.parametrize(
    ("kind", "images"),
    [
        ("bypass: the first", ["1", 0]),
        ("bypass: the same place", ["4", 0]),
        ("bypass: the same place, unwired", None),
        ("bypass: another pack's", ["1", 0]),
        ("bypass: several types", ["1", 0]),
        ("bypass: two", ["1", 0]),
    ],
)
def test_a_bypassed_node_passes_on_what_fits(kind, images):
    assert queued(kind)["3"].get("images") == images


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("primitive", "driven"),
        ("muted primitive", "driven"),  # the editor's primitives write even so
        ("primitive of a name", "example.png"),
        ("primitive behind a reroute", "own"),  # and reach no farther than their wire
    ],
)
def test_a_primitive_writes_into_the_widget_it_drives(kind, prefix):
    assert queued(kind)["2"]["filename_prefix"] == prefix


def test_what_a_primitive_writes_is_a_prompt_with_choices():
    assert queued("primitive that is replaced")["3"]["text"] == "a shapes-karlo b "


def test_choices_and_comments_are_resolved_where_the_widget_has_them():
    assert queued("choices")["3"]["text"] == "a b c {d} \ng"


def test_names_in_a_file_name_are_replaced_and_others_stay():
    prefix = queued("file name")["2"]["filename_prefix"]
    assert prefix == (
        "0.5 7 example.png %ksampler.cfg% %width% randomize %Nobody.x% %KSampler.x% %date% 50%"
    )
    assert queued("driven seed in a file name")["2"]["filename_prefix"] == "555"


def test_large_numbers_are_those_that_the_editor_holds():
    prompt = queued("large seeds")
    assert [prompt[key]["seed"] for key in "89"] == [18446744073709552000, 9007199254740992]


def test_what_an_old_file_does_not_know_has_its_default():
    assert queued("file too old for the last widgets")["8"] == {
        "width": 96,
        "height": 512,
        "batch_size": 1,
    }


def promoted(kind, *paths):
    """The promoted count and words below each of some instances' keys."""
    prompt = queued(kind, SUBGRAPHS)
    return [(prompt[f"{at}:61"]["batch_size"], prompt[f"{at}:62"]["text"]) for at in paths]


def test_each_instance_has_its_own_values():
    assert promoted("two instances", "1", "2") == [(2, "one"), (3, "two")]


def test_values_reach_through_three_levels_and_fall_back_to_each_levels_own():
    assert promoted("three levels", "1:73:72", "2:73:72") == [(2, "one"), (3, "outer's own")]


def test_an_instances_slots_are_found_by_name():
    assert promoted("slots in another order", "1") == [(2, "one")]
    bare = copy.deepcopy(SUBGRAPHS["two instances"])
    for one in [*bare["nodes"], *bare["definitions"]["subgraphs"][1]["nodes"]]:
        # As in exported graphs and pictures: widget slots without a wire are left out.
        one["inputs"] = [slot for slot in one["inputs"] if slot["link"] is not None]
    assert to_api(bare, NODES) == to_api(SUBGRAPHS["two instances"], NODES)


def test_an_instances_wire_comes_before_its_value():
    assert promoted("an instance's wire", "1:73:72") == [(["9", 0], "one")]


@pytest.mark.parametrize(
    "kind", ["an instance's wire from a muted node", "a primitive into an instance"]
)
def test_a_wire_that_carries_nothing_leaves_the_inner_widget_its_own_value(kind):
    assert promoted(kind, "1") == [(1, "one")]


def test_an_instances_text_stays_as_it_is():
    assert promoted("choices of an instance", "1") == [(2, "{a|a} // b")]


def test_widgets_promoted_by_an_older_editor_have_their_values():
    prompt = queued("promoted the old way", SUBGRAPHS)
    assert prompt["1:61"]["width"] == 128 and prompt["1:62"]["text"] == "one"
    assert prompt["2:61"]["width"] == 64 and prompt["2:62"]["text"] == "two"
    assert promoted("kept aside", "1") == [(2, "kept aside")]


def test_values_saved_by_name():
    for saved in ({"widgets_values": {"words": "w"}}, {"widgets_values_named": {"words": "w"}}):
        one = {**instance(1), **saved}
        if "widgets_values_named" in saved:
            del one["widgets_values"]
        prompt = to_api(nested(one), NODES)
        assert prompt["1:62"]["inputs"]["text"] == "w"
        assert prompt["1:61"]["inputs"]["batch_size"] == 1


def test_nodes_of_subgraphs_get_new_ids_where_they_would_meet():
    prompt = queued("ids that meet", SUBGRAPHS)
    assert set(prompt) == {"62", "61:100", "61:64", "61:101"}
    assert prompt["61:101"]["text"] == "one" and prompt["61:100"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("kind", "batches"),
    [
        ("chained instances", {"2:11": ["1", 0], "4:11": ["2:11", 0]}),
        ("muted instance", {"4:11": None}),
        ("bypassed instance", {"4:11": ["1", 0]}),
    ],
)
def test_a_muted_or_bypassed_instance_has_nothing_inside(kind, batches):
    prompt = queued(kind, SUBGRAPHS)
    found = {key: one.get("image1") for key, one in prompt.items() if key.endswith(":11")}
    assert found == batches


def test_reroutes_primitives_and_file_names_inside():
    prompt = queued("reroute and file inside", SUBGRAPHS)
    assert prompt["2:12"] == {"images": ["1", 0], "filename_prefix": "promoted"}
    assert prompt["3"]["images"] == ["1", 0]
    assert queued("primitive inside", SUBGRAPHS)["2:12"]["filename_prefix"] == "inside"


def with_node(**more):
    return graph([load(), save(2, 1), node(6, **more)], [picture()])


@pytest.mark.parametrize(
    "foreign", ["Label (rgthree)", "Bookmark (rgthree)", "Fast Muter (rgthree)", "StickyNote|x"]
)
def test_labels_and_bookmarks_of_other_packs_are_left_out(foreign):
    assert set(to_api(with_node(type=foreign, values=["text"]), NODES)) == {"1", "2"}


def test_a_foreign_node_in_the_way_is_refused():
    filtered = graph(
        [load(), node(6, "FancyFilter", [], {"image": ("IMAGE", 1)}, "IMAGE"), save(2, 2)],
        [(1, 1, 0, 6, 0, "IMAGE"), (2, 6, 0, 2, 0, "IMAGE")],
    )
    with pytest.raises(Unsupported, match=r"node 6 .FancyFilter. is unknown"):
        to_api(filtered, NODES)


def changed(**fields):
    return {**copy.deepcopy(FLAT["plain"]), **fields}


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (changed(version=2), "format is version 2"),
        (changed(definitions={"macros": [1]}), "defines 'macros'"),
        (changed(extra={"ue_links": [{}]}), "Use Everywhere"),
        (changed(links=["1->2"]), "of an unknown form"),
        (changed(links=[]), "link 1, of which the file has not both ends"),
        (changed(nodes=[{"id": 1}]), "has no type"),
        (with_node(type="KSampler", mode=7), "node 6 .KSampler. has mode 7"),
        (with_node(type="workflow>Mine"), "group node"),
        (with_node(type="0000000a-1111-4111-8111-111111111111"), "whose definition this file"),
    ],
)
def test_a_format_that_is_not_known_is_refused_by_name(graph, said):
    with pytest.raises(WorkflowError, match=said):
        to_api(graph, NODES)


def test_a_subgraph_within_itself_is_refused():
    circular = nested(instance(1))
    circular["definitions"]["subgraphs"][1]["nodes"].append(instance(65))
    with pytest.raises(WorkflowError, match="contains itself"):
        to_api(circular, NODES)


def test_the_saved_graph_is_left_as_it_is():
    for kind in ("promoted the old way", "ids that meet"):
        before = copy.deepcopy(SUBGRAPHS[kind])
        to_api(SUBGRAPHS[kind], NODES)
        assert SUBGRAPHS[kind] == before
