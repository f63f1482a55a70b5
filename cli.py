"""The command ``prior-art``: workflows without ComfyUI, weights, training, the demo."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (0 done, 1 failed, 2 wrong usage, 130 stopped)."""
    # The door must be chosen before a node is imported.
    os.environ["PRIOR_ART_HOST"] = "embedded"
    options = _parser().parse_args(arguments)
    if getattr(options, "models", None):
        os.environ["PRIOR_ART_MODELS"] = str(options.models)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        if type(error).__name__ == "Interrupted":
            print("stopped", file=sys.stderr)
            return 130
        print(f"prior-art: {_said(error)}", file=sys.stderr)
        if not _mendable(error):
            again = shlex.join(sys.argv[1:] if arguments is None else arguments)
            print(f"not foreseen; for the traceback: prior-art --debug {again}", file=sys.stderr)
        return 1


def _said(error: Exception) -> str:
    """What is shown of an error."""
    from .edges import plain
    from .loaders.files.safe import cure_of

    if isinstance(error, OSError) and error.filename:
        return plain(f"'{error.filename}': {cure_of(error)}")
    return plain(str(error) or type(error).__name__)


def _mendable(error: Exception) -> bool:
    """Whether this is the user's to mend, in a node or outside of one: what the pack refuses, and
    what the operating system does."""
    from .edges import UserError
    from .headless.runner import NodeError

    cause = error.__cause__ if isinstance(error, NodeError) else error
    return isinstance(cause, (UserError, OSError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prior-art", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute a workflow")
    run.add_argument(
        "workflow",
        type=Path,
        metavar="WORKFLOW",
        help="its JSON, as saved or exported for the API, or a picture that carries it",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input; NODE is an id, a title or a class that occurs once; a switch takes"
        " true or false",
    )
    run.add_argument("--out", type=Path, default=Path("output"), metavar="DIR")
    run.add_argument("--input", type=Path, default=Path("input"), metavar="DIR")
    run.add_argument("--models", metavar="DIR", help="where weights lie (models/prior_art)")
    run.set_defaults(command=_run)

    _add_batch(commands)
    _add_evaluate(commands)

    download = commands.add_parser("download", help="fetch published weights from the hub")
    download.add_argument("system", nargs="?", default="", help="which; without it: what there is")
    download.add_argument("--models", metavar="DIR", help="where to put them (models/prior_art)")
    download.add_argument("--revision", help="a commit of the hub's repository")
    download.set_defaults(command=_download)

    convert = commands.add_parser("convert", help="write a checkpoint as safetensors, safely")
    convert.add_argument("system", choices=["mindalle"])
    convert.add_argument("source", type=Path, metavar="SRC", help="folder, archive or .ckpt")
    convert.add_argument("target", type=Path, metavar="DST", help="the folder to make")
    convert.set_defaults(command=_convert)

    train = commands.add_parser("train", help="fine-tune a network on pictures of your own")
    _add_transfer(train.add_subparsers(required=True, metavar="RECIPE"))

    nodes = commands.add_parser("nodes", help="list the nodes")
    nodes.set_defaults(command=_nodes)

    demo = commands.add_parser("demo", help="draw pictures with the embedded family")
    demo.add_argument("--out", type=Path, default=Path("output"), metavar="DIR")
    demo.set_defaults(command=_demo)
    return parser


def _add_batch(commands: Any) -> None:
    batch = commands.add_parser(
        "batch",
        help="execute a workflow for each row of a table",
        description="Execute a workflow for each row of a table, on one GPU or many. It can be"
        " stopped at any moment; the same command makes what is missing.",
    )
    batch.add_argument("workflow", type=Path, metavar="WORKFLOW", help="as for run")
    add = batch.add_argument
    add("--rows", type=Path, required=True, metavar="FILE", help="JSON Lines, CSV or Parquet")
    _add_shared(add)
    add("--manifest", choices=["jsonl", "parquet"], default="jsonl", help="(jsonl)")
    add("--batch", type=int, default=1, metavar="K", help="rows in one run, where stages batch (1)")
    add("--max-failures", type=int, metavar="N", help="stop after more failed rows (never)")
    add("--dry-run", action="store_true", help="look at all rows, show what the first three change")
    batch.set_defaults(command=_batch)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="CLIP-score and FID as a model card publishes them",
        description="Make a picture for each caption, score them, and put the figures beside a"
        " model card's: report.md in DIR. It can be stopped; the same command goes on.",
    )
    add = evaluate.add_argument
    add(
        "system",
        metavar="SYSTEM|WORKFLOW",
        help="a protocol of scale/protocols.json, or a workflow; an unknown name lists them",
    )
    add("--captions", type=Path, metavar="FILE", help="a table as batch takes, with a 'caption'")
    add("--references", type=Path, metavar="DIR", help="pictures to compare with, for FID")
    add("--encoder", metavar="NAME", help="the CLIP of CLIP-score, by name or folder")
    _add_shared(add)
    evaluate.set_defaults(command=_evaluate)


