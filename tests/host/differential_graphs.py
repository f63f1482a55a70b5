"""Small random graphs of the core nodes that the headless runner has and of the pack's, each as the
editor saves it and as it queues it.

:func:`draw` makes one by seed and number, from nothing but the host's ``/object_info``: the same
arguments give the same graph in any process. The two forms are written from one plan, each by the
editor's rules (frontend 1.49: ``ExecutableNodeDTO``, ``executionUtil``), none from the other and
none by the pack's code, so that a fault of the runner's reading cannot hide itself.
"""

from __future__ import annotations

import copy
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

MUTED, BYPASSED = 2, 4
LEFT_OUT = frozenset(("PriorArtLoadImageNormalizer", "PriorArtLoadEmbeddings"))
"""Nodes of the runner that no graph has: they need weights or files that are not there."""
VIRTUAL = ("Reroute", "PrimitiveNode", "Note", "MarkdownNote")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
FILES = (
    "circle.png",
    "wide.png",
    "tall.png",
    "alpha.png",
    "grey.png",
    "palette.png",
    "animated.png",
    "sixteen.png",
    "turned.png",
    "large.png",
    "odd.png",
)
"""No JPEG and no GIF: their decoders agree to parts of a level or a few (docs/HEADLESS.md), which
networks and scaling make more of."""
SEEDS = (0, 1, 7, 2**32 - 1, 2**32 + 5, 2**63, 2**64 - 1)
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
SHAPES = ("circle", "square", "triangle", "cross")


class Wire(NamedTuple):
    """An output of a planned node."""

    node: int
    slot: int


@dataclass
class Node:
    """A planned node.

    Attributes:
        inputs: widget values as they are queued, and wires.
        shown: what the saved file has in a widget where that is something else: a prompt with
            syntax that the editor resolves, or a value that a wire overrules.
        mode: as saved, 0 unless muted or bypassed.
        path: the groups around it, outermost first.
        local: its id in its own graph; that of the original in a copy of a group.
    """

    type: str
    inputs: dict[str, Any]
    shown: dict[str, Any] = field(default_factory=dict)
    mode: int = 0
    title: str | None = None
    path: tuple[int, ...] = ()
    local: int = 0


@dataclass
class Group:
    """Nodes that are saved as a subgraph.

    Attributes:
        parent: path of the graph that the instance is in.
        definition: the group whose nodes define it: itself unless it is a copy.
        promoted: (node, widget) pairs whose values the instance holds, and what the definition
            holds instead.
        mode: of the instance.
    """

    parent: tuple[int, ...]
    definition: int
    promoted: dict[tuple[int, str], Any] = field(default_factory=dict)
    mode: int = 0


@dataclass
class Case:
    """One graph.

    Attributes:
        api: what the editor queues.
        saved: what it saves; ``None`` where the case is in API format only.
        features: what is in it beside plain nodes, for the count of what was covered.
        nodes: classes of its nodes.
    """

    name: str
    api: dict[str, dict[str, Any]]
    saved: dict[str, Any] | None
    features: list[str]
    nodes: list[str]


class Socket(NamedTuple):
    """An input of a node class: a widget, or a place for a wire only."""

    name: str
    type: str
    options: dict[str, Any]
    is_widget: bool
    required: bool


def sockets(info: dict[str, Any], kind: str) -> list[Socket]:
    """A class's inputs in the editor's order: places for wires first, then widgets."""
    if kind == "Reroute":
        return [Socket("", "*", {}, False, False)]
    if kind not in info:
        return []
    found = []
    for part in ("required", "optional"):
        given = info[kind]["input"].get(part) or {}
        for name in info[kind].get("input_order", {}).get(part) or given:
            type_, options = [*given[name], {}][:2]
            if isinstance(type_, list):
                type_, options = "COMBO", {**options, "options": type_}
            widget = type_ in WIDGETS and not options.get("forceInput")
            found.append(Socket(name, type_, options, widget, part == "required"))
    return sorted(found, key=lambda socket: socket.is_widget)


