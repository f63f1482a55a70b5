"""The host's door, checked inside the host's own Python (see in_process.py)."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow]

SCRIPTS = (
    *("in_process.py", "kandinsky_in_process.py", "koala_in_process.py"),
    *("unclip_in_process.py", "places_in_process.py", "core_in_process.py"),
    *("memory_in_process.py", "compile_in_process.py"),
)
STAGES = (
    *("text_encoder", "image_encoder", "prior", "decoder", "upscaler"),
    *("vqgan", "ar_transformer"),
)


def checks_in(script: str) -> list[str]:
    """Functions without arguments that return None: the checks, and nothing else, are such."""
    return [
        node.name
        for node in ast.parse(Path(__file__).with_name(script).read_text()).body
        if isinstance(node, ast.FunctionDef)
        and not node.args.args
        and ast.unparse(node.returns or ast.Constant(0)) == "None"
    ]


CHECKS = [(SCRIPTS[0], f"{kind}_{s}") for kind in ("swap", "half", "partial") for s in STAGES]
CHECKS += [(script, check) for script in SCRIPTS for check in checks_in(script)]


@pytest.fixture(scope="session")
def results(host_paths, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What every check of every script said: "ok" or a traceback."""
    said = {}
    for script in SCRIPTS:
        work = tmp_path_factory.mktemp("in_process")
        path = Path(__file__).with_name(script)
        done = subprocess.run(
            [str(host_paths.python), str(path), str(host_paths.folder), str(work)],
            capture_output=True,
            text=True,
            timeout=900,  # of a busy machine
            env=host_paths.env,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        said[script] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize(("script", "check"), CHECKS)
def test_in_process(results: dict[str, dict[str, str]], script: str, check: str) -> None:
    assert results[script].get(check, "did not run") == "ok"


def test_every_check_is_listed(results: dict[str, dict[str, str]]) -> None:
    ran = {(script, check) for script, checks in results.items() for check in checks}
    assert ran == set(CHECKS)
