"""What benchmarks/gpu.py measures, in which order, against which goals, and how it is told.

Nothing here needs torch: who watches over the measuring must not stand on the device. A row of the
table is a work at one batch; a job measures one kind of thing for it. Rows lie in a JSON file that
each job rewrites, so that nothing is lost with the process that measured it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLAIN, HOST, COMPILED = "plain", "host", "compiled"
CUT = "its process ended in it"
"""The error of a job that was begun, until it is done."""

FIRST_S = 3.0
"""What recording and compiling kernels may cost on a first run."""

HOST_RATIO = 1.1
"""What a stage in ComfyUI may take of what it takes without."""

LIMIT_RATIO = 2.0
"""Of the time that reading weights, keys and values takes."""

NEAR = 1.25
"""How much farther from fp32 than diffusers ours may end: both are samples of rounding."""

EXACT = 1e-5
"""Where both are in fp32: rounding, not an error."""


@dataclass(frozen=True)
class Goal:
    """What issue 17 asks for: ratios to diffusers plain and compiled, and seconds on an H200."""

    ratio: float | None = None
    compiled_ratio: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
        kinds: of jobs.
        steps: of its schedule; the embedded family takes :data:`FEW_STEPS`.
        pixels: a picture's edge, published and in the embedded family.
        goals: by batch.
    """

    title: str
    kinds: tuple[str, ...] = (PLAIN, HOST, COMPILED)
    steps: int | None = None
    pixels: dict[str, int] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 8)
    goals: dict[int, Goal] = field(default_factory=dict)

    def steps_at(self, size: str) -> int | None:
        """Of the schedule, if there is one."""
        return min(self.steps, FEW_STEPS) if self.steps and size == "embedded" else self.steps

    def said(self, size: str, batch: int) -> str:
        """The work in words."""
        parts = [self.title]
        parts += [f"{self.steps_at(size)} steps"] if self.steps else []
        parts += [f"{self.pixels[size]}px"] if self.pixels else []
        parts += [f"batch {batch}"] if batch > 1 else []
        return ", ".join(parts)


FEW_STEPS = 4

# The most important first.
WORKS: dict[str, Work] = {
    "karlo-decoder": Work("Karlo decoder", steps=25, goals={1: Goal(4, 1.15, 0.22)}),
    "karlo-prior": Work("Karlo prior", steps=25, goals={1: Goal(4, 1.2, 0.055)}),
    "karlo-sr": Work("Karlo SR", steps=7, goals={1: Goal(2.2, 1.1, 0.17)}),
    "koala-700m": Work(
        "KOALA-700M",
        steps=25,
        pixels={"published": 1024, "embedded": 64},
        goals={1: Goal(3.2, 1.15, 0.30)},
    ),
    "kandinsky-decoder": Work(
        "Kandinsky 2.2 decoder",
        steps=25,
        pixels={"published": 512, "embedded": 64},
        goals={1: Goal(3, 1.15, 0.23)},
    ),
    "movq-1024": Work(
        "MoVQ decode",
        pixels={"published": 1024, "embedded": 128},
        goals={1: Goal(1.8, 1.1, 0.073)},
    ),
    "mindalle": Work(
        "minDALL-E, a picture's tokens",
        kinds=(PLAIN, HOST),
        batches=(1, 16, 96),
        goals={1: Goal(10, None, 0.30), 16: Goal(seconds=0.38), 96: Goal(seconds=0.85)},
    ),
    "kandinsky-prior": Work("Kandinsky 2.2 prior", steps=25, goals={1: Goal(4, 1.2, 0.055)}),
    "koala-700m-sdxl": Work(
        "KOALA-700M against our SDXL",
        steps=25,
        kinds=(PLAIN,),
        pixels={"published": 1024, "embedded": 64},
        batches=(1,),
        goals={1: Goal(2.49)},
    ),
    "koala-1b-sdxl": Work(
        "KOALA-1B against our SDXL",
        steps=25,
        kinds=(PLAIN,),
        pixels={"published": 1024, "embedded": 64},
        batches=(1,),
        goals={1: Goal(1.95)},
    ),
    "movq-512": Work("MoVQ decode", pixels={"published": 512, "embedded": 64}, batches=(1,)),
}
KARLO = ("karlo-prior", "karlo-decoder", "karlo-sr")
WHOLE, KARLO_WHOLE = "karlo-whole", Work("Karlo 25/25/7", goals={1: Goal(3.2, 1.15, 0.45)})
"""The sum of :data:`KARLO`."""

