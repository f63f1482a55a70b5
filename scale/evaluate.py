"""A model card's evaluation as one command: pictures by a batch, scores as sums, a report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..edges import UserError
from ..host import host
from ..loaders.files.catalogue import Source, find_source
from ..loaders.files.safe import Busy, locked, write_whole, written
from ..shapes.grammar import draw_prompts, parse
from ..shapes.pictures import draw
from .batch import Batch, Done, Progress, run_batch
from .cluster import Lost, spread
from .inception import RESIZE, find_inception
from .protocols import WORKFLOWS, Protocol, protocol_called
from .report import Report, write_report
from .rows import read_rows
from .scorer import Measure, Part, Scorer
from .scores import Scores, frechet_distance

CAPTION = "caption"
TOGETHER = 256
"""Pictures of a part; fixed, as it decides in which order sums are made."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated.

    Attributes:
        system: a protocol's name, or a workflow's file.
        out: the folder that everything goes to.
        captions: a table with a column ``caption``; ``None`` draws those of the embedded family.
        references: a folder of pictures to compare with, at any depth.
        encoder: a CLIP of the model folders or a folder; ``None`` is the protocol's.
        mapping: for a workflow, as ``prior-art batch --set``; on top of a protocol's.
        pictures, workers, ray: as in :class:`Batch`.
    """

    system: str
    out: Path
    captions: Path | None = None
    references: Path | None = None
    encoder: str | None = None
    mapping: tuple[str, ...] = ()
    pictures: Path = Path("input")
    workers: int | None = None
    ray: str | None = None


def evaluate(evaluation: Evaluation, progress: Progress = lambda *_: None) -> Path:
    """Make what is missing, score it, and write the report; its path.

    Raises:
        UserError: weights, captions or references are missing, or as :func:`run_batch`.
        LibraryError: Ray or torch-fidelity is asked for and not installed.
    """
    protocol = _protocol(evaluation)
    try:
        evaluation.out.mkdir(parents=True, exist_ok=True)
        if protocol.rules:
            evaluation = _drawn(evaluation, protocol)
        captions = evaluation.captions
        if captions is None:
            raise UserError(f"--captions is missing: {protocol.captions}, in a column '{CAPTION}'")
        measure = _measure(evaluation, protocol)
        references = _found(evaluation.references) if evaluation.references else []
        mapping = (*protocol.mapping, *evaluation.mapping)
        if all("{" not in one.replace("{row}", "") for one in mapping):
            raise UserError(
                "no input gets a column, so every caption would have one picture; give --set"
                f" NODE.INPUT={{{CAPTION}}} for the prompt"
            )
        batch = Batch(
            _workflow(evaluation, protocol),
            captions,
            mapping,
            evaluation.out,
            evaluation.pictures,
            evaluation.workers,
            evaluation.ray,
        )
        done = run_batch(batch, progress)
        if evaluation.references == evaluation.out / "references":  # of these captions alone
            references = references[: done.rows]
        made = _summed(_parts(_made(done, captions, evaluation.out)), measure, evaluation)
        compared = _summed(_parts((path, None) for path in references), measure, evaluation)
        report = _report(evaluation, protocol, done, measure, made, compared)
        return write_report(report, evaluation.out)
    except Busy as error:
        raise UserError(str(error)) from error


def _protocol(evaluation: Evaluation) -> Protocol:
    path = Path(evaluation.system)
    if not path.is_file():
        return protocol_called(evaluation.system)
    if evaluation.encoder is None:
        raise UserError(
            "--encoder is missing: a workflow has no protocol that names a CLIP. Give a folder, or"
            " clip-vit-base-patch16 after `prior-art download clip-vit-b-16`"
        )
    return Protocol(path.stem, path.name, "", (), (), (), "any", 0, evaluation.encoder, {}, "", ())


def _workflow(evaluation: Evaluation, protocol: Protocol) -> Path:
    named = protocol.workflow
    return WORKFLOWS / f"{named}.json" if named else Path(evaluation.system)


def _measure(evaluation: Evaluation, protocol: Protocol) -> Measure:
    """What scores, all of it there."""
    folders = host.model_folders()
    encoder = _encoder(evaluation.encoder or protocol.encoder, folders)
    inception = None
    if evaluation.references and not protocol.rules:
        inception = find_inception(folders)
    return Measure(
        encoder, evaluation.references is not None, inception, protocol.side, protocol.rules
    )


def _encoder(name: str, folders: list[Path]) -> Source:
    if Path(name).is_dir():
        path = Path(name).resolve()
        return find_source(path.name, "reranker", [path.parent])
    try:
        return find_source(name, "reranker", folders)
    except UserError as error:
        raise UserError(
            f"CLIP-score needs the encoder '{name}', which is not in '{folders[0]}'. `prior-art"
            " download clip-vit-b-16` (or clip-vit-b-32) puts one there; --encoder takes another"
        ) from error


def _drawn(evaluation: Evaluation, protocol: Protocol) -> Evaluation:
    """With captions of the embedded family, and pictures that rules draw for them."""
    captions = evaluation.captions or evaluation.out / "captions.jsonl"
    with locked(evaluation.out / "references"):
        if evaluation.captions is None:
            lines = (json.dumps({CAPTION: one.prompt}) for one in draw_prompts(protocol.count))
            write_whole(captions, "".join(f"{line}\n" for line in lines).encode())
        if evaluation.references is not None:
            return replace(evaluation, captions=captions)
        folder = evaluation.out / "references"
        folder.mkdir(exist_ok=True)
        for number, row in enumerate(read_rows(captions)):
            if CAPTION not in row:
                raise UserError(f"row {number} of '{captions}' has no column '{CAPTION}'")
            try:
                scene = parse(str(row[CAPTION]))
            except ValueError as error:
                raise UserError(
                    f"row {number} of '{captions}' is {error}; give captions as"
                    " 'a small red circle on a blue background'"
                ) from error
            with written(folder / f"{number:08}.png") as scratch:
                draw(scene, number).save(scratch, "PNG")
    return replace(evaluation, captions=captions, references=folder)


def _found(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their names."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise UserError(
            f"'{folder}' holds {len(found)} pictures ({', '.join(sorted(SUFFIXES))}); --references"
            " takes a folder of some thousands"
        )
    return found


def _made(done: Done, captions: Path, out: Path) -> Iterator[tuple[Path, str | None]]:
    """Each row's first picture and its caption."""
    with done.manifest.open(encoding="utf-8") as lines:
        for row, line in zip(read_rows(captions), lines, strict=True):
            files = json.loads(line)["files"]
            if files:
                yield out / files[0]["path"], str(row[CAPTION])


