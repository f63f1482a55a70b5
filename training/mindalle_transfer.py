"""``prior-art train mindalle-transfer``: minDALL-E's published transfer learning, made usable.

A text-conditional transformer becomes a class-conditional or an unconditional one. The VQGAN is
frozen; everything that both transformers have begins with the source's weights, while ``sos`` (the
classes, or the one start) and ``head`` begin anew: upstream's head is called ``head_img``, so
nothing is loaded into it there either. AdamW at 1e-4 with betas 0.9 and 0.95 and no weight decay, a
cosine down to 0, gradients clipped at 4, batches of 512, 8 epochs.

Other than there: the pictures are shuffled and cropped at their centre, so that they are encoded
once; half precision is bf16; an interrupted training goes on. What a step sees follows from the
seed and the step's number, so a resumed run ends like one that was never stopped: bit for bit on a
CPU, up to the rounding of unordered sums on a GPU.

Source: kakaobrain/minDALL-E (``examples/transfer_learning_ex.py``, ``configs/transfer-*.yaml``).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import autocast

from ..edges import UserError, reason_of
from ..loaders.files.catalogue import Source, find_source
from ..loaders.files.checkpoint import CheckpointError
from ..loaders.files.safe import Busy, cure_of, locked, remove_left
from ..loaders.mindalle import (
    CONFIG,
    TRANSFORMER_FILES,
    VQGAN_FILES,
    LoadedTransformer,
    Settings,
    load_transformer,
    load_vqgan,
    write_settings,
)
from ..loaders.mindalle_convert import write_safetensors
from ..loaders.mindalle_vqgan import VQGAN
from ..networks.mindalle import ARTransformer
from .mindalle_codes import coded, digest, find_pictures
from .mindalle_lora import add_lora, merge_lora
from .state import Unfinished, read_state, save_atomically

WORK = ".training"
"""Folder in the output folder for the codes and the state to resume from."""

CLASSES = "classes.json"
"""The class names, in the order of their numbers."""

SHARED = ("tok_emb_img.", "pos_emb_img.", "blocks.", "ln_f.")
"""Beginnings of the keys that all kinds of transformer have."""

_ACTIVATIONS = 4e9  # bytes that pictures at once may take, by default


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are as published.

    Attributes:
        kind: what the new transformer is conditioned on.
        lora: rank of :mod:`.mindalle_lora` in the blocks, whose other weights stay as they are;
            ``None`` tunes everything.
        epochs: passes over the pictures.
        batch: pictures a step; what is left of an epoch is dropped.
        rate: of AdamW at the start.
        val: share of the pictures that is kept for validation.
        seed: of the new weights, the split and the order.
        dtype: bf16 keeps weights and gradients in fp32.
        micro_batch: pictures at once; changes rounding only. ``None``: about 4 GB of activations.
        save_every: steps between states.
    """

    kind: Literal["class", "unconditional"]
    lora: int | None = None
    epochs: int = 8
    batch: int = 512
    rate: float = 1e-4
    val: float = 0.05
    seed: int = 0
    dtype: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int | None = None
    save_every: int = 100

    def check(self) -> None:
        """Raises UserError, naming the option, if a value makes no sense."""
        for name in ("epochs", "batch", "micro_batch", "lora", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: give 1 or more, or leave it out")
        if not 0 < self.rate < math.inf:
            raise UserError(f"--lr {self.rate}: give a number above 0, such as 1e-4")
        if not 0 <= self.val < 1:
            raise UserError(f"--val {self.val}: give a share from 0 (no validation) to below 1")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"--seed {self.seed}: give 0 to {2**64 - 1}")


@dataclass(frozen=True)
class Data:
    """Pictures as codes, split.

    Attributes:
        codes: int16 ``[N, T]``.
        labels: class numbers, int64 ``[N]``; ``None`` for an unconditional model.
        classes: names by number.
        train, val: rows, int64.
    """

    codes: torch.Tensor
    labels: torch.Tensor | None
    classes: tuple[str, ...]
    train: np.ndarray
    val: np.ndarray


def _nothing(*_: Any) -> None:
    pass


