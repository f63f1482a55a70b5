"""Small graphs as ComfyUI's editor saves them, each of one kind, from nodes that every host has."""

from __future__ import annotations

from typing import Any

SUB, MIDDLE, OUTER = (f"0000000{n}-1111-4111-8111-111111111111" for n in (1, 2, 3))


def node(
    id: int,
    type: str,
    values: Any = (),
    wires: dict[str, Any] | None = None,
    outputs: str = "",
    mode: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """A saved node. ``wires`` are slots by name, (type, link), a widget's with a third entry;
    ``outputs`` are types, with a space between."""
    inputs = []
    for name, (kind, link, *widget) in (wires or {}).items():
        inputs.append({"name": name, "type": kind, "link": link})
        if widget:
            inputs[-1]["widget"] = {"name": name}
    saved = {
        "id": id,
        "type": type,
        "pos": [0, 0],
        "size": [200, 100],
        "flags": {},
        "order": id,
        "mode": mode,
        "inputs": inputs,
        "outputs": [{"name": kind, "type": kind, "links": []} for kind in outputs.split()],
        "properties": {},
        **more,
    }
    if values is not None:
        saved["widgets_values"] = values if isinstance(values, dict) else list(values)
    return saved


def _fill_links(nodes: list[dict], links: list[tuple]) -> None:
    """Write the links' numbers into the outputs that they leave."""
    by_id = {node["id"]: node for node in nodes}
    for number, origin, slot, *_ in links:
        if origin in by_id:
            by_id[origin]["outputs"][slot]["links"].append(number)


def graph(nodes: list[dict], links: list[tuple] = (), *subgraphs: dict) -> dict[str, Any]:
    """A saved workflow; ``links`` are (number, origin, slot, target, slot, type)."""
    _fill_links(nodes, links)
    return {
        "last_node_id": 99,
        "last_link_id": 99,
        "nodes": nodes,
        "links": [list(link) for link in links],
        "groups": [],
        "definitions": {"subgraphs": list(subgraphs)},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def subgraph(
    id: str,
    nodes: list[dict],
    links: list[tuple],
    inputs: dict[str, tuple] | None = None,
    outputs: dict[str, tuple] | None = None,
    name: str = "Sub",
) -> dict[str, Any]:
    """A definition; inputs and outputs are (type, links) by name."""
    _fill_links(nodes, links)
    ends = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        "id": id,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": 99, "lastLinkId": 99, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": -10, "bounding": [0, 0, 1, 1]},
        "outputNode": {"id": -20, "bounding": [0, 0, 1, 1]},
        "inputs": _ports(f"{id[7]}i", inputs),
        "outputs": _ports(f"{id[7]}o", outputs),
        "widgets": [],
        "nodes": nodes,
        "links": [dict(zip(ends, link, strict=True)) for link in links],
        "groups": [],
        "extra": {},
    }


def _ports(prefix: str, ports: dict[str, tuple] | None) -> list[dict]:
    return [
        {"id": f"{prefix}{n}", "name": name, "type": kind, "linkIds": list(links)}
        for n, (name, (kind, links)) in enumerate((ports or {}).items())
    ]


def load(id: int = 1, **more: Any) -> dict[str, Any]:
    return node(id, "LoadImage", ["example.png", "image"], None, "IMAGE MASK", **more)


def save(id: int, link: int | None, prefix: str = "x", text: int | None = None, **more: Any):
    wires = {"images": ("IMAGE", link), "filename_prefix": ("STRING", text, "widget")}
    return node(id, "SaveImage", [prefix], wires, **more)


def sampler(id: int, seed: int = 7, cfg: float = 8.0, **more: Any) -> dict[str, Any]:
    values = [seed, "randomize", 20, cfg, "euler", "normal", 1]
    return node(id, "KSampler", values, None, "LATENT", **more)


def latent(id: int, size: int = 64, count: int = 1, **wires: tuple) -> dict[str, Any]:
    return node(id, "EmptyLatentImage", [size, size, count], wires, "LATENT")


def composite(id: int, mode: int = 4, **wires: tuple) -> dict[str, Any]:
    return node(id, "ImageCompositeMasked", [0, 0, False], wires, "IMAGE", mode)


def reroute(id: int, link: int | None, kind: str = "IMAGE", mode: int = 0) -> dict[str, Any]:
    return node(id, "Reroute", None, {"": ("*", link)}, kind, mode)


def primitive(id: int, *values: Any, kind: str = "STRING", **more: Any) -> dict[str, Any]:
    return node(id, "PrimitiveNode", values, None, kind, **more)


