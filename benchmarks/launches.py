"""What a GPU would be asked to do in one step of each stage, counted without one.

    python benchmarks/launches.py --json launches.json

The stages' own samplers run at published size on meta tensors: nothing is computed, and every
operation that a GPU would be started for is seen by torch's dispatcher. Counted are the operations
of one step, the arithmetic around the network included, and in it

- copies between memory formats: a copy whose result has its numbers in another order, and what a
  convolution does by itself where picture, weights or result are not channels_last (in fp16 a GPU
  computes it so, and turns whatever is not), or a GroupNorm where its picture is (it turns it);
- GroupNorms and LayerNorms that are operations of their own, not fused with what is around them;
- reads of the device's numbers, at which the processor waits for it.

The last three and the first are of all steps but the first, which prepares. Beside it stands one
call of diffusers' network as the published pipeline makes it. Exit status 1 where a stage copies
between formats, has a GroupNorm unfused, or reads.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import mindalle
import torch
import torch.nn.functional as F
from gpu_table import PLAIN, WORKS, Job, plan
from gpu_works import IMAGE_TOKENS, given_to, make, settings
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prior_art.networks import graphs, leaf

META = torch.device("meta")
STEPS = 4
"""That are looked at, the first of which prepares."""

FREE = {
    *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "_local_scalar_dense"),
}
"""Operations that start nothing, beside views."""

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
HALF = (torch.float16, torch.bfloat16)


@dataclass
class Counts:
    """Of one step, or of what is done at once."""

    operations: int = 0
    format_copies: int = 0
    group_norms: int = 0
    layer_norms: int = 0
    host_reads: int = 0


class Enough(Exception):
    """Of a sampler's steps."""


class Counter(TorchDispatchMode):
    """Counts what would be started on a GPU, into ``steps[-1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [Counts()]
        self.replays = 0

    def next_step(self, *_: Any) -> None:
        """A step is done; a sampler calls it after each.

        Raises:
            Enough: there are as many as it takes.
        """
        self.steps.append(Counts())
        if len(self.steps) > STEPS:
            raise Enough

    def replay(self) -> None:
        """A recorded step is started."""
        self.replays += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, now = kwargs or {}, func.overloadpacket.__name__, self.steps[-1]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(tensor.is_meta for tensor in given)
        if there and name == "_local_scalar_dense":
            now.host_reads += 1
            return True if given[0].dtype == torch.bool else 1
        if there and name == "_to_copy" and kwargs.get("device", META).type != "meta":
            now.host_reads += 1
            dtype = kwargs.get("dtype") or given[0].dtype
            return torch.zeros(given[0].shape, dtype=dtype)
        out = func(*args, **kwargs)
        if name == "convolution" and there and out.dim() == 4:
            out = as_laid_out(out, *args[:2])
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not (there or any(tensor.is_meta for tensor in made)):
            return out  # the processor's own
        now.host_reads += name in READS
        if name in FREE or is_view(func):
            return out
        now.operations += 1
        now.group_norms += name == "native_group_norm"
        now.layer_norms += name == "native_layer_norm"
        now.format_copies += turned(name, args, made)
        return out


class Attention(TorchFunctionMode):
    """Attention as the one operation that it is on a GPU: on meta tensors torch would spell it out.

    Its result lies as the fused kernels leave it, a token's heads side by side.
    """

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        self.counter.steps[-1].operations += 1
        query, _, value = args[:3]
        rows, heads, tokens, _ = query.shape
        return query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)


def is_view(func: Any) -> bool:
    """Whether an operation looks at the same memory in another way."""
    returned = func._schema.returns
    return bool(returned) and all(
        each.alias_info is not None and not each.alias_info.is_write for each in returned
    )


def as_laid_out(result: Tensor, picture: Tensor, weight: Tensor) -> Tensor:
    """A convolution's result as a GPU lays it out; on meta tensors torch does not know how."""
    formats = {suggest_memory_format(part) for part in (picture, weight)}
    if torch.channels_last not in formats:
        return result
    return torch.empty_like(result, memory_format=torch.channels_last)


