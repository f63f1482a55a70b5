"""The whole table of what the stages take on a GPU: ours beside diffusers, plain and compiled.

    python benchmarks/gpu.py --json table.json

Published sizes with random weights, built on the device, fp16 (minDALL-E bf16). Both sides of a row
run in one process, alternating, each on weights of its own; medians after a warm-up. docs/
BENCHMARKS.md says what the columns are. Where COMFYUI_PATH names a ComfyUI, run by COMFYUI_PYTHON
or the environment in or beside it, the stages are run in it too.

Whatever goes wrong in a row is written into the row, and the rest goes on: the measuring is done by
other processes, which are started again where one ends. What does not fit into --minutes is left
out, the least important first, and named. --size embedded --device cpu runs all of it on the
embedded family's sizes, to see that it runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_table import COMPILED, CUT, HOST, WORKS, Job, Table, plan, told

HERE = Path(__file__).resolve().parent
HOST_SHARE = 0.35
"""Of the time, what ComfyUI gets at the most."""

GRACE = 20
"""Seconds that a process may take to end."""

ON_CPU = "karlo-prior@1:compiled"
"""The compiled peer that a CPU is asked for: it takes minutes to compile a U-Net."""

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Empty at first, or a first run would not be one."""


def host_command() -> tuple[list[str], str | None]:
    """What runs jobs in ComfyUI, or why nothing does."""
    if not os.environ.get("COMFYUI_PATH"):
        return [], "COMFYUI_PATH is not set"
    folder = Path(os.environ["COMFYUI_PATH"]).expanduser()
    named = os.environ.get("COMFYUI_PYTHON")
    beside = [root / "bin" / "python" for root in (folder / ".venv", folder / "venv")]
    beside.append(folder.parent / "venv" / "bin" / "python")
    pythons = [Path(named).expanduser()] if named else beside
    python = next((path for path in pythons if path.is_file()), None)
    if not (folder / "main.py").is_file() or python is None:
        return [], f"there is no ComfyUI in {folder}, or no Python for it"
    return [str(python), str(HERE / "gpu_host.py"), "--comfy", str(folder)], None


def run_jobs(
    command: list[str], jobs: list[Job], until: float, table: Table, args: argparse.Namespace
) -> None:
    """Have other processes do all these jobs, or as many as there is time for."""
    left = jobs
    while left:
        remaining = until - time.time()
        if remaining < GRACE:
            for job in left:
                table.settle(job, {"dropped": "there was no time left"})
            return
        table.write()
        given = ["--jobs", ",".join(map(str, left)), "--until", str(until), "--table"]
        given += [str(table.path), "--size", args.size, "--device", args.device]
        child = subprocess.Popen([*command, *given])
        try:
            code = child.wait(remaining + GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        table.read()
        if time.time() > until:
            for job in left:
                if table.row(job.name, job.batch)["error"].get(job.kind) == CUT:
                    table.settle(job, {"dropped": "the time was up while it ran"})
        ahead = left
        left = [job for job in left if not table.settled(job)]
        if left == ahead:  # none was begun, and none will be
            for job in left:
                table.settle(job, {"error": f"its process ended with {code} before it began"})
            return


def measure_all(names: list[str], table: Table, args: argparse.Namespace) -> None:
    """All jobs of these works: here, in ComfyUI, and what is less important here again."""
    start = time.time()
    until = start + 60 * args.minutes
    jobs = plan(names)
    if args.device == "cpu":
        for job in [job for job in jobs if job.kind == COMPILED and str(job) != ON_CPU]:
            table.settle(job, {"dropped": f"on a CPU only {ON_CPU} is done"})
            jobs.remove(job)
    hosted = [job for job in jobs if job.kind == HOST]
    first = jobs.index(hosted[0]) if hosted else len(jobs)
    here = [sys.executable, str(HERE / "gpu_worker.py")]
    run_jobs(here, jobs[:first], until, table, args)
    command, why = host_command()
    if why is None:
        end = min(until, time.time() + HOST_SHARE * 60 * args.minutes)
        run_jobs(command, hosted, end, table, args)
    else:
        for job in hosted:
            table.settle(job, {"dropped": why})
    run_jobs(here, jobs[first + len(hosted) :], until, table, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows here, after each")
    parser.add_argument("--size", choices=["published", "embedded"], default="published")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", help=f"of {','.join(WORKS)}")
    parser.add_argument("--minutes", type=float, default=8.0)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(WORKS)
    if set(names) - set(WORKS):
        parser.error(f"--only knows {','.join(WORKS)}")
    start = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        for name in CACHES:
            os.environ[name] = str(Path(scratch) / name.lower())
        path = args.json or Path(scratch) / "rows.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = Table(path.resolve(), args.size)
        measure_all(names, table, args)
        table.write()
        print(f"\n{told(table.rows)}\n{time.time() - start:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