COLUMNS = (
    *("work", "name", "batch", "size", "machine", "dtype"),
    *("ours_s", "peer_s", "ratio", "max_abs_diff", "ours_peak_mib", "peer_peak_mib"),
    *("ours_error", "peer_error", "first_s"),
    *("compiled_s", "compiled_ours_s", "compiled_ratio", "compile_s"),
    *("host_s", "host_first_s", "host_ratio", "limit_s"),
    *("goal_ratio", "goal_compiled_ratio", "goal_s", "reached", "error", "dropped"),
)


@dataclass(frozen=True)
class Job:
    """One kind of measurement of one work at one batch; written ``name@batch:kind``."""

    name: str
    batch: int
    kind: str

    def __str__(self) -> str:
        return f"{self.name}@{self.batch}:{self.kind}"

    @classmethod
    def parse(cls, text: str) -> Job:
        name, rest = text.split("@")
        batch, kind = rest.split(":")
        return cls(name, int(batch), kind)


def plan(names: list[str]) -> list[Job]:
    """All jobs of these works, the most important first."""
    works = {name: WORKS[name] for name in WORKS if name in names}
    first = {name: work.batches if name == "mindalle" else (1,) for name, work in works.items()}

    def jobs(kind: str, later: bool) -> Iterator[Job]:
        for name, work in works.items():
            for batch in work.batches:
                if kind in work.kinds and (batch not in first[name]) == later:
                    yield Job(name, batch, kind)

    hosted = [job for job in jobs(HOST, False) if job.batch == 1]
    return [
        *(*jobs(PLAIN, False), *hosted, *jobs(COMPILED, False)),
        *(*jobs(PLAIN, True), *jobs(COMPILED, True)),
    ]


class Table:
    """The rows so far, in a file."""

    def __init__(self, path: Path, size: str) -> None:
        self.path, self.size = path, size
        self.rows: list[dict[str, Any]] = []

    def read(self) -> Table:
        """With what another process has written there."""
        self.rows = json.loads(self.path.read_text())
        return self

    def row(self, name: str, batch: int) -> dict[str, Any]:
        """The row of a work at a batch; a new one has every column."""
        for row in self.rows:
            if (row["name"], row["batch"]) == (name, batch):
                return row
        work = WORKS.get(name, KARLO_WHOLE)
        goal = work.goals.get(batch, Goal())
        row = dict.fromkeys(COLUMNS) | {
            "work": work.said(self.size, batch),
            "name": name,
            "batch": batch,
            "size": self.size,
            "goal_ratio": goal.ratio,
            "goal_compiled_ratio": goal.compiled_ratio,
            "goal_s": goal.seconds,
            "reached": {},
            "error": {},
            "dropped": {},
        }
        self.rows.append(row)
        return row

    def settle(self, job: Job, found: dict[str, Any]) -> None:
        """What a job found: columns, or ``{"error": why}``, or ``{"dropped": why}``."""
        row = self.row(job.name, job.batch)
        row["error"].pop(job.kind, None)
        for why in ("error", "dropped"):
            if why in found:
                row[why][job.kind] = found.pop(why)
        row.update(found)
        self.write()

    def settled(self, job: Job) -> bool:
        """Whether this job was begun or given up."""
        row = self.row(job.name, job.batch)
        key = {PLAIN: "ours_s", HOST: "host_s", COMPILED: "compiled_s"}[job.kind]
        return row[key] is not None or job.kind in row["error"] or job.kind in row["dropped"]

    def write(self) -> None:
        """Judge the rows and write them, all or nothing."""
        for batch in (1, 8):
            parts = [self.row(name, batch) for name in KARLO if self._has(name, batch)]
            if len(parts) == len(KARLO):
                self.row(WHOLE, batch).update(whole(parts))
        order = [*KARLO, WHOLE, *WORKS]
        self.rows.sort(key=lambda row: (row["batch"] == 8, order.index(row["name"]), row["batch"]))
        for row in self.rows:
            judge(row)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.rows, indent=1) + "\n")
        beside.replace(self.path)

    def _has(self, name: str, batch: int) -> bool:
        return any((row["name"], row["batch"]) == (name, batch) for row in self.rows)


