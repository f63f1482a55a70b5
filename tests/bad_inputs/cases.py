"""Cases: graphs that run, each with one thing changed that should not be so."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from prior_art.headless.checking import is_link
from prior_art.headless.runner import node_classes
from prior_art.headless.workflow import to_api
from prior_art.host.embedded import io
from prior_art.loaders.files import configs

from .. import tiny
from ..host import differential_graphs as graphs
from . import values

ROOT = Path(__file__).resolve().parents[2]
Prompt = dict[str, Any]
EACH = 16
"""Cases that one graph is changed for: what is loaded once serves them all."""

TINY = {
    "shapes-karlo": "tiny-karlo",
    "shapes-clip": "tiny-karlo",
    "shapes-kandinsky-prior": "tiny-kandinsky/prior",
    "shapes-kandinsky": "tiny-kandinsky/decoder",
    "shapes-kandinsky-depth": "tiny-kandinsky/depth",
    "shapes-kandinsky-inpaint": "tiny-kandinsky/inpaint",
    "shapes-kandinsky-2-1": "tiny-21/decoder",
    "shapes-koala-700m": "tiny-koala/koala-700m",
    "shapes-koala-1b": "tiny-koala/koala-1b",
    "shapes-mindalle": "tiny-mindalle",
}
TEMPLATES = (
    "karlo_text_to_image",
    "karlo_image_variation",
    "kandinsky_text_to_image",
    "kandinsky_depth",
    "kandinsky_inpaint",
    "mix_karlo_kandinsky",
    "koala_text_to_image",
    "koala_ksampler",
    "mindalle_rerank",
)
WORDS = ("vocab.json", "model_index.json", "tokenizer.json", "bpe-16k-vocab.json")
"""Files of a folder that are no configurations."""
SMALL = {"steps": 2, "batch_size": 1, "width": 64, "height": 64, "candidates": 2}


@dataclass(frozen=True)
class Case:
    """Something wrong.

    Attributes:
        name: seed and number.
        kind: "widget", "wire", "object", "structure" or "config".
        what: what was changed, in words.
        workflow: of either format.
        names: a clear error has one of these.
        touched: the node's id, or the file's name, that must be used for anything to be wrong.
        bad: whether no result may come of it.
        prepare: lays files ready.
    """

    name: str
    kind: str
    what: str
    workflow: Any
    names: tuple[str, ...]
    bad: bool
    touched: str = ""
    prepare: Callable[[], None] | None = field(default=None, compare=False)


class Give(io.ComfyNode):
    """A node that gives what a case wants, of whatever type."""

    given: Any = None

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.String.Input("how")]
        return io.Schema("Give", inputs=inputs, outputs=[io.AnyType.Output()])

    @classmethod
    def execute(cls, how: str) -> io.NodeOutput:
        return io.NodeOutput(cls.given)


def classes() -> dict[str, Any]:
    """The runner's nodes, and :class:`Give`."""
    return {**node_classes(), "Give": Give}


def object_info(nodes: dict[str, Any]) -> dict[str, Any]:
    """The embedded schemas as a host tells of them."""
    info = {}
    for kind, node in nodes.items():
        schema = node.define_schema()
        parts: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for socket in schema.inputs:
            options = {**socket.options, "forceInput": socket.force_input}
            place = parts["optional" if socket.optional else "required"]
            place[socket.id] = [socket.io_type, options]
        info[kind] = {
            "input": parts,
            "output": [output.io_type for output in schema.outputs],
            "output_name": [output.display_name or output.io_type for output in schema.outputs],
            "display_name": schema.display_name,
        }
    return info


