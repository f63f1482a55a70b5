"""Many pictures on one, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..loaders.files.safe import open_picture, written


def contact_sheet(pictures: Sequence[tuple[str, Path]], path: Path, columns: int = 5) -> Path:
    """Write (caption, picture) pairs as one PNG."""
    cell, text, gap = 128, 30, 8
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB", (columns * (cell + gap) + gap, rows * (cell + text + gap) + gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for i, (caption, picture) in enumerate(pictures):
        x = gap + i % columns * (cell + gap)
        y = gap + i // columns * (cell + text + gap)
        with open_picture(picture) as opened:
            sheet.paste(ImageOps.pad(opened.convert("RGB"), (cell, cell), color="white"), (x, y))
        half = caption.rfind(" on ") if " on " in caption else len(caption)
        draw.text((x, y + cell + 2), f"{caption[:half]}\n{caption[half:].strip()}", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as scratch:
        sheet.save(scratch, "PNG")
    return path
