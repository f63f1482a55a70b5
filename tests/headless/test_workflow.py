"""The editor's saved workflows become the prompts that the editor would queue."""

from __future__ import annotations

import os

import pytest

from prior_art.headless.native_nodes import NATIVE_NODES
from prior_art.headless.workflow import WorkflowError, read_workflow, to_api, unknown_node
from prior_art.host.embedded import io as io


class Number(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [
            io.Int.Input("seed", default=0, control_after_generate=True),
            io.Float.Input("scale", default=1.0),
        ]
        return io.Schema("Number", inputs=inputs, outputs=[io.Int.Output(), io.Float.Output()])


class Sink(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Float.Input("scale"), io.String.Input("name"), io.Int.Input("n")]
        return io.Schema("Sink", inputs=inputs, is_output_node=True)


NODES = {"Number": Number, "Sink": Sink}


def node(id, type, widgets=(), inputs=(), outputs=(), mode=0, **more):
    return {
        "id": id,
        "type": type,
        "mode": mode,
        "order": id,
        "widgets_values": list(widgets) if isinstance(widgets, (list, tuple)) else widgets,
        "inputs": [
            {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if w else {})}
            for name, kind, link, w in inputs
        ],
        "outputs": [{"name": kind, "type": kind} for kind in outputs],
        **more,
    }


def source(id=1, mode=0):
    return node(id, "Number", [7, "randomize", 2.5], outputs=("INT", "FLOAT"), mode=mode)


def sink(link, id=9):
    return node(id, "Sink", [1.0, "x", 3], inputs=[("scale", "FLOAT", link, True)])


def convert(nodes, links):
    return to_api({"nodes": nodes, "links": links}, NODES)


def test_widgets_are_read_by_position_and_control_after_generate_is_passed_over():
    prompt = convert([source()], [])
    assert prompt["1"]["inputs"] == {"seed": 7, "scale": 2.5}
    assert prompt["1"]["_meta"]["title"] == "Number"


def test_widgets_saved_by_name():
    saved = node(1, "Number", {"scale": 3.0, "seed": 4, "upload": "x"})
    assert convert([saved], [])["1"]["inputs"] == {"scale": 3.0, "seed": 4}


def test_a_linked_widget_takes_the_link():
    prompt = convert([source(), sink(5)], [[5, 1, 1, 9, 0, "FLOAT"]])
    assert prompt["9"]["inputs"] == {"scale": ["1", 1], "name": "x", "n": 3}


def test_links_saved_as_objects():
    link = {"id": 5, "origin_id": 1, "origin_slot": 1, "target_id": 9, "target_slot": 0}
    assert convert([source(), sink(5)], [link])["9"]["inputs"]["scale"] == ["1", 1]


def test_reroutes_and_notes_disappear():
    reroute = node(2, "Reroute", inputs=[("", "*", 5, False)], outputs=("FLOAT",))
    links = [[5, 1, 1, 2, 0, "FLOAT"], [6, 2, 0, 9, 0, "FLOAT"]]
    prompt = convert([source(), reroute, node(3, "MarkdownNote", ["hi"]), sink(6)], links)
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"]["scale"] == ["1", 1]


def test_a_primitive_is_its_value():
    primitive = node(2, "PrimitiveNode", [4.5, "fixed"], outputs=("FLOAT",))
    prompt = convert([primitive, sink(6)], [[6, 2, 0, 9, 0, "FLOAT"]])
    assert prompt["9"]["inputs"]["scale"] == 4.5


def test_a_bypassed_node_passes_on_what_has_the_same_type():
    passer = node(
        2,
        "Anything",
        inputs=[("a", "INT", 4, False), ("b", "FLOAT", 5, False)],
        outputs=("FLOAT",),
        mode=4,
    )
    links = [[4, 1, 0, 2, 0, "INT"], [5, 1, 1, 2, 1, "FLOAT"], [6, 2, 0, 9, 0, "FLOAT"]]
    assert convert([source(), passer, sink(6)], links)["9"]["inputs"]["scale"] == ["1", 1]


def test_a_muted_node_leaves_the_widget_its_own_value():
    prompt = convert([source(mode=2), sink(5)], [[5, 1, 1, 9, 0, "FLOAT"]])
    assert set(prompt) == {"9"}
    assert prompt["9"]["inputs"]["scale"] == 1.0


