"""The widgets that every sampling stage shares."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..edges import EdgeError
from ..host import host, io
from ..loaders.files.cache import Stamps, stamps
from ..loaders.files.catalogue import find_source, list_sources, stage_of
from ..samplers.parts.noise import Noise

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF

LARGEST_OFFSET = 2**32
"""Three decoders of 4096x4096 pixels and 1000 steps one after another draw less; a CPU takes some
ten seconds to pass over so many."""


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


WIDGETS = {"guidance_scale": "cfg", "num_inference_steps": "steps", "offset": "noise_offset"}
"""What samplers call the inputs of :func:`sampling_inputs` and :func:`noise_offset_input`."""


@contextmanager
def named(**inputs: str) -> Iterator[None]:
    """Whatever is refused inside is said in the words of the node: ``'guidance_scale'`` as 'cfg'.

    Args:
        inputs: parameter of the called function to input of the node, beside :data:`WIDGETS`.
    """
    names = WIDGETS | inputs
    try:
        yield
    except EdgeError as error:
        said = re.sub(r"'([\w.]+)'", lambda found: f"'{names.get(found[1], found[1])}'", str(error))
        error.args = (said,)
        raise


SHOWN_SECONDS = 0.1
"""Between two previews: a host's own bar is no quicker."""


class Bar:
    """A sampler's callback that moves the node's progress bar, made at the first step.

    Args:
        preview: of x0, where there is a picture to see: of the first step, the last, and as many
            between as are :data:`SHOWN_SECONDS` apart. To look at x0 is to wait for the device.
        runs: how many samplers, one after another, share the bar, each an equal part of it. A
            run of its own kind sets ``preview`` before it begins.
    """

    def __init__(self, preview: Callable[[Any], Any] | None = None, runs: int = 1) -> None:
        self.preview, self._runs = preview, runs
        self._update: Callable[..., None] | None = None
        self._length = self._done = 0
        self._shown = -math.inf

    def __call__(self, step: int, total: int, x0: Any) -> None:
        """What the sampler calls after each step, from 1."""
        if self._update is None:
            self._length = total
            self._update = host.progress(total * self._runs)
        shown, now = None, time.monotonic()
        if self.preview and (step in (1, total) or now - self._shown >= SHOWN_SECONDS):
            shown, self._shown = self.preview(x0), now
        self._update(self._done + step * self._length // total, shown)
        if step == total:
            self._done += self._length


def noise_offset_input() -> Any:
    """Where in the seed's stream of random numbers this stage starts."""
    return io.Int.Input(
        "noise_offset",
        default=0,
        min=0,
        max=LARGEST_OFFSET,
        optional=True,
        force_input=True,
        tooltip="Wire the earlier stage's noise_offset here and use one seed for all stages: the"
        " picture is then the one that the published pipeline makes from that seed. Leave it"
        " unwired for a stage with noise of its own.",
    )


def seeded(seed: int, count: int, offset: int = 0) -> Noise:
    """The noise of ``count`` images behind ``offset`` numbers; to get there can be stopped."""
    return Noise.seeded(seed, count, offset, host.stop_if_asked)


def noise_offset_output() -> Any:
    """The stream's position after this stage."""
    return io.Int.Output(
        "next_noise_offset",
        display_name="noise_offset",
        tooltip="Random numbers drawn per image so far. For the next stage's noise_offset.",
    )


def drawn_input(name: str, widget: str, tooltip: str) -> Any:
    """A JSON text that the editor shows as a widget of the pack's own.

    Args:
        widget: its type, as ``web/js`` registers it; also what the node calls its part of ``ui``.
    """
    return io.String.Input(
        name, default="", optional=True, tooltip=tooltip, extra_dict={"widgetType": widget}
    )


def from_json(text: str, name: str, example: str) -> Any:
    """What the JSON ``text`` of a :func:`drawn_input` says; ``None`` where it is empty.

    Raises:
        EdgeError: it is no JSON; shows the ``example``.
    """
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise EdgeError(
            f"'{name}' is no JSON; give {example}, or nothing, or clear it in the node's widget"
        ) from None


DTYPES = ["auto", "fp32", "fp16", "bf16"]


def source_inputs(stage: str) -> list:
    """The widgets of a loader node: where the stage's weights come from, and their dtype."""
    names = [source.name for source in list_sources(stage, host.model_folders())]
    return [
        io.Combo.Input(
            "source",
            options=names,
            tooltip="Where the weights come from: the embedded family that ships with the pack"
            " (shapes-...), a diffusers folder or an original checkpoint under models/prior_art.",
        ),
        io.Combo.Input(
            "dtype",
            options=DTYPES,
            default="auto",
            tooltip=(
                "Number format of the weights. auto is fp32: this network is small, and half"
                " precision changes what it finds."
                if stage_of(stage).full
                else "Number format of the weights. auto asks the host; sampling maths is fp32"
                " whatever is chosen here."
            ),
        ),
    ]


def fingerprint(stage: str, source: str) -> Stamps:
    """Changes when the files behind a source change, so that the host loads them again."""
    return stamps(find_source(source, stage, host.model_folders()).path)


def load_stage(loader: Callable, stage: str, source: str, dtype: str, **options: Any) -> Any:
    """What ``loader`` makes of the source called ``source``, in the dtype that was chosen.

    Raises:
        UserError: no such source.
    """
    found = find_source(source, stage, host.model_folders())
    kind = stage_of(stage)
    if dtype == "auto" and kind.full:
        dtype = "fp32"
    return loader(found, host.pick_dtype(dtype, kind.role), **options)


def unpacking() -> Callable[[str, int, int], None]:
    """Shows how far each file of an archive is unpacked; a click on stop ends it."""
    bars: dict[str, Callable] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = host.progress(total)
        bars[name](done)

    return tell