def _add_shared(add: Any) -> None:
    """What batch and evaluate share."""
    add(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="as for run; {column} in VALUE is the row's value, {row} its number from 0, as in"
        " Prompt.text={caption}",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="for all that is made")
    add("--input", type=Path, default=Path("input"), metavar="DIR", help="where LoadImage looks")
    add("--models", metavar="DIR", help="where weights lie (models/prior_art)")
    add("--workers", type=int, metavar="N", help="more than one are Ray's (one a GPU, else one)")
    add("--ray", metavar="ADDRESS", help="of a Ray cluster, as ray start shows it, or auto")


def _add_transfer(recipes: Any) -> None:
    transfer = recipes.add_parser(
        "mindalle-transfer",
        help="a class-conditional or unconditional minDALL-E",
        description="Make a class-conditional or unconditional minDALL-E of a text-conditional one,"
        " by the published recipe: frozen VQGAN, AdamW, cosine, gradients clipped at 4. All weights"
        " that both have are loaded; 'sos' (the classes, or the one start) and 'head' start anew."
        " Pictures are resized, cropped at their centre and encoded once. Ctrl-C leaves a state"
        " from which the same command goes on. The published size takes about 20 GB for weights,"
        " gradients and AdamW (with --lora about 6) and 1.1 for each picture at once; its state"
        " takes 15 GB of disk.",
    )
    add = transfer.add_argument
    add("--source", required=True, metavar="NAME_OR_FOLDER", help="a text-conditional minDALL-E")
    add(
        "--images",
        required=True,
        type=Path,
        metavar="DIR",
        help="the pictures; for --kind class in a sub-folder for each class",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="the folder to make")
    add("--kind", choices=["class", "unconditional"], default="class", help="(class)")
    add("--lora", type=int, metavar="RANK", help="tune low-rank layers only, merged at the end")
    add("--epochs", type=int, default=8, metavar="N", help="passes over the pictures (8)")
    add("--batch", type=int, default=512, metavar="N", help="pictures a step (512)")
    add("--micro-batch", type=int, metavar="N", help="pictures at once (what takes about 4 GB)")
    add("--lr", type=float, default=1e-4, metavar="RATE", help="learning rate (1e-4)")
    add("--val", type=float, default=0.05, metavar="SHARE", help="for validation (0.05)")
    add("--seed", type=int, default=0, metavar="N", help="of new weights, split and order (0)")
    add("--device", metavar="NAME", help="as torch calls it (cuda where there is one, else cpu)")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="to compute in (fp32)")
    add("--save-every", type=int, default=100, metavar="N", help="steps between states (100)")
    add("--models", metavar="DIR", help="where sources lie (models/prior_art)")
    transfer.set_defaults(command=_transfer)


