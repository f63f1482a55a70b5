"""A real ComfyUI, started once a session with the pack linked into its custom_nodes."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from .finding import found_host, python_of
from .serving import OTHER, SOURCE

PACK = Path(__file__).resolve().parents[2]
START_SECONDS = 180
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class HostPaths:
    """Where a ComfyUI is, the Python that runs it and the environment to run it in."""

    folder: Path
    python: Path
    env: dict[str, str]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py, whose ``tiny_karlo(folder)`` writes a miniature Karlo in the hub's layout."""
    spec = importlib.util.spec_from_file_location("tiny", PACK / "tests" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def host_environment() -> dict[str, str]:
    """The environment for a host's processes.

    One thread: tiny networks gain nothing from more, and OpenMP's spinning threads slow down a
    busy machine tenfold.
    """
    env = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    env.pop("PRIOR_ART_HOST", None)
    return env


@pytest.fixture(scope="session")
def host_paths() -> HostPaths:
    """The ComfyUI named by COMFYUI_PATH, or the first of :data:`.finding.FOLDERS`."""
    try:
        folder, _ = found_host()
    except LookupError as error:
        if os.environ.get("COMFYUI_PATH"):
            pytest.fail(f"COMFYUI_PATH names no ComfyUI that runs: {error}", pytrace=False)
        pytest.skip(
            f"no ComfyUI to test against: {error}. Set COMFYUI_PATH and COMFYUI_PYTHON to run"
            " these tests"
        )
    return HostPaths(folder, python_of(folder), host_environment())


@dataclass
class Run:
    """One prompt's way through the host, as a browser sees it."""

    prompt_id: str
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[tuple[str, Image.Image]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of every event of one kind."""
        return [data for name, data in self.events if name == kind]

    def steps(self, node: str) -> list[tuple[int, int]]:
        """(value, max) of every progress message of a node."""
        return [(d["value"], d["max"]) for d in self.of("progress") if d["node"] == node]

    @property
    def error(self) -> str | None:
        """What execution_error said, or ``None``."""
        errors = self.of("execution_error")
        return errors[0]["exception_message"] if errors else None


class Comfy:
    """A running ComfyUI and a client of it."""

    def __init__(self, base: Path, port: int, log: Path, process: subprocess.Popen) -> None:
        self.base, self.port, self.log, self.process = base, port, log, process
        self.url = f"http://127.0.0.1:{port}"

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON (or ``None``) of a POST."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(data).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body) if body else None

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def run(
        self,
        graph: dict[str, Any],
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        timeout: float = 120,
    ) -> Run:
        """Queue a prompt in API format and follow it to its end."""
        import websocket

        client = uuid.uuid4().hex
        socket_ = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=timeout
        )
        try:
            features = {"supports_preview_metadata": True}
            socket_.send(json.dumps({"type": "feature_flags", "data": features}))
            status, answer = self.post("/prompt", {"prompt": graph, "client_id": client})
            assert status == 200, json.dumps(answer, indent=1)
            run = Run(answer["prompt_id"])
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                message = socket_.recv()
                if isinstance(message, bytes):
                    _binary(run, message)
                    continue
                event = json.loads(message)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") not in (None, run.prompt_id):
                    continue
                run.events.append((kind, data))
                if on_event:
                    on_event(kind, data)
                if kind == "executing" and data["node"] is None and "prompt_id" in data:
                    break
                if kind in ("execution_error", "execution_interrupted"):
                    break
            else:
                raise TimeoutError(f"the prompt took longer than {timeout} s")
        finally:
            socket_.close()
        for _ in range(100):
            run.history = self.get(f"/history/{run.prompt_id}").get(run.prompt_id, {})
            if run.history:
                break
            time.sleep(0.05)
        return run

    def refused(self, graph: dict[str, Any]) -> Any:
        """What the server says of a prompt that it does not accept."""
        status, answer = self.post("/prompt", {"prompt": graph})
        assert status == 400, (status, answer)
        return answer

    def pictures(self, run: Run, node: str) -> list[Image.Image]:
        """The pictures that a Save or Preview Image node of a run wrote."""
        found = []
        for image in run.history["outputs"][node]["images"]:
            query = urllib.parse.urlencode(image)
            with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
                found.append(Image.open(io.BytesIO(answer.read())).convert("RGB"))
        return found

    def alive(self) -> bool:
        return self.process.poll() is None and bool(self.get("/system_stats"))


def _binary(run: Run, message: bytes) -> None:
    """A preview picture, with the node that made it where the host tells, or a text."""
    (kind,) = struct.unpack(">I", message[:4])
    if kind == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack(">I", message[4:8])
        metadata = json.loads(message[8 : 8 + length])
        picture = Image.open(io.BytesIO(message[8 + length :]))
        run.previews.append((metadata["node_id"], picture))
    elif kind == PREVIEW:
        run.previews.append(("", Image.open(io.BytesIO(message[8:]))))
    elif kind == 3:
        (length,) = struct.unpack(">I", message[4:8])
        run.texts.append(message[8 + length :].decode())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_comfy(paths: HostPaths, base: Path, *options: str) -> Comfy:
    """Start a ComfyUI on ``base`` with the pack linked in, and wait until it answers."""
    for name in ("custom_nodes", "input", "output", "models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "ComfyUI-PriorArt"
    if not link.exists():
        link.symlink_to(PACK, target_is_directory=True)
    port, log = free_port(), base / "comfy.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                str(paths.python),
                str(paths.folder / "main.py"),
                "--cpu",
                *("--port", str(port)),
                *("--base-directory", str(base)),
                *("--database-url", "sqlite:///:memory:"),
                "--disable-api-nodes",
                "--disable-all-custom-nodes",
                *("--whitelist-custom-nodes", "ComfyUI-PriorArt"),
                *("--preview-method", "latent2rgb"),
                *options,
            ],
            cwd=base,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=paths.env,
        )
    comfy = Comfy(base, port, log, process)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            comfy.get("/system_stats")
            return comfy
        except OSError:
            time.sleep(0.3)
    stop_comfy(comfy)
    raise RuntimeError(f"ComfyUI did not start:\n{comfy.log_text()[-4000:]}")


def stop_comfy(comfy: Comfy) -> None:
    comfy.process.terminate()
    try:
        comfy.process.wait(15)
    except subprocess.TimeoutExpired:
        comfy.process.kill()
        comfy.process.wait(15)


@pytest.fixture(scope="session")
def launch(host_paths: HostPaths) -> Callable[..., AbstractContextManager[Comfy]]:
    """``with launch(base, *options) as comfy``: a ComfyUI on its own folder."""

    @contextmanager
    def launched(base: Path, *options: str) -> Iterator[Comfy]:
        running = start_comfy(host_paths, base, *options)
        try:
            yield running
        finally:
            stop_comfy(running)

    return launched


@pytest.fixture(scope="session")
def comfy(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """One ComfyUI for the whole session."""
    with launch(tmp_path_factory.mktemp("comfy")) as running:
        yield running


@pytest.fixture(scope="module")
def page(comfy: Comfy) -> Iterator[Any]:
    """The editor in headless Chromium, ready for a graph."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install Debian's package chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1720, "height": 900})
        page.goto(comfy.url)
        page.wait_for_function("() => window.app && window.app.graph", timeout=120_000)
        page.wait_for_selector("canvas#graph-canvas", timeout=60_000)
        page.wait_for_timeout(3000)
        page.keyboard.press("Escape")
        yield page
        browser.close()


@pytest.fixture(scope="module", params=["canvas", "vue"])
def editor(request: pytest.FixtureRequest, comfy: Comfy, page: Any) -> Iterator[Any]:
    """The editor in each of its two ways to draw nodes."""
    vue = request.param == "vue"
    if vue and comfy.get("/system_stats")["system"]["comfyui_version"].startswith("0.3."):
        pytest.skip("this editor draws nodes on its canvas only")
    choose = "vue => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    page.evaluate(choose, vue)
    page.wait_for_timeout(500)
    yield page
    page.evaluate(choose, False)


@pytest.fixture
def picture_to_load(comfy: Any) -> None:
    """What the templates load: a red circle on blue, as the family draws it; its lower half masked
    as the mask editor does it. For each test anew, as others put others there."""
    picture = Image.new("RGB", (64, 64), (40, 60, 220))
    for x in range(64):
        for y in range(64):
            if (x - 32) ** 2 + (y - 32) ** 2 < 20**2:
                picture.putpixel((x, y), (220, 40, 40))
    picture.putalpha(Image.new("L", (64, 32), 255).crop((0, 0, 64, 64)))
    picture.save(comfy.base / "input" / "example.png")


@pytest.fixture(scope="session")
def karlo_weights(comfy: Comfy, tiny: ModuleType) -> None:
    """A miniature Karlo under the host's models/prior_art, and one of another embedding space."""
    folder = comfy.base / "models" / "prior_art"
    tiny.tiny_karlo(folder / SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.TEXT, "projection_dim", 48)
        patch.setitem(tiny.VISION, "projection_dim", 48)
        tiny.tiny_karlo(folder / OTHER)
