"""What is said at the end of every run of the tests."""

from __future__ import annotations

from typing import Any

from .host.finding import found_host


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
