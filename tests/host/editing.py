"""What the tests do in ComfyUI's editor: open a template, press Run, look at a node's widget."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2]


def open_template(page: Any, name: str) -> None:
    graph = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    graph["extra"]["linearMode"] = False  # as a graph; as an app: test_apps.py
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.wait_for_timeout(1000)


def queued(page: Any, comfy: Any) -> dict[str, Any]:
    """What the host keeps of a run of the open graph, started with the editor's own button."""
    before = set(comfy.get("/history"))
    # By what a user reads on it; a menu of the same name may stand behind it.
    page.get_by_role("button", name="Run", exact=True).first.click()
    deadline = time.monotonic() + 240
    while not (new := set(comfy.get("/history")) - before):
        assert time.monotonic() < deadline, "no picture after 240 s"
        time.sleep(0.5)
    (run,) = (comfy.get("/history")[key] for key in new)
    assert run["status"]["status_str"] == "success", run["status"]
    return run


def node_by_type(page: Any, kind: str) -> Any:
    """A handle of the first node of a type in the open graph, moved into view at full size."""
    handle = page.evaluate_handle("kind => app.graph._nodes.find(n => n.type === kind)", kind)
    page.evaluate(
        """node => {
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [450 - node.pos[0], 120 - node.pos[1]];
            app.canvas.setDirty(true, true);
        }""",
        handle,
    )
    page.wait_for_timeout(800)
    return handle


def widget_value(page: Any, node: Any, name: str) -> Any:
    """What a widget of the node stores."""
    script = "([node, name]) => node.widgets.find(w => w.name === name).value"
    return page.evaluate(script, [node, name])


def wait_for_value(page: Any, kind: str, name: str, value: str) -> None:
    """Until a widget of the first node of a type stores this."""
    page.wait_for_function(
        """([kind, name, value]) => app.graph._nodes.find(n => n.type === kind)
            ?.widgets.find(w => w.name === name).value === value""",
        arg=[kind, name, value],
        timeout=20_000,
    )


def ran(run: dict[str, Any]) -> set[str]:
    """The nodes of a run that were not taken from the host's cache."""
    cached = {
        name
        for kind, data in run["status"]["messages"]
        if kind == "execution_cached"
        for name in data["nodes"]
    }
    return set(run["prompt"][2]) - cached
