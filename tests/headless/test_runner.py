"""The headless runner: runs what is needed, keeps what did not change, names the node in errors."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from PIL import Image

from prior_art.headless.core_nodes import CORE_NODES
from prior_art.headless.errors import Unsupported
from prior_art.headless.runner import NodeError, Runner, interrupt
from prior_art.headless.workflow import WorkflowError
from prior_art.host.embedded import door as embedded
from prior_art.host.embedded import io as io
from prior_art.host.embedded.door import Interrupted

ran: list[str] = []


class Grey(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [
            io.Float.Input("level", default=0.5, min=0, max=1),
            io.Combo.Input("size", options=["4", "8"]),
        ]
        return io.Schema("Grey", inputs=inputs, outputs=[io.Image.Output(), io.Int.Output()])

    @classmethod
    def execute(cls, level, size):
        ran.append(f"Grey {level}")
        return io.NodeOutput(torch.full((1, int(size), int(size), 3), level), 1)


class Invert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Image.Input("image"), io.Image.Input("mix", optional=True)]
        return io.Schema("Invert", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, image, mix=None):
        ran.append("Invert")
        return io.NodeOutput(1 - image if mix is None else (image + mix) / 2)


class Steps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Image.Input("image")]
        return io.Schema("Steps", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, image):
        update = embedded.progress(10)
        for step in range(1, 11):
            ran.append(f"step {step}")
            update(step, None)
        return io.NodeOutput(image)


class Broken(Steps):
    @classmethod
    def define_schema(cls):
        inputs = [io.Image.Input("image")]
        return io.Schema("Broken", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, image):
        raise ValueError("too grey")


NODES = {node.define_schema().node_id: node for node in [Grey, Invert, Steps, Broken, *CORE_NODES]}


@pytest.fixture
def runner(tmp_path):
    ran.clear()
    return Runner(NODES, tmp_path / "out", tmp_path / "in")


def chain(*middle, level=0.25, prefix="pic"):
    prompt = {"1": {"class_type": "Grey", "inputs": {"level": level, "size": "4"}}}
    for i, class_type in enumerate(middle, 2):
        prompt[str(i)] = {"class_type": class_type, "inputs": {"image": [str(i - 1), 0]}}
    last = str(len(prompt))
    save = {"images": [last, 0], "filename_prefix": prefix}
    return {**prompt, "99": {"class_type": "SaveImage", "inputs": save}}


def test_a_prompt_becomes_a_picture(runner):
    run = runner.run(chain("Invert"))
    assert [path.name for path in run.pictures] == ["pic_00001_.png"]
    with Image.open(run.pictures[0]) as picture:
        assert picture.size == (4, 4)
        assert picture.getpixel((0, 0)) == (191, 191, 191)  # 0.75 * 255, truncated as in the host
    assert set(run.seconds) == {"1", "2", "99"}


def test_only_what_outputs_need_runs(runner):
    prompt = chain()
    prompt["5"] = {"class_type": "Invert", "inputs": {"image": ["1", 0]}}
    runner.run(prompt)
    assert ran == ["Grey 0.25"]


def test_a_second_run_re_executes_only_what_changed(runner):
    runner.run(chain("Invert"))
    first = len(ran)
    run = runner.run(chain("Invert"))
    assert len(ran) == first and set(run.cached) == {"1", "2", "99"}
    run = runner.run(chain("Invert", prefix="other"))
    assert len(ran) == first and set(run.cached) == {"1", "2"}
    assert run.pictures[0].name == "other_00001_.png"
    runner.run(chain("Invert", level=0.5))
    assert len(ran) == first + 2


def test_counter_goes_on_after_the_files_that_are_there(runner):
    runner.run(chain())
    run = runner.run(chain(level=0.1))
    assert run.pictures[0].name == "pic_00002_.png"


def test_an_error_names_the_node_and_keeps_its_cause(runner):
    prompt = chain("Broken")
    prompt["2"]["_meta"] = {"title": "My node"}
    with pytest.raises(NodeError, match=r"node 2 'My node' \(Broken\): too grey") as error:
        runner.run(prompt)
    assert isinstance(error.value.__cause__, ValueError)
    assert not (runner.output_folder / "pic_00001_.png").exists()
    assert runner.run(chain()).pictures  # and the runner goes on


def test_an_interrupt_stops_within_one_step(runner):
    runner.on_progress = lambda key, step, total, preview: step == 3 and interrupt()
    with pytest.raises(Interrupted):
        runner.run(chain("Steps"))
    assert ran[-1] == "step 3"
    runner.on_progress = None
    assert runner.run(chain("Steps")).pictures


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": 3.0}, "'level' is 3.0; the largest is 1"),
        ({"level": "x"}, "no FLOAT"),
        ({"size": "5"}, "not in the list: 4, 8"),
        ({"level": ["7", 0]}, "node 7, which does not exist"),
        ({"level": ["1", 0]}, "needs FLOAT, but node 1"),
    ],
)
def test_values_and_wires_are_checked_before_anything_runs(runner, change, said):
    prompt = chain()
    prompt["1"]["inputs"].update(change)
    with pytest.raises(WorkflowError) as error:
        runner.run(prompt)
    assert said in str(error.value) and "node 1" in str(error.value)
    assert not ran


def test_a_missing_input_a_circle_and_no_output_are_named(runner):
    prompt = chain("Invert")
    del prompt["2"]["inputs"]["image"]
    with pytest.raises(WorkflowError, match=r"'image' .IMAGE. is missing"):
        runner.run(prompt)
    prompt = chain("Invert")
    prompt["2"]["inputs"]["image"] = ["2", 0]
    with pytest.raises(WorkflowError, match="circle"):
        runner.run(prompt)
    with pytest.raises(WorkflowError, match="no output"):
        runner.run({"1": chain()["1"]})
    with pytest.raises(WorkflowError, match=r"UNETLoader.*run this workflow in ComfyUI"):
        runner.run({**chain(), "4": {"class_type": "UNETLoader", "inputs": {}}})


def test_pngs_carry_prompt_and_workflow_and_restore_the_run(runner):
    workflow = {
        "nodes": [
            {
                "id": 1,
                "type": "Grey",
                "widgets_values": [0.5, "8"],
                "outputs": [{"name": "IMAGE", "type": "IMAGE"}],
            },
            {
                "id": 2,
                "type": "SaveImage",
                "widgets_values": ["pic"],
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }
    with Image.open(runner.run(workflow).pictures[0]) as picture:
        prompt, saved = json.loads(picture.text["prompt"]), json.loads(picture.text["workflow"])
    assert saved == workflow
    assert prompt["1"]["inputs"] == {"level": 0.5, "size": "8"}
    assert runner.run(saved).cached == runner.run(prompt).cached == ["1", "2"]


def test_load_image_reads_colours_and_mask_and_stays_in_its_folder(runner):
    runner.input_folder.mkdir()
    Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(runner.input_folder / "a.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    run = runner.run(prompt)
    image, mask = run.values["1"]
    assert image.shape == (1, 2, 4, 3) and image[0, 0, 0].tolist() == [1, 0, 0]
    assert mask.shape == (1, 2, 4) and mask.min() == 1
    prompt["1"]["inputs"]["image"] = "../secret.png"
    with pytest.raises(WorkflowError, match="outside the input folder"):
        runner.run(prompt)
    prompt["1"]["inputs"]["image"] = "none.png"
    with pytest.raises(WorkflowError, match="no such file"):
        runner.run(prompt)


def test_save_image_stays_in_its_folder(runner):
    with pytest.raises(NodeError, match="out of the output folder"):
        runner.run(chain(prefix="../../pic"))


def test_pixel_space_vae_and_masks_round_trip(runner):
    prompt = chain()
    prompt["2"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    prompt["3"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["2", 0]}}
    prompt["4"] = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["2", 0]}}
    prompt["99"]["inputs"]["images"] = ["4", 0]
    run = runner.run(prompt)
    assert torch.allclose(run.values["4"][0], run.values["1"][0])


IMAGE = (io.Image.Output(),)


def make(node_id, execute, inputs=(), outputs=IMAGE, **more):
    """A node class made of a function, the schema's other keywords and further class methods."""
    methods = {name: classmethod(more.pop(name)) for name in list(more) if callable(more[name])}

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id, inputs=list(inputs), outputs=list(outputs), **more)

    methods |= {"define_schema": define_schema, "execute": classmethod(execute)}
    return type(node_id, (io.ComfyNode,), methods)