def _run(options: argparse.Namespace) -> int:
    from .headless.runner import node_classes
    from .headless.workflow import read_workflow, to_api

    workflow = read_workflow(options.workflow)
    nodes = node_classes()
    if options.set:
        # The saved graph would not show the settings.
        workflow = to_api(workflow, nodes, options.set)
    runner = _runner(nodes, options.out, options.input)
    runner.keep = False  # there is no second run
    run = runner.run(workflow)
    for picture in run.pictures:
        print(picture)
    return 0


def _batch(options: argparse.Namespace) -> int:
    from .scale.batch import Batch, changes, run_batch

    batch = Batch(
        options.workflow,
        options.rows,
        tuple(options.set),
        options.out,
        options.input,
        options.workers,
        options.ray,
        options.manifest,
        options.batch,
        options.max_failures,
    )
    if options.dry_run:
        for line in changes(batch):
            print(line)
        return 0
    done = run_batch(batch, RowBar().show)
    print(f"{done.made} of {done.rows} rows are made, {done.failed} failed: {done.manifest}")
    return 0 if done.made == done.rows else 1


def _evaluate(options: argparse.Namespace) -> int:
    from .scale.evaluate import Evaluation, evaluate

    evaluation = Evaluation(
        options.system,
        options.out,
        options.captions,
        options.references,
        options.encoder,
        tuple(options.set),
        options.input,
        options.workers,
        options.ray,
    )
    path = evaluate(evaluation, RowBar().show)
    print(path.read_text(encoding="utf-8"))
    print(path)
    return 0


class RowBar:
    """One bar for all rows, by tqdm where it is installed."""

    def __init__(self) -> None:
        self.bar: Any = None

    def show(self, rows: int, made: int, failed: int) -> None:
        """So many of ``rows`` are made, so many failed."""
        try:
            from tqdm import tqdm
        except ImportError:
            print(f"{made}/{rows}, {failed} failed", end="\r", file=sys.stderr, flush=True)
            return
        if self.bar is None:
            self.bar = tqdm(total=rows, initial=made, unit="row")
        self.bar.set_postfix(failed=failed, refresh=False)
        self.bar.update(made + failed - self.bar.n)
        if made + failed == rows:
            self.bar.close()


def _runner(nodes: Mapping[str, Any], out: Path, pictures: Path) -> Any:
    """A runner that shows a bar per stage and stops at Ctrl-C within one step."""
    from .headless.runner import Runner, interrupt
    from .host.embedded.door import session

    bars = Bars()
    session.on_warning = bars.warn

    def stop(*_: Any) -> None:
        interrupt()
        # The system itself, so that it ends whatever is being computed.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        bars.say("stopping; a second Ctrl-C ends it at once")

    signal.signal(signal.SIGINT, stop)
    return Runner(nodes, out, pictures, on_node=bars.node, on_progress=bars.progress)


class Bars:
    """One progress bar per stage, by tqdm where it is installed."""

    def __init__(self) -> None:
        self.title = ""

    def node(self, key: str, title: str) -> None:
        """A node starts."""
        from .edges import plain

        self.title = plain(title)
        self.bar = None

    def progress(self, key: str, step: int, total: int, preview: Any) -> None:
        """A node did a step."""
        try:
            from tqdm import tqdm
        except ImportError:
            end = "\n" if step == total else "\r"
            print(f"{self.title}: {step}/{total}", end=end, file=sys.stderr, flush=True)
            return
        if self.bar is None:
            self.bar = tqdm(total=total, desc=f"{self.title[:28]:28}", unit="step")
        self.bar.update(step - self.bar.n)
        if step == total:
            self.bar.close()

    def warn(self, message: str) -> None:
        """A node has a warning."""
        where = f"{self.title}: " if self.title else ""
        self.say(f"warning: {where}{message}")

    def say(self, message: str) -> None:
        """A line of its own."""
        print(message, file=sys.stderr)


