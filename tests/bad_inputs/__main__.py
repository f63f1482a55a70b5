"""Counts what comes of bad inputs.

    python -m tests.bad_inputs --cases 20000 --seed 1
    python -m tests.bad_inputs --only 1/132            # one, with its traceback
    python -m tests.bad_inputs --cases 500 --host http://127.0.0.1:8188

A case that hangs or takes too much memory ends the process that runs it, and the next one goes on
behind it. A machine may be busy: a hang is ten seconds of the processor's time or a minute, and
twice, the second time in a process of its own. ``compile`` is traced and run, but not compiled,
which would take a minute each time; a ComfyUI for ``--host`` is started with
``TORCH_COMPILE_DISABLE=1``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..host import differential
from ..host.differential import Headless, Host
from . import judging
from .cases import Case, Cases

PAGE = os.sysconf("SC_PAGE_SIZE")
HUNG, ATE = 71, 72
"""Exit codes of a worker that ended itself."""

BUSY = 6
"""How many times as long a case may take as the processor works for it."""


def main() -> int:
    """The command; 1 where something is unclear, silent, hangs or takes all memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.bad_inputs", description=__doc__)
    add = parser.add_argument
    add("--cases", type=int, default=1000, help="how many (1000)")
    add("--seed", type=int, default=1, help="which (1)")
    add("--first", type=int, default=0, help="the number of the first (0)")
    add("--only", metavar="SEED/NUMBER", help="one case, as a report names it")
    add("--host", metavar="URL", help="a running ComfyUI with the pack: the same cases there too")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        options.seed, options.first = map(int, options.only.split("/"))
        options.cases = 1
    if options.worker or options.only:
        return work(options)
    counts: Counter[str] = Counter()
    for line in results(options.seed, options.first, options.cases, options.host):
        counts[line["word"]] += 1
        if counts.total() % 500 == 0:
            print(f"{counts.total()} so far", file=sys.stderr, flush=True)
        if line["word"] not in (judging.RIGHT, judging.CLEAR):
            print(f"{line['name']} {line['word']}: {line['what']}: {line['said']}", flush=True)
    print(f"{sum(counts.values())} cases: {', '.join(f'{counts[w]} {w}' for w in judging.WORDS)}")
    return any(counts[word] for word in judging.WORDS[2:])


def results(seed: int, first: int, count: int, host: str | None = None) -> Iterator[dict[str, Any]]:
    """What came of each case: ``name``, ``what``, ``word``, ``said``."""
    end = first + count
    while first < end:
        for line in _worker(seed, first, end - first, host):
            if line["word"] == judging.HANG:  # the machine may have had other things to do
                (line,) = _worker(seed, first, 1, host)
            first += 1
            yield line