def transfer(
    source: Source,
    images: Path,
    out: Path,
    recipe: Recipe,
    device: str = "cpu",
    *,
    stopped: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = _nothing,
    on_epoch: Callable[[int, float | None], None] = _nothing,
) -> Path:
    """Train, or go on where the same call was stopped, and write a folder of our own layout.

    Args:
        source: of a text-conditional transformer and its VQGAN.
        images: a folder of pictures; for ``class`` one with a sub-folder for each class.
        out: the folder to make. While training it holds :data:`WORK` only.
        device: what torch calls it.
        stopped: asked between small steps; true ends the call with a state that resumes.
        warn: told about pictures that are left out.
        on_epoch: told (epochs done, mean nats a code on the validation pictures or None).

    Returns:
        ``out``, which :func:`~..loaders.mindalle.load_transformer` reads.

    Raises:
        UserError: pictures, options, or the output folder do not fit.
        CheckpointError: the source cannot be read.
        Unfinished: ``stopped``.
    """
    recipe.check()
    _check_out(out)
    with contextlib.suppress(OSError):  # which the first save will tell
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out):
            return _transfer(source, images, out, recipe, device, stopped, warn, on_epoch)
    except Busy as error:
        raise UserError(str(error)) from error


def _transfer(
    source: Source,
    images: Path,
    out: Path,
    recipe: Recipe,
    device: str,
    stopped: Callable[[], bool],
    warn: Callable[[str], None],
    on_epoch: Callable[[int, float | None], None],
) -> Path:
    place = _device(device)
    names = _with_class(find_pictures(images), images, recipe, warn)
    loaded, vqgan = load_transformer(source), load_vqgan(source)
    _check_source(loaded, vqgan)
    _check_rank(recipe, loaded)
    work = out / WORK
    for name in ("codes.pt", "state.pt"):  # of a run that was killed
        remove_left(work, name)
    names, codes = coded(images, names, vqgan, work / "codes.pt", place, stopped=stopped, warn=warn)
    data = _split(names, codes, images, recipe)
    identity = _identity(recipe, data, loaded)
    network = start(loaded, recipe, len(data.classes)).to(place)
    del loaded
    try:
        _train(network, data, recipe, work / "state.pt", identity, stopped, on_epoch)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"'{device}' has too little memory for {_micro_batch(network, recipe)} pictures at once"
            " (--micro-batch): give a smaller number, --lora, or --dtype bf16. The last saved state"
            " is kept"
        ) from error
    merge_lora(network)
    _write(out, vqgan, network, data.classes)
    (work / "state.pt").unlink(missing_ok=True)
    return out


