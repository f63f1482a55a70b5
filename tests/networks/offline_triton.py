"""Triton's kernels without a GPU: run by its interpreter, and compiled for cards that are not here.

Both change Triton for good in the process that they are done in, so what they hold are files of
their own, ``<word>_in_interpreter.py`` and ``<word>_in_compiler.py``, which a test runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def passes(file: str, cache: Path, **environment: str) -> None:
    """Run a file of tests beside this one in a process of its own, and fail if any does."""
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            Path(__file__).with_name(file),
        ],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


class Compiled:
    """What launches have compiled for a card, instead of running.

    Attributes:
        kernels: name and seconds of each, by its hash.
        made: what Triton made.
    """

    def __init__(self, capability: int) -> None:
        """Makes every kernel be compiled for cards of this compute capability, 90 for 9.0."""
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction

        class Card:
            def get_current_target(self) -> GPUTarget:
                return GPUTarget("cuda", capability, 32)

            def get_current_device(self) -> int:
                return capability  # what is compiled is kept by device

            def get_current_stream(self, device: int) -> int:
                return 0

        self.kernels: dict[Any, tuple[str, float]] = {}
        self.made: list[Any] = []
        run = getattr(JITFunction.run, "of", JITFunction.run)

        def compile_alone(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            start = time.perf_counter()
            compiled = run(kernel, *args, grid=grid, warmup=True, **options)
            assert compiled.asm["cubin"]
            self.made.append(compiled)
            self.kernels.setdefault(
                compiled.hash, (kernel.fn.__name__, time.perf_counter() - start)
            )
            return compiled

        compile_alone.of = run
        JITFunction.run = compile_alone
        driver.set_active(Card())

    def names(self) -> list[str]:
        """One name for each variant of a kernel."""
        return sorted(name for name, _ in self.kernels.values())

    def seconds(self) -> float:
        """What compiling took."""
        return sum(seconds for _, seconds in self.kernels.values())