def _download(options: argparse.Namespace) -> int:
    from .host import host
    from .loaders.files.download import (
        FILES,
        console_progress,
        download,
        download_file,
        published,
        together,
    )

    if not options.system:
        print("\n".join(sorted({**published(), **together(), **FILES})))
        return 0
    folder = host.model_folders()[0]
    show = console_progress()
    if options.system in FILES:
        url, begins = FILES[options.system]
        print(download_file(url, folder, begins, progress=show))
        return 0
    for system in together().get(options.system, (options.system,)):
        print(download(system, folder, progress=show, revision=options.revision))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from .loaders.files.download import console_progress
    from .loaders.mindalle_convert import convert

    made = convert(options.source, options.target, console_progress())
    if made.ignored:
        print(f"not read, being no tensors: {', '.join(made.ignored)}", file=sys.stderr)
    print(made.path)
    return 0


def _transfer(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from .host import host
    from .training.mindalle_transfer import Recipe, source_of, transfer
    from .training.state import Unfinished

    asked: list[bool] = []

    def stop(*_: Any) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends it at once
        say("stopping; a second Ctrl-C stops at once and loses what is not saved")

    def say(message: str) -> None:
        tqdm.write(message, file=sys.stderr)

    def on_epoch(done: int, validation: float | None) -> None:
        if validation is not None:
            say(f"epoch {done} of {options.epochs}: validation {validation:.4f} nats a code")

    recipe = Recipe(
        kind=options.kind,
        lora=options.lora,
        epochs=options.epochs,
        batch=options.batch,
        rate=options.lr,
        val=options.val,
        seed=options.seed,
        dtype=options.dtype,
        micro_batch=options.micro_batch,
        save_every=options.save_every,
    )
    before = signal.signal(signal.SIGINT, stop)
    try:
        path = transfer(
            source_of(options.source, host.model_folders()),
            options.images,
            options.out,
            recipe,
            options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            stopped=lambda: bool(asked),
            warn=lambda message: say(f"warning: {message}"),
            on_epoch=on_epoch,
        )
    except Unfinished as left:
        print(left, file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, before)
    print(path)
    return 0


def _nodes(options: argparse.Namespace) -> int:
    from .headless.runner import node_classes

    for name, node in node_classes().items():
        print(f"{name:28} {node.define_schema().display_name}")
    return 0


DEMO = HERE / "headless" / "demo.json"
"""The pictures of the demo: a template, its caption on the contact sheet, and settings, in which
``{first}`` is the first picture's file."""


def _demo(options: argparse.Namespace) -> int:
    """Draw :data:`DEMO`: of each system a few pictures, and some across systems."""
    from .headless.contact_sheet import contact_sheet
    from .headless.runner import node_classes
    from .headless.workflow import read_workflow, to_api

    nodes = node_classes()
    runner = _runner(nodes, options.out, options.out)
    started, seconds, sheet = time.perf_counter(), {}, []
    for picture in json.loads(DEMO.read_text(encoding="utf-8")):
        first = sheet[0][1].name if sheet else ""
        settings = [setting.format(first=first) for setting in picture.get("set", ())]
        saved = read_workflow(HERE / "example_workflows" / f"{picture['workflow']}.json")
        prompt = to_api(saved, nodes, settings)
        run = runner.run(prompt)
        for key, taken in run.seconds.items():
            stage = nodes[prompt[key]["class_type"]].define_schema().display_name
            seconds[stage] = seconds.get(stage, 0.0) + taken
        sheet.extend((picture["caption"], made) for made in run.pictures)
    path = contact_sheet(sheet, options.out / "contact_sheet.png")
    print("\nseconds per stage, all pictures:")
    for stage, taken in seconds.items():
        print(f"  {stage:28} {taken:7.2f}")
    print(f"  {'everything':28} {time.perf_counter() - started:7.2f}")
    print(f"\n{len(sheet)} pictures in {options.out.resolve()}")
    print(f"contact sheet: {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