def test_a_subgraph_is_flattened():
    inner = {
        "id": "sub",
        "nodes": [
            node(1, "Number", [7, "fixed", 1.0], outputs=("INT", "FLOAT")),
            node(2, "Reroute", inputs=[("", "*", 2, False)], outputs=("FLOAT",)),
        ],
        "links": [
            {"id": 2, "origin_id": 1, "origin_slot": 1, "target_id": 2, "target_slot": 0},
            {"id": 3, "origin_id": 2, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        ],
        "outputs": [{"name": "FLOAT", "type": "FLOAT", "linkIds": [3]}],
    }
    outer = node(4, "sub", outputs=("FLOAT",))
    graph = {
        "nodes": [outer, sink(6)],
        "links": [[6, 4, 0, 9, 0, "FLOAT"]],
        "definitions": {"subgraphs": [inner]},
    }
    prompt = to_api(graph, NODES)
    assert set(prompt) == {"4:1", "9"}
    assert prompt["9"]["inputs"]["scale"] == ["4:1", 1]


@pytest.mark.parametrize(
    ("class_type", "properties", "said"),
    [
        ("FancyNode", {"cnr_id": "comfyui-fancy"}, "pack 'comfyui-fancy'"),
        ("FancyNode", {"aux_id": "somebody/fancy"}, "pack 'somebody/fancy'"),
        ("KSampler", {}, "ComfyUI's own"),
        ("Odd", {"cnr_id": "comfy-core"}, "ComfyUI's own"),
        ("FancyNode", {}, "another custom node pack"),
    ],
)
def test_an_unknown_node_is_named_with_its_pack(class_type, properties, said):
    with pytest.raises(WorkflowError, match=f"node 3 .{class_type}") as error:
        convert([node(3, class_type, properties=properties)], [])
    assert said in str(error.value)


OFTEN_USED = """
    KSamplerAdvanced SamplerCustomAdvanced CheckpointLoaderSimple UNETLoader CLIPLoader
    VAELoader DualCLIPLoader CLIPVisionLoader LoraLoader LoraLoaderModelOnly ControlNetLoader
    KSamplerSelect ControlNetApply ControlNetApplyAdvanced CLIPSetLastLayer ImageScale
    ImageScaleBy ImageInvert ImageUpscaleWithModel UpscaleModelLoader LatentUpscale
    LatentUpscaleBy RepeatLatentBatch RepeatImageBatch ImageFromBatch LatentFromBatch
    ConditioningCombine ConditioningConcat ConditioningSetArea ConditioningZeroOut
    VAEEncodeTiled VAEEncodeForInpaint LoadImageMask ImageToMask MaskToImage GrowMask SolidMask
    InvertMask RandomNoise BasicScheduler BasicGuider CFGGuider PrimitiveFloat PrimitiveString
    PrimitiveBoolean EmptyImage ImagePadForOutpaint CLIPTextEncodeSDXL Canny StringConcatenate
    SaveAnimatedWEBP
"""


@pytest.mark.parametrize("class_type", OFTEN_USED.split())
def test_comfyuis_own_nodes_are_named_as_such(class_type):
    assert "is ComfyUI's own" in unknown_node("3", class_type)


def test_every_node_that_the_runner_has_of_comfyuis_is_known_as_its():
    from prior_art.headless.core_nodes import CORE_NODES

    assert {one.define_schema().node_id for one in CORE_NODES} <= NATIVE_NODES


@pytest.mark.parametrize(
    "node", [{"class_type": None}, {"class_type": 3}, {"class_type": "Number", "inputs": [1]}]
)
def test_a_damaged_prompt_is_refused(node):
    with pytest.raises(WorkflowError, match="node 1 of this prompt is damaged"):
        to_api({"1": node}, NODES)


@pytest.mark.parametrize("junk", [[], {}, {"nodes": 3}, "text", {"1": {"inputs": {}}}])
def test_what_is_no_workflow_is_refused(junk):
    with pytest.raises(WorkflowError, match="no workflow"):
        to_api(junk, NODES)


def test_a_post_body_is_its_prompt():
    prompt = {"1": {"class_type": "Number", "inputs": {"seed": 3}}, "2": {"class_type": "Number"}}
    converted = to_api({"prompt": prompt, "client_id": "x"}, NODES)
    assert converted == {"1": prompt["1"], "2": {"class_type": "Number", "inputs": {}}}
    converted["1"]["inputs"]["seed"] = 4
    assert prompt["1"]["inputs"] == {"seed": 3}


def test_holes_in_links_are_passed_over():
    prompt = convert([source(), sink(5)], [None, [5, 1, 1, 9, 0, "FLOAT"], None])
    assert prompt["9"]["inputs"]["scale"] == ["1", 1]


@pytest.mark.parametrize("saved", [[7, "randomize"], {"seed": 7}])
@pytest.mark.parametrize("optional", [False, True])
def test_a_widget_that_the_file_does_not_know_gets_the_editors_default(
    monkeypatch, saved, optional
):
    def define_schema():
        inputs = [
            io.Int.Input("seed", default=0, control_after_generate=True),
            io.Float.Input("scale", default=1.0, optional=optional),
        ]
        return io.Schema("Number", inputs=inputs, outputs=[])

    monkeypatch.setattr(Number, "define_schema", define_schema)
    assert convert([node(1, "Number", saved)], [])["1"]["inputs"] == {"seed": 7, "scale": 1.0}


def test_default_of_each_widget():
    plain = [one.Input("x").default() for one in (io.Int, io.Float, io.String, io.Boolean)]
    assert plain == [0, 0.0, "", False]
    assert io.Combo.Input("x", options=["a", "b"]).default() == "a"
    assert io.Combo.Input("x", options=["a", "b"], default="b").default() == "b"
    assert io.Combo.Input("x", options=[]).default() is None


def test_optional_widgets_are_saved_after_the_required_ones():
    class Mixed(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            inputs = [
                io.Int.Input("extra", optional=True),
                io.Combo.Input("choice", options=["a", "b"], control_after_generate=True),
                io.Int.Input("n"),
            ]
            return io.Schema("Mixed", inputs=inputs)

    saved = node(1, "Mixed", ["b", "increment", "", 5, 6])
    prompt = to_api({"nodes": [saved], "links": []}, {"Mixed": Mixed})
    assert prompt["1"]["inputs"] == {"choice": "b", "n": 5, "extra": 6}


@pytest.mark.parametrize("class_type", ["workflow/My group", "workflow>My group"])
def test_a_group_node_is_refused_with_the_cure(class_type):
    with pytest.raises(WorkflowError, match=r"group node.*turn it into a subgraph"):
        convert([node(3, class_type)], [])


@pytest.mark.parametrize(("mode", "scale"), [(2, 1.0), (4, ["1", 1])])
def test_a_muted_or_bypassed_subgraph_does_not_run(mode, scale):
    inner = {
        "id": "sub",
        "nodes": [node(1, "Number", outputs=("INT", "FLOAT"))],
        "links": [{"id": 3, "origin_id": 1, "origin_slot": 1, "target_id": -20, "target_slot": 0}],
        "inputs": [{"name": "in", "type": "FLOAT", "linkIds": []}],
        "outputs": [{"name": "FLOAT", "type": "FLOAT", "linkIds": [3]}],
    }
    outer = node(4, "sub", inputs=[("in", "FLOAT", 5, False)], outputs=("FLOAT",), mode=mode)
    graph = {
        "nodes": [source(), outer, sink(6)],
        "links": [[5, 1, 1, 4, 0, "FLOAT"], [6, 4, 0, 9, 0, "FLOAT"]],
        "definitions": {"subgraphs": [inner]},
    }
    prompt = to_api(graph, NODES)
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"]["scale"] == scale


def test_a_subgraph_input_that_is_not_wired_leaves_the_widget_its_own_value():
    inner = {
        "id": "sub",
        "nodes": [sink(2)],
        "links": [{"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 9, "target_slot": 0}],
    }
    graph = {"nodes": [node(4, "sub")], "definitions": {"subgraphs": [inner]}}
    assert to_api(graph, NODES)["4:9"]["inputs"]["scale"] == 1.0


def test_a_bypassed_node_without_a_wire_in_the_same_place_passes_on_nothing():
    passer = node(
        2,
        "Anything",
        inputs=[("a", "FLOAT", None, False), ("b", "FLOAT", 5, False)],
        outputs=("FLOAT",),
        mode=4,
    )
    links = [[5, 1, 1, 2, 1, "FLOAT"], [6, 2, 0, 9, 0, "FLOAT"]]
    assert convert([source(), passer, sink(6)], links)["9"]["inputs"]["scale"] == 1.0


def test_what_is_no_file_and_what_is_too_large_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "large.json").write_text(" " * 2000)
    (tmp_path / "deep.json").write_text("[" * 900)
    monkeypatch.setattr("prior_art.headless.workflow.WORKFLOW_BYTES", 1000)
    for name, said in (
        ("pipe", "a pipe, a device"),
        ("zero", "a pipe, a device"),
        ("large", "at most"),
        ("deep", "is no JSON"),
    ):
        with pytest.raises(WorkflowError, match=rf"{name}\.json'.*{said}"):
            read_workflow(tmp_path / f"{name}.json")
    # No picture starts a program, whatever it is called.
    (tmp_path / "cute.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(WorkflowError, match=r"cute\.png' is no JSON"):
        read_workflow(tmp_path / "cute.png")


@pytest.mark.parametrize("part", ["inputs", "_meta"])
def test_a_damaged_part_of_a_prompt_is_named(part):
    prompt = {"3": {"class_type": "Number", "inputs": {}, "_meta": None, part: "x"}}
    with pytest.raises(WorkflowError, match=f"node 3 of this prompt is damaged.*{part}"):
        to_api(prompt, NODES)