def pixel(*_, **inputs):
    ran.append(f"pixel {sorted(inputs)}")
    return io.NodeOutput(torch.zeros(1, 1, 1, 3))


def one(runner, node, inputs=None):
    """Add a node class to a runner; a prompt that saves what it gives."""
    node_id = node.define_schema().node_id
    runner.nodes = {**NODES, node_id: node}
    save = {"images": ["1", 0], "filename_prefix": "pic"}
    return {
        "1": {"class_type": node_id, "inputs": inputs or {}},
        "99": {"class_type": "SaveImage", "inputs": save},
    }


def test_without_a_cache_values_are_freed_once_nobody_waits(runner):
    runner.keep = False
    seen = []
    look = make(
        "Look",
        lambda cls, image: (seen.append(alive()), io.NodeOutput(image))[1],
        [io.Image.Input("image")],
    )
    grey = make("Watched", lambda cls: io.NodeOutput(watch(torch.ones(1, 1, 1, 3))))
    watched = []

    def watch(value):
        watched.append(weakref.ref(value))
        return value

    def alive():
        return watched[0]() is not None

    runner.nodes = {**NODES, "Watched": grey, "Look": look}
    prompt = chain("Invert", "Look", "Invert", "Look")
    prompt["1"] = {"class_type": "Watched", "inputs": {}}
    prompt["4"]["inputs"]["mix"] = ["1", 0]  # the last to wait for node 1
    run = runner.run(prompt)
    assert seen == [True, False]
    assert set(run.values) == {"99"} and not run.cached
    assert not runner.run(prompt).cached and len(watched) == 2


