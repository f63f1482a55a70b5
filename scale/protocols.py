"""The model cards' evaluations as data: ``protocols.json`` has a row each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edges import UserError

FILE = Path(__file__).with_name("protocols.json")
WORKFLOWS = Path(__file__).resolve().parents[1] / "example_workflows"


@dataclass(frozen=True)
class Protocol:
    """How a card's figures were made, and what they are.

    Attributes:
        name: what the command takes; title: in words; card: where the figures stand.
        workflow: a template; settings: changes to it, as ``prior-art run --set`` takes them.
        caption, seed: the inputs that a row's caption and number go to.
        captions: which were used, in words; count: how many, in thousands rounded, or 0.
        encoder: the CLIP of CLIP-score.
        side: for FID the shorter side is resized to this and the centre cut out; 0: not.
        rules: the embedded family's checker judges too.
        stage: whose mean seconds ``published`` has.
        published: figures by name, of ``clip_score``, ``fid``, ``seconds``.
        notes: what is known to differ, or is not told.
    """

    name: str
    title: str
    workflow: str
    settings: tuple[str, ...]
    caption: tuple[str, ...]
    seed: tuple[str, ...]
    captions: str
    count: int
    encoder: str
    published: dict[str, float]
    card: str
    notes: tuple[str, ...]
    side: int = 0
    rules: bool = False
    stage: str = ""

    @property
    def mapping(self) -> tuple[str, ...]:
        """As ``prior-art batch --set`` takes it."""
        return (
            *(f"{target}={{caption}}" for target in self.caption),
            *(f"{target}={{row}}" for target in self.seed),
            *self.settings,
        )


def protocols() -> dict[str, Protocol]:
    """Every protocol by name. A row that is ``like`` another has its values where it has none, and
    ``and`` sets more."""
    rows: dict[str, dict[str, Any]] = {}
    for row in json.loads(FILE.read_text(encoding="utf-8")):
        whole = {**rows.get(row.pop("like", ""), {}), **row}
        whole["settings"] = [*whole["settings"], *whole.pop("and", ())]
        rows[whole["name"]] = whole
    for row in rows.values():
        row |= {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    return {name: Protocol(**row) for name, row in rows.items()}


def protocol_called(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        UserError: there is none.
    """
    known = protocols()
    if name not in known:
        raise UserError(
            f"'{name}' is neither a workflow's file nor one of {', '.join(known)}; name one"
        )
    return known[name]
