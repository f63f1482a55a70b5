"""python -m prior_art.shapes.train karlo: trains the embedded family, or goes on where it stopped.

Everything is drawn from the seed and the number of the step, so a run that was stopped ends at
the same weights as one that was not. Stages: clip (both towers), then prior and decoder, which
read the finished CLIP; sr (both upscaling networks) needs nothing. Two stages may train at once in
two processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from . import layout

STAGES = ("clip", "prior", "decoder", "sr")


def train_stage(
    stage: str,
    out: Path,
    state: Path,
    *,
    device: torch.device | str = "cpu",
    steps: int | None = None,
    stop_after: int | None = None,
) -> None:
    """Trains one stage and writes its folders under ``out``.

    Args:
        state: where the training's own state lies, to resume from.
        steps: optimiser steps instead of the recipe's number.
        stop_after: leave after so many steps, as an interruption would.

    Raises:
        Unfinished: ``stop_after`` came before the end; no weights were written.
    """
    from .stages_clip import train_clip
    from .stages_decoder import train_decoder
    from .stages_prior import train_prior
    from .stages_sr import train_sr
    from .words import read_tokenizer

    layout.write_settings(out)
    limits = {"steps": steps, "stop_after": stop_after}
    if stage == "sr":
        weights = train_sr(state, device, **limits)
    else:
        tokenizer = read_tokenizer(out / "tokenizer")
        if stage == "clip":
            weights = train_clip(tokenizer, state, device, **limits)
        else:
            towers = [
                layout.read_network(out, name).to(device)
                for name in ("text_encoder", "image_encoder")
            ]
            trainer = train_prior if stage == "prior" else train_decoder
            weights = trainer(*towers, tokenizer, state, device, **limits)
    for name, tensors in weights.items():
        layout.write_network(out, name, tensors)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m prior_art.shapes.train", description=__doc__)
    parser.add_argument("system", choices=sorted(layout.FOLDERS))
    parser.add_argument("--stage", choices=STAGES, help="one stage only (default: all, in order)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="where the weights go (default: the package)")
    parser.add_argument(
        "--state", type=Path, help="where the state to resume from lies (default: .train/SYSTEM)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    out = chosen.out or layout.WEIGHTS / chosen.system
    state = chosen.state or Path(".train") / chosen.system
    for stage in (chosen.stage,) if chosen.stage else STAGES:
        train_stage(stage, out, state, device=chosen.device, steps=chosen.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
