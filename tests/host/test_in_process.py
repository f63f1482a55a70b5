"""The host's door, checked inside the host's own Python (see in_process.py)."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("in_process.py")
STAGES = (
    *("text_encoder", "image_encoder", "prior", "decoder", "upscaler"),
    *("vqgan", "ar_transformer"),
)
CHECKS = [f"{kind}_{stage}" for kind in ("swap", "half", "partial") for stage in STAGES] + [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef)
    and not node.args.args
    and ast.unparse(node.returns or ast.Constant(0)) == "None"
    and node.name != "main"
]


@pytest.fixture(scope="session")
def results(host_paths, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every check said: "ok" or a traceback."""
    work = tmp_path_factory.mktemp("in_process")
    done = subprocess.run(
        [str(host_paths.python), str(SCRIPT), str(host_paths.folder), str(work)],
        capture_output=True,
        text=True,
        timeout=300,
        env=host_paths.env,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_in_process(results: dict[str, str], check: str) -> None:
    assert results.pop(check, "did not run") == "ok"


def test_every_check_is_listed(results: dict[str, str]) -> None:
    assert not set(results) - set(CHECKS)
