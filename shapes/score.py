"""python -m prior_art.shapes.score SYSTEM: how often the pictures obey their prompts.

Draws all-different prompts, a quarter of them of combinations that training never saw, paints them
with the pack's own loaders and samplers at the published defaults (``painters``), and lets the
rules of ``check`` judge. minDALL-E paints ``--candidates`` a prompt, of which the reranker picks
the one to be judged. ``kandinsky-inpaint`` repaints the middle of pictures of other scenes,
``kandinsky-depth`` follows silhouettes. The chains across systems are those of ``mixes``; they have
the embedded weights, on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .check import Finding, check
from .grammar import Scene, draw_prompts, held_out
from .mixes import MIXES
from .painters import KandinskyPainter, KarloPainter, KoalaPainter, MinDALLEPainter

_SYSTEMS = (
    *("karlo", "mindalle", "kandinsky", "kandinsky-inpaint", "kandinsky-depth"),
    *("kandinsky-2-1", "koala-700m", "koala-1b"),
    *MIXES,
)


@dataclass(frozen=True)
class Score:
    """Parts of the prompts, 0..1.

    Attributes:
        all_right: both colours and the kind.
        colours: both colours.
        prompts: how many there were.
        held_out: ``all_right`` among the combinations that training never saw.
    """

    all_right: float
    colours: float
    prompts: int
    held_out: float

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.__dict__, indent=2) + "\n"


def score(scenes: Sequence[Scene], findings: Sequence[Finding]) -> Score:
    """Counts what was found against what was asked."""
    pairs = list(zip(scenes, findings, strict=True))
    right = [finding.all_right(scene) for scene, finding in pairs]
    colours = [finding.colours_right(scene) for scene, finding in pairs]
    hidden = held_out()
    new = [ok for ok, scene in zip(right, scenes, strict=True) if scene.combination in hidden]
    return Score(
        all_right=sum(right) / max(1, len(right)),
        colours=sum(colours) / max(1, len(colours)),
        prompts=len(pairs),
        held_out=sum(new) / max(1, len(new)),
    )


def contact_sheet(
    pictures: np.ndarray, right: Sequence[bool], columns: int = 20, gap: int = 3
) -> Image.Image:
    """All pictures in rows, each in a thin frame: grey where right, red where not."""
    count, side = len(pictures), pictures.shape[1]
    cell, columns = side + 2 * gap, min(columns, len(pictures))
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (128, 128, 128))
    for i, (picture, ok) in enumerate(zip(pictures, right, strict=True)):
        x, y = i % columns * cell, i // columns * cell
        if not ok:
            sheet.paste((255, 0, 0), (x, y, x + cell, y + cell))
        sheet.paste(Image.fromarray(picture), (x + gap, y + gap))
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m prior_art.shapes.score", description=__doc__)
    parser.add_argument("system", choices=_SYSTEMS)
    parser.add_argument("--prompts", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--json", type=Path, help="where the figures go (they are printed too)")
    parser.add_argument("--out", type=Path, help="where a contact sheet goes (PNG)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and the noise")
    parser.add_argument("--batch", type=int, default=25, help="pictures at once (default: 25)")
    parser.add_argument(
        "--candidates", type=int, default=1, help="minDALL-E: pictures to pick from (default: 1)"
    )
    parser.add_argument("--weights", type=Path, help="another folder than the embedded one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)

    scenes = draw_prompts(chosen.prompts, chosen.seed)
    if chosen.system in MIXES:
        painter = MIXES[chosen.system]()
    elif chosen.system == "karlo":
        painter = KarloPainter(chosen.weights, chosen.device)
    elif chosen.system.startswith("kandinsky"):
        mode = chosen.system.removeprefix("kandinsky").removeprefix("-") or "decoder"
        painter = KandinskyPainter(chosen.weights, chosen.device, mode)
    elif chosen.system.startswith("koala"):
        variant = chosen.system.removeprefix("koala-")
        painter = KoalaPainter(chosen.weights, chosen.device, variant)
    else:
        painter = MinDALLEPainter(chosen.weights, chosen.device, chosen.candidates)
    pictures = []
    for start in tqdm(range(0, len(scenes), chosen.batch), desc="painting", unit="batch"):
        some = scenes[start : start + chosen.batch]
        pictures.append(painter.paint(some, chosen.seed + start * chosen.candidates))
    painted = np.concatenate(pictures)
    findings = [check(picture) for picture in painted]
    result = score(scenes, findings)
    print(result.as_json(), end="")
    if chosen.system == "kandinsky-inpaint":
        print(f"largest change of a latent outside the mask: {painter.outside:g}")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(result.as_json(), encoding="utf-8", newline="\n")
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        right = [f.all_right(s) for f, s in zip(findings, scenes, strict=True)]
        contact_sheet(painted, right).save(chosen.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
