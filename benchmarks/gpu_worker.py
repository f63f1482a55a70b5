"""Does jobs of benchmarks/gpu.py one after the other, which starts it; also in ComfyUI's Python.

A job's outcome is written before the next begins. One that hangs ends the process, and so does a
fault after which the device does not answer: what is left is then done by another.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_table import COMPILED, CUT, HOST, PLAIN, Job, Table

EXPECTED = {PLAIN: 12, HOST: 15, COMPILED: 45}
"""Seconds that a job is given at least: with less it is not begun."""

LONGEST = {PLAIN: 90, HOST: 90, COMPILED: 150}
"""After so many on a GPU it hangs."""

LATE = 10
"""What a job that was begun in time may go beyond the end."""

BROKEN = 3
"""The exit status of a process whose device does not answer any more."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--until", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--comfy", type=Path)
    return parser.parse_args()


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """End the process if what is done here takes longer, and say where it stood."""
    faulthandler.dump_traceback_later(max(1.0, seconds), exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def do(
    args: argparse.Namespace,
    work: Callable[[Job], dict[str, Any]],
    tidy: Callable[[], None],
    is_well: Callable[[], bool],
) -> None:
    """Do the jobs.

    Args:
        work: the columns of a job; ``tidy`` gives back what it held; ``is_well`` tells whether the
            device answers.
    """
    table = Table(args.table, args.size).read()
    for job in map(Job.parse, args.jobs.split(",")):
        left = args.until - time.time()
        if left < EXPECTED[job.kind]:
            table.settle(job, {"dropped": f"{left:.0f} s were left"})
            continue
        print(f"{job}, {left:.0f} s left", flush=True)
        table.settle(job, {"error": CUT})
        begun = time.time()
        with watched(min(LONGEST[job.kind] if args.device == "cuda" else left, left + LATE)):
            try:
                found = work(job)
            except Exception as error:
                traceback.print_exc()
                traceback.clear_frames(error.__traceback__)  # they hold networks
                lines = str(error).strip().splitlines() or [""]
                found = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
            table.settle(job, found)
            print(f"{job}: {time.time() - begun:.1f} s: {found}", flush=True)
            try:
                tidy()
            except Exception:
                traceback.print_exc()
            if not is_well():
                sys.exit(BROKEN)


def check_device(device: str) -> None:
    """End the process where there is no such device; a CPU computes with one thread.

    Raises:
        SystemExit: there is none.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here")


def main() -> None:
    args = parse()
    with watched(args.until - time.time() + LATE):
        import torch
        from gpu_works import DTYPES, card_is_well, measured, tidy

        check_device(args.device)
    do(
        args,
        lambda job: measured(job, args.size, args.device, DTYPES[args.device]),
        lambda: tidy(torch.device(args.device)),
        lambda: card_is_well(args.device),
    )


if __name__ == "__main__":
    main()