def test_without_a_cache_each_output_is_freed_by_itself(runner):
    """A loader's text encoder, read by then, is not in memory while its U-Net samples."""
    runner.keep, seen = False, []
    both = [torch.ones(1, 1, 1, 3), torch.ones(1, 1, 1, 3)]
    watched = [weakref.ref(value) for value in both]
    load = make(
        "Load",
        lambda cls: io.NodeOutput(both.pop(0), both.pop(0)),
        outputs=[io.Image.Output(), io.Image.Output()],
    )
    look = make(
        "Look",
        lambda cls, image, mix=None: (
            seen.append([ref() is not None for ref in watched]),
            io.NodeOutput(image + 0),
        )[1],
        [io.Image.Input("image"), io.Image.Input("mix", optional=True)],
    )
    runner.nodes = {**NODES, "Load": load, "Look": look}
    runner.run(
        {
            "1": {"class_type": "Load", "inputs": {}},
            "2": {"class_type": "Look", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "Look", "inputs": {"image": ["2", 0], "mix": ["1", 1]}},
            "4": {"class_type": "Look", "inputs": {"image": ["3", 0]}},
            "99": {
                "class_type": "SaveImage",
                "inputs": {"images": ["4", 0], "filename_prefix": "pic"},
            },
        }
    )
    assert seen == [[True, True], [False, True], [False, False]]


