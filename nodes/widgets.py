"""The widgets that every sampling stage shares."""

from __future__ import annotations

from typing import Any

from ..host import io

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


def seed_input() -> Any:
    """The seed of a stage."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=LARGEST_SEED,
        control_after_generate=True,
        tooltip="Seed of this stage's noise. Image i of a batch uses seed + i.",
    )


def sampling_inputs(steps: int, cfg: float | None, least: int = 2) -> list[Any]:
    """``seed``, ``steps`` (at ``least`` so many) and, for a guided stage, ``cfg``, with the
    published defaults."""
    inputs = [
        seed_input(),
        io.Int.Input(
            "steps",
            default=steps,
            min=least,
            max=1000,
            tooltip=f"Denoising steps; published with {steps}.",
        ),
    ]
    if cfg is not None:
        inputs.append(
            io.Float.Input(
                "cfg",
                default=cfg,
                min=0.0,
                max=100.0,
                step=0.1,
                tooltip=f"Classifier-free guidance scale; published with {cfg:g}. 1 or less"
                " switches guidance off and halves the work.",
            )
        )
    return inputs


def noise_offset_input() -> Any:
    """Where in the seed's stream of random numbers this stage starts."""
    return io.Int.Input(
        "noise_offset",
        default=0,
        min=0,
        max=LARGEST_SEED,
        optional=True,
        force_input=True,
        tooltip="Wire the earlier stage's noise_offset here and use one seed for all stages: the"
        " picture is then the one that the published pipeline makes from that seed. Leave it"
        " unwired for a stage with noise of its own.",
    )


def noise_offset_output() -> Any:
    """The stream's position after this stage."""
    return io.Int.Output(
        "next_noise_offset",
        display_name="noise_offset",
        tooltip="Random numbers drawn per image so far. For the next stage's noise_offset.",
    )
