"""The headless runner against a real ComfyUI: the same small graphs through both.

    python -m tests.host.differential --cases 500 --seed 7     # starts the host tests' ComfyUI
    python -m tests.host.differential --only 7/132 --host http://127.0.0.1:8188 --keep graphs

A graph agrees where both make the same outputs, pictures to one level, or where both refuse. Where
ComfyUI runs and the runner says before anything ran which node only ComfyUI can do, it is listed as
refused by name: headless is exact, or says no. Everything else is a difference.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import differential_graphs as graphs
from .finding import found_host, python_of

LEVELS = 1
"""How far a picture's levels may lie apart."""
SAME, BOTH_REFUSE, BY_NAME, DIFFERENT = "same", "both refuse", "refused by name", "different"
ON_THE_WAY = "refused on the way"
"""By name too, but for what only a run shows: how many rows an embedding has."""
SHOWN = ("PriorArtCompareEmbeddings", "PriorArtKoalaInfo")
"""What shows its result in the editor alone."""


@dataclass
class Outcome:
    """What one side made of a graph.

    Attributes:
        refused: why nothing ran, or "".
        failed: what stopped it on the way, or "".
        outputs: by node: pictures with their names, texts, rows of embeddings.
        left_out: outputs that were dropped, and why.
    """

    refused: str = ""
    failed: str = ""
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Verdict:
    """How the two compare.

    Attributes:
        kind: one of the five words above.
        why: what differs or was refused.
        far: largest distance of a picture's levels.
    """

    kind: str
    why: str = ""
    far: int = 0