def test_an_interrupt_stops_between_nodes(runner):
    runner.on_node = lambda key, title: key == "2" and interrupt()
    with pytest.raises(Interrupted, match="before node 3"):
        runner.run(chain("Invert", "Invert"))
    assert ran == ["Grey 0.25", "Invert"]
    runner.on_node = None
    assert set(runner.run(chain("Invert", "Invert")).cached) == {"1", "2"}


def test_a_node_validates_its_own_inputs_before_anything_runs(runner):
    inputs = [io.Int.Input("n", max=4), io.Int.Input("m", max=4)]
    even = make("Even", pixel, inputs, validate_inputs=lambda cls, n: n % 2 == 0 or f"{n} is odd")
    with pytest.raises(WorkflowError, match=r"node 1 'Even' \(Even\): 3 is odd"):
        runner.run(one(runner, even, {"n": 3, "m": 0}))
    assert not ran
    # What it looks at itself is not checked against bounds, the rest is.
    assert runner.run(one(runner, even, {"n": 6, "m": 0})).pictures
    with pytest.raises(WorkflowError, match="'m' is 6; the largest is 4"):
        runner.run(one(runner, even, {"n": 6, "m": 6}))


def test_a_validation_without_words_names_the_values_it_refused(runner):
    refuse = make("Refuse", pixel, [io.Int.Input("n")], validate_inputs=lambda cls, n: False)
    with pytest.raises(WorkflowError, match="refused n"):
        runner.run(one(runner, refuse, {"n": 3}))


def test_a_node_that_validates_everything_checks_the_bounds_itself(runner):
    node = make(
        "All", pixel, [io.Int.Input("n", max=4)], validate_inputs=lambda cls, **inputs: True
    )
    assert runner.run(one(runner, node, {"n": 6})).pictures


def test_a_wired_value_is_not_validated_before_it_is_there(runner):
    node = make("Even", pixel, [io.Int.Input("n")], validate_inputs=lambda cls, n: n % 2 == 0)
    prompt = one(runner, node, {"n": ["5", 0]})
    prompt["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": 3}}
    assert runner.run(prompt).pictures


@pytest.mark.parametrize(("fingerprint", "again"), [(float("nan"), True), ("same", False)])
def test_a_fingerprint_of_nan_runs_again(runner, fingerprint, again):
    node = make("Watch", pixel, fingerprint_inputs=lambda cls: fingerprint)
    prompt = one(runner, node)
    runner.run(prompt)
    assert ("1" in runner.run(prompt).cached) is not again
    assert len(ran) == 1 + again


