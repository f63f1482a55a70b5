"""An evaluation's figures beside the published ones: as JSON, as Markdown and as bars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from ..loaders.files.safe import write_whole, written

FIGURES = {
    "clip_score": "CLIP-score, mean cosine",
    "clip_score_100": "CLIP-score, 100 * max(cosine, 0)",
    "fid": "FID",
    "frechet_clip": "Frechet distance in the encoder's space (no FID)",
    "right": "obey their caption, by rules",
    "colours": "both colours, by rules",
    "seconds": "seconds a picture",
}
"""Every figure that a report may have, in order, in words."""

_BAR, _HIGH, _LABEL = 260, 14, 330


@dataclass(frozen=True)
class Report:
    """What was measured, how, and what is published.

    Attributes:
        title: of the protocol or the workflow; card: where the published figures stand.
        captions: the file; rows: how many it has; failed: those without a picture.
        measured, published: figures by the keys of :data:`FIGURES`.
        how: what measured them, in words by subject.
        differs: everything in which this is not what was published.
        stages: mean seconds of each, of every row but each worker's first.
    """

    title: str
    card: str
    captions: str
    rows: int
    failed: int
    measured: dict[str, float]
    published: dict[str, float]
    how: dict[str, str]
    differs: list[str]
    stages: dict[str, float] = field(default_factory=dict)


def write_report(report: Report, out: Path) -> Path:
    """Write ``report.json``, ``report.md`` and ``chart.png`` into a folder; the second's path.

    Raises:
        OSError: it cannot be written.
    """
    data = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    write_whole(out / "report.json", data.encode())
    with written(out / "chart.png") as scratch:
        chart(report.measured, report.published).save(scratch, "PNG")
    path = out / "report.md"
    write_whole(path, _markdown(report).encode())
    return path


def _markdown(report: Report) -> str:
    lines = [
        f"# {report.title}",
        f"{report.rows - report.failed} of {report.rows} captions of `{report.captions}`."
        f" Published figures: {report.card or 'none'}.",
        "| | published | measured |\n|---|---|---|",
    ]
    for key, words in FIGURES.items():
        values = [_shown(of.get(key)) for of in (report.published, report.measured)]
        if any(key in of for of in (report.published, report.measured)):
            lines[-1] += f"\n| {words} | {values[0]} | {values[1]} |"
    lines += ["![figures](chart.png)", "## What differs"]
    lines.append("\n".join(f"- {one}" for one in report.differs) or "Nothing that is known.")
    lines += ["## How", "\n".join(f"- {name}: {words}" for name, words in report.how.items())]
    lines += ["## Seconds a stage", "| stage | mean |\n|---|---|"]
    for stage, seconds in report.stages.items():
        lines[-1] += f"\n| {stage} | {seconds:.3f} |"
    lines += ["## The first pictures", "![pictures](contact_sheet.png)"]
    return "\n\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def chart(measured: Mapping[str, float], published: Mapping[str, float]) -> Image.Image:
    """A pair of bars for each figure: grey as published, blue as measured, the larger at full
    length."""
    keys = [key for key in FIGURES if key in measured or key in published]
    row = 2 * _HIGH + 18
    picture = Image.new("RGB", (_LABEL + _BAR + 90, max(1, len(keys)) * row + 10), "white")
    draw = ImageDraw.Draw(picture)
    for place, key in enumerate(keys):
        top = 10 + place * row
        words = FIGURES[key]
        draw.text((10, top + _HIGH // 2), words, fill="black")
        full = max(abs(of.get(key, 0.0)) for of in (measured, published)) or 1.0
        for i, (of, colour) in enumerate(((published, "#999999"), (measured, "#3366cc"))):
            if key in of:
                y, long = top + i * (_HIGH + 2), int(_BAR * abs(of[key]) / full)
                draw.rectangle((_LABEL, y, _LABEL + long, y + _HIGH), fill=colour)
                draw.text((_LABEL + long + 6, y + 1), _shown(of[key]), fill="black")
    return picture