def picture(link: int = 1, target: int = 2) -> tuple:
    return (link, 1, 0, target, 0, "IMAGE")


def prompt(text: str, id: int = 3) -> list[dict[str, Any]]:
    """A text encoder (node 4) and a prompt."""
    wires = {"clip": ("CLIP", 40)}
    encoder = node(4, "PriorArtLoadTextEncoder", ["shapes-karlo", "auto"], None, "CLIP")
    return [encoder, node(id, "CLIPTextEncode", [text], wires, "CONDITIONING")]


TEXT = {"name": "text", "type": "STRING", "widget": {"name": "text"}}
CLIP_LINK = (40, 4, 0, 3, 0, "CLIP")


def _leaf() -> dict[str, Any]:
    """A subgraph of two widgets that are promoted, and others that are not."""
    encoder, text = prompt("leaf's own", id=62)
    encoder["id"] = 64
    text["inputs"].append(TEXT | {"link": 2})
    return subgraph(
        SUB,
        [latent(61, batch_size=("INT", 1, "widget")), encoder, text],
        [
            (1, -10, 0, 61, 2, "INT"),
            (2, -10, 1, 62, 1, "STRING"),
            (40, 64, 0, 62, 0, "CLIP"),
            (5, 62, 0, -20, 0, "CONDITIONING"),
        ],
        {"count": ("INT", [1]), "words": ("STRING", [2])},
        {"out": ("CONDITIONING", [5])},
        "Leaf",
    )


def _around(id: str, inner: str, number: int, values: list, name: str) -> dict[str, Any]:
    wires = {"count": ("INT", 1, "widget"), "words": ("STRING", 2, "widget")}
    return subgraph(
        id,
        [node(number, inner, values, wires, "CONDITIONING")],
        [
            (1, -10, 0, number, 0, "INT"),
            (2, -10, 1, number, 1, "STRING"),
            (3, number, 0, -20, 0, "CONDITIONING"),
        ],
        {"count": ("INT", [1]), "words": ("STRING", [2])},
        {"out": ("CONDITIONING", [3])},
        name,
    )


def nested(*instances: dict[str, Any], more: list[dict] = (), links: list[tuple] = ()) -> dict:
    """A workflow of instances of :data:`SUB`, of :data:`MIDDLE` around it and :data:`OUTER`."""
    definitions = [
        _around(OUTER, MIDDLE, 73, [5, "outer's own"], "Outer"),
        _leaf(),
        _around(MIDDLE, SUB, 72, [6], "Middle"),
    ]
    return graph([*instances, *more], list(links), *definitions)


def instance(id: int, of: str = SUB, values: Any = (), **more: Any) -> dict[str, Any]:
    return node(id, of, values, more.pop("wires", None), "CONDITIONING", **more)


