"""Mixing in a running ComfyUI: what runs again when a weight changes, batches, wrong wires."""

from __future__ import annotations

from typing import Any

import pytest

from .serving import Graph, is_a_picture, levels, node, one_clear_error, with_inputs

pytestmark = [pytest.mark.host, pytest.mark.slow]

STEPS = 4
SOURCES = {
    "LoadTextEncoder": "shapes-kandinsky-prior",
    "LoadPrior": "shapes-kandinsky-prior",
    "LoadLatentDecoder": "shapes-kandinsky",
    "LoadMoVQ": "shapes-kandinsky",
}
PROMPTS = ("a red circle on a blue background", "a green square on a white background")


def load(kind: str, source: str = "", **more: Any) -> Any:
    return node(f"PriorArt{kind}", source=source or SOURCES[kind], dtype="auto", **more)


def prior(prompt: str, seed: int) -> Any:
    shared = {"steps": STEPS, "cfg": 4.0, "negative_embeds": "zero image", "batch_size": 1}
    sides = {"prior": ["prior", 0], "positive": [prompt, 0], "negative": ["nothing", 0]}
    return node("PriorArtKandinskyPrior", seed=seed, **sides, **shared)


def decoder(embeds: str) -> Any:
    return node(
        "PriorArtKandinskyDecoder",
        model=["decoder", 0],
        image_embeds=[embeds, 0],
        negative_image_embeds=["first", 1],
        width=64,
        height=64,
        seed=3,
        steps=STEPS,
        cfg=4.0,
        batch_size=1,
    )


def mixing(weight: float = 0.5) -> Graph:
    """Two prompts' embeddings mixed and painted."""
    return {
        "text": load("LoadTextEncoder"),
        "prior": load("LoadPrior"),
        "decoder": load("LoadLatentDecoder", sampler="published"),
        "movq": load("LoadMoVQ"),
        "one": node("PriorArtTextEncode", clip=["text", 0], text=PROMPTS[0]),
        "two": node("PriorArtTextEncode", clip=["text", 0], text=PROMPTS[1]),
        "nothing": node("PriorArtTextEncode", clip=["text", 0], text=""),
        "first": prior("one", 1),
        "second": prior("two", 2),
        "mix": node(
            "PriorArtMixEmbeddings",
            image_embeds_a=["first", 0],
            image_embeds_b=["second", 0],
            weight_a=1 - weight,
            weight_b=weight,
            mode="weighted sum",
        ),
        "paint": decoder("mix"),
        "pixels": node("VAEDecode", samples=["paint", 0], vae=["movq", 0]),
        "save": node("SaveImage", images=["pixels", 0], filename_prefix="mix"),
    }


def test_a_changed_weight_runs_only_what_depends_on_it(comfy: Any) -> None:
    graph = mixing()
    before = comfy.run(graph)
    again = comfy.run(with_inputs(graph, "mix", weight_a=0.2, weight_b=0.8))
    assert again.error is None
    (cached,) = again.of("execution_cached")
    assert set(graph) - set(cached["nodes"]) == {"mix", "paint", "pixels", "save"}
    assert not again.steps("first") and not again.steps("second") and again.steps("paint")
    (one,), (other,) = (comfy.pictures(run, "save") for run in (before, again))
    assert is_a_picture(other) and levels(one, other) > 1


def test_batched_prompts_are_their_single_runs(comfy: Any) -> None:
    batch = mixing()
    batch["both"] = node(
        "PriorArtBatchPrompts", conditioning_a=["one", 0], conditioning_b=["two", 0]
    )
    batch["first"] = prior("both", 1)
    batch["paint"] = decoder("first")
    together = comfy.pictures(comfy.run(batch), "save")
    assert len(together) == 2
    alone = mixing()
    alone["paint"] = decoder("second")
    alone["paint"]["inputs"]["seed"] = 4
    (single,) = comfy.pictures(comfy.run(alone), "save")
    assert levels(together[1], single) <= 1


def test_another_systems_embedding_is_refused_with_both_names(comfy: Any) -> None:
    wrong = mixing()
    karlo = "shapes-karlo"
    wrong["clip"] = load("LoadTextEncoder", karlo)
    wrong["other"] = load("LoadPrior", karlo)
    for name, text in (("said", PROMPTS[0]), ("unsaid", "")):
        wrong[name] = node("PriorArtTextEncode", clip=["clip", 0], text=text)
    wrong["karlos"] = node(
        "PriorArtPrior",
        prior=["other", 0],
        positive=["said", 0],
        negative=["unsaid", 0],
        seed=1,
        steps=STEPS,
        cfg=4.0,
        batch_size=1,
    )
    for graph, name in (
        (with_inputs(wrong, "mix", image_embeds_b=["karlos", 0]), "image_embeds_b"),
        (with_inputs(wrong, "paint", image_embeds=["karlos", 0]), "image_embeds"),
    ):
        words = (
            name,
            "shapes-vit-l",
            "shapes-vit-g",
            "Prior Sample (unCLIP)",
            "encode the picture",
        )
        one_clear_error(comfy, graph, *words)
