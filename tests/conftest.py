"""What every test has, a cache folder that is nobody's; and what is said at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prior_art.host.embedded.door import CACHE_VARIABLE

from .host.finding import found_host


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the embedded host keeps what it has computed, instead of in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder / "prior_art"


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2 --dist loadgroup`: one of the processes has all that needs a host, which is
    started once. By folder, as xdist 3.8 cannot write a mark's group into pytest 9.2's ids."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class OneHost(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "host" if nodeid.startswith("tests/host/") else super()._split_scope(nodeid)

    return OneHost(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says which real ComfyUI was tested, and which was not."""
    reports = [r for of in terminalreporter.stats.values() for r in of if hasattr(r, "nodeid")]
    if not any(report.nodeid.startswith("tests/host/test_") for report in reports):
        return
    try:
        folder, others = found_host()
    except LookupError as error:
        terminalreporter.write_line(f"host tests: skipped, {error}")
    else:
        terminalreporter.write_line(f"host tests: {'; '.join([f'against {folder}', *others])}")