def turned(name: str, args: Any, made: list[Tensor]) -> int:
    """How many tensors an operation writes anew in another order of their numbers."""
    if name in ("clone", "_to_copy"):
        return int(order(args[0]) != order(made[0]) and args[0].is_meta)
    if name == "copy_":
        # What goes into a part of something larger, as keys and values do, is no tensor anew.
        whole = torch.empty_like(args[0]).stride() == args[0].stride()
        return int(whole and order(args[0]) != order(args[1]) and args[0].shape == args[1].shape)
    if name == "convolution" and args[0].dim() == 4 and args[0].dtype in HALF:
        return sum(not is_nhwc(part) for part in (args[0], args[1], made[0]))
    if name == "native_group_norm":
        return int(args[0].dim() == 4 and not args[0].is_contiguous())
    if name == "cat" and made[0].dim() == 4 and args[1:] == (1,):  # pictures by their channels
        return sum(order(part) != order(made[0]) for part in args[0])
    return 0


def is_nhwc(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def order(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's dimensions by how far apart their numbers lie, without those of one number."""
    kept = [i for i, size in enumerate(tensor.shape) if size != 1]
    return tuple(sorted(kept, key=lambda i: (-tensor.stride(i), i)))


@contextmanager
def counting() -> Iterator[Counter]:
    """While this lasts, what is done on meta tensors is counted, until there are steps enough."""
    counter = Counter()
    known = "torch.fx.experimental._config.meta_nonzero_assume_all_nonzero"
    with mock.patch(known, True), torch.no_grad(), counter, Attention(counter), suppress(Enough):
        yield counter


@contextmanager
def recorded(counter: Counter) -> Iterator[None]:
    """While this lasts, meta tensors are recorded as a GPU's are; a replay is counted as one."""

    def record(work: Callable[[], Any], device: torch.device) -> tuple[Any, Any, Any]:
        return work(), work(), counter.replay

    with mock.patch.multiple(graphs, _places=lambda *_: 1, record=record):
        yield


# ----------------------------------------------------------------------------------------- stages


def step_of(run: Callable[[Counter], Any]) -> dict[str, int]:
    """What one step of a sampler does; copies, norms and reads are the most of any.

    Args:
        run: the sampler, with :meth:`Counter.next_step` as its callback.

    Returns:
        :class:`Counts`; and of a step that was recorded before ``replays``, and ``beside``, the
        operations that are started beside them.
    """
    with counting() as counter:
        run(counter)
    with counting() as again, recorded(again):
        run(again)
    beside = again.steps[-2].operations
    return asdict(worst(counter.steps[1:-1])) | {
        "replays": again.replays // (STEPS - 1),
        "beside": beside,
    }


def worst(steps: list[Counts]) -> Counts:
    """A step of the middle, with the most of each that any step has."""
    most = {key: max(getattr(step, key) for step in steps) for key in asdict(steps[0])}
    return Counts(**most | {"operations": steps[len(steps) // 2].operations})


def at_once(work: Callable[[], Any]) -> Counts:
    """What is no loop."""
    with counting() as counter:
        work()
    return counter.steps[0]


def peer_call(name: str, stage: Any, args: argparse.Namespace) -> Callable[[], Any]:
    """One call of diffusers' network as the published pipeline makes it at every step."""

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=stage.dtype, device=META)

    rows, time = 2 * args.batch, torch.tensor(500, device=META)
    if name.endswith("prior"):
        hidden, pooled, mask = stage.conditioning()
        x = drawn(rows, stage.positive.space.dim)
        return partial(stage.network, x, time, pooled, hidden, mask)
    if name.startswith("movq"):
        latents = drawn(args.batch, 4, args.pixels // 8, args.pixels // 8)
        return partial(stage.theirs.decode, latents, force_not_quantize=True)
    if name == "karlo-sr":
        side = stage.config["sr"]["sample_size"]
        return partial(stage.network.first, drawn(args.batch, 6, side, side), time)
    if name == "karlo-decoder":
        config = stage.config["decoder"]
        side, width = config["sample_size"], config["cross_attention_dim"]
        labels = drawn(rows, 4 * config["block_out_channels"][0])
        mask = torch.ones(rows, 81, dtype=torch.bool, device=META)
        told = {"class_labels": labels, "attention_mask": mask}
        return partial(
            stage.network.unet, drawn(rows, 3, side, side), time, drawn(rows, 81, width), **told
        )
    x = drawn(rows, 4, args.pixels // 8, args.pixels // 8)
    if name == "kandinsky-decoder":
        told = {"image_embeds": drawn(rows, stage.config["prior"]["embedding_dim"])}
        return partial(stage.network, x, time, None, added_cond_kwargs=told)
    told = {"text_embeds": drawn(rows, stage.text.pooled.shape[1]), "time_ids": drawn(rows, 6)}
    hidden = drawn(rows, *stage.text.hidden.shape[1:])
    return partial(stage.network, x, time, hidden, added_cond_kwargs=told)


def tokens(job: Job, size: str) -> tuple[dict[str, int], Counts]:
    """minDALL-E: a token of ours, and of the published loop halfway through the picture."""
    network = mindalle.make("true" if size == "published" else "embedded", IMAGE_TOKENS[size], META)
    own, config = mindalle.in_dtype(network, torch.bfloat16), network.config
    prompt = mindalle.make_prompt(torch.device("cpu"))
    ours = step_of(
        lambda counter: mindalle.ours(own, prompt, job.batch, callback=counter.next_step)
    )
    heads, past = job.batch * config.heads, config.context + config.image_tokens // 2
    cached = (config.layers, 2, heads, past, config.width // config.heads)
    kept = [torch.empty(cached, dtype=torch.float16, device=META)]
    x = torch.empty(job.batch, 1, config.width, dtype=torch.float16, device=META)
    return ours, at_once(partial(mindalle.forward, network.half(), x, kept))


def measured(job: Job, size: str) -> dict[str, Any]:
    """The row of a stage."""
    if job.name == "mindalle":
        ours, peer = tokens(job, size)
    else:
        args = settings(job, size, "meta", "float16")
        name = job.name.removesuffix("-sdxl")
        stage, given = make(name, args), given_to(name, args)
        theirs = copy.deepcopy(stage)
        # As a host lays the weights out that it puts on a GPU.
        with mock.patch.object(leaf, "_reads_channels_last", lambda _: True):
            leaf.channels_last(stage.network)

        def run(counter: Counter) -> Tensor:
            stage.callback = counter.next_step
            return stage.ours(given)

        if name.startswith("movq"):
            # As a decoder leaves its latents there.
            given = given.to(META).contiguous(memory_format=torch.channels_last)
            ours = asdict(at_once(partial(stage.ours, given))) | {"replays": 0, "beside": 0}
        else:
            ours = step_of(run)
        peer = at_once(peer_call(name, theirs, args))
    row = {"work": title(job, size), "size": size, **ours}
    return row | {f"peer_{key}": count for key, count in asdict(peer).items()}


def title(job: Job, size: str) -> str:
    whole = WORKS[job.name]
    short = whole.title.removesuffix(" against our SDXL").removesuffix(", a picture's tokens")
    return replace(whole, title=short, steps=None).said(size, job.batch)


BARS = {
    "format_copies": "copies between memory formats",
    "group_norms": "GroupNorms that are not fused",
    "host_reads": "reads of the device's numbers",
}


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """What stands in no step of any stage, and does."""
    return [
        f"{row['work']}: {row[key]} {what}"
        for row in rows
        for key, what in BARS.items()
        if row[key]
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    """As markdown."""
    print("| a step of | operations | format copies | GroupNorms | LayerNorms | reads | recorded |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row[key]} ({row[f'peer_{key}']})" for key in asdict(Counts())]
        cells.append(f"{row['replays']} + {row['beside']}" if row["replays"] else "-")
        print(f"| {row['work']} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--size", choices=["published", "embedded"], default="published")
    args = parser.parse_args()
    jobs = [j for j in plan(list(WORKS)) if j.kind == PLAIN and j.name != "koala-700m-sdxl"]
    rows = [measured(job, args.size) for job in jobs if job.batch != 8]
    print_table(rows)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = missed(rows)
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