def start(source: LoadedTransformer, recipe: Recipe, classes: int) -> ARTransformer:
    """The new transformer before its first step; it takes over the source's tensors.

    Args:
        source: text-conditional.
        classes: ignored for an unconditional model.

    Returns:
        On the CPU, what is to be trained requiring gradients.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    config = replace(
        source.config, text_vocab=None, classes=classes if recipe.kind == "class" else None
    )
    with torch.device("meta"):
        network = ARTransformer(config)
    state = {k: v for k, v in source.network.state_dict().items() if k.startswith(SHARED)}
    # As published: normal, 0.02 wide in tables and layers, 1 wide in the unconditional start.
    if recipe.kind == "class":
        sos = "sos.weight", 0.02 * torch.randn(classes, config.width, generator=generator)
    else:
        sos = "sos", torch.randn(1, 1, config.width, generator=generator)
    head = 0.02 * torch.randn(config.image_vocab, config.width, generator=generator)
    state |= dict([sos, ("head.weight", head)])
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(True)
    if recipe.lora is not None:
        add_lora(network, recipe.lora, generator)
        for name, parameter in network.named_parameters():
            if name.startswith(("sos", "head")):
                parameter.requires_grad_(True)
    return network


# -- input -------------------------------------------------------------------------------------


def source_of(name: str, folders: Sequence[Path]) -> Source:
    """The source at the path ``name`` (a folder or an archive), or called so in model folders.

    Raises:
        UserError: neither; says what is there.
    """
    path = Path(name)
    if path.exists():
        return Source(name, "folder", path, "mindalle", frozenset())
    return find_source(name, "ar_transformer", folders)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file. Name a new folder for --out")
    if (out / CONFIG).exists() and (out / TRANSFORMER_FILES[0]).exists():
        raise UserError(f"'{out}' holds a finished model already. Name a new folder for --out")
    if (out / WORK).is_symlink():
        raise UserError(
            f"'{out / WORK}' is a link to '{(out / WORK).resolve()}', where nothing is written."
            " Remove it, or name a new folder for --out"
        )
    if out.is_dir() and not (out / WORK).is_dir() and any(out.iterdir()):
        raise UserError(
            f"'{out}' exists and holds something else. Name a new folder for --out, or empty it"
        )


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(
            f"--device {name} cannot be used ({reason_of(error)}). Give cpu, or the name of a"
            " device that torch has here"
        ) from error


def _with_class(
    names: list[str], images: Path, recipe: Recipe, warn: Callable[[str], None]
) -> list[str]:
    """The pictures that can be used: those in a sub-folder where classes are asked for."""
    if recipe.kind == "unconditional":
        return names
    inside = [name for name in names if "/" in name]
    if inside and len(inside) < len(names):
        loose = len(names) - len(inside)
        warn(f"{loose} pictures lie in no sub-folder of '{images}', have no class and are left out")
    _classes(inside, images)
    return inside


def _classes(names: Sequence[str], images: Path) -> tuple[str, ...]:
    classes = tuple(sorted({name.partition("/")[0] for name in names}))
    if len(classes) < 2:
        found = f"one class ('{classes[0]}')" if classes else "no sub-folder with pictures"
        raise UserError(
            f"'{images}' holds {found}. Put the pictures of each class into a sub-folder of its"
            " own, at least two, or give --kind unconditional"
        )
    return classes


def _check_source(loaded: LoadedTransformer, vqgan: VQGAN) -> None:
    if loaded.kind != "text":
        kind = {"class": "class-conditional"}.get(loaded.kind, loaded.kind)
        raise UserError(
            f"'{loaded.name}' is {kind}. Transfer starts from a text-conditional minDALL-E, such as"
            " the published 1.3B: name one for --source"
        )
    config = loaded.config
    if (vqgan.codes, vqgan.grid**2) != (config.image_vocab, config.image_tokens):
        raise UserError(
            f"'{vqgan.name}' makes {vqgan.grid}x{vqgan.grid} of {vqgan.codes} codes, but"
            f" '{loaded.name}' reads {config.image_tokens} of {config.image_vocab}: they come from"
            " different models. Copy both files from one model"
        )


def _check_rank(recipe: Recipe, loaded: LoadedTransformer) -> None:
    if recipe.lora is not None and recipe.lora > loaded.config.width:
        raise UserError(
            f"--lora {recipe.lora} is more than the {loaded.config.width} that '{loaded.name}' is"
            " wide, so that nothing is saved by it. Give a smaller rank, such as 16"
        )


def _split(names: Sequence[str], codes: torch.Tensor, images: Path, recipe: Recipe) -> Data:
    labels, classes = None, ()
    if recipe.kind == "class":
        classes = _classes(names, images)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([numbers[name.partition("/")[0]] for name in names])
    order = np.random.default_rng([recipe.seed, 0]).permutation(len(names))
    held = math.ceil(recipe.val * len(names))
    data = Data(codes, labels, classes, order[held:], order[:held])
    if len(data.train) < recipe.batch:
        raise UserError(
            f"'{images}' leaves {len(data.train)} pictures to train on (and {held} for validation),"
            f" fewer than a batch of {recipe.batch}. Give a smaller --batch and more --epochs, or"
            " more pictures"
        )
    return data


def _identity(recipe: Recipe, data: Data, loaded: LoadedTransformer) -> dict[str, Any]:
    """What a state belongs to: options and inputs that change the result."""
    values = asdict(recipe)
    for name in ("micro_batch", "save_every"):
        del values[name]
    values["lr"] = values.pop("rate")
    pictures = {"codes": data.codes}
    if data.labels is not None:
        pictures["labels"] = data.labels
    return values | {
        "images": digest(pictures),
        "classes": list(data.classes),
        "source": digest(loaded.network.state_dict()),
    }


# -- training ----------------------------------------------------------------------------------


def _state(
    step: int,
    identity: dict[str, Any],
    trained: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> dict[str, Any]:
    """What :func:`_resume` goes on from."""
    return {
        "step": step,
        "identity": identity,
        "weights": {name: p.detach() for name, p in trained.items()},
        "optimiser": optimiser.state_dict(),
    }


def _train(
    network: ARTransformer,
    data: Data,
    recipe: Recipe,
    state_path: Path,
    identity: dict[str, Any],
    stopped: Callable[[], bool],
    on_epoch: Callable[[int, float | None], None],
) -> None:
    """Trains in place what requires gradients."""
    from tqdm import tqdm

    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        trained.values(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    first = saved = _resume(state_path, identity, trained, optimiser)
    an_epoch = len(data.train) // recipe.batch
    steps = recipe.epochs * an_epoch
    micro = _micro_batch(network, recipe)

    def save(step: int) -> None:
        nonlocal saved
        if step != saved:
            save_atomically(_state(step, identity, trained, optimiser), state_path)
            saved = step

    def pause(step: int) -> None:
        if stopped():
            save(step)
            raise Unfinished(
                f"stopped at step {step} of {steps}; the same command goes on from there"
            )

    with tqdm(range(first, steps), desc="training", initial=first, total=steps, unit="step") as bar:
        for step in bar:
            for group in optimiser.param_groups:
                group["lr"] = 0.5 * recipe.rate * (1 + math.cos(math.pi * step / steps))
            loss = 0.0
            for rows in _parts(_rows(data, recipe, step), micro):
                pause(step)
                nats = _nats(network, data, rows, recipe) / recipe.batch
                nats.backward()
                loss += nats.item()
            if not math.isfinite(loss):
                save(step)
                raise UserError(
                    f"the loss is {loss} at step {step}: --lr {recipe.rate} is too high for this"
                    " source and these pictures. Give a lower --lr and a new --out"
                )
            torch.nn.utils.clip_grad_norm_(trained.values(), 4.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if (step + 1) % an_epoch == 0:
                validation = _validate(network, data, recipe, micro, partial(pause, step + 1))
                on_epoch((step + 1) // an_epoch, validation)
            if (step + 1) % recipe.save_every == 0 or step + 1 == steps:
                save(step + 1)


def _rows(data: Data, recipe: Recipe, step: int) -> np.ndarray:
    """The pictures of one step: from the seed and the step's number alone."""
    epoch, place = divmod(step, len(data.train) // recipe.batch)
    order = np.random.default_rng([recipe.seed, 1 + epoch]).permutation(data.train)
    return order[place * recipe.batch :][: recipe.batch]


def _nats(network: ARTransformer, data: Data, rows: np.ndarray, recipe: Recipe) -> torch.Tensor:
    """Sum over pictures of the mean cross-entropy of their codes, in nats a code."""
    device = network.tok_emb_img.weight.device
    chosen = torch.from_numpy(rows)
    tokens = data.codes[chosen].to(device, torch.long)
    told = None if data.labels is None else data.labels[chosen, None].to(device)
    with autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bf16"):
        logits = network(told, tokens)
    wrong = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="sum")
    return wrong / tokens.shape[1]


