"""What a search in the editor has to go by: it looks through ids, titles and aliases."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.host

WANTED = {
    "dalle": "PriorArtLoadARTransformer",
    "dall-e": "PriorArtARSample",
    "unclip": "PriorArtKarloDecoder",
    "diffusion prior": "PriorArtKandinskyPrior",
    "movq": "PriorArtLoadMoVQ",
    "vqgan": "PriorArtVQGANEncode",
    "rerank": "PriorArtCLIPRerank",
    "best of n": "PriorArtCLIPRerank",
    "sdxl distilled": "PriorArtLoadKoala",
    "super resolution": "PriorArtKarloUpscale",
}


@pytest.fixture(scope="module")
def own(comfy: Any) -> dict[str, Any]:
    nodes = comfy.get("/object_info")
    return {name: node for name, node in nodes.items() if name.startswith("PriorArt")}


def test_nodes_are_found_by_the_words_people_use(comfy: Any, own: dict[str, Any]) -> None:
    if "search_aliases" not in comfy.get("/object_info/KSampler")["KSampler"]:
        assert own and not any(node.get("search_aliases") for node in own.values())
        pytest.skip("this ComfyUI has no search aliases")
    assert all(node["search_aliases"] for node in own.values())
    for word, name in WANTED.items():
        searched = [name, own[name]["display_name"], *own[name]["search_aliases"]]
        assert any(word in text.lower() for text in searched), word


def test_the_menu_sorts_by_system_and_stage(own: dict[str, Any]) -> None:
    for name, node in own.items():
        _, system, *stage = node["category"].split("/")
        assert stage in ([], ["load"], ["encode"], ["sample"]), node["category"]
        if system in ("Karlo", "Kandinsky", "KOALA"):
            assert system.lower() in f"{name} {node['display_name']} {node['description']}".lower()


def test_what_was_not_seen_on_published_weights_is_called_experimental(own: dict[str, Any]) -> None:
    marked = {name for name, node in own.items() if node["experimental"]}
    assert marked == {"PriorArtLoadImageNormalizer"}