@pytest.mark.parametrize(
    ("flags", "times"),
    [({}, 1), ({"not_idempotent": True}, 2), ({"hidden": [io.Hidden.unique_id]}, 2)],
)
def test_equal_nodes_run_once_unless_they_say_otherwise(runner, flags, times):
    prompt = one(runner, make("Twin", pixel, **flags))
    prompt["2"] = {"class_type": "Twin", "inputs": {}}
    prompt["98"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    runner.run(prompt)
    assert len(ran) == times
    assert {"1", "2"} <= set(runner.run(prompt).cached)


def test_a_node_sees_the_hidden_inputs_it_asked_for(runner):
    seen = []

    def look(cls):
        seen.append((cls.hidden.unique_id, list(cls.hidden.prompt)))
        return pixel()

    node = make("Curious", look, hidden=[io.Hidden.unique_id, io.Hidden.prompt])
    runner.run(one(runner, node))
    assert seen == [("1", ["1", "99"])]


def test_a_post_body_runs_and_leaves_no_workflow_in_the_picture(runner):
    run = runner.run({"prompt": chain(), "client_id": "x"})
    with Image.open(run.pictures[0]) as picture:
        assert set(picture.text) == {"prompt"}
        assert set(json.loads(picture.text["prompt"])) == {"1", "99"}


def test_a_node_of_whole_lists_is_refused(runner):
    with pytest.raises(WorkflowError, match=r"takes whole lists.*in ComfyUI"):
        runner.run(one(runner, make("Lists", pixel, is_input_list=True)))


def test_a_node_behind_a_list_runs_once_for_each_value(runner):
    seen = []

    def levels(cls):
        return io.NodeOutput([0.25, 0.5, 1.0], [10, 20])

    def picture(cls, level, number, same):
        seen.append((level, number, same))
        return io.NodeOutput(torch.full((1, 2, 2, 3), level))

    lists = [io.Float.Output(is_output_list=True), io.Int.Output(is_output_list=True)]
    inputs = [io.Float.Input("level"), io.Int.Input("number"), io.Int.Input("same")]
    links = {"level": ["5", 0], "number": ["5", 1], "same": 7}
    prompt = one(runner, make("Picture", picture, inputs), links)
    runner.nodes = {**runner.nodes, "Levels": make("Levels", levels, outputs=lists)}
    prompt["5"] = {"class_type": "Levels", "inputs": {}}
    run = runner.run(prompt)
    assert seen == [(0.25, 10, 7), (0.5, 20, 7), (1.0, 20, 7)]
    assert run.values["5"] == ([0.25, 0.5, 1.0], [10, 20])
    assert [Image.open(path).getpixel((0, 0))[0] for path in run.pictures] == [63, 127, 255]


def test_a_node_behind_an_empty_list_does_not_run(runner):
    lists = [io.Image.Output(is_output_list=True)]
    assert not runner.run(
        one(runner, make("Empty", lambda cls: io.NodeOutput([]), outputs=lists))
    ).pictures


@pytest.mark.parametrize(
    ("socket", "fits"),
    [
        (io.MultiType.Input("x", [io.Image, io.Mask]), True),
        (io.AnyType.Input("x"), True),
        (io.MultiType.Input("x", [io.Latent, io.Mask]), False),
    ],
)
def test_a_wire_fits_any_of_several_types(runner, socket, fits):
    prompt = one(runner, make("Several", pixel, [socket]), {"x": ["5", 0]})
    prompt["5"] = chain()["1"]
    if fits:
        assert runner.run(prompt).pictures
    else:
        with pytest.raises(WorkflowError, match="'x' needs LATENT,MASK, but node 5"):
            runner.run(prompt)


def test_an_output_of_any_type_fits_every_input(runner):
    prompt = one(runner, make("Any", pixel, outputs=[io.AnyType.Output()]))
    assert runner.run(prompt).pictures


def test_a_node_may_neither_block_nor_expand(runner):
    node = make("Grow", lambda cls: io.NodeOutput(expand={"7": {}}))
    with pytest.raises(NodeError, match="only ComfyUI can do that"):
        runner.run(one(runner, node))


def two_outputs(**bad):
    """A picture that runs, and a second output of the inputs ``bad``."""
    prompt = chain()
    prompt["98"] = {"class_type": "PreviewImage", "inputs": bad}
    return prompt


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "'images' (IMAGE) is missing"),
        ({"images": ["7", 0]}, "node 7, which does not exist"),
        ({"images": ["1", 1]}, "needs IMAGE, but node 1"),
        ({"images": ["1", 9]}, "which has 2"),
        ({"images": [1, 0]}, "is a list; a wire is a node's id as text"),
        ({"images": "x"}, "needs a wire of type IMAGE"),
    ],
)
def test_an_output_that_does_not_fit_is_left_out_and_the_others_run(
    runner, monkeypatch, more, said
):
    warnings = []
    monkeypatch.setattr(embedded.session, "on_warning", warnings.append)
    run = runner.run(two_outputs(**more))
    assert [path.name for path in run.pictures] == ["pic_00001_.png"]
    assert list(run.left_out) == ["98"] and said in run.left_out["98"]
    assert warnings == [f"an output is left out: {run.left_out['98']}"]
    assert not runner.run(chain()).left_out