def _flat() -> dict[str, dict[str, Any]]:
    link, text = picture(), (7, 5, 0, 2, 1, "STRING")
    through = [(*link[:3], 3, 0, "*"), (2, 3, 0, 2, 0, "IMAGE")]
    by_state = graph([load(), save(2, 1)], [link])
    ends = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    by_state |= {
        "version": 1,
        "state": {"lastNodeId": 9, "lastLinkId": 9, "lastGroupId": 0, "lastRerouteId": 2},
        "links": [{**dict(zip(ends, link, strict=True)), "parentId": 1}],
        "reroutes": [{"id": 1, "pos": [5, 5], "linkIds": [1]}],
        "floatingLinks": [],
    }
    on_link = graph([load(), save(2, 1)], [link])
    on_link["extra"] = {
        "linkExtensions": [{"id": 1, "parentId": 1}],
        "reroutes": [{"id": 1, "pos": [5, 5], "linkIds": [1]}],
    }
    replaced = primitive(5, "a %PriorArtLoadTextEncoder.source% {b|b} // no")
    replaced["properties"] = {"Run widget replace on values": True}
    encoder, encode = prompt("own")
    encode["inputs"].append(TEXT | {"link": 7})
    second = [(9, 6, 0, 3, 0, "IMAGE")]
    return {
        "plain": graph([load(), save(2, 1)], [link]),
        "slots in another order": graph(
            [
                load(),
                node(
                    2,
                    "SaveImage",
                    ["x"],
                    {"filename_prefix": ("STRING", None, "w"), "images": ("IMAGE", 1)},
                ),
            ],
            [(1, 1, 0, 2, 1, "IMAGE")],
        ),
        "reroute": graph([load(), reroute(3, 1), save(2, 2)], through),
        "bypassed reroute": graph([load(), reroute(3, 1, mode=4), save(2, 2)], through),
        "reroute of nothing": graph([reroute(3, None), save(2, 2)], through[1:]),
        "reroute on a link": on_link,
        "links as objects": by_state,
        "primitive": graph([load(), save(2, 1, "own", 7), primitive(5, "driven")], [link, text]),
        "muted primitive": graph(
            [load(), save(2, 1, "own", 7), primitive(5, "driven", mode=2)], [link, text]
        ),
        "primitive of a name": graph(
            [load(), save(2, 1, "own", 7), primitive(5, "%LoadImage.image%")], [link, text]
        ),
        "primitive behind a reroute": graph(
            [load(), save(2, 1, "own", 8), primitive(5, "lost"), reroute(6, 7, "STRING")],
            [link, (7, 5, 0, 6, 0, "*"), (8, 6, 0, 2, 1, "STRING")],
        ),
        "primitive that is replaced": graph(
            [encoder, encode, replaced], [CLIP_LINK, (7, 5, 0, 3, 1, "STRING")]
        ),
        "bypass: the first": graph(
            [
                load(),
                load(4),
                composite(6, destination=("IMAGE", 1), source=("IMAGE", 2)),
                save(3, 9),
            ],
            [(1, 1, 0, 6, 0, "IMAGE"), (2, 4, 0, 6, 1, "IMAGE"), *second],
        ),
        "bypass: the same place": graph(
            [
                load(),
                load(4),
                node(
                    6,
                    "FancyFilter",
                    [1],
                    {"one": ("IMAGE", 1), "other": ("IMAGE", 2)},
                    "MASK IMAGE",
                    4,
                ),
                save(3, 9),
            ],
            [(1, 1, 0, 6, 0, "IMAGE"), (2, 4, 0, 6, 1, "IMAGE"), (9, 6, 1, 3, 0, "IMAGE")],
        ),
        "bypass: the same place, unwired": graph(
            [load(), composite(6, destination=("IMAGE", None), source=("IMAGE", 1)), save(3, 9)],
            [(1, 1, 0, 6, 1, "IMAGE"), *second],
        ),
        "bypass: another pack's": graph(
            [
                load(),
                node(
                    6, "FancyFilter", [1], {"mask": ("MASK", None), "pic": ("IMAGE", 1)}, "IMAGE", 4
                ),
                save(3, 9),
            ],
            [(1, 1, 0, 6, 1, "IMAGE"), *second],
        ),
        "bypass: several types": graph(
            [
                load(),
                node(6, "FancyFilter", [1], {"any": ("MASK,IMAGE", 1)}, "IMAGE", 4),
                save(3, 9),
            ],
            [(1, 1, 0, 6, 0, "IMAGE"), *second],
        ),
        "bypass: nothing fits": graph([load(mode=4), save(2, 1)], [link]),
        "bypass: two": graph(
            [
                load(),
                composite(6, destination=("IMAGE", 1)),
                composite(7, destination=("IMAGE", 2)),
                save(3, 9),
            ],
            [(1, 1, 0, 6, 0, "IMAGE"), (2, 6, 0, 7, 0, "IMAGE"), (9, 7, 0, 3, 0, "IMAGE")],
        ),
        "muted": graph([load(mode=2), save(2, 1)], [link]),
        "modes of events": graph([load(mode=1), save(2, 1, mode=3)], [link]),
        "notes": graph(
            [load(), save(2, 1), node(6, "Note", ["a"]), node(7, "MarkdownNote", ["b"])], [link]
        ),
        "large seeds": graph([sampler(8, 18446744073709551615), sampler(9, 9007199254740993)]),
        "file too old for the last widgets": graph([node(8, "EmptyLatentImage", [96])]),
        "choices": graph(prompt("a {b|b} {c|{c|c}} \\{d\\} // e\n/* f\n */g"), [CLIP_LINK]),
        "file name": graph(
            [
                load(),
                sampler(8, cfg=0.5),
                sampler(9, cfg=7.0, title="Mine"),
                save(
                    2,
                    1,
                    "%KSampler.cfg% %Mine.cfg% %Load Image.image% %ksampler.cfg% %width% "
                    "%KSampler.control_after_generate% %Nobody.x% %KSampler.x% %date% 50%",
                ),
            ],
            [link],
        ),
        "driven seed in a file name": graph(
            [
                load(),
                save(2, 1, "%KSampler.seed%"),
                primitive(5, 555, "fixed", kind="INT"),
                node(
                    8,
                    "KSampler",
                    [1, "fixed", 20, 8.0, "euler", "normal", 1],
                    {"seed": ("INT", 7, "widget")},
                    "LATENT",
                ),
            ],
            [link, (7, 5, 0, 8, 4, "INT")],
        ),
    }