def whole(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Karlo's three stages one after the other: sums, and the largest peaks."""
    found: dict[str, Any] = {key: parts[0][key] for key in ("machine", "dtype")}
    for key in ("ours_s", "peer_s", "compiled_s", "compiled_ours_s", "host_s"):
        values = [part[key] for part in parts]
        found[key] = None if None in values else sum(values)
    for key in ("ours_peak_mib", "peer_peak_mib"):
        found[key] = max((part[key] for part in parts if part[key]), default=None)
    found["ratio"] = divided(found["peer_s"], found["ours_s"])
    found["compiled_ratio"] = divided(found["compiled_s"], found["compiled_ours_s"])
    return found


def divided(a: float | None, b: float | None) -> float | None:
    """``a / b``, if there are both."""
    return None if a is None or not b else a / b


def judge(row: dict[str, Any]) -> None:
    """Which goals a row reaches; goals of what was not measured are left out."""
    row["host_ratio"] = divided(row["host_s"], row["ours_s"])
    limits = divided(row["ours_s"], row["limit_s"])
    extra = None if row["first_s"] is None else row["first_s"] - row["ours_s"]
    near = None
    if row["ours_error"] is not None:
        near = row["ours_error"] <= max(NEAR * row["peer_error"], EXACT)
    verdicts = {
        "ratio": at_least(row["ratio"], row["goal_ratio"]),
        "compiled_ratio": at_least(row["compiled_ratio"], row["goal_compiled_ratio"]),
        "seconds": at_least(row["goal_s"], row["ours_s"]),
        "host_ratio": at_least(HOST_RATIO, row["host_ratio"]),
        "limit": at_least(LIMIT_RATIO, limits),
        "first": at_least(FIRST_S, extra),
        "near": near,
    }
    row["reached"] = {key: verdict for key, verdict in verdicts.items() if verdict is not None}


def at_least(a: float | None, b: float | None) -> bool | None:
    """Whether ``a`` is no less than ``b``, if there are both."""
    return None if a is None or b is None else a >= b


def told(rows: list[dict[str, Any]]) -> str:
    """The table for people, and under it what went wrong or was left out."""
    mark = {True: " yes", False: " NO", None: ""}

    def seconds(row: dict[str, Any], key: str) -> str:
        return "-" if row[key] is None else f"{row[key]:.4g}"

    def ratio(row: dict[str, Any], key: str) -> str:
        if row[key] is None:
            return "-"
        goal = HOST_RATIO if key == "host_ratio" else row[f"goal_{key}"]
        return f"{row[key]:.2f}x{f'/{goal:g}' if goal else ''}{mark[row['reached'].get(key)]}"

    def pair(row: dict[str, Any], key: str, form: str) -> str:
        sides = [row[f"{side}_{key}"] for side in ("ours", "peer")]
        return "/".join("-" if side is None else format(side, form) for side in sides)

    heads = ("work", "ours s", "goal s", "plain", "compiled", "ComfyUI", "first s", "limit s")
    heads += ("peak MiB", "max diff", "error from fp32")
    lines = [heads]
    for row in rows:
        goal = f"{seconds(row, 'goal_s')}{mark[row['reached'].get('seconds')]}"
        limit = f"{seconds(row, 'limit_s')}{mark[row['reached'].get('limit')]}"
        first = f"{seconds(row, 'first_s')}{mark[row['reached'].get('first')]}"
        error = f"{pair(row, 'error', '.2g')}{mark[row['reached'].get('near')]}"
        lines.append(
            (
                *(row["work"], seconds(row, "ours_s"), goal, ratio(row, "ratio")),
                *(ratio(row, "compiled_ratio"), ratio(row, "host_ratio"), first, limit),
                *(pair(row, "peak_mib", ".0f"), seconds(row, "max_abs_diff"), error),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    for row in rows:
        for what in ("error", "dropped"):
            text += [f"{row['work']}, {kind}: {what}: {why}" for kind, why in row[what].items()]
    return "\n".join(text)