def _parts(pictures: Iterable[tuple[Path, str | None]]) -> Iterator[Part]:
    rest = iter(pictures)
    for number in itertools.count():
        some = tuple(
            (path.resolve(), caption) for path, caption in itertools.islice(rest, TOGETHER)
        )
        if not some:
            return
        yield Part(number, some)


def _summed(parts: Iterator[Part], measure: Measure, evaluation: Evaluation) -> Scores:
    """The sums of all parts, added in their order, whoever was first."""
    total, wanted = Scores(), 0
    early: dict[int, Scores] = {}
    for part, found in spread(parts, Scorer, (measure,), evaluation.workers, evaluation.ray):
        if isinstance(found, Lost):
            raise UserError(f"pictures could not be scored: {found.reason}")
        early[part.number] = found
        while wanted in early:
            total += early.pop(wanted)
            wanted += 1
    return total


def _report(
    evaluation: Evaluation,
    protocol: Protocol,
    done: Done,
    measure: Measure,
    made: Scores,
    compared: Scores,
) -> Report:
    if not made.count:
        raise UserError(f"no picture was made; '{done.manifest}' says why")
    stages = _stages(done.manifest)
    measured = {
        "clip_score": made.cosine / made.count,
        "clip_score_100": 100 * made.positive / made.count,
    }
    if made.moments and compared.moments:
        key = "fid" if measure.inception else "frechet_clip"
        measured[key] = frechet_distance(made.moments, compared.moments)
    if measure.rules:
        measured |= {"right": made.right / made.count, "colours": made.colours / made.count}
    if protocol.stage in stages:
        measured["seconds"] = stages[protocol.stage]
    references = compared.moments.count if compared.moments else 0
    how = {
        "workflow": protocol.workflow or evaluation.system,
        "settings": ", ".join((*protocol.settings, *evaluation.mapping)) or "none",
        "seed": _seed(protocol, evaluation),
        "encoder of CLIP-score": measure.encoder.name,
        "references": f"{references} of '{evaluation.references}'" if references else "none",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, fp32",
    }
    if measure.inception:
        resize = f"shorter side to {measure.side}, centre cut out; then " if measure.side else ""
        how["FID"] = f"torch-fidelity's Inception, pool3 of 2048; {resize}{RESIZE}"
    return Report(
        protocol.title,
        protocol.card,
        str(evaluation.captions),
        done.rows,
        done.rows - done.made,
        measured,
        protocol.published,
        how,
        _differences(protocol, evaluation, done, measure, measured, references),
        stages,
    )


def _seed(protocol: Protocol, evaluation: Evaluation) -> str:
    rising = any("{row}" in one for one in (*protocol.mapping, *evaluation.mapping))
    return "the row's number" if rising else "the workflow's own"


def _differences(
    protocol: Protocol,
    evaluation: Evaluation,
    done: Done,
    measure: Measure,
    measured: dict[str, float],
    references: int,
) -> list[str]:
    """Everything in which a measurement is not the published one."""
    found = [f"set with --set: {one}" for one in evaluation.mapping if protocol.published]
    of_a_card = protocol.count > 0 and not protocol.rules
    rows = round(done.rows, -3) if of_a_card else done.rows
    if protocol.count and rows != protocol.count:
        found.append(f"{done.rows:,} captions, published: {protocol.count:,}")
    if done.made < done.rows:
        found.append(f"{done.rows - done.made} captions without a picture, see the manifest")
    if protocol.encoder not in (measure.encoder.name, Path(measure.encoder.name).name):
        found.append(f"CLIP-score by {measure.encoder.name}, published: {protocol.encoder}")
    if missing := [name for name in protocol.published if name not in measured]:
        found.append(f"not measured: {', '.join(missing)}; FID takes --references")
    if references and references != done.made:
        found.append(f"{references:,} references for {done.made:,} pictures")
    if of_a_card:
        found.append(f"captions and references are yours; the card's: {protocol.captions}")
        found.append("the card gives neither seeds nor the implementation of FID")
    return [*found, *protocol.notes]


def _stages(manifest: Path) -> dict[str, float]:
    """Mean seconds of each stage, without each worker's first row, which loads."""
    total: dict[str, float] = {}
    seen: set[str] = set()
    count = 0
    with manifest.open(encoding="utf-8") as lines:
        for entry in map(json.loads, lines):
            if entry["worker"] in seen and entry["files"]:
                count += 1
                for stage, seconds in entry["seconds"].items():
                    total[stage] = total.get(stage, 0.0) + seconds
            seen.add(entry["worker"])
    return {stage: seconds / count for stage, seconds in total.items()}