class Host:
    """A running ComfyUI, as a client sees it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def view(self, place: dict[str, Any]) -> bytes:
        query = urllib.parse.urlencode(place)
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return answer.read()

    def interrupt(self) -> None:
        """Stop what runs."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/interrupt", data=b"{}")).close()

    def send_picture(self, path: Path) -> None:
        """Put a file into the input folder under its own name."""
        mark = "differential"
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"'
            "\r\nContent-Type: application/octet-stream\r\n\r\n".encode(),
            path.read_bytes(),
            f'\r\n--{mark}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue'
            f"\r\n--{mark}--\r\n".encode(),
        ]
        request = urllib.request.Request(
            self.url + "/upload/image",
            data=b"".join(parts),
            headers={"Content-Type": f"multipart/form-data; boundary={mark}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200

    def run(self, api: dict[str, Any], timeout: float = 120) -> Outcome:
        """Queue a prompt and wait for its end."""
        request = urllib.request.Request(
            self.url + "/prompt",
            data=json.dumps({"prompt": api}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            body = error.read().decode(errors="replace")
            if error.code >= 500:
                return Outcome(refused=f"the server's error {error.code}: {body[:200]}")
            return Outcome(refused=_reasons(json.loads(body)))
        number, deadline, pause = said["prompt_id"], time.monotonic() + timeout, 0.01
        while not (found := self.get(f"/history/{number}").get(number)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the prompt took longer than {timeout} s")
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)
        dropped = {key: _errors(errors) for key, errors in (said.get("node_errors") or {}).items()}
        outcome = Outcome(left_out=dropped)
        for kind, data in found["status"]["messages"]:
            if kind == "execution_error":
                outcome.failed = f"node {data['node_id']} ({data['node_type']}): "
                outcome.failed += data["exception_message"].strip()
        for key, shown in found["outputs"].items():
            if api[key]["class_type"] in SHOWN:
                continue
            made = [(_name(p), self._picture(p)) for p in shown.get("images", [])]
            outcome.outputs[key] = made + list(shown.get("text", []))
        for key, node in api.items():
            if node["class_type"] == "PriorArtSaveEmbeddings" and _ran(outcome, key):
                name = f"{node['inputs']['name']}.safetensors"
                place = {"filename": name, "subfolder": "image_embeds", "type": "output"}
                try:
                    outcome.outputs[key] = [_rows(self.view(place))]
                except urllib.error.HTTPError:
                    continue
        return outcome

    def _picture(self, place: dict[str, Any]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.view(place))))


def _ran(outcome: Outcome, key: str) -> bool:
    return not outcome.failed and key not in outcome.left_out


def _rows(data: bytes) -> np.ndarray:
    from safetensors.numpy import load

    return load(data)["image_embeds"]


def _name(place: dict[str, Any]) -> str:
    """A picture's name without its number, which depends on what ran before."""
    if place["type"] == "temp":
        return "preview"
    return re.sub(r"_\d+_\.png$", "", f"{place['subfolder']}/{place['filename']}".strip("/"))


def _errors(node: dict[str, Any]) -> str:
    return "; ".join(f"{e['type']} {e['details']}" for e in node["errors"])


def _reasons(answer: dict[str, Any]) -> str:
    said = [answer["error"]["type"] if isinstance(answer.get("error"), dict) else str(answer)]
    for key, node in (answer.get("node_errors") or {}).items():
        said.append(f"{key} ({node['class_type']}): {_errors(node)}")
    return " | ".join(said)


class Headless:
    """The runner of the embedded host, which notes what each output node shows."""

    def __init__(self, pictures: Path, scratch: Path) -> None:
        from prior_art.headless.runner import node_classes
        from prior_art.host.embedded import door as embedded

        self.pictures, self.scratch = pictures, scratch
        self.now, self.shown = "", {}
        self.warnings: list[str] = []
        embedded.session.on_warning = self.warnings.append
        self.nodes = dict(node_classes())
        for name in ("SaveImage", "PreviewImage", "PreviewAny"):
            self.nodes[name] = self._noted(self.nodes[name])

    def _noted(self, node: Any) -> Any:
        headless = self

        class Noted(node):
            @classmethod
            def execute(cls, **inputs: Any) -> Any:
                out = super().execute(**inputs)
                for kind, values in out.ui.items():
                    headless.shown.setdefault(headless.now, []).extend(
                        (kind, value) for value in values
                    )
                return out

        return Noted

    def run(self, workflow: dict[str, Any], api: dict[str, Any]) -> Outcome:
        """One graph, in an empty output folder.

        Args:
            workflow: of either format.
            api: what the editor queues of it, to know its nodes by.
        """
        from prior_art.headless.runner import NodeError, Runner
        from prior_art.headless.workflow import WorkflowError

        out = self.scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        self.shown, self.now = {}, ""
        self.warnings.clear()

        def begun(key: str, title: str) -> None:
            self.now = key

        runner = Runner(self.nodes, out, self.pictures, keep=False, on_node=begun)
        try:
            run = runner.run(json.loads(json.dumps(workflow)))  # as a file would come
        except WorkflowError as error:
            return Outcome(refused=str(error))
        except NodeError as error:
            return Outcome(failed=str(error))
        outcome = Outcome(left_out=dict(getattr(run, "left_out", None) or {}))
        for key, shown in self.shown.items():
            made: list[Any] = []
            for kind, value in shown:
                if kind != "images":
                    made.append(value)
                    continue
                with Image.open(value) as picture:
                    levels = np.asarray(picture)
                relative = Path(value).relative_to(out).as_posix()
                name = re.sub(r"_\d+_\.png$", "", relative)
                made.append(("preview" if relative.startswith("previews/") else name, levels))
            outcome.outputs[key] = made
        for key, node in api.items():
            kept = out / "image_embeds" / f"{node['inputs'].get('name')}.safetensors"
            if node["class_type"] == "PriorArtSaveEmbeddings" and kept.is_file():
                outcome.outputs[key] = [_rows(kept.read_bytes())]
        return outcome


NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?|-?\d+e-?\d+")


def _texts_differ(one: str, other: str) -> bool:
    """Whether two texts differ by more than the rounding of the numbers in them."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return True
    numbers = [np.array([float(n) for n in NUMBER.findall(text)]) for text in (one, other)]
    return not np.allclose(*numbers, rtol=1e-3, atol=2e-3)


def compare(host: Outcome, ours: Outcome, api: dict[str, Any]) -> Verdict:
    """How the runner's outcome compares to ComfyUI's."""
    theirs, mine = host.refused or host.failed, ours.refused or ours.failed
    if theirs and mine:
        return Verdict(BOTH_REFUSE, f"host: {theirs} || headless: {mine}")
    if mine:
        named = BY_NAME if ours.refused else ON_THE_WAY
        kind = named if names_a_node(mine, api) else DIFFERENT
        return Verdict(kind, f"headless alone refuses: {mine}")
    if theirs:
        return Verdict(DIFFERENT, f"ComfyUI alone refuses: {theirs}")
    made = {key for key, shown in host.outputs.items() if shown}
    ours_made = {key for key, shown in ours.outputs.items() if shown}
    if made != ours_made:
        why = f"outputs of {sorted(made)} against {sorted(ours_made)}, host left out"
        return Verdict(DIFFERENT, f"{why} {host.left_out}, headless {ours.left_out}")
    far = 0
    for key in sorted(made):
        first, second = host.outputs[key], ours.outputs[key]
        if len(first) != len(second):
            return Verdict(DIFFERENT, f"node {key}: {len(first)} outputs against {len(second)}")
        for one, other in zip(first, second, strict=True):
            if isinstance(one, tuple):
                if not isinstance(other, tuple) or one[0] != other[0]:
                    said = other[0] if isinstance(other, tuple) else other
                    return Verdict(DIFFERENT, f"node {key}: named {one[0]!r} against {said!r}")
                if one[1].shape != other[1].shape:
                    sizes = f"{one[1].shape} against {other[1].shape}"
                    return Verdict(DIFFERENT, f"node {key}: pictures of {sizes}")
                apart = np.abs(one[1].astype(int) - other[1].astype(int))
                far = max(far, int(apart.max()))
                if apart.max() > LEVELS:
                    share = (apart > LEVELS).mean()
                    why = f"node {key}: up to {apart.max()} levels apart, {share:.1%} of them"
                    return Verdict(DIFFERENT, why, far)
            elif isinstance(one, np.ndarray):
                scale = max(1e-6, float(np.abs(one).max()))
                if one.shape != other.shape or float(np.abs(one - other).max()) > 1e-3 * scale:
                    return Verdict(DIFFERENT, f"node {key}: other embeddings")
            elif _texts_differ(str(one), str(other)):
                return Verdict(DIFFERENT, f"node {key}: text {one!r} against {other!r}")
    return Verdict(SAME, far=far)


def names_a_node(message: str, api: dict[str, Any]) -> bool:
    """Whether a message names one of the graph's nodes by its id and class, and ComfyUI as what can
    do it: a graph that the runner takes for broken is no such refusal."""
    return "ComfyUI" in message and any(
        re.search(rf"\bnode {re.escape(key)}\b", message) and node["class_type"] in message
        for key, node in api.items()
    )


@dataclass
class Report:
    """What was covered, and what differed.

    Attributes:
        nodes, features: how many graphs had them.
        kinds: how many graphs ended so.
        listed: name, verdict of what is no plain agreement.
        far: largest distance of pictures that agree.
        seconds: on the host, and headless.
    """

    nodes: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, Verdict]] = field(default_factory=list)
    pictures: int = 0
    far: int = 0
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def different(self) -> list[tuple[str, Verdict]]:
        return [one for one in self.listed if one[1].kind == DIFFERENT]

    def text(self, all_refusals: bool = False) -> str:
        """The whole report, as it is printed."""
        lines = [f"{sum(self.kinds.values())} graphs: {_counted(self.kinds)}"]
        lines.append(f"{self.pictures} pictures compared, at most {self.far} of 255 levels apart")
        lines.append(f"seconds: {self.seconds[0]:.0f} in ComfyUI, {self.seconds[1]:.0f} headless")
        lines.append(f"nodes: {_counted(self.nodes)}")
        lines.append(f"features: {_counted(self.features)}")
        for kind in (BY_NAME, ON_THE_WAY, BOTH_REFUSE, DIFFERENT):
            if kind == BOTH_REFUSE and not all_refusals:
                continue
            lines += [f"{name} {kind}: {v.why}" for name, v in self.listed if v.kind == kind]
        return "\n".join(lines)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def sweep(
    host: Host,
    headless: Headless,
    names: Iterable[tuple[int, int]],
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Send graphs to both sides.

    Args:
        names: (seed, number) of each.
        keep: where to write the graphs that differ.
        tell: called with a line for each graph that differs, at once.
    """
    graphs.write_pictures(headless.pictures)
    for path in sorted(headless.pictures.iterdir()):
        host.send_picture(path)
    info = host.get("/object_info")
    report = Report()
    for seed, number in names:
        case = graphs.draw(seed, number, info)
        begun = time.perf_counter()
        theirs = host.run(case.api)
        between = time.perf_counter()
        ours = headless.run(case.saved or case.api, case.api)
        ended = time.perf_counter()
        verdict = compare(theirs, ours, case.api)
        if verdict.kind == DIFFERENT and case.saved:
            queued = compare(theirs, headless.run(case.api, case.api), case.api)
            if queued.kind != DIFFERENT:
                verdict.why = f"as saved, not as queued: {verdict.why}"
        report.seconds[0] += between - begun
        report.seconds[1] += ended - between
        report.nodes.update(sorted(set(case.nodes)))
        report.features.update(sorted(set(case.features)))
        report.kinds[verdict.kind] += 1
        if verdict.kind == SAME:
            report.far = max(report.far, verdict.far)
            shown = [one for made in theirs.outputs.values() for one in made]
            report.pictures += sum(isinstance(one, tuple) for one in shown)
        else:
            report.listed.append((case.name, verdict))
        if verdict.kind == DIFFERENT:
            tell(f"{case.name}: {verdict.why}")
        if keep is not None and verdict.kind == DIFFERENT:
            keep.mkdir(parents=True, exist_ok=True)
            stem = case.name.replace("/", "-")
            (keep / f"{stem}.api.json").write_text(json.dumps(case.api, indent=1))
            if case.saved:
                (keep / f"{stem}.json").write_text(json.dumps(case.saved, indent=1))
    return report


@contextmanager
def _started() -> Iterator[str]:
    """The ComfyUI that the host tests would take."""
    from .conftest import HostPaths, host_environment, start_comfy, stop_comfy

    try:
        folder, _ = found_host()
    except LookupError as error:
        raise SystemExit(
            f"no ComfyUI to start: {error}. Set COMFYUI_PATH and COMFYUI_PYTHON"
        ) from None
    paths = HostPaths(folder, python_of(folder), host_environment())
    with tempfile.TemporaryDirectory() as base:
        comfy = start_comfy(paths, Path(base))
        try:
            yield comfy.url
        finally:
            stop_comfy(comfy)


@contextmanager
def _running(url: str) -> Iterator[str]:
    yield url


def main() -> int:
    """The command; 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.host.differential", description=__doc__)
    add = parser.add_argument
    add("--cases", type=int, default=150, help="how many graphs (150)")
    add("--seed", type=int, default=1, help="which (1)")
    add("--first", type=int, default=0, help="the number of the first (0)")
    add("--only", metavar="SEED/NUMBER", help="one graph, as a report names it")
    add("--host", metavar="URL", help="a running ComfyUI with the pack; else one is started")
    add("--keep", type=Path, metavar="DIR", help="write the graphs that differ")
    add("--refusals", action="store_true", help="list what both refuse, too")
    options = parser.parse_args()
    names = [(options.seed, options.first + number) for number in range(options.cases)]
    if options.only:
        names = [tuple(map(int, options.only.split("/")))]
    with (
        _running(options.host) if options.host else _started() as url,
        tempfile.TemporaryDirectory() as scratch,
    ):
        headless = Headless(Path(scratch) / "input", Path(scratch))
        report = sweep(
            Host(url), headless, names, options.keep, lambda line: print(line, flush=True)
        )
    print(report.text(options.refusals))
    return bool(report.different)


if __name__ == "__main__":
    sys.exit(main())