def outputs(info: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    """(name, type) of a class's outputs."""
    if kind in ("Reroute", "PrimitiveNode"):
        return [("", "*")]
    if kind not in info:
        return []
    return list(zip(info[kind]["output_name"], info[kind]["output"], strict=True))


def write_pictures(folder: Path) -> None:
    """The files that the graphs load, of every kind that Load Image must tell apart."""
    folder.mkdir(parents=True, exist_ok=True)

    def scene(width: int, height: int, colour: str = "red", ground: str = "blue") -> Image.Image:
        picture = Image.linear_gradient("L").resize((width, height))
        picture = Image.merge("RGB", (picture, picture.rotate(90), Image.new("L", picture.size)))
        picture = Image.blend(picture, Image.new("RGB", picture.size, ground), 0.7)
        edge = min(width, height) // 5
        ImageDraw.Draw(picture).ellipse((edge, edge, width - edge, height - edge), fill=colour)
        return picture

    scene(64, 64).save(folder / "circle.png")
    scene(96, 32).save(folder / "wide.png")
    scene(40, 72, "yellow").save(folder / "tall.png")
    scene(150, 200, "green").save(folder / "large.png")
    scene(67, 61, "white").save(folder / "odd.png")
    seen = scene(64, 64, "green", "white")
    seen.putalpha(Image.linear_gradient("L").resize((64, 64)))
    seen.save(folder / "alpha.png")
    scene(64, 64).convert("L").save(folder / "grey.png")
    palette = scene(64, 64, "white", "purple").quantize(16)
    palette.save(folder / "palette.png", transparency=3)
    frames = [scene(64, 64, colour) for colour in ("red", "green", "white")]
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:], duration=100)
    levels = scene(64, 64).convert("L").convert("I").point(lambda level: level * 257 - 100)
    levels.convert("I;16").save(folder / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    scene(72, 40).save(folder / "turned.png", exif=turned)


class Plan:
    """A graph being drawn up: its nodes, and what of each kind there is to wire.

    Attributes:
        saved: whether it goes through the editor.
        effort: samplings that it may still have.
    """

    def __init__(self, rng: random.Random, info: dict[str, Any]) -> None:
        self.rng, self.info = rng, info
        self.saved = rng.random() < 0.7
        self.nodes: dict[int, Node] = {}
        self.groups: dict[int, Group] = {}
        self.pool: dict[str, list[Wire]] = {}
        self.features: list[str] = []
        self.effort = 5
        self._next = 1

    def number(self) -> int:
        self._next += 1
        return self._next - 1

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def has(self, kind: str) -> bool:
        return kind in self.info

    def add(self, kind: str, **inputs: Any) -> int:
        """A node with these inputs; widgets that are not named get their defaults."""
        made = {}
        for socket in sockets(self.info, kind):
            if socket.name in inputs:
                continue
            if socket.is_widget and (self.saved or socket.required or self.chance(0.8)):
                made[socket.name] = default(socket)
        number = self.number()
        self.nodes[number] = Node(kind, {**inputs, **made}, local=number)
        return number

    def out(self, kind: str, slot: int = 0, **inputs: Any) -> Wire:
        return Wire(self.add(kind, **inputs), slot)

    def want(self, tag: str, depth: int) -> Wire:
        """Something of a kind: what is there already, or made anew no more than so deep."""
        there = self.pool.setdefault(tag, [])
        if there and (depth <= 0 or self.chance(0.75 if tag in LOADED else 0.3)):
            return self.rng.choice(there)
        makers = MAKERS[tag]
        usable = [m for m in makers if m.leaf or (depth > 0 and self.effort >= m.effort)]
        usable = [m for m in usable if all(map(self.has, m.needs))] or [makers[0]]
        (maker,) = self.rng.choices(usable, [m.weight for m in usable])
        self.effort -= maker.effort
        made = maker.make(self, depth - 1)
        self.pool[tag].append(made)
        return made

    def seed(self) -> int:
        if self.chance(0.7):
            return self.rng.randrange(1000)
        # The editor's numbers are JavaScript's.
        return self.pick(*[one for one in SEEDS if one < 2**53 or not self.saved])

    def cfg(self) -> float:
        return self.pick(1.0, 0.0, 0.5, 1.5, 3, 4.0, 7.5)

    def share(self) -> float:
        return self.pick(1.0, 0.0, 0.01, 0.3, 0.5, 0.77, 0.99)

    def rows(self) -> int:
        return self.pick(1, 1, 1, 1, 1, 1, 2, 3)

    def sampling(self) -> dict[str, Any]:
        return {"seed": self.seed(), "steps": self.pick(2, 2, 3, 4), "cfg": self.cfg()}


def default(socket: Socket) -> Any:
    """What the editor fills a widget with."""
    blank = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
    if socket.type == "COMBO":
        choices = socket.options.get("options") or [""]
        return socket.options.get("default", choices[0])
    return socket.options.get("default", blank[socket.type])


@dataclass(frozen=True)
class Maker:
    """One way to something of a kind.

    Attributes:
        leaf: needs nothing else but loaders.
        effort: how long it takes, in samplings.
        needs: classes that a host might lack.
    """

    make: Callable[[Plan, int], Wire]
    weight: float = 1
    leaf: bool = False
    effort: int = 0
    needs: tuple[str, ...] = ()


MAKERS: dict[str, list[Maker]] = {}
LOADED: set[str] = set()


def _load(tag: str, kind: str, slot: int = 0, **inputs: Any) -> None:
    LOADED.add(tag)

    def make(plan: Plan, depth: int) -> Wire:
        fitting = {socket.name for socket in sockets(plan.info, kind)}
        inputs_now = {**inputs, "dtype": plan.pick("auto", "fp32")}
        inputs_now = {name: value for name, value in inputs_now.items() if name in fitting}
        return plan.out(kind, slot, **inputs_now)

    MAKERS.setdefault(tag, []).append(Maker(make, leaf=True))


def _way(tag: str, **facts: Any) -> Callable[[Callable[[Plan, int], Wire]], Callable]:
    def known(make: Callable[[Plan, int], Wire]) -> Callable:
        MAKERS.setdefault(tag, []).append(Maker(make, **facts))
        return make

    return known


_load("CLIP:karlo", "PriorArtLoadTextEncoder", source="shapes-karlo")
_load("CLIP:kandinsky", "PriorArtLoadTextEncoder", source="shapes-kandinsky-prior")
_load("CLIP:mclip", "PriorArtLoadMCLIP", source="shapes-kandinsky-2-1")
_load("CLIP:rerank", "PriorArtLoadReranker", source="shapes-clip")
_load("VISION:karlo", "PriorArtLoadImageEncoder", source="shapes-karlo")
_load("VISION:kandinsky", "PriorArtLoadImageEncoder", source="shapes-kandinsky-prior")
_load("VISION:rerank", "PriorArtLoadReranker", 1, source="shapes-clip")
_load("PRIOR:karlo", "PriorArtLoadPrior", source="shapes-karlo")
_load("PRIOR:kandinsky", "PriorArtLoadPrior", source="shapes-kandinsky-prior")
_load("PRIOR:2-1", "PriorArtLoadPrior", source="shapes-kandinsky-2-1-prior")
_load("MODEL:karlo", "PriorArtLoadDecoder", source="shapes-karlo")
_load("MODEL:kandinsky", "PriorArtLoadLatentDecoder", source="shapes-kandinsky")
_load("MODEL:inpaint", "PriorArtLoadLatentDecoder", source="shapes-kandinsky-inpaint")
_load("MODEL:depth", "PriorArtLoadLatentDecoder", source="shapes-kandinsky-depth")
_load("MODEL:2-1", "PriorArtLoadLatentDecoder", source="shapes-kandinsky-2-1")
_load("UPSCALER", "PriorArtLoadUpscaler", source="shapes-karlo")
_load("VAE:kandinsky", "PriorArtLoadMoVQ", source="shapes-kandinsky")
_load("VAE:mindalle", "PriorArtLoadVQGAN", source="shapes-mindalle")
_load("VAE:pixel", "VAELoader", vae_name="pixel_space")
_load("AR:text", "PriorArtLoadARTransformer", source="shapes-mindalle", compile=False)
_load("AR:class", "PriorArtLoadARTransformer", source="shapes-mindalle-class", compile=False)


def _is(plan: Plan, wire: Wire, kind: str) -> bool:
    return plan.nodes[wire.node].type == kind


def _koala(plan: Plan) -> int:
    loaded = plan.pool.setdefault("KOALA", [])
    if not loaded or plan.chance(0.1):
        source = plan.pick("shapes-koala-1b", "shapes-koala-700m")
        loaded.append(plan.out("PriorArtLoadKoala", source=source, dtype=plan.pick("auto", "fp32")))
    return plan.rng.choice(loaded).node


@_way("MODEL:koala", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    return Wire(_koala(plan), 0)


@_way("MODEL:koala", weight=0.2)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("PriorArtKoalaInfo", model=Wire(_koala(plan), 0))


@_way("CLIP:koala", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    return Wire(_koala(plan), 1)


@_way("VAE:koala", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    return Wire(_koala(plan), 2)


def prompt(plan: Plan) -> str:
    """A prompt, now and then empty, long, with weights or with letters that must be cleaned."""
    text = f"a {plan.pick('large', 'small')} {plan.pick(*COLOURS)} {plan.pick(*SHAPES)}"
    text += f" on a {plan.pick(*COLOURS)} background"
    if plan.chance(0.6):
        return text
    odd = plan.pick("empty", "weights", "brackets", "escaped", "long", "letters", "blanks", "open")
    plan.features.append(f"prompt: {odd}")
    weight = plan.pick("1.6", "0.5", "1", "-0.5", "0", "1.05", ".7")
    return {
        "empty": "",
        "weights": text.replace(" on", f" (on:{weight})").replace("a ", "a (very:1.3) ", 1),
        "brackets": f"(({text})) and [more] (of it)",
        "escaped": text.replace(" on", r" \(on\)") + " a:b",
        "long": ", ".join(
            f"{plan.pick(*COLOURS)} {plan.pick(*SHAPES)}" for _ in range(plan.pick(20, 40, 90))
        ),
        "letters": f"{text} \u2014 \u201c\ufb01ne\u201d d\u2019\u00e9t\u00e9 &amp;"
        " \uff46\uff55\uff4c\uff4c \u03a3\u0391\u03a3\u200b",
        "blanks": f"  {text}\n\n\t{plan.pick(*SHAPES)}  ",
        "open": f"({text}:1.2 (blue",
    }[odd]


def _write_text(tag: str) -> None:
    system = tag.split(":")[1]
    own = "PriorArtTextEncode"

    @_way(tag, leaf=True, weight=2)
    def _(plan: Plan, depth: int) -> Wire:
        clip = plan.want(f"CLIP:{system}", depth)
        kind = plan.pick("CLIPTextEncode", own) if system != "koala" else "CLIPTextEncode"
        return plan.out(kind, clip=clip, text=prompt(plan))

    if system == "koala":

        @_way(tag, leaf=True)
        def _(plan: Plan, depth: int) -> Wire:
            sizes = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
            given = {name: plan.pick(0, 64, 64, 96, 1000) for name in sizes if plan.chance(0.5)}
            clip = plan.want("CLIP:koala", depth)
            text = prompt(plan)
            return plan.out("PriorArtKoalaTextEncode", clip=clip, text=text, **given)

        @_way(tag, leaf=True, weight=0.5)
        def _(plan: Plan, depth: int) -> Wire:
            sizes = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
            given = {name: plan.pick(0, 64, 64, 96, 1000) for name in sizes if plan.chance(0.8)}
            texts = {"text_g": prompt(plan), "text_l": prompt(plan)}
            clip = plan.want("CLIP:koala", depth)
            return plan.out("CLIPTextEncodeSDXL", clip=clip, **given, **texts)

        @_way(tag, weight=0.5)
        def _(plan: Plan, depth: int) -> Wire:
            return plan.out(
                "unCLIPConditioning",
                conditioning=plan.want(tag, depth),
                clip_vision_output=plan.want("EMBEDS:kandinsky", depth),
                strength=plan.pick(1.0, 0.0, -0.5, 0.6, 2.0),
                noise_augmentation=plan.pick(0.0, 0.0, 0.1, 1.0),
            )

    @_way(tag, weight=0.5)
    def _(plan: Plan, depth: int) -> Wire:
        return plan.out(
            "ConditioningAverage",
            conditioning_to=plan.want(tag, depth),
            conditioning_from=plan.want(tag, depth),
            conditioning_to_strength=plan.share(),
        )

    for joined in ("ConditioningCombine", "ConditioningConcat"):
        # Only native samplers know what to do with several prompts.
        @_way(tag, weight=0.15 if system == "koala" else 0.02, needs=(joined,))
        def _(plan: Plan, depth: int, joined: str = joined) -> Wire:
            first, second = (socket.name for socket in sockets(plan.info, joined))
            return plan.out(joined, **{first: plan.want(tag, depth), second: plan.want(tag, depth)})

    @_way(tag, weight=0.2 if system == "koala" else 0.05)
    def _(plan: Plan, depth: int) -> Wire:
        return plan.out("ConditioningZeroOut", conditioning=plan.want(tag, depth))

    @_way(tag, weight=0.15)
    def _(plan: Plan, depth: int) -> Wire:
        return plan.out(
            "PriorArtBatchPrompts",
            conditioning_a=plan.want(tag, depth),
            conditioning_b=plan.want(tag, depth),
        )


for _tag in ("TEXT:karlo", "TEXT:kandinsky", "TEXT:mclip", "TEXT:koala"):
    _write_text(_tag)


@_way("IMAGE", leaf=True, weight=3)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("LoadImage", image=plan.pick(*FILES))


for _system in ("kandinsky", "koala", "mindalle", "pixel"):

    @_way("IMAGE", weight=1.5 if _system in ("kandinsky", "koala") else 0.7)
    def _(plan: Plan, depth: int, system: str = _system) -> Wire:
        vae, samples = plan.want(f"VAE:{system}", depth), plan.want(f"LATENT:{system}", depth)
        if plan.chance(0.1):
            sizes = {"tile_size": plan.pick(64, 512), "overlap": plan.pick(0, 32, 64)}
            return plan.out("VAEDecodeTiled", vae=vae, samples=samples, **sizes)
        return plan.out("VAEDecode", vae=vae, samples=samples)


@_way("IMAGE")
def _(plan: Plan, depth: int) -> Wire:
    both = {name: plan.want("IMAGE", depth) for name in ("image1", "image2")}
    return plan.out("ImageBatch", **both)


@_way("IMAGE", weight=1.5)
def _(plan: Plan, depth: int) -> Wire:
    mask = {"mask": plan.want("MASK", depth)} if plan.chance(0.6) else {}
    return plan.out(
        "ImageCompositeMasked",
        destination=plan.want("IMAGE", depth),
        source=plan.want("IMAGE", depth),
        x=plan.pick(0, 0, 5, 31, 63, 64, 200, 16384),
        y=plan.pick(0, 0, 8, 40, 63, 100),
        resize_source=plan.chance(0.4),
        **mask,
    )


@_way("IMAGE", weight=0.7)
def _(plan: Plan, depth: int) -> Wire:
    image = plan.want("IMAGE", depth)
    method = plan.pick(*_choices(plan, "ImageScale", "upscale_method"))
    if plan.chance(0.4):
        by = plan.pick(0.5, 1.0, 1.3, 0.01)
        return plan.out("ImageScaleBy", image=image, upscale_method=method, scale_by=by)
    return plan.out(
        "ImageScale",
        image=image,
        upscale_method=method,
        width=plan.pick(64, 64, 33, 128, 0),
        height=plan.pick(64, 64, 50, 0),
        crop=plan.pick("disabled", "center"),
    )


@_way("IMAGE", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("ImageInvert", image=plan.want("IMAGE", depth))


@_way("IMAGE", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("MaskToImage", mask=plan.want("MASK", depth))


@_way("IMAGE", weight=0.5)
def _(plan: Plan, depth: int) -> Wire:
    columns = plan.pick(1, 2, 3, 64)
    return plan.out("PriorArtImageGrid", image=plan.want("IMAGE", depth), columns=columns)


@_way("IMAGE", effort=1)
def _karlo(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtKarloDecoder",
        model=plan.want("MODEL:karlo", depth),
        image_embeds=plan.want("EMBEDS:karlo", depth),
        positive=plan.want("TEXT:karlo", depth),
        negative=plan.want("TEXT:karlo", depth),
        batch_size=plan.rows(),
        **plan.sampling(),
        **_offset(plan),
    )


@_way("IMAGE", weight=0.4, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    drawn = [wire for wire in plan.pool.get("IMAGE", ()) if _is(plan, wire, "PriorArtKarloDecoder")]
    if plan.chance(0.1):
        image = plan.want("IMAGE", depth)  # which is too large
    else:
        image = plan.rng.choice(drawn) if drawn else _karlo(plan, depth)
    upscaler = plan.want("UPSCALER", depth)
    steps = plan.pick(2, 7)
    return plan.out(
        "PriorArtKarloUpscale", upscaler=upscaler, image=image, seed=plan.seed(), steps=steps
    )


@_way("IMAGE", weight=0.5)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtCLIPRerank",
        clip=plan.want("CLIP:rerank", depth),
        clip_vision=plan.want("VISION:rerank", depth),
        image=plan.want("IMAGE", depth),
        text=prompt(plan),
        keep=plan.pick(0, 1, 2, 5),
    )


@_way("IMAGE", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    vae, samples = plan.want("VAE:mindalle", depth), plan.want("LATENT:mindalle", depth)
    return plan.out("PriorArtVQGANDecode", vae=vae, samples=samples)


@_way("IMAGE", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("PriorArtCompareEmbeddings", 1, **_pair(plan, plan.pick(*SPACES), depth))


@_way("MASK", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("LoadImage", 1, image=plan.pick("alpha.png", *FILES))


@_way("MASK", leaf=True, weight=0.5)
def _(plan: Plan, depth: int) -> Wire:
    channel = plan.pick("alpha", "red", "green", "blue")
    return plan.out("LoadImageMask", image=plan.pick(*FILES), channel=channel)


@_way("MASK", leaf=True, weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    size = {"width": plan.pick(64, 1, 33), "height": plan.pick(64, 64, 100)}
    return plan.out("SolidMask", value=plan.share(), **size)


@_way("MASK", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out("InvertMask", mask=plan.want("MASK", depth))


@_way("MASK", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    channel = plan.pick("red", "red", "green", "blue", "alpha")
    return plan.out("ImageToMask", image=plan.want("IMAGE", depth), channel=channel)


SPACES = ("karlo", "kandinsky")


def _pair(plan: Plan, space: str, depth: int) -> dict[str, Wire]:
    return {f"image_embeds_{one}": plan.want(f"EMBEDS:{space}", depth) for one in "ab"}


def _offset(plan: Plan) -> dict[str, Wire]:
    if not plan.chance(0.15):
        return {}
    value = plan.pick(0, 3, 7, 1000)
    return {"noise_offset": plan.out("PrimitiveInt", value=value)}


for _space in SPACES:
    _tag = f"EMBEDS:{_space}"

    @_way(_tag, leaf=True, weight=2)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        vision, image = plan.want(f"VISION:{space}", depth), plan.want("IMAGE", depth - 1)
        if plan.chance(0.5):
            return plan.out("PriorArtImageEncode", clip_vision=vision, image=image)
        crop = plan.pick("center", "none")
        return plan.out("CLIPVisionEncode", clip_vision=vision, image=image, crop=crop)

    @_way(_tag, leaf=True, weight=0.5)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        return plan.out("PriorArtZeroImage", clip_vision=plan.want(f"VISION:{space}", depth))

    @_way(_tag, weight=2, effort=1)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        kind = plan.pick("PriorArtPrior", "PriorArtKandinskyPrior")
        prior = "karlo" if kind == "PriorArtPrior" else plan.pick("2-1", "2-1", "karlo")
        prior = prior if space == "karlo" else "kandinsky"
        own: dict[str, Any] = {}
        if kind == "PriorArtKandinskyPrior":
            # Karlo's prior knows no embedding of zeros.
            zeros = ("zero image",) if prior != "karlo" or plan.chance(0.1) else ()
            own["negative_embeds"] = plan.pick(*zeros, "negative prompt")
        drawing = plan.sampling()
        if own.get("negative_embeds") == "negative prompt" and plan.chance(0.95):
            drawing["cfg"] = max(1.5, drawing["cfg"])  # below, there is no embedding of it
        return plan.out(
            kind,
            plan.pick(0, 0, 1) if own else 0,
            prior=plan.want(f"PRIOR:{prior}", depth),
            positive=plan.want(f"TEXT:{space}", depth),
            negative=plan.want(f"TEXT:{space}", depth),
            batch_size=plan.rows(),
            **drawing,
            **own,
        )

    @_way(_tag, weight=0.5, effort=1)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        prior = "2-1" if space == "karlo" else "kandinsky"
        return plan.out(
            "PriorArtKandinskyPriorImage",
            prior=plan.want(f"PRIOR:{prior}", depth),
            positive=plan.want(f"TEXT:{space}", depth),
            negative=plan.want(f"TEXT:{space}", depth),
            image_embeds=plan.want(f"EMBEDS:{space}", depth),
            strength=plan.share(),
            batch_size=plan.rows(),
            **plan.sampling(),
        )

    @_way(_tag, weight=0.7)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        modes = ("weighted sum", "average", "average, length kept", "add", "subtract", "slerp")
        weights = {f"weight_{one}": plan.pick(0.5, 0.3, 0.7, 0.0, -1.0, 10.0) for one in "ab"}
        mode = plan.pick(*modes)
        return plan.out("PriorArtMixEmbeddings", mode=mode, **weights, **_pair(plan, space, depth))

    @_way(_tag, weight=0.3)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        return plan.out(
            "PriorArtInterpolateEmbeddings",
            count=plan.pick(2, 3),
            mode=plan.pick("slerp", "lerp"),
            **_pair(plan, space, depth),
        )

    @_way(_tag, weight=0.3)
    def _(plan: Plan, depth: int, space: str = _space) -> Wire:
        clip = plan.want(f"CLIP:{space}", depth)
        return plan.out(
            "PriorArtTextDifference",
            image_embeds=plan.want(f"EMBEDS:{space}", depth),
            text=plan.want(f"TEXT:{space}", depth),
            from_text=plan.out("PriorArtTextEncode", clip=clip, text=prompt(plan)),
            strength=plan.pick(0.5, 0.0, -1.0, 1.0),
        )


def _embeds_of(plan: Plan, depth: int, space: str) -> dict[str, Wire]:
    return {
        "image_embeds": plan.want(f"EMBEDS:{space}", depth),
        "negative_image_embeds": plan.want(f"EMBEDS:{space}", depth),
    }


@_way("CONDITIONS:kandinsky", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    made = plan.out("PriorArtKandinskyConditioning", **_embeds_of(plan, depth, "kandinsky"))
    plan.pool["CONDITIONS:kandinsky"].append(Wire(made.node, 1))
    return made


@_way("CONDITIONS:kandinsky", weight=0.3)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "ConditioningAverage",
        conditioning_to=plan.want("CONDITIONS:kandinsky", depth),
        conditioning_from=plan.want("CONDITIONS:kandinsky", depth),
        conditioning_to_strength=plan.share(),
    )


@_way("CONDITIONS:depth", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    made = plan.out(
        "PriorArtKandinskyConditioning",
        depth=plan.want("IMAGE", depth),
        **_embeds_of(plan, depth, "kandinsky"),
    )
    plan.pool["CONDITIONS:depth"].append(Wire(made.node, 1))
    return made


@_way("CONDITIONS:2-1", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    made = plan.out(
        "PriorArtKandinskyConditioning",
        text=plan.want("TEXT:mclip", depth),
        negative_text=plan.want("TEXT:mclip", depth),
        **_embeds_of(plan, depth, "karlo"),
    )
    plan.pool["CONDITIONS:2-1"].append(Wire(made.node, 1))
    return made


def _side(plan: Plan, odd: bool = True) -> int:
    return plan.pick(64, 64, 64, 128, 96, 72, 32) if odd else plan.pick(64, 128)


for _system in ("kandinsky", "koala"):

    @_way(f"LATENT:{_system}", leaf=True)
    def _(plan: Plan, depth: int, system: str = _system) -> Wire:
        size = {"width": _side(plan), "height": _side(plan)}
        return plan.out("EmptyLatentImage", batch_size=plan.rows(), **size)

    @_way(f"LATENT:{_system}", weight=3, effort=1)
    def _(plan: Plan, depth: int, system: str = _system) -> Wire:
        return _sampled(plan, depth, system)


for _system in ("kandinsky", "koala", "pixel", "mindalle"):
    _tag = f"LATENT:{_system}"

    @_way(_tag, leaf=True, weight=0.15 if _system == "mindalle" else 0.5)
    def _(plan: Plan, depth: int, system: str = _system) -> Wire:
        image, vae = plan.want("IMAGE", depth), plan.want(f"VAE:{system}", depth)
        return plan.out("VAEEncode", pixels=image, vae=vae)

    @_way(_tag, weight=0.4)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        factor = plan.share()
        both = {name: plan.want(tag, depth) for name in ("samples1", "samples2")}
        return plan.out("LatentBlend", blend_factor=factor, **both)

    @_way(_tag, weight=0.4)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        both = {name: plan.want(tag, depth) for name in ("samples_to", "samples_from")}
        places = {"x": plan.pick(0, 16, 32, 64), "y": plan.pick(0, 8, 32, 200)}
        return plan.out("LatentComposite", feather=plan.pick(0, 8, 24, 96), **places, **both)

    @_way(_tag, weight=0.5)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        both = {name: plan.want(tag, depth) for name in ("samples1", "samples2")}
        return plan.out("LatentBatch", **both)

    @_way(_tag, weight=1)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        samples, mask = plan.want(tag, depth), plan.want("MASK", depth)
        return plan.out("SetLatentNoiseMask", samples=samples, mask=mask)

    @_way(_tag, weight=0.3)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        both = {name: plan.want(tag, depth) for name in ("destination", "source")}
        mask = {"mask": plan.want("MASK", depth)} if plan.chance(0.5) else {}
        places = {"x": plan.pick(0, 8, 32, 64, 16384), "y": plan.pick(0, 16, 40, 200)}
        resize = plan.chance(0.4)
        return plan.out("LatentCompositeMasked", resize_source=resize, **places, **both, **mask)

    @_way(_tag, weight=0.4)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        first, length = plan.pick(0, 0, 1, 2, -1, 16384), plan.pick(1, 2, 64)
        samples = plan.want(tag, depth)
        return plan.out("LatentFromBatch", samples=samples, batch_index=first, length=length)

    @_way(_tag, weight=0.3)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        return plan.out("RepeatLatentBatch", samples=plan.want(tag, depth), amount=plan.pick(1, 2))

    @_way(_tag, weight=0.2, needs=("LatentBatchSeedBehavior",))
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        behaviour = plan.pick("fixed", "random")
        samples = plan.want(tag, depth)
        return plan.out("LatentBatchSeedBehavior", samples=samples, seed_behavior=behaviour)

    @_way(_tag, weight=0.3)
    def _(plan: Plan, depth: int, tag: str = _tag) -> Wire:
        samples = plan.want(tag, depth)
        method = plan.pick(*_choices(plan, "LatentUpscale", "upscale_method"))
        if plan.chance(0.5):
            by = plan.pick(1.5, 0.5, 2.0, 1.0)
            return plan.out("LatentUpscaleBy", samples=samples, upscale_method=method, scale_by=by)
        return plan.out(
            "LatentUpscale",
            samples=samples,
            upscale_method=method,
            width=plan.pick(64, 96, 128, 0),
            height=plan.pick(64, 64, 48, 0),
            crop=plan.pick("disabled", "center"),
        )


for _system in ("kandinsky", "koala", "pixel"):

    @_way(f"LATENT:{_system}", weight=0.3)
    def _(plan: Plan, depth: int, system: str = _system) -> Wire:
        return plan.out(
            "VAEEncodeForInpaint",
            pixels=plan.want("IMAGE", depth),
            vae=plan.want(f"VAE:{system}", depth),
            mask=plan.want("MASK", depth),
            grow_mask_by=plan.pick(6, 0, 1, 5, 64),
        )

    @_way(f"LATENT:{_system}", weight=0.1)
    def _(plan: Plan, depth: int, system: str = _system) -> Wire:
        vae, image = plan.want(f"VAE:{system}", depth), plan.want("IMAGE", depth)
        sizes = {"tile_size": plan.pick(64, 512), "overlap": plan.pick(0, 32, 64)}
        return plan.out("VAEEncodeTiled", vae=vae, pixels=image, **sizes)


def _sampled(plan: Plan, depth: int, system: str) -> Wire:
    """A latent through the host's KSampler or SamplerCustom."""
    model = plan.pick("kandinsky", "inpaint", "depth", "2-1") if system == "kandinsky" else system
    prompts = {"koala": "TEXT:koala", "depth": "CONDITIONS:depth", "2-1": "CONDITIONS:2-1"}
    tag = prompts.get(model, "CONDITIONS:kandinsky")
    inputs = {
        "model": plan.want(f"MODEL:{model}", depth),
        "positive": plan.want(tag, depth),
        "negative": plan.want(tag, depth),
        "latent_image": plan.want(f"LATENT:{system}", depth),
    }
    own = plan.sampling()
    choice = plan.rng.random()
    if choice < 0.3:
        kandinsky = system == "kandinsky"
        if kandinsky and plan.chance(0.6):
            sigmas = plan.out(
                "PriorArtKandinskySchedule",
                model=inputs["model"],
                steps=own["steps"],
                denoise=plan.pick(1.0, 1.0, 0.5, 0.9),
            )
        else:
            sigmas = plan.out(
                "BasicScheduler",
                model=inputs["model"],
                scheduler=_scheduler(plan),
                steps=own["steps"],
                denoise=plan.pick(1.0, 1.0, 0.5, 0.0),
            )
        if kandinsky and plan.chance(0.6):
            sampler = plan.out("PriorArtKandinskySampler")
        else:
            sampler = plan.out("KSamplerSelect", sampler_name=_sampler(plan))
        return plan.out(
            "SamplerCustom",
            plan.pick(0, 0, 1),
            sampler=sampler,
            sigmas=sigmas,
            add_noise=plan.chance(0.8),
            noise_seed=own["seed"],
            cfg=own["cfg"],
            **inputs,
        )
    names = {"sampler_name": _sampler(plan), "scheduler": _scheduler(plan)}
    if choice < 0.5:
        return plan.out(
            "KSamplerAdvanced",
            add_noise=plan.pick("enable", "enable", "disable"),
            noise_seed=own["seed"],
            steps=own["steps"],
            cfg=own["cfg"],
            start_at_step=plan.pick(0, 0, 1, 10000),
            end_at_step=plan.pick(10000, 10000, 2, 1, 0),
            return_with_leftover_noise=plan.pick("disable", "disable", "enable"),
            **names,
            **inputs,
        )
    denoise = plan.pick(1.0, 1.0, 1.0, 0.5, 0.3, 0.99, 0.0)
    return plan.out("KSampler", denoise=denoise, **own, **names, **inputs)


SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "ddpm", "lcm", "ddim")
"""Those that people take; now and then it is another of the host's."""


def _sampler(plan: Plan) -> str:
    if plan.chance(0.5):
        return "euler"
    if plan.chance(0.9):
        return plan.pick(*SAMPLERS)
    return plan.pick(*_choices(plan, "KSampler", "sampler_name"))


def _scheduler(plan: Plan) -> str:
    if plan.chance(0.6):
        return plan.pick("normal", "simple")
    return plan.pick(*_choices(plan, "KSampler", "scheduler"))


def _choices(plan: Plan, kind: str, name: str) -> list[str]:
    (found,) = (socket for socket in sockets(plan.info, kind) if socket.name == name)
    return found.options["options"]


@_way("LATENT:pixel", weight=0.4, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "KSampler",
        model=plan.want("MODEL:karlo", depth),
        positive=plan.want("TEXT:karlo", depth),
        negative=plan.want("TEXT:karlo", depth),
        latent_image=plan.want("LATENT:pixel", depth),
        **plan.sampling(),
        sampler_name="euler",
        scheduler="normal",
        denoise=plan.pick(1.0, 0.5),
    )


@_way("LATENT:kandinsky", weight=1.5, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtKandinskyDecoder",
        model=plan.want("MODEL:kandinsky", depth),
        width=_side(plan),
        height=_side(plan),
        batch_size=plan.rows(),
        **_embeds_of(plan, depth, "kandinsky"),
        **plan.sampling(),
        **_offset(plan),
    )


@_way("LATENT:kandinsky", weight=0.6, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtKandinskyDecoder",
        model=plan.want("MODEL:2-1", depth),
        positive=plan.want("TEXT:mclip", depth),
        negative=plan.want("TEXT:mclip", depth),
        width=_side(plan),
        height=64,
        batch_size=plan.rows(),
        **_embeds_of(plan, depth, "karlo"),
        **plan.sampling(),
    )


@_way("LATENT:kandinsky", weight=0.7, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtKandinskyImage",
        model=plan.want("MODEL:kandinsky", depth),
        vae=plan.want("VAE:kandinsky", depth),
        image=plan.want("IMAGE", depth),
        strength=plan.pick(0.3, 0.5, 1.0, 0.8),
        width=plan.pick(0, 0, 64, 96),
        height=plan.pick(0, 0, 64, 96),
        batch_size=plan.rows(),
        **_embeds_of(plan, depth, "kandinsky"),
        **{**plan.sampling(), "steps": plan.pick(4, 6)},
    )


@_way("LATENT:kandinsky", weight=0.7, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    loaded = plan.out("LoadImage", image=plan.pick("alpha.png", "palette.png", "circle.png"))
    return plan.out(
        "PriorArtKandinskyInpaint",
        model=plan.want("MODEL:inpaint", depth),
        vae=plan.want("VAE:kandinsky", depth),
        image=loaded,
        mask=Wire(loaded.node, 1),
        width=plan.pick(0, 0, 64, 96),
        height=plan.pick(0, 0, 64, 96),
        batch_size=plan.rows(),
        **_embeds_of(plan, depth, "kandinsky"),
        **plan.sampling(),
    )


@_way("LATENT:kandinsky", weight=0.4, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtKandinskyDepth",
        model=plan.want("MODEL:depth", depth),
        depth=plan.want("IMAGE", depth),
        width=plan.pick(0, 64),
        height=plan.pick(0, 64),
        batch_size=plan.rows(),
        **_embeds_of(plan, depth, "kandinsky"),
        **plan.sampling(),
    )


@_way("LATENT:koala", weight=1, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    spacing = plan.pick("as published", "leading", "trailing", "linspace")
    negative = {"negative": plan.want("TEXT:koala", depth)} if plan.chance(0.6) else {}
    return plan.out(
        "PriorArtKoalaSample",
        model=plan.want("MODEL:koala", depth),
        positive=plan.want("TEXT:koala", depth),
        width=_side(plan),
        height=_side(plan),
        batch_size=plan.rows(),
        timestep_spacing=spacing,
        **negative,
        **plan.sampling(),
    )


def _drawing(plan: Plan) -> dict[str, Any]:
    return {
        "text": prompt(plan),
        "seed": plan.seed(),
        "candidates": plan.rows(),
        "top_k": plan.pick(256, 0, 1, 16, 1000000),
        "top_p": plan.pick(1.0, 0.9, 0.5) if plan.chance(0.97) else 0.0,
        "temperature": plan.pick(1.0, 0.5, 0.0, 2.0),
    }


@_way("LATENT:mindalle", weight=2, effort=1)
def _(plan: Plan, depth: int) -> Wire:
    kind = plan.pick("text", "text", "class")
    return plan.out(
        "PriorArtARSample",
        ar_transformer=plan.want(f"AR:{kind}", depth),
        vae=plan.want("VAE:mindalle", depth),
        **_drawing(plan),
    )


@_way("LATENT:mindalle", leaf=True)
def _(plan: Plan, depth: int) -> Wire:
    vae, image = plan.want("VAE:mindalle", depth), plan.want("IMAGE", depth - 1)
    return plan.out("PriorArtVQGANEncode", vae=vae, image=image)


@_way("LATENT:mindalle", effort=1)
def _(plan: Plan, depth: int) -> Wire:
    return plan.out(
        "PriorArtARVariations",
        ar_transformer=plan.want("AR:text", depth),
        vae=plan.want("VAE:mindalle", depth),
        image=plan.want("IMAGE", depth),
        keep_rows=plan.pick(1, 4, 7) if plan.chance(0.95) else 8,
        **_drawing(plan),
    )


@_way("LATENT:mindalle", effort=1)
def _(plan: Plan, depth: int) -> Wire:
    samples = plan.want("LATENT:mindalle", depth)
    if plan.chance(0.8):
        samples = plan.out("LatentFromBatch", samples=samples, batch_index=0, length=1)
    if plan.chance(0.9):
        mask = plan.want("MASK", depth)
        if plan.chance(0.7):
            mask = plan.out("LoadImage", 1, image="alpha.png")
        samples = plan.out("SetLatentNoiseMask", samples=samples, mask=mask)
    return plan.out(
        "PriorArtARComplete",
        ar_transformer=plan.want("AR:text", depth),
        vae=plan.want("VAE:mindalle", depth),
        latent_image=samples,
        keep=plan.pick(0, 1, 2),
        **_drawing(plan),
    )


def _texts(plan: Plan) -> Wire:
    """Something that Preview as Text shows alike in every process."""
    kind = plan.pick("compare", "score", "codes", "info", "rank", "number")
    depth = 2
    if kind == "compare":
        return plan.out("PriorArtCompareEmbeddings", **_pair(plan, plan.pick(*SPACES), depth))
    if kind == "score":
        return plan.out(
            "PriorArtARScore",
            plan.pick(0, 1),
            ar_transformer=plan.want("AR:text", depth),
            vae=plan.want("VAE:mindalle", depth),
            samples=plan.want("LATENT:mindalle", depth),
            text=prompt(plan),
        )
    if kind == "codes":
        vae, image = plan.want("VAE:mindalle", depth), plan.want("IMAGE", depth)
        return plan.out("PriorArtVQGANEncode", 1, vae=vae, image=image)
    if kind == "info":
        return plan.out("PriorArtKoalaInfo", 1, model=Wire(_koala(plan), 0))
    if kind == "rank":
        ranked = plan.out(
            "PriorArtCLIPRerank",
            plan.pick(1, 2),
            clip=plan.want("CLIP:rerank", depth),
            clip_vision=plan.want("VISION:rerank", depth),
            image=plan.want("IMAGE", depth),
            text=prompt(plan),
            keep=plan.pick(0, 1, 2),
        )
        return ranked
    largest = 2**53 - 1 if plan.saved else 2**63 - 1
    return plan.out("PrimitiveInt", value=plan.pick(0, -5, 2**40, largest))


PREFIXES = (
    "plain",
    "plain",
    "folder/plain",
    "%width%x%height%",
    "%year%",
    "%date:yyyy%",
    "%KSampler.seed%",
    "%Named.text%",
    "%nobody.here%",
    "100%",
)


def _decoded(plan: Plan, system: str, samples: Wire) -> Wire:
    return plan.out("VAEDecode", vae=plan.want(f"VAE:{system}", 1), samples=samples)


def _drawn_with(plan: Plan, system: str, text: Wire) -> Wire:
    """A picture that a prompt is seen in."""
    other = plan.want(f"TEXT:{system}", 1)
    rows = 2 if _is(plan, text, "PriorArtBatchPrompts") else 1
    if system in ("karlo", "kandinsky"):
        embeds = plan.out(
            "PriorArtPrior",
            prior=plan.want(f"PRIOR:{system}", 1),
            positive=text,
            negative=other,
            batch_size=rows,
            **plan.sampling(),
        )
        if system == "kandinsky":
            return embeds
        return plan.out(
            "PriorArtKarloDecoder",
            model=plan.want("MODEL:karlo", 1),
            image_embeds=embeds,
            positive=text,
            negative=other,
            batch_size=rows,
            **plan.sampling(),
        )
    if system == "mclip":
        samples = plan.out(
            "PriorArtKandinskyDecoder",
            model=plan.want("MODEL:2-1", 1),
            positive=text,
            negative=other,
            width=64,
            height=64,
            batch_size=rows,
            **_embeds_of(plan, 1, "karlo"),
            **plan.sampling(),
        )
        return _decoded(plan, "kandinsky", samples)
    plan.pool["TEXT:koala"] = [text]
    return _decoded(plan, "koala", _sampled(plan, 1, "koala"))


def _seen(plan: Plan, tag: str, made: Wire) -> Wire:
    """A picture, or embeddings, that show something of a kind."""
    kind, _, system = tag.partition(":")
    if kind == "LATENT":
        return _decoded(plan, system, made)
    if kind == "MASK":
        both = {"destination": plan.want("IMAGE", 1), "source": plan.want("IMAGE", 1)}
        return plan.out("ImageCompositeMasked", mask=made, x=0, y=0, resize_source=True, **both)
    if kind == "TEXT":
        return _drawn_with(plan, system, made)
    if kind == "CONDITIONS":
        samples = plan.out(
            "KSampler",
            model=plan.want(f"MODEL:{system}", 1),
            positive=made,
            negative=plan.rng.choice(plan.pool[tag]),
            latent_image=plan.want("LATENT:kandinsky", 1),
            denoise=1.0,
            sampler_name=_sampler(plan),
            scheduler=_scheduler(plan),
            **plan.sampling(),
        )
        return _decoded(plan, "kandinsky", samples)
    return made


def _one_of_each(plan: Plan, number: int) -> None:
    """An output that shows one way to make something, a different one for each number."""
    ways = [
        (tag, maker)
        for tag, makers in MAKERS.items()
        if tag.split(":")[0] in ("IMAGE", "LATENT", "MASK", "TEXT", "CONDITIONS", "EMBEDS")
        for maker in makers
        if maker.weight > 0.1 and all(map(plan.has, maker.needs))
    ]
    tag, maker = ways[number % len(ways)]
    plan.pool.setdefault(tag, [])
    made = maker.make(plan, 2)
    plan.pool[tag].append(made)
    seen = _seen(plan, tag, made)
    if outputs(plan.info, plan.nodes[seen.node].type)[seen.slot][1] == "IMAGE":
        plan.add("SaveImage", images=seen, filename_prefix="seen")
    else:
        plan.add("PriorArtSaveEmbeddings", image_embeds=seen, name="seen", note="")


def _rare(plan: Plan) -> None:
    """An output of nodes that no way above goes over."""
    image = plan.out("LoadImage", image="animated.png")
    size = plan.add("GetImageSize", image=image)
    plan.add("PreviewAny", source=Wire(size, 2))
    many = plan.out("RepeatImageBatch", image=image, amount=2)
    both = {"width": Wire(size, 0), "height": Wire(size, 1)}
    method = {"upscale_method": "bilinear", "crop": "center"}
    plan.add(
        "SaveImage",
        images=plan.out("ImageScale", image=many, **method, **both),
        filename_prefix="rare",
    )


def _finish(plan: Plan, number: int) -> None:
    """One to three outputs, and what hangs behind them."""
    if number % 50 == 49:
        _rare(plan)
    if plan.chance(0.7):
        _one_of_each(plan, number)
        if plan.chance(0.6):
            return
    for count in range(plan.pick(1, 1, 2, 3)):
        kind = plan.rng.choices(
            ("SaveImage", "PreviewImage", "PreviewAny", "PriorArtSaveEmbeddings"), (6, 2, 1, 1)
        )[0]
        plan.effort = max(plan.effort, 2)
        if kind == "SaveImage":
            prefix = plan.pick(*PREFIXES)
            image = plan.want("IMAGE", 5)
            plan.add(kind, images=image, filename_prefix=f"{prefix}-{count}")
        elif kind == "PreviewImage":
            plan.add(kind, images=plan.want("IMAGE", 5))
        elif kind == "PreviewAny":
            plan.add(kind, source=_texts(plan))
        else:
            embeds = plan.want(f"EMBEDS:{plan.pick(*SPACES)}", 4)
            note, normalise = plan.pick("", "a note"), plan.chance(0.3)
            plan.add(
                kind, image_embeds=embeds, name=f"kept-{count}", note=note, normalise=normalise
            )


# ---------------------------------------------------------------------------------------------
# What is done to a planned graph


def _disturb(plan: Plan) -> None:
    """What the server must judge: values of the wrong type or out of range, missing inputs, wires
    between kinds, stray branches."""
    if plan.chance(0.25):
        # The editor brings numbers back into their range.
        broken = () if plan.saved else ("broken value",)
        what = plan.pick("unwired output", "half a node", *broken)
        plan.features.append(f"stray: {what}")
        if what == "unwired output":
            kind = plan.pick("SaveImage", "PreviewImage", "PreviewAny")
            plan.add(kind)
        elif what == "half a node":
            plan.add("VAEDecode", vae=plan.want("VAE:kandinsky", 1))
        else:
            image = plan.out("ImageCompositeMasked", destination=plan.want("IMAGE", 0), x=20000)
            plan.add("PreviewImage", images=image)
    if not plan.chance(0.1):
        return
    # The editor drops wires that do not fit, and brings numbers back into their range.
    rough = () if plan.saved else ("out of range", "other kind")
    wrong = plan.pick("missing wire", "no such choice", "other space", *rough)
    plan.features.append(f"wrong: {wrong}")
    wires = [
        (number, name)
        for number, node in plan.nodes.items()
        for name, value in node.inputs.items()
        if isinstance(value, Wire)
    ]
    number, name = plan.rng.choice(wires)
    node = plan.nodes[number]
    if wrong == "missing wire":
        del node.inputs[name]
    elif wrong == "other kind":
        node.inputs[name] = plan.out("PrimitiveInt", value=1)
    elif wrong == "other space":
        tags = [tag for tag in sorted(plan.pool) if tag.partition(":")[2] and plan.pool[tag]]
        for tag in tags:
            if node.inputs[name] in plan.pool[tag]:
                others = [t for t in MAKERS if t.split(":")[0] == tag.split(":")[0] and t != tag]
                if others:
                    node.inputs[name] = plan.want(plan.pick(*others), 1)
                return
    else:
        kinds = ("COMBO",) if wrong == "no such choice" else ("INT", "FLOAT")
        places = [
            (node, socket)
            for node in plan.nodes.values()
            for socket in sockets(plan.info, node.type)
            if socket.type in kinds and not isinstance(node.inputs.get(socket.name), Wire)
        ]
        if places:
            node, socket = plan.rng.choice(places)
            high = socket.options.get("max", 0) + 1
            low = socket.options.get("min", 0) - 1
            node.inputs[socket.name] = (
                "nothing" if wrong == "no such choice" else plan.pick(high, low)
            )


def _number_widgets(plan: Plan, types: Sequence[str] = ("INT",)) -> list[tuple[int, Socket]]:
    return [
        (number, socket)
        for number, node in plan.nodes.items()
        if not node.type.startswith("Primitive") and node.type not in VIRTUAL
        for socket in sockets(plan.info, node.type)
        if socket.is_widget and socket.type in types and socket.name in node.inputs
        if not isinstance(node.inputs[socket.name], Wire)
    ]


PRIMITIVES = {
    "INT": ("PrimitiveInt",),
    "FLOAT": ("PrimitiveFloat",),
    "STRING": ("PrimitiveString", "PrimitiveStringMultiline"),
    "BOOLEAN": ("PrimitiveBoolean",),
}


def _wire_numbers(plan: Plan) -> None:
    """A widget fed by one of the host's Primitive nodes, as both forms have it."""
    places = [
        (number, socket)
        for number, socket in _number_widgets(plan, tuple(PRIMITIVES))
        if socket.type != "INT" or plan.nodes[number].inputs[socket.name] < 2**63
        if socket.name not in ("filename_prefix", "name")
    ]
    for number, socket in plan.rng.sample(places, min(len(places), plan.pick(0, 0, 1, 2))):
        node = plan.nodes[number]
        value = node.inputs[socket.name]
        node.shown[socket.name] = default(socket)
        kind = plan.pick(*PRIMITIVES[socket.type])
        node.inputs[socket.name] = plan.out(kind, value=value)
        plan.features.append(f"wired {socket.type}")


def _odd_values(plan: Plan) -> None:
    """API files by other programs: numbers as text, or as numbers of another kind."""
    places = _number_widgets(plan, ("INT", "FLOAT", "BOOLEAN"))
    for number, socket in plan.rng.sample(places, min(len(places), 2)):
        node = plan.nodes[number]
        value = node.inputs[socket.name]
        if socket.type == "INT":
            node.inputs[socket.name] = plan.pick(str(value), float(value))
        elif socket.type == "FLOAT":
            node.inputs[socket.name] = plan.pick(str(value), int(value))
        else:
            node.inputs[socket.name] = int(value)
        plan.features.append(f"odd value: {socket.type}")


def _passes(plan: Plan, kind: str) -> bool:
    """Whether a node's first output goes on from one of its inputs where it is bypassed."""
    given = [type_ for _, type_ in outputs(plan.info, kind)][:1]
    return any(socket.type in given and not socket.is_widget for socket in sockets(plan.info, kind))


def _switch_off(plan: Plan) -> None:
    """Mute or bypass a node or two."""
    for _ in range(plan.pick(0, 0, 0, 0, 0, 1, 1, 2)):
        through = [n for n, node in plan.nodes.items() if _passes(plan, node.type)]
        node = plan.nodes[
            plan.rng.choice(through if through and plan.chance(0.5) else [*plan.nodes])
        ]
        node.mode = plan.pick(MUTED, BYPASSED, BYPASSED)
        plan.features.append("muted" if node.mode == MUTED else "bypassed")


def _resolved_texts(plan: Plan) -> None:
    """Prompt syntax that the editor resolves before it queues; choices are alike."""
    for node in plan.nodes.values():
        for socket in sockets(plan.info, node.type):
            value = node.inputs.get(socket.name)
            dynamic = socket.options.get("dynamicPrompts")
            if not dynamic or not isinstance(value, str) or not plan.chance(0.3):
                continue
            colour = next((one for one in COLOURS if one in value), None)
            if colour is None or "\\" in value:
                continue
            what = plan.pick("choice", "one", "comment", "nested", "line")
            if what == "choice":
                shown = value.replace(colour, f"{{{colour}|{colour}}}", 1)
            elif what == "one":
                shown = value.replace(colour, f"{{{colour}}}", 1)
            elif what == "nested":
                shown = value.replace(colour, f"{{{{{colour}|{colour}}}|{colour}}}", 1)
            elif what == "comment":
                shown = value.replace(colour, f"/* not\n{{so}} */{colour}", 1)
            else:
                shown = value + "// and no more"
            node.shown[socket.name] = shown
            plan.features.append(f"dynamic prompt: {what}")


def _fill_names(plan: Plan, grouped: bool) -> None:
    """Tokens of file names that the editor replaces: the saved file has them still.

    Args:
        grouped: a subgraph will be made, whose widgets have several values.
    """
    for node in plan.nodes.values():
        prefix = node.inputs.get("filename_prefix")
        if not isinstance(prefix, str) or node.type != "SaveImage":
            continue
        filled = prefix.replace("%date:yyyy%", time.strftime("%Y"))
        if "%KSampler.seed%" in filled:
            (one, *others) = [n for n in plan.nodes.values() if n.type == "KSampler"] or [None]
            if one is None or others or grouped:
                # Which node it is, and which of its values, is the editor's affair.
                filled = prefix = prefix.replace("%KSampler.seed%", "seed") if one else prefix
                node.inputs["filename_prefix"] = prefix
            else:
                seed = one.inputs["seed"]
                seed = one.shown["seed"] if isinstance(seed, Wire) else seed
                filled = filled.replace("%KSampler.seed%", str(seed))
        if filled != prefix:
            node.shown["filename_prefix"], node.inputs["filename_prefix"] = prefix, filled
            plan.features.append("name token")


def _reroute(plan: Plan) -> None:
    places = [
        (number, name)
        for number, node in plan.nodes.items()
        for name, value in node.inputs.items()
        if isinstance(value, Wire)
    ]
    for number, name in plan.rng.sample(places, min(len(places), plan.pick(0, 1, 2))):
        node = plan.nodes[number]
        node.inputs[name] = plan.out("Reroute", **{"": node.inputs[name]})
        plan.features.append("reroute")


def _primitives(plan: Plan) -> None:
    """A widget fed by the editor's own Primitive, which is not queued."""
    places = _number_widgets(plan, ("INT", "FLOAT", "STRING"))
    places = [p for p in places if p[1].name not in plan.nodes[p[0]].shown]
    for number, socket in plan.rng.sample(places, min(len(places), plan.pick(0, 0, 1, 2))):
        node = plan.nodes[number]
        node.shown[socket.name] = node.inputs[socket.name]
        node.inputs[socket.name] = plan.out("PrimitiveNode", value=node.inputs[socket.name])
        plan.features.append("editor's primitive")


def _wires(node: Node) -> Iterator[tuple[str, Wire]]:
    return ((name, value) for name, value in node.inputs.items() if isinstance(value, Wire))


def _between(plan: Plan, members: set[int], first: int, last: int) -> set[int]:
    """Nodes on the ways from one to another, both included."""

    behind: dict[int, bool] = {first: True}

    def leads(number: int) -> bool:
        if number not in behind:
            behind[number] = False
            wired = [wire.node for _, wire in _wires(plan.nodes[number]) if wire.node in members]
            behind[number] = any([leads(one) for one in wired])
        return behind[number]

    if not leads(last):
        return {last}
    found, ahead = set(), [last]
    while ahead:
        number = ahead.pop()
        if number in found or not leads(number):
            continue
        found.add(number)
        if number != first:
            ahead += [w.node for _, w in _wires(plan.nodes[number]) if w.node in members]
    return found


def _ancestors(plan: Plan, number: int) -> list[int]:
    found: list[int] = []
    ahead = [number]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.append(one)
            ahead += [wire.node for _, wire in _wires(plan.nodes[one])]
    return found


def _group(plan: Plan) -> None:
    """Put part of the graph into a subgraph, now and then a part of that into another."""
    outside = set(plan.nodes)
    path: tuple[int, ...] = ()
    for _ in range(plan.pick(1, 1, 2)):
        last = plan.rng.choice(sorted(outside))
        first = plan.rng.choice([n for n in _ancestors(plan, last) if n in outside])
        members = _between(plan, outside, first, last)
        # The editor's own primitive belongs beside the node that it sets.
        members |= {
            wire.node
            for number in members
            for _, wire in _wires(plan.nodes[number])
            if plan.nodes[wire.node].type == "PrimitiveNode"
        }
        members = {n for n in members if plan.nodes[n].type != "PrimitiveNode"} | {
            n for n in members if plan.nodes[n].type == "PrimitiveNode" and _fed(plan, n) <= members
        }
        if not members:
            return
        group = plan.number()
        plan.groups[group] = Group(path, group)
        path = (*path, group)
        for number in members:
            plan.nodes[number].path = path
        plan.features.append("subgraph" if len(path) == 1 else "subgraph in a subgraph")
        outside = members
    _promote(plan)
    if len(plan.groups) == 1 and plan.chance(0.5):
        _twin(plan, *plan.groups)


def _fed(plan: Plan, source: int) -> set[int]:
    return {
        number
        for number, node in plan.nodes.items()
        if any(wire.node == source for _, wire in _wires(node))
    }


def _promote(plan: Plan) -> None:
    """Let instances hold values of the widgets inside; the definition has others."""
    for number, socket in _number_widgets(plan, WIDGETS):
        node = plan.nodes[number]
        if not node.path or not plan.chance(0.35) or socket.name in node.shown:
            continue
        decoy = default(socket)
        if socket.type == "STRING":
            decoy = "a decoy"
        if socket.type == "INT" and socket.name in ("steps", "batch_size", "candidates"):
            decoy = socket.options.get("min", 1)
        for depth in range(len(node.path), plan.pick(0, len(node.path) - 1), -1):
            plan.groups[node.path[depth - 1]].promoted[number, socket.name] = decoy
            if "promoted" not in plan.features:
                plan.features.append("promoted")


def _twin(plan: Plan, group: int) -> None:
    """A second instance of a subgraph, with values of its own where they are promoted."""
    inside = [n for n, node in plan.nodes.items() if node.path[:1] == (group,)]
    images = [
        wire
        for number, node in list(plan.nodes.items())
        if number not in inside
        for _, wire in _wires(node)
        if wire.node in inside
        and outputs(plan.info, plan.nodes[wire.node].type)[wire.slot][1] == "IMAGE"
    ]
    if not images:
        return
    twin = plan.number()
    plan.groups[twin] = copy.deepcopy(plan.groups[group])
    plan.groups[twin].promoted = {}
    copies = {number: plan.number() for number in inside}
    for number, made in copies.items():
        node = copy.deepcopy(plan.nodes[number])
        node.path = (twin,)
        node.inputs = {
            name: Wire(copies.get(value.node, value.node), value.slot)
            if isinstance(value, Wire)
            else value
            for name, value in node.inputs.items()
        }
        plan.nodes[made] = node
    for (number, name), decoy in plan.groups[group].promoted.items():
        node = plan.nodes[copies[number]]
        plan.groups[twin].promoted[copies[number], name] = decoy
        if name in ("seed", "noise_seed"):
            node.inputs[name] = plan.rng.randrange(1000)
        elif name == "text":
            node.inputs[name] = prompt(plan)
        elif name == "filename_prefix":
            node.inputs[name] = "twin"
        elif name == "steps":
            node.inputs[name] = 3
    first = images[0]
    plan.add("SaveImage", images=Wire(copies[first.node], first.slot), filename_prefix="twin-of")
    plan.features.append("two instances")


# ---------------------------------------------------------------------------------------------
# The two forms


def _key(plan: Plan, number: int) -> str:
    node = plan.nodes[number]
    return ":".join(map(str, (*node.path, node.local)))


def _off(plan: Plan, node: Node) -> int:
    """The mode that decides over a node: its own, or that of an instance around it."""
    around = [plan.groups[group].mode for group in node.path]
    return next((mode for mode in around if mode), node.mode)


def _connects(one: str, other: str) -> bool:
    if "*" in (one, other) or "" in (one, other):
        return True
    return not set(one.lower().split(",")).isdisjoint(other.lower().split(","))


def _resolve(plan: Plan, wire: Wire, type_: str) -> tuple[str, Any] | None:
    """What a wire into an input of ``type_`` brings: ("wire", w), ("value", v) or nothing."""
    node = plan.nodes[wire.node]
    if node.mode == MUTED:
        return None
    places = sockets(plan.info, node.type)
    if node.mode == BYPASSED:
        given = outputs(plan.info, node.type)[wire.slot][1]

        def fits(socket: Socket) -> bool:
            return _connects(socket.type, given) and _connects(socket.type, type_)

        if type_ in ("*", ""):
            chosen = wire.slot if wire.slot < len(places) else 0
        elif wire.slot < len(places) and fits(places[wire.slot]):
            chosen = wire.slot
        else:
            exact = [i for i, socket in enumerate(places) if socket.type == type_]
            chosen = next(iter([*exact, *(i for i, s in enumerate(places) if fits(s))]), None)
        if chosen is None or not places:
            return None
        behind = node.inputs.get(places[chosen].name)
        return _resolve(plan, behind, places[chosen].type) if isinstance(behind, Wire) else None
    if node.type == "PrimitiveNode":
        return "value", node.inputs["value"]
    if node.type == "Reroute":
        return _resolve(plan, node.inputs[""], type_)
    return "wire", wire


def to_api(plan: Plan) -> dict[str, dict[str, Any]]:
    """What the editor queues."""
    made = {}
    for number, node in plan.nodes.items():
        if node.type in VIRTUAL or node.mode:
            continue
        inputs = {}
        types = {socket.name: socket for socket in sockets(plan.info, node.type)}
        for name, value in node.inputs.items():
            if not isinstance(value, Wire):
                inputs[name] = value
                continue
            found = _resolve(plan, value, types[name].type)
            if found is None:
                if types[name].is_widget:
                    inputs[name] = node.shown.get(name, default(types[name]))
            elif found[0] == "value":
                inputs[name] = found[1]
            else:
                inputs[name] = [_key(plan, found[1].node), found[1].slot]
        title = node.title or plan.info[node.type].get("display_name") or node.type
        made[_key(plan, number)] = {
            "class_type": node.type,
            "inputs": inputs,
            "_meta": {"title": title},
        }
    return made


def _crossings(plan: Plan, group: int) -> tuple[dict[Any, str], dict[Wire, str]]:
    """What goes into a group by key (a wire, or a promoted widget) and what comes out: types."""
    inward: dict[Any, str] = {}
    outward: dict[Wire, str] = {}
    inside = [n for n, node in plan.nodes.items() if group in node.path]
    for number, node in plan.nodes.items():
        types = {socket.name: socket for socket in sockets(plan.info, node.type)}
        for name, wire in _wires(node):
            if (number in inside) == (wire.node in inside):
                continue
            given = outputs(plan.info, plan.nodes[wire.node].type)[wire.slot][1]
            if number in inside:
                wanted = types[name]
                # A widget has a place of its own, for its value below the wire.
                key = (number, name) if wanted.is_widget else wire
                inward[key] = wanted.type if given == "*" or wanted.is_widget else given
            else:
                outward[wire] = given
    original = plan.groups[group].definition
    if original != group:
        copies = {plan.nodes[number].local: number for number in inside}
        outward = {
            Wire(copies[wire.node], wire.slot): type_
            for wire, type_ in _crossings(plan, original)[1].items()
        }
    for place in plan.groups[group].promoted:
        types = {s.name: s.type for s in sockets(plan.info, plan.nodes[place[0]].type)}
        inward[place] = types[place[1]]
    return inward, outward


def _slot_name(plan: Plan, key: Any, taken: Sequence[str]) -> str:
    if isinstance(key, Wire):
        name = outputs(plan.info, plan.nodes[key.node].type)[key.slot][0] or "input"
    else:
        name = key[1]
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    return unique


def to_saved(plan: Plan, rng: random.Random, full: bool) -> dict[str, Any]:
    """What the editor saves.

    Args:
        full: keep the unwired places of widgets, as the file on disk has them; pictures and
            exported files do not.
    """
    definitions: dict[int, dict[str, Any]] = {}
    top = _write_scope(plan, (), rng, full, definitions)
    return {
        "id": str(uuid.UUID(int=rng.getrandbits(128))),
        "revision": 0,
        "last_node_id": plan.number(),
        "last_link_id": len(top["links"]),
        "nodes": top["nodes"],
        "links": [
            [
                link["id"],
                link["origin_id"],
                link["origin_slot"],
                link["target_id"],
                link["target_slot"],
                link["type"],
            ]
            for link in top["links"]
        ],
        "groups": [],
        "definitions": {"subgraphs": [definitions[key] for key in sorted(definitions)]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _write_scope(
    plan: Plan,
    path: tuple[int, ...],
    rng: random.Random,
    full: bool,
    definitions: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    def element(number: int) -> int | None:
        whole = (*plan.nodes[number].path, number)
        return whole[len(path)] if whole[: len(path)] == path else None

    groups = [group for group, facts in plan.groups.items() if facts.parent == path]
    numbers = [number for number, node in plan.nodes.items() if node.path == path]
    inner = {group: _crossings(plan, group) for group in groups}
    own = _crossings(plan, path[-1]) if path else ({}, {})
    inward, outward = list(own[0]), list(own[1])

    # Every link of this graph: (source element, source slot, target element, target key, type).
    links: list[dict[str, Any]] = []

    def connect(source: tuple[int, int], target: int, key: Any, type_: str) -> None:
        new = {"source": source, "target": target, "key": key, "type": type_}
        if not any((x["target"], x["key"]) == (target, key) for x in links):
            links.append(new)

    def source_of(wire: Wire) -> tuple[int, int]:
        at = element(wire.node)
        if at is None:
            return -10, inward.index(wire)
        if at in groups:
            return at, list(inner[at][1]).index(wire)
        return plan.nodes[wire.node].local, wire.slot

    def place_of(number: int, name: str, is_widget: bool, wire: Wire | None) -> tuple[int, Any]:
        at = element(number)
        if at in groups:
            return at, (number, name) if is_widget or wire is None else wire
        return at, name

    for number, node in plan.nodes.items():
        at = element(number)
        types = {socket.name: socket for socket in sockets(plan.info, node.type)}
        for name, wire in _wires(node):
            there = element(wire.node)
            if at is None and there is None:
                continue
            given = outputs(plan.info, plan.nodes[wire.node].type)[wire.slot][1]
            if at is None:
                connect(source_of(wire), -20, wire, given)
            elif there is None and types[name].is_widget:
                connect(
                    (-10, inward.index((number, name))),
                    *place_of(number, name, True, wire),
                    types[name].type,
                )
            elif at != there or at not in groups:
                place = place_of(number, name, types[name].is_widget, wire)
                connect(source_of(wire), *place, given)
        if path:
            for (one, name), _ in plan.groups[path[-1]].promoted.items():
                if one == number:
                    place = place_of(number, name, True, None)
                    connect((-10, inward.index((number, name))), *place, types[name].type)
    for position, link in enumerate(links, 1):
        link["id"] = position

    into: dict[tuple[int, Any], int] = {(x["target"], x["key"]): x["id"] for x in links}
    out_of: dict[tuple[int, int], list[int]] = {}
    for link in links:
        out_of.setdefault(link["source"], []).append(link["id"])

    nodes, slots = [], {}
    for number in numbers:
        node = plan.nodes[number]
        places, values = [], []
        for socket in sockets(plan.info, node.type):
            link = into.get((number, socket.name))
            if socket.is_widget:
                values += _saved_values(plan, number, socket, rng)
            if socket.is_widget and link is None and not full:
                continue
            place = {"name": socket.name, "type": socket.type, "link": link}
            if socket.is_widget:
                place["widget"] = {"name": socket.name}
            slots[number, socket.name] = len(places)
            places.append(place)
        if any(socket.options.get("image_upload") for socket in sockets(plan.info, node.type)):
            values.append("image")  # the button, which comes last
        if node.type == "PrimitiveNode":
            values = [node.inputs["value"], "fixed"]
        nodes.append(
            {
                "id": node.local,
                "type": node.type,
                "inputs": places,
                "outputs": [
                    {"name": name, "type": type_, "links": out_of.get((node.local, slot), [])}
                    for slot, (name, type_) in enumerate(outputs(plan.info, node.type))
                ],
                "title": node.title,
                "properties": {"Node name for S&R": node.type},
                "widgets_values": values,
                "mode": node.mode,
            }
        )
        if node.title is None:
            del nodes[-1]["title"]
    for group in groups:
        facts = plan.groups[group]
        entering, leaving = inner[group]
        original = facts.definition
        if original == group:
            definitions[group] = _write_definition(plan, path, group, rng, full, definitions)
        names: list[str] = []
        places, values = [], []
        for key, type_ in entering.items():
            name = _slot_name(plan, key, names)
            names.append(name)
            link = into.get((group, key))
            place = {"name": name, "type": type_, "link": link}
            if not isinstance(key, Wire):
                place["widget"] = {"name": name}
                values.append(_held(plan, path, key))
                if link is None and not full:
                    continue
            slots[group, key] = len(places)
            places.append(place)
        given = [
            {"name": _slot_name(plan, wire, ()), "type": type_, "links": out_of.get((group, i), [])}
            for i, (wire, type_) in enumerate(leaving.items())
        ]
        nodes.append(
            {
                "id": group,
                "type": _definition_id(original),
                "inputs": places,
                "outputs": given,
                "properties": {},
                "widgets_values": values,
                "mode": facts.mode,
            }
        )
    made = [
        {
            "id": link["id"],
            "origin_id": link["source"][0],
            "origin_slot": link["source"][1],
            "target_id": plan.nodes[link["target"]].local
            if link["target"] in plan.nodes
            else link["target"],
            "target_slot": outward.index(link["key"])
            if link["target"] == -20
            else slots[link["target"], link["key"]],
            "type": link["type"],
        }
        for link in links
    ]
    for order, node in enumerate(_in_order(nodes, made)):
        node |= {"order": order, "pos": [300 * order, 0], "size": [300, 200], "flags": {}}
    rng.shuffle(nodes)
    return {"nodes": nodes, "links": made, "inward": own[0], "outward": own[1]}


def _in_order(nodes: list[dict], links: list[dict]) -> list[dict]:
    """Nodes after those that they need."""
    left, done = list(nodes), []
    while left:
        waiting = {node["id"] for node in left}
        needs = {
            node["id"]: {x["origin_id"] for x in links if x["target_id"] == node["id"]} & waiting
            for node in left
        }
        ready = [node for node in left if not needs[node["id"]]] or left[:1]
        done += ready
        left = [node for node in left if node not in ready]
    return done


def _definition_id(group: int) -> str:
    return str(uuid.UUID(int=0x5D1F << 100 | group))


def _write_definition(
    plan: Plan,
    path: tuple[int, ...],
    group: int,
    rng: random.Random,
    full: bool,
    definitions: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    scope = _write_scope(plan, (*path, group), rng, full, definitions)
    names: list[str] = []
    entering = []
    for slot, (key, type_) in enumerate(scope["inward"].items()):
        names.append(_slot_name(plan, key, names))
        used = [link["id"] for link in scope["links"] if _from(link, -10, slot)]
        number = str(uuid.UUID(int=0xA << 100 | group << 40 | slot))
        entering.append({"id": number, "name": names[-1], "type": type_, "linkIds": used})
    leaving = []
    for slot, (wire, type_) in enumerate(scope["outward"].items()):
        used = [
            link["id"]
            for link in scope["links"]
            if (link["target_id"], link["target_slot"]) == (-20, slot)
        ]
        number = str(uuid.UUID(int=0xB << 100 | group << 40 | slot))
        name = _slot_name(plan, wire, ())
        leaving.append({"id": number, "name": name, "type": type_, "linkIds": used})
    last = max([node["id"] for node in scope["nodes"]], default=0)
    return {
        "id": _definition_id(group),
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": last,
            "lastLinkId": len(scope["links"]),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": f"Part {group}",
        "inputNode": {"id": -10, "bounding": [-300, 0, 140, 120]},
        "outputNode": {"id": -20, "bounding": [1400, 0, 120, 60]},
        "inputs": entering,
        "outputs": leaving,
        "widgets": [],
        "nodes": scope["nodes"],
        "groups": [],
        "links": scope["links"],
        "extra": {},
    }


def _from(link: dict[str, Any], origin: int, slot: int) -> bool:
    return (link["origin_id"], link["origin_slot"]) == (origin, slot)


def _held(plan: Plan, path: tuple[int, ...], place: tuple[int, str]) -> Any:
    """What an instance in the graph ``path`` holds for a widget inside."""
    number, name = place
    node = plan.nodes[number]
    value = node.inputs[name]
    if isinstance(value, Wire):
        (socket,) = (s for s in sockets(plan.info, node.type) if s.name == name)
        return node.shown.get(name, default(socket))
    outer = plan.groups[path[-1]].promoted if path else {}
    return outer.get(place, node.shown.get(name, value))


def _saved_values(plan: Plan, number: int, socket: Socket, rng: random.Random) -> list[Any]:
    """A widget's entries in a saved list: its value, and what happens to it after a run."""
    node = plan.nodes[number]
    value = node.inputs.get(socket.name, default(socket))
    if node.path:
        inner = plan.groups[node.path[-1]].promoted
        if (number, socket.name) in inner:
            value = inner[number, socket.name]
    if isinstance(value, Wire):
        value = default(socket)
    if (number, socket.name) not in (plan.groups[node.path[-1]].promoted if node.path else {}):
        value = node.shown.get(socket.name, value)
    values = [value]
    if socket.options.get("control_after_generate") or socket.name in ("seed", "noise_seed"):
        values.append(rng.choice(("fixed", "randomize", "increment")))
    return values


def draw(seed: int, number: int, info: dict[str, Any]) -> Case:
    """Graph ``number`` of those that ``seed`` stands for.

    Args:
        info: the host's ``/object_info``.
    """
    rng = random.Random(f"{seed}/{number}")
    plan = Plan(rng, info)
    _finish(plan, number)
    _disturb(plan)
    _wire_numbers(plan)
    saved = None
    if plan.saved:
        grouped = plan.chance(0.5)
        _switch_off(plan)
        _resolved_texts(plan)
        _fill_names(plan, grouped)
        _reroute(plan)
        _primitives(plan)
        if grouped:
            _group(plan)
        full = plan.chance(0.5)
        plan.features.append("saved" if full else "exported")
        saved = to_saved(plan, rng, full)
    else:
        plan.features.append("API format")
        if plan.chance(0.3):
            _odd_values(plan)
    api = to_api(plan)
    nodes = [node.type for node in plan.nodes.values()]
    return Case(f"{seed}/{number}", api, saved, plan.features, nodes)