class Cases:
    """Cases of a seed, from a number on.

    Args:
        folder: an empty one, for models and pictures.
        seed: of all.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed, self.nodes = seed, classes()
        self.pictures, self.models = folder / "input", folder / "models"
        graphs.write_pictures(self.pictures)
        seen = Image.open(self.pictures / "circle.png").convert("RGBA")
        seen.putalpha(Image.new("L", (64, 32), 255).crop((0, 0, 64, 64)))
        seen.save(self.pictures / "example.png")
        tiny.tiny_karlo(self.models / "0" / "tiny-karlo")
        tiny.tiny_kandinsky(self.models / "1" / "tiny-kandinsky")
        tiny.tiny_kandinsky_21(self.models / "2" / "tiny-21")
        tiny.tiny_koala(self.models / "3" / "tiny-koala")
        tiny.tiny_mindalle(self.models / "4" / "tiny-mindalle")
        self.info = object_info(self.nodes)
        self._moments = itertools.count(10**9)

    def draw(self, first: int, count: int, runs: Callable[[Prompt], bool]) -> Iterator[Case]:
        """Cases by number; ``runs`` says whether a graph runs as it is."""
        number = first
        for block in range(first // EACH, (first + count) // EACH + 1):
            rng = random.Random(f"{self.seed}/{block}")
            self._look_in()
            made = self._configs(rng) if block % 4 == 3 else self._graphs(rng, block, runs)
            for i, case in enumerate(made):
                at = block * EACH + i
                if first <= at < first + count:
                    yield Case(f"{self.seed}/{at}", *case)
                    number += 1

    def _look_in(self, *folders: Path) -> None:
        """Name the model folders; to list those of all systems takes longer than most cases."""
        os.environ["PRIOR_ART_MODELS"] = os.pathsep.join(map(str, folders or [self.models / "-"]))

    def _root(self, source: str) -> Path:
        """The model folder of a tiny source."""
        return next(path for path in self.models.iterdir() if (path / source).is_dir())

    # -- graphs ----------------------------------------------------------------------------------

    def _graphs(self, rng: random.Random, block: int, runs: Callable[[Prompt], bool]) -> Iterator:
        for attempt in range(100):
            base = graphs.draw(self.seed, block + attempt * 10**6, self.info)
            if len(base.api) < 25 and runs(base.api):
                break
        kinds = ["widget"] * 3 + ["wire", "object", "object", "structure"]
        for _ in range(EACH):
            kind = rng.choice(kinds)
            made = None
            while made is None:
                made = getattr(self, f"_{kind}")(rng, base)
                kind = rng.choice(kinds)
            yield made

    def _sockets(self, api: Prompt) -> Iterator[tuple[str, Any]]:
        for key, node in api.items():
            for socket in self.nodes[node["class_type"]].define_schema().inputs:
                yield key, socket

    def _widget(self, rng: random.Random, base: Any) -> tuple | None:
        api = copy.deepcopy(base.api)
        places = [
            (key, socket)
            for key, socket in self._sockets(api)
            if socket.is_widget and not is_link(api[key]["inputs"].get(socket.id))
            if socket.id in api[key]["inputs"]
        ]
        if not places:
            return None
        key, socket = rng.choice(places)
        value = rng.choice(values.widget_values(socket))
        api[key]["inputs"][socket.id] = value.given
        kind = api[key]["class_type"]
        return (
            *("widget", f"{kind}.{socket.id} = {value.how}", api),
            *((f"'{socket.id}'", *_said_by(kind, socket.id)), value.bad, key),
        )

    def _wire(self, rng: random.Random, base: Any) -> tuple | None:
        api = copy.deepcopy(base.api)
        places = [(k, s) for k, s in self._sockets(api) if s.takes_value]
        if not places:
            return None
        key, socket = rng.choice(places)
        options = values.wired_values(socket)
        if not options:
            return None
        value = rng.choice(options)
        primitive = {"INT": "Int", "FLOAT": "Float", "STRING": "StringMultiline"}[socket.io_type]
        api["bad"] = {"class_type": f"Primitive{primitive}", "inputs": {"value": value.given}}
        api[key]["inputs"][socket.id] = ["bad", 0]
        kind = api[key]["class_type"]
        return (
            *("wire", f"{kind}.{socket.id} <- {value.how}", api),
            *((f"'{socket.id}'", *_said_by(kind, socket.id)), value.bad, key),
        )

    def _object(self, rng: random.Random, base: Any) -> tuple | None:
        api = copy.deepcopy(base.api)
        places = [
            (k, s)
            for k, s in self._sockets(api)
            if not s.takes_value and api[k]["class_type"].startswith("PriorArt")
        ]
        if not places:
            return None
        key, socket = rng.choice(places)
        value = rng.choice(values.objects(socket.io_type))
        api["bad"] = {"class_type": "Give", "inputs": {"how": value.how}}
        api[key]["inputs"][socket.id] = ["bad", 0]
        # An input that may be left out may also get nothing.
        bad = not (socket.optional and value.given is None)

        def give() -> None:
            Give.given = value.given

        kind = api[key]["class_type"]
        what = f"{kind}.{socket.id} <- {socket.io_type} {value.how}"
        # Of two that differ, either may be named.
        other = {"a": "b", "b": "a"}.get(socket.id[-1], "")
        names = (f"'{socket.id}'", f"'{socket.id[:-1]}{other}'")
        return ("object", what, api, names, bad, key, give)

    def _structure(self, rng: random.Random, base: Any) -> tuple | None:
        """One place of a workflow's JSON, in either format, holds something else, or is gone."""
        workflow = copy.deepcopy(base.saved or base.api)
        place, path = workflow, []
        for _ in range(rng.randint(1, 6)):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            path.append(rng.choice(keys))
            if not isinstance(place[path[-1]], (dict, list)) or not place[path[-1]]:
                break
            last, place = place, place[path[-1]]
        if not path:
            return None
        last = workflow
        for key in path[:-1]:
            last = last[key]
        given = rng.choice(
            [None, True, -1, 10**6, 1.5, "abc", "", [], {}, [[]], [None], {"a": 1}, "x"]
        )
        gone = rng.random() < 0.3
        if gone:
            del last[path[-1]]
        else:
            last[path[-1]] = given
        what = f"{'/'.join(map(str, path))} {'gone' if gone else f'= {given!r}'}"
        return ("structure", what, workflow, (), False)

    # -- configurations --------------------------------------------------------------------------

    def _configs(self, rng: random.Random) -> Iterator:
        api = self._template(rng.choice(TEMPLATES))
        loaders = sorted(
            {
                node["inputs"]["source"]
                for node in api.values()
                if "source" in node["inputs"] and not is_link(node["inputs"]["source"])
            }
        )
        source = rng.choice(loaders)
        root = self._root(source)
        self._look_in(*sorted({self._root(one) for one in loaders}), self.models / "broken")
        files = [
            path
            for path in sorted((root / source).rglob("*.json"))
            if path.name
            not in ("vocab.json", "model_index.json", "tokenizer.json", "bpe-16k-vocab.json")
        ]
        for node in api.values():
            if node["inputs"].get("source") == source:
                node["inputs"]["source"] = "broken"
        for _ in range(EACH):
            file = rng.choice(files).relative_to(root / source)
            said = json.loads((root / source / file).read_text())
            table = _table(file, said)
            keys = [*said, *(key for key in table if key not in said)]
            key, value = rng.choice(keys), rng.choice(values.CONFIG_VALUES)
            rule = table.get(key)
            bad = rule is not None and not rule.holds(value.given)
            prepare = self._breaker(root / source, file, {**said, key: value.given})
            what = f"{source}/{file} {key} = {value.how}"
            # Names of folders within "broken", so that messages name the place.
            names = ("broken", str(file), f" {key} ")
            yield ("config", what, api, names, bad, f"broken/{file}", prepare)

    def _breaker(self, source: Path, file: Path, said: Any) -> Callable[[], None]:
        def lay() -> None:
            broken = self.models / "broken" / "broken"
            shutil.rmtree(broken, ignore_errors=True)
            broken.parent.mkdir(exist_ok=True)
            shutil.copytree(source, broken, copy_function=os.link)
            (broken / file).unlink()
            (broken / file).write_text(json.dumps(said))
            # Long ago, each time at another moment: what is new is listed again at every look.
            moment = next(self._moments)
            for path in (broken / file, *(broken / file).parents):
                os.utime(path, (moment, moment))
                if path == broken.parent:
                    break

        return lay

    def _template(self, name: str) -> Prompt:
        saved = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())
        api = to_api(saved, self.nodes)
        for node in api.values():
            for key, value in SMALL.items():
                if key in node["inputs"] and not is_link(node["inputs"][key]):
                    node["inputs"][key] = value
            if isinstance(node["inputs"].get("source"), str):
                node["inputs"]["source"] = TINY[node["inputs"]["source"]]
        return api


def _said_by(kind: str, name: str) -> tuple[str, ...]:
    """What else a clear message may name: a file's name is its input."""
    if name == "filename_prefix":
        return ("filename_prefix", "previews")
    if kind.startswith("Primitive"):
        return ("",)  # named where it goes to
    return ()


def _table(file: Path, said: dict[str, Any]) -> dict[str, Any]:
    """What a component's configuration may say."""
    if "scheduler" in str(file.parent):
        return dict(configs.TABLES["scheduler"])
    if file.name == "preprocessor_config.json":
        return dict(configs.TABLES["preprocessor"])
    for kind in (said.get("_class_name"), *(said.get("architectures") or [])):
        for table in (kind, str(kind).replace("ModelWithProjection", "Config")):
            if table in configs.TABLES:
                return dict(configs.TABLES[table])
    return {}