@torch.no_grad()
def _validate(
    network: ARTransformer, data: Data, recipe: Recipe, micro: int, pause: Callable[[], None]
) -> float | None:
    """Mean nats a code of the validation pictures; ``None`` without any."""
    total = 0.0
    for rows in _parts(data.val, micro):
        pause()
        total += _nats(network, data, rows, recipe).item()
    return total / len(data.val) if len(data.val) else None


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _micro_batch(network: ARTransformer, recipe: Recipe) -> int:
    """Pictures at once: as asked for, or as many as keep about 4 GB for the way back."""
    config = network.config
    block = 17 * config.width * config.layers  # numbers a position that a block keeps
    one = 4 * config.image_tokens * (block + 3 * config.image_vocab)
    return min(recipe.batch, recipe.micro_batch or max(1, int(_ACTIVATIONS / one)))


def _resume(
    path: Path,
    identity: dict[str, Any],
    trained: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> int:
    """Loads the state if there is one; how many steps it has behind it."""
    if not path.is_file():
        return 0
    try:
        state = read_state(path)
        known, weights = state["identity"], state["weights"]
    except Exception as error:  # torch.load raises many kinds
        raise UserError(
            f"'{path}' cannot be read ({reason_of(error)}). Remove it to start anew"
        ) from error
    other = [name for name in identity if known.get(name) != identity[name]]
    if other:
        shown = ", ".join(
            f"other {name}"
            if name in ("images", "classes", "source")
            else f"--{name} {known.get(name)} instead of {identity[name]}"
            for name in other
        )
        raise UserError(
            f"'{path.parent.parent}' holds a training with {shown}. Give the same as then to go on,"
            " or a new folder for --out"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


# -- output ------------------------------------------------------------------------------------


def _write(out: Path, vqgan: VQGAN, network: ARTransformer, classes: Sequence[str]) -> None:
    """Writes the model beside its place, loads it, and moves it there, the config last.

    Only a folder with that config is a source, so nothing ever lists half a model.
    """
    with _scratch(out / WORK / "model") as folder:
        groups = vqgan.network.config.norm_num_groups
        write_settings(folder, Settings(vqgan.image_size, network.config.heads, groups))
        for name, part in ((VQGAN_FILES[0], vqgan.network), (TRANSFORMER_FILES[0], network)):
            write_safetensors({k: v.cpu() for k, v in part.state_dict().items()}, folder / name)
        if classes:
            (folder / CLASSES).write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")
        written = Source(out.name, "folder", folder, "mindalle", frozenset())
        load_vqgan(written)
        load_transformer(written)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(out / path.name)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, removed afterwards.

    Raises:
        CheckpointError: instead of an OSError within.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be written: {cure_of(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