def test_a_fault_behind_an_output_names_both(runner):
    prompt = two_outputs(images=["5", 0])
    prompt["5"] = {"class_type": "Grey", "inputs": {"level": 3.0, "size": "4"}}
    prompt["6"] = {"class_type": "Invert", "inputs": {"image": ["5", 0]}}  # needed by nobody
    run = runner.run(prompt)
    assert "node 98, because node 5 'Grey' (Grey): 'level' is 3.0" in run.left_out["98"]
    assert ran == ["Grey 0.25"]


def test_a_node_that_only_a_dropped_output_needs_does_not_run(runner):
    both = make(
        "Both", pixel, [io.Image.Input("image"), io.Image.Input("other")], [], is_output_node=True
    )
    runner.nodes = {**NODES, "Both": both}
    prompt = chain()
    prompt["5"] = {"class_type": "Grey", "inputs": {"level": 0.75, "size": "4"}}
    prompt["98"] = {"class_type": "Both", "inputs": {"image": ["5", 0]}}
    assert list(runner.run(prompt).left_out) == ["98"]
    assert ran == ["Grey 0.25"]


def test_without_an_output_that_fits_nothing_runs_and_every_reason_is_named(runner):
    prompt = chain(level=3.0)
    prompt["98"] = {"class_type": "PreviewImage", "inputs": {}}
    with pytest.raises(
        WorkflowError, match=r"'level' is 3\.0.*; node 98.*'images' .IMAGE. is missing"
    ):
        runner.run(prompt)
    assert not ran


def test_a_circle_stops_only_the_outputs_behind_it(runner):
    prompt = two_outputs(images=["5", 0])
    prompt["5"] = {"class_type": "Invert", "inputs": {"image": ["6", 0]}}
    prompt["6"] = {"class_type": "Invert", "inputs": {"image": ["5", 0]}}
    run = runner.run(prompt)
    assert "round in a circle" in run.left_out["98"] and len(run.pictures) == 1


def test_what_only_comfyui_can_do_stops_everything(runner):
    """To leave out an output that ComfyUI would draw is no answer."""
    prompt = two_outputs(images=["5", 0])
    prompt["4"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}}
    prompt["5"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["4", 0]}}
    prompt["6"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    }
    with pytest.raises(Unsupported, match="'taesd', which is not in the list: pixel_space"):
        runner.run(prompt)
    assert not ran


@pytest.mark.parametrize("value", [5, None, True, {"a": 1}, {"__value__": ["a"]}, 0.5])
def test_what_is_no_text_is_not_made_one(runner, value):
    prompt = one(runner, make("Text", pixel, [io.String.Input("text")]), {"text": value})
    with pytest.raises(WorkflowError, match="which is no text; put it in quotes"):
        runner.run(prompt)


@pytest.mark.parametrize(("text", "place"), [("a \ud83d b", 2), ("\udc00", 0), ("ok \udcff", 3)])
def test_half_a_character_is_named_before_anything_runs(runner, text, place):
    prompt = one(runner, make("Text", pixel, [io.String.Input("text")]), {"text": text})
    with pytest.raises(WorkflowError, match=rf"'text' holds half a character .U\+D.* at {place}"):
        runner.run(prompt)
    assert not ran


@pytest.mark.parametrize("value", ["false", "no", "", None, {"a": 1}])
def test_a_word_is_no_switch(runner, value):
    prompt = one(runner, make("Switch", pixel, [io.Boolean.Input("on")]), {"on": value})
    with pytest.raises(WorkflowError, match="which is no switch; use true or false"):
        runner.run(prompt)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf"])
def test_a_number_is_finite(runner, value):
    for kind in (io.Float, io.Int):
        prompt = one(runner, make("Number", pixel, [kind.Input("n")]), {"n": value})
        with pytest.raises(WorkflowError, match="'n' is"):
            runner.run(prompt)
