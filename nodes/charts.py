"""Numbers as pictures, for a node's own preview."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..samplers.parts.guidance import spread

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PAPER, FAINT = (225, 225, 225), (32, 32, 32), (90, 90, 90)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LARGEST = 1024
"""Pixels of a matrix's longer side, as long as a cell has one."""

LABEL, MARGIN = (36, 14), 40
"""Pixels that a label or a number takes, across and down, and that the labels beside have."""


def matrix(table: torch.Tensor, rows: str, columns: str) -> torch.Tensor:
    """A picture ``[1, H, W, 3]`` of cosines ``[N, M]``: a cell for each, from black (-1) to white
    (1), with its number where there is room, under labels of its row and column.

    Args:
        rows: a word before the numbers of rows, which count from 0; columns: of columns.
    """
    from PIL import Image, ImageDraw

    cell = max(1, min(48, LARGEST // max(table.shape)))
    grey = ((table.cpu() * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy()
    cells = np.kron(grey, np.ones((cell, cell), np.uint8))
    picture = Image.new("RGB", (cells.shape[1] + MARGIN, cells.shape[0] + MARGIN), PAPER)
    picture.paste(Image.fromarray(cells).convert("RGB"), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(picture)

    def write(row: float, column: float, text: str, anchor: str, ink: tuple = INK) -> None:
        place = MARGIN + column * cell, MARGIN + row * cell
        draw.text(place, text, ink, font_size=12, anchor=anchor)

    for i in range(0, table.shape[0], ceil(LABEL[1] / cell)):
        write(i + 0.5, 0, f"{rows}{i} ", "rm")
    for i in range(0, table.shape[1], ceil(LABEL[0] / cell)):
        write(0, i + 0.5, f"{columns}{i}", "md")
    for i, row in enumerate(table.tolist() if cell >= LABEL[0] else ()):
        for j, value in enumerate(row):
            write(i + 0.5, j + 0.5, f"{value:.2f}", "mm", BLACK if value > 0 else WHITE)
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]


def cosine_to(prompt: torch.Tensor) -> Callable[[torch.Tensor], Image]:
    """A preview for a prior's bar: how near the image embeddings ``[B, D]`` of each step that it
    shows are to the prompt's own text embedding ``[R, D]``, in CLIP's joint space."""
    steps: list[list[float]] = []

    def preview(x0: torch.Tensor) -> Image:
        rows = spread(prompt, len(x0), "positive").to(x0)
        steps.append(torch.cosine_similarity(x0, rows).tolist())
        return curves(steps, "cosine to the prompt")

    return preview


def curves(values: list[list[float]], title: str) -> Image:
    """What a number of each image did step by step, -1 to 1 from bottom to top, for the progress
    bar.

    Args:
        values: a list for each step with a number for each image.
        title: what the number is; the last step's stand behind it.
    """
    from PIL import Image, ImageDraw

    width, height, top = 512, 256, 24
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    across = (width - 1) / max(1, len(values) - 1)

    def place(step: int, value: float) -> tuple[float, float]:
        return step * across, top + (1 - value) / 2 * (height - 1 - top)

    draw.line([place(0, 0), (width, place(0, 0)[1])], FAINT)
    for image in zip(*values, strict=True):
        draw.line([place(i, value) for i, value in enumerate(image)], INK, 2)
    low, high = min(values[-1]), max(values[-1])
    draw.text(
        (6, 5), f"{title}: {low:.3f}" + (f" to {high:.3f}" if high > low else ""), INK, font_size=14
    )
    return picture