def _worker(seed: int, first: int, count: int, host: str | None) -> Iterator[Any]:
    """The lines of a process that runs cases, up to one that ended it.

    Raises:
        RuntimeError: it ended before its time in another way.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.bad_inputs", "--worker"]
    command += ["--seed", str(seed), "--first", str(first), "--cases", str(count)]
    command += ["--host", host] if host else []
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PRIOR_ART_HOST": "embedded"}
    begun: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as worker:
        for line in filter(lambda line: line.startswith(b"{"), worker.stdout or ()):
            said = json.loads(line)
            if "word" in said:
                yield said
                count -= 1
            begun = {} if "word" in said else said
    if worker.returncode in (HUNG, ATE) and begun:
        word = judging.HANG if worker.returncode == HUNG else judging.MEMORY
        yield {**begun, "word": word, "said": ""}
    elif worker.returncode or count:
        raise RuntimeError(f"a worker ended with {worker.returncode} at {begun}")


def work(options: argparse.Namespace) -> int:
    """Run cases one after another and say what came of each, a line of JSON each."""
    os.environ["PRIOR_ART_HOST"] = "embedded"
    import torch

    from prior_art.headless.runner import Runner
    from prior_art.host.embedded.session import session

    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="eager")
    sys.addaudithook(_opened)
    session.on_warning = lambda message: None
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Path(folder), options.seed)
        os.chdir(folder)
        runner = Runner(cases.nodes, Path(folder) / "out", cases.pictures)
        watch = Watch()
        host = headless = None
        if options.host:
            host, headless = Host(options.host), Headless(cases.pictures, Path(folder) / "there")
            for path in sorted(cases.pictures.iterdir()):
                host.send_picture(path)

        def runs(prompt: Any) -> bool:
            try:
                return not runner.run(json.loads(json.dumps(prompt))).left_out
            except Exception:
                return False

        for case in cases.draw(options.first, options.cases, runs):
            print(json.dumps({"name": case.name, "what": case.what}), flush=True)
            with watch:
                verdict = one(runner, case, bool(options.only))
            if host is not None and verdict.word in (judging.RIGHT, judging.CLEAR):
                verdict = there(host, headless, case) or verdict
            print(
                json.dumps(
                    {"name": case.name, "what": case.what, "word": verdict.word}
                    | {"said": verdict.said}
                ),
                flush=True,
            )
    return 0


def one(runner: Any, case: Case, shown: bool = False) -> judging.Verdict:
    """What comes of a case headless."""
    if case.prepare is not None:
        case.prepare()
    OPENED.clear()
    try:
        run = runner.run(json.loads(json.dumps(case.workflow)))
    except Exception as error:
        if shown:
            import traceback

            traceback.print_exc()
        return judging.of_error(case, error)
    return judging.of_run(case, run, OPENED)


OPENED: set[str] = set()
"""Files that were opened for the running case."""


def _opened(event: str, given: tuple[Any, ...]) -> None:
    if event != "open" or not str(given[0]).endswith(".json"):
        return
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("catalogue.py"):
            return  # to be listed is not to be used
        frame = frame.f_back
    OPENED.add(str(given[0]))


def there(host: Host, headless: Headless, case: Case) -> judging.Verdict | None:
    """What comes of a case in a running ComfyUI, if it is worse than headless: an error of a node
    of this pack that is unclear, or another result than the runner's, which never refused it."""
    if case.kind not in ("widget", "wire"):
        return None  # objects and files are not there
    native = not case.workflow[case.touched]["class_type"].startswith("PriorArt")
    if case.kind == "wire" and case.bad and native:
        return None  # ComfyUI bounds no wires: its own nodes take a million pictures
    try:
        theirs = host.run(case.workflow, timeout=judging.SECONDS * BUSY)
    except TimeoutError:
        host.interrupt()
        return judging.Verdict(judging.HANG, "in ComfyUI")
    except (OSError, http.client.HTTPException):
        return None  # its own server stumbles: over a picture's name, say
    ours = headless.run(case.workflow, case.workflow)
    found = differential.compare(theirs, ours, case.workflow)
    if theirs.failed and "(PriorArt" in theirs.failed:
        judged = judging.of_text(case, theirs.failed)
        return judged if judged.word == judging.UNCLEAR else None
    refused = theirs.refused or theirs.failed or ours.refused or ours.failed or ours.left_out
    if found.kind == differential.DIFFERENT and not refused:
        return judging.Verdict(judging.SILENT, f"in ComfyUI otherwise: {found.why}")
    return None


class Watch:
    """Ends the process where what is inside takes too long or too much memory."""

    def __init__(self) -> None:
        self._begun: tuple[float, float] | None = None
        self._base = 0
        threading.Thread(target=self._look, daemon=True).start()

    def __enter__(self) -> None:
        self._base, self._begun = _memory(), (time.monotonic(), time.process_time())

    def __exit__(self, *_: object) -> None:
        self._begun = None

    def _look(self) -> None:
        while True:
            time.sleep(0.02)
            begun = self._begun
            if begun is None:
                continue
            took, worked = time.monotonic() - begun[0], time.process_time() - begun[1]
            if max(worked, took / BUSY) > judging.SECONDS:
                os._exit(HUNG)
            if _memory() - self._base > judging.BYTES:
                os._exit(ATE)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


if __name__ == "__main__":
    sys.exit(main())
