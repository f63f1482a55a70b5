"""Rows in one run of a graph: the same pictures as one by one, or one by one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from prior_art.headless.runner import node_classes
from prior_art.headless.workflow import read_workflow, to_api
from prior_art.scale.batch import run_batch
from prior_art.scale.protocols import WORKFLOWS
from prior_art.scale.rows import apply
from prior_art.scale.together import Apart, merged
from prior_art.scale.worker import Worker

from .graphs import greys, journal, table, untimed

SCENES = ["a large red circle on a blue background", "a small green cross on a white background"]
KARLO = ("Prompt.text={caption}", "Seed of all stages.value={seed}", "PriorArtPrior.steps=3",
         "PriorArtKarloDecoder.steps=3")  # fmt: skip
KANDINSKY = ("PrimitiveInt.value={seed}", "PriorArtKandinskyPrior.steps=3",
             "PriorArtKandinskyDecoder.steps=3")  # fmt: skip
KOALA = ("Prompt.text={caption}", "PriorArtKoalaSample.seed={seed}", "PriorArtKoalaSample.steps=3")
OF = {
    "karlo_text_to_image": KARLO,
    "kandinsky_text_to_image": ("Prompt.text={caption}", *KANDINSKY),
    "kandinsky_2_1_text_to_image": ("PrimitiveStringMultiline.value={caption}", *KANDINSKY),
    "koala_text_to_image": KOALA,
    "mindalle_rerank": (
        "PrimitiveStringMultiline.value={caption}", "PriorArtARSample.seed={seed}",
        "PriorArtARSample.candidates=2",
        "PriorArtCLIPRerank.keep=1",
    ),
}  # fmt: skip
"""A graph of each system over rows."""


def batch_of(folder, name, seeds):
    """A batch of a template over as many rows."""
    rows = [{"caption": SCENES[i % 2], "seed": seed} for i, seed in enumerate(seeds)]
    batch = greys(folder, 1)
    return replace(
        batch,
        workflow=WORKFLOWS / f"{name}.json",
        rows=table(folder / "rows.jsonl", rows),
        mapping=OF[name],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", OF)
def test_rows_together_make_the_pictures_of_rows_alone(tmp_path, name, monkeypatch):
    """Also where a system's stages do not batch, and the rows run one by one after all."""
    alone = batch_of(tmp_path, name, [5, 6, 7])
    both = replace(alone, out=tmp_path / "both", together=2)
    alone_runs = []
    run = Worker._alone
    assert run_batch(alone).made == 3
    monkeypatch.setattr(
        Worker, "_alone", lambda self, job: alone_runs.append(job.row) or run(self, job)
    )
    assert run_batch(both).made == 3
    assert alone_runs == ([0, 1, 2] if name == "mindalle_rerank" else [2])
    for one, other in zip(untimed(alone), untimed(both), strict=True):
        files = [entry["files"][0]["path"] for entry in (one, other)]
        pictures = [Image.open(batch.out / path)
                    for batch, path in zip((alone, both), files, strict=True)]  # fmt: skip
        assert pictures[0].text == pictures[1].text, "each carries its own row's prompt"
        levels = [np.asarray(picture, dtype=int) for picture in pictures]
        assert levels[0].std() > 1 and np.abs(levels[0] - levels[1]).max() <= 1
        for entry in (one, other):
            del entry["files"], entry["warnings"]  # which say so where rows ran alone
        assert one == other


def karlo(*changes):
    """A prompt of Karlo's template for each list of settings."""
    prompt = to_api(read_workflow(WORKFLOWS / "karlo_text_to_image.json"), node_classes())
    return [apply(prompt, settings)[0] for settings in changes]


def of(caption, seed, *more):
    return [f"Prompt.text={caption}", f"PrimitiveInt.value={seed}", *more]


def test_texts_become_one_batch_and_the_first_seed_stays():
    prompt = merged(karlo(of("a", 5), of("b", 6), of("c", 7)), node_classes()).prompt
    kinds = [node["class_type"] for node in prompt.values()]
    assert kinds.count("PriorArtTextEncode") == 4, "three prompts and one negative"
    assert kinds.count("PriorArtBatchPrompts") == 2
    assert kinds.count("PriorArtPrior") == 1
    texts = [n["inputs"]["text"] for n in prompt.values() if "text" in n["inputs"]]
    assert texts == ["a", "b", "c", ""]
    (seed,) = (n["inputs"]["value"] for n in prompt.values() if n["class_type"] == "PrimitiveInt")
    assert seed == 5


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (of("b", 5), r"rise by one; node 2's are \[5, 5\]"),
        (of("b", 7), r"rise by one; node 2's are \[5, 7\]"),
        (of("b", 6, "PriorArtPrior.cfg=2"), "more than prompts and seeds differs"),
        (of("b", 6, "PriorArtLoadPrior.dtype=fp16"), "more than prompts and seeds differs"),
        (of("b", 6, "SaveImage.filename_prefix=other"), None),
    ],
)
def test_only_prompts_and_seeds_may_differ(second, said):
    prompts = karlo(of("a", 5), second)
    if said is None:
        assert merged(prompts, node_classes()).saves
        return
    with pytest.raises(Apart, match=said):
        merged(prompts, node_classes())


def test_batches_within_a_row_are_left_alone():
    with pytest.raises(Apart, match="'batch_size' of node 7 is not 1"):
        merged(karlo(*[of("a", seed, "PriorArtPrior.batch_size=2") for seed in (5, 6)]),
               node_classes())  # fmt: skip


def test_a_seed_that_is_something_else_too_is_refused():
    prompts = karlo(of("a", 5), of("b", 6))
    for prompt in prompts:
        prompt["7"]["inputs"]["steps"] = ["2", 0]
    with pytest.raises(Apart, match="node 2 is a seed and something else"):
        merged(prompts, node_classes())


def test_a_stage_that_mixes_its_batch_keeps_rows_apart(tmp_path, monkeypatch):
    batch, said = greys(tmp_path, 4, together=2), []
    monkeypatch.setattr("prior_art.scale.batch.warn", said.append)
    assert run_batch(batch).made == 4
    assert said == ["rows run one by one: node 2 (MaskToImage) works on whole batches"]


def test_rows_that_ran_alone_say_why(tmp_path):
    batch = greys(tmp_path, 2, together=2)
    run_batch(batch)
    why = "ran alone: node 2 (MaskToImage) works on whole batches"
    assert [entry["warnings"] for entry in journal(batch)] == [[why]] * 2


def test_rows_of_one_prompt_are_no_batch():
    with pytest.raises(Apart, match="nothing but seeds differs"):
        merged(karlo(of("a", 5), of("a", 6)), node_classes())


def test_what_is_missing_of_a_group_is_made_and_the_rest_left(tmp_path):
    batch = greys(tmp_path, 4, together=4)

    def stop(rows, made, failed):
        if made == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(batch, stop)
    run_batch(batch)
    assert [entry["row"] for entry in journal(batch)] == [0, 1, 2, 3]


def test_another_number_of_rows_together_is_another_batch(tmp_path):
    batch = greys(tmp_path, 2)
    run_batch(batch)
    with pytest.raises(ValueError, match="whose together are not these"):
        run_batch(replace(batch, together=2))
    assert json.loads((batch.out / "batch.json").read_text())["together"] == 1