def _subgraphs() -> dict[str, dict[str, Any]]:
    number = node(9, "PrimitiveInt", [8, "fixed"], None, "INT")
    wired = {"count": ("INT", 5, "widget")}
    into = [(5, 9, 0, 1, 0, "INT")]
    shuffled = {"words": ("STRING", None, "widget"), "count": ("INT", None, "widget")}
    proxies = {"proxyWidgets": [["61", "width"], ["-1", "words"], ["64", "source"]]}
    entry = {
        "originalEntry": ["-1", "words"],
        "reason": "missingSourceNode",
        "hostValue": "kept aside",
        "attemptedAtVersion": 1,
    }
    inner_save = [load(11), primitive(14, "inside"), save(12, 2, "own", 5)]
    promoted = subgraph(
        SUB,
        [reroute(11, 1), save(12, 2, "own", 4)],
        [
            (1, -10, 0, 11, 0, "IMAGE"),
            (2, 11, 0, 12, 0, "IMAGE"),
            (3, 11, 0, -20, 0, "IMAGE"),
            (4, -10, 1, 12, 1, "STRING"),
        ],
        {"pic": ("IMAGE", [1]), "name": ("STRING", [4])},
        {"out": ("IMAGE", [3])},
    )
    batch = subgraph(
        SUB,
        [node(11, "ImageBatch", (), {"image1": ("IMAGE", 1)}, "IMAGE")],
        [(1, -10, 0, 11, 0, "IMAGE"), (2, 11, 0, -20, 0, "IMAGE")],
        {"pic": ("IMAGE", [1])},
        {"out": ("IMAGE", [2])},
    )

    def chain(mode: int) -> dict[str, Any]:
        wires = {"pic": ("IMAGE", 1)}
        return graph(
            [
                load(),
                node(2, SUB, (), wires, "IMAGE", mode),
                node(4, SUB, (), {"pic": ("IMAGE", 2)}, "IMAGE"),
                save(3, 3),
            ],
            [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 4, 0, "IMAGE"), (3, 4, 0, 3, 0, "IMAGE")],
            batch,
        )

    return {
        "two instances": nested(instance(1, values=[2, "one"]), instance(2, values=[3, "two"])),
        "three levels": nested(instance(1, OUTER, [2, "one"]), instance(2, OUTER, [3])),
        "ids that meet": nested(instance(61, values=[2, "one"]), latent(62)),
        "slots in another order": nested(instance(1, values=[2, "one"], wires=shuffled)),
        "an instance's wire": nested(
            instance(1, OUTER, [2, "one"], wires=wired), more=[number], links=into
        ),
        "an instance's wire from a muted node": nested(
            instance(1, values=[2, "one"], wires=wired), more=[{**number, "mode": 2}], links=into
        ),
        "a primitive into an instance": nested(
            instance(1, values=[2, "one"], wires=wired),
            more=[primitive(9, 8, "fixed", kind="INT")],
            links=into,
        ),
        "choices of an instance": nested(instance(1, values=[2, "{a|a} // b"])),
        "promoted the old way": nested(
            instance(1, values=[128, "one", "shapes-karlo"], properties=proxies),
            instance(2, values=[3, "two"]),
        ),
        "kept aside": nested(
            instance(1, values=[2, "one"], properties={"proxyWidgetErrorQuarantine": [entry]})
        ),
        "muted instance": chain(2),
        "bypassed instance": chain(4),
        "chained instances": chain(0),
        "muted inside": nested(instance(1, MIDDLE, [2, "one"])),
        "reroute and file inside": graph(
            [load(), node(2, SUB, ["promoted"], {"pic": ("IMAGE", 1)}, "IMAGE"), save(3, 2)],
            [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE")],
            promoted,
        ),
        "primitive inside": graph(
            [node(2, SUB, (), None, "IMAGE"), save(3, 2)],
            [(2, 2, 0, 3, 0, "IMAGE")],
            subgraph(
                SUB,
                inner_save,
                [
                    (1, 11, 0, -20, 0, "IMAGE"),
                    (2, 11, 0, 12, 0, "IMAGE"),
                    (5, 14, 0, 12, 1, "STRING"),
                ],
                None,
                {"out": ("IMAGE", [1])},
            ),
        ),
    }


FLAT = _flat()
SUBGRAPHS = _subgraphs()
SUBGRAPHS["muted inside"]["definitions"]["subgraphs"][2]["nodes"][0]["mode"] = 2
