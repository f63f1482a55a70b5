"""What nodes show by themselves: cosines as a picture, a model as a table, a prior's way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .conftest import Comfy, Run
from .editing import queued

pytestmark = pytest.mark.host


def part(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


OWN = "from the source"
PARTS = {"variant": "any KOALA", "clip_l": OWN, "clip_g": OWN, "vae": OWN}
KOALA = part("PriorArtLoadKoala", source="shapes-koala-700m", dtype="auto", **PARTS)
LOADED = {"source": "shapes-karlo", "dtype": "auto"}
SAMPLED = {"prior": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "cfg": 4.0}
PRIOR = {
    "1": part("PriorArtLoadTextEncoder", **LOADED),
    "2": part("PriorArtLoadPrior", **LOADED),
    "3": part("PriorArtTextEncode", clip=["1", 0], text="a large red circle"),
    "4": part("PriorArtTextEncode", clip=["1", 0], text=""),
    "5": part("PriorArtPrior", **SAMPLED, seed=1, steps=12, batch_size=2),
    "6": part("PriorArtCompareEmbeddings", image_embeds_a=["5", 0], image_embeds_b=["5", 0]),
}


def test_a_prior_shows_its_way_to_the_prompt_while_it_samples(comfy: Comfy) -> None:
    graph = PRIOR | {"5": part("PriorArtPrior", **SAMPLED, seed=2, steps=12, batch_size=2)}
    run = comfy.run(graph)
    assert run.error is None
    pictures = [np.asarray(picture) for node, picture in run.previews if node == "5"]
    assert len(pictures) >= 2 and {picture.shape[:2] for picture in pictures} == {(256, 512)}
    first, last = (picture[30:, 200:].max(-1) > 150 for picture in (pictures[0], pictures[-1]))
    assert last.sum() > first.sum()  # the curves have grown to the right


@pytest.mark.browser
def test_cosines_are_a_picture_in_their_node(editor: Any, comfy: Comfy) -> None:
    editor.evaluate("graph => app.loadApiJson(graph, 'compare')", PRIOR)
    run = queued(editor, comfy)
    (table,) = comfy.pictures(Run("", history=run), "6")
    cells = np.asarray(table)[40:, 40:, 0].reshape(2, 48, 2, 48)[:, 1, :, 1] / 255
    assert cells.diagonal() == pytest.approx([1, 1], abs=0.02)
    assert cells[0, 1] == pytest.approx(cells[1, 0], abs=0.02) and cells[0, 1] < 1
    name = run["outputs"]["6"]["images"][0]["filename"]
    editor.wait_for_function(
        """name => document.querySelector(`img[src*="${name}"]`)
            ?? app.graph._nodes.some(node => node.imgs?.some(image => image.src.includes(name)))""",
        arg=name,
        timeout=30_000,
    )


@pytest.mark.browser
def test_a_models_facts_are_a_table_in_its_node(editor: Any, comfy: Comfy) -> None:
    graph = {"1": KOALA, "2": part("PriorArtKoalaInfo", model=["1", 0])}
    comfy.post("/free", {"free_memory": True, "unload_models": True})
    editor.evaluate("graph => app.loadApiJson(graph, 'info')", graph)
    table = editor.get_by_role("table", name="What the model is")
    table.wait_for()
    assert "Run once" in table.inner_text()
    queued(editor, comfy)
    table.get_by_role("row").first.wait_for()
    assert table.locator("caption").inner_text() == "KOALA-700M (miniature)"
    facts = {
        row.get_by_role("rowheader").inner_text(): row.get_by_role("cell").inner_text()
        for row in table.get_by_role("row").all()
    }
    assert facts["parameters"] == "1.9M" and facts["mid block"] == "no"
    assert len(facts) == 5
    saved = editor.evaluate("() => app.graph.serialize().nodes.find(n => n.id == 2).widgets_values")
    assert not saved
