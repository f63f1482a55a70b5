"""The works of benchmarks/gpu.py: what they are made of, and how each kind of job measures one."""

from __future__ import annotations

import argparse
import copy
import gc
import shutil
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import kandinsky
import karlo
import koala
import mindalle
import torch
from gpu_table import COMPILED, PLAIN, WORKS, Job
from karlo import streams
from measure import MIB, alternate, apart, machine, measure, same_noise
from torch import Tensor, nn

from prior_art.edges import SPACES
from prior_art.networks.leaf import channels_last

RUNS = {0.5: 7, 2.0: 3}
"""How many, of what takes less than so many seconds; of what takes longer one."""

DTYPES = {"cuda": "float16", "cpu": "float32"}
TOKEN_DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
IMAGE_TOKENS = {"published": 256, "embedded": 16}


def settings(job: Job, size: str, device: str, dtype: str) -> argparse.Namespace:
    """What the stages of the other benchmarks are told."""
    work = WORKS[job.name]
    steps = work.steps_at(size)
    return argparse.Namespace(
        size=size,
        device=device,
        dtype=dtype,
        batch=job.batch,
        pixels=work.pixels.get(size),
        steps=steps,
        decoder_steps=steps,
    )


def make(name: str, args: argparse.Namespace) -> Any:
    """The stage of a work: ``network``, ``ours(given)``, ``peer(given)``, ``called()``."""
    system, _, part = name.partition("-")
    if system == "karlo":
        space = SPACES["openai-vit-l-14" if args.size == "published" else "shapes-vit-l"]
        return karlo.STAGES[part](args, (karlo.prompt(space, 14, 2), karlo.prompt(space, 2, 3)))
    if system == "koala":
        return koala.UNet(name, args)
    return kandinsky.make("movq" if system == "movq" else part, args)


def given_to(name: str, args: argparse.Namespace) -> Tensor:
    """What a stage gets from the one before, of random numbers."""
    sources = streams(args.batch)

    def drawn(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=source) for source in sources])

    if name == "karlo-decoder":
        return drawn(SPACES["openai-vit-l-14" if args.size == "published" else "shapes-vit-l"].dim)
    if name == "karlo-sr":
        side = karlo.SIZES[args.size]["decoder"]["sample_size"]
        return drawn(3, side, side).clamp(-1, 1)
    if name == "kandinsky-decoder":
        return drawn(kandinsky.SIZES[args.size]["prior"]["embedding_dim"])
    if name.startswith("movq"):
        return 0.5 * drawn(4, args.pixels // 8, args.pixels // 8)
    return torch.zeros(())


# ------------------------------------------------------------------------------- one side, one run


def run(device: torch.device, work: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """A run by itself: its result, and what it took."""
    with torch.no_grad(), same_noise():
        return measure(device, work)


def peak(
    device: torch.device, work: Callable[[], Tensor], networks: list[nn.Module]
) -> tuple[Tensor, float, float | None]:
    """A run by itself: its result, its seconds, and the most memory it held, MiB.

    Of the weights that lie there only those of ``networks`` count, which are this side's.
    """
    if device.type != "cuda":
        result, took = run(device, work)
        return result, took["s"], took["peak_mib"]
    tidy(device)
    own = {part for network in networks for part in (*network.parameters(), *network.buffers())}
    before = torch.cuda.memory_allocated()
    result, took = run(device, work)
    held = sum(part.numel() * part.element_size() for part in own)
    return result, took["s"], took["peak_mib"] + (held - before) / MIB


def in_fp32(stage: Any, given: Tensor) -> Tensor:
    """What the published loop makes of the same weights in fp32, on the CPU."""
    exact = copy.deepcopy(stage)
    exact.dtype = torch.float32
    pipe = getattr(exact, "pipe", None)
    for part in [*vars(exact).values(), *([] if pipe is None else pipe.components.values())]:
        if isinstance(part, nn.Module):
            nn.Module.float(part)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return run(exact.device, partial(exact.peer, given))[0].float().cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def mean_error(result: Tensor, exact: Tensor) -> float:
    return (result.float().cpu() - exact).abs().mean().item()


def runs_for(device: torch.device, seconds: float) -> int:
    """How many runs make a median."""
    found = (runs for most, runs in RUNS.items() if seconds < most)
    return 1 if device.type == "cpu" else next(found, 1)


def tidy(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ----------------------------------------------------------------------------------- kinds of jobs


def plain(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Ours beside diffusers as it is, each on weights of its own; one picture also beside fp32."""
    stage, given = make(job.name, args), given_to(job.name, args)
    device = stage.device
    exact = in_fp32(stage, given) if job.batch == 1 else None
    theirs = apart(stage)
    sides = {"ours": partial(stage.ours, given), "peer": partial(theirs.peer, given)}
    _, seconds, peer_peak = peak(device, sides["peer"], theirs.called())
    _, first, ours_peak = peak(device, sides["ours"], [stage.network])
    runs = runs_for(device, seconds)
    row, results = alternate(str(job), sides, device, runs, warm=runs > 1)
    errors = {}
    if exact is not None:
        errors = {f"{side}_error": mean_error(result, exact) for side, result in results.items()}
    return errors | {
        **{key: row[key] for key in ("ours_s", "peer_s", "ratio", "max_abs_diff")},
        "ours_peak_mib": ours_peak,
        "peer_peak_mib": peer_peak,
        "first_s": first,
    }


def compiled(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Ours beside diffusers compiled, its weights channels_last."""
    why = cannot_compile(torch.device(args.device))
    if why is not None:
        return {"dropped": why}
    stage, given = make(job.name, args), given_to(job.name, args)
    theirs, device = copy.deepcopy(stage), stage.device
    channels_last(stage.network)
    for network in theirs.called():
        nn.Module.to(network, memory_format=torch.channels_last)
        network.compile(fullgraph=True)
    sides = {"ours": partial(stage.ours, given), "peer": partial(theirs.peer, given)}
    try:
        _, first = run(device, sides["peer"])
        _, again = run(device, sides["peer"])
        row, _ = alternate(str(job), sides, device, runs_for(device, again["s"]), warm=True)
    finally:
        torch._dynamo.reset()
    return {
        "compiled_s": row["peer_s"],
        "compiled_ours_s": row["ours_s"],
        "compiled_ratio": row["ratio"],
        "compile_s": first["s"] - again["s"],
    }


def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton, which is not here"
    from torch._inductor.config import cpp

    names = [cpp.cxx] if isinstance(cpp.cxx, str) else cpp.cxx
    found = any(shutil.which(name) for name in names if name)
    return None if found else "torch.compile needs a C++ compiler, and there is none"


def against_sdxl(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Our stage on a KOALA beside our stage on SDXL's U-Net."""
    unet, sdxl = koala.UNet(job.name.removesuffix("-sdxl"), args), koala.UNet("sdxl", args)
    device = unet.device
    for side in (unet, sdxl):
        channels_last(side.network)
    _, first, ours_peak = peak(device, unet.ours, [unet.network])
    _, _, peer_peak = peak(device, sdxl.ours, [sdxl.network])
    sides = {"ours": unet.ours, "peer": sdxl.ours}
    row, _ = alternate(str(job), sides, device, runs_for(device, first), warm=True)
    return {
        **{key: row[key] for key in ("ours_s", "peer_s", "ratio")},
        "ours_peak_mib": ours_peak,
        "peer_peak_mib": peer_peak,
        "first_s": first,
    }


def tokens(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """minDALL-E: ours, the time that reading takes, and the published loop at one candidate."""
    device, count = torch.device(args.device), job.batch
    size = "true" if args.size == "published" else "embedded"
    network = mindalle.make(size, IMAGE_TOKENS[args.size], device)
    own = mindalle.in_dtype(network, TOKEN_DTYPES[device.type])
    prompt = mindalle.make_prompt(device)
    sides = {
        "ours": partial(mindalle.ours, own, prompt, count),
        "peer": partial(mindalle.peer, network, prompt, count),
    }
    _, first, ours_peak = peak(device, sides["ours"], [own])
    found: dict[str, Any] = {
        "ours_peak_mib": ours_peak,
        "first_s": first,
        "limit_s": mindalle.limit(own, count, mindalle.reading_rate(device)),
    }
    if count == 1:
        _, seconds, found["peer_peak_mib"] = peak(device, sides["peer"], [network])
        row, _ = alternate(str(job), sides, device, max(2, runs_for(device, seconds)))
        return found | {key: row[key] for key in ("ours_s", "peer_s", "ratio")}
    del network, sides["peer"]
    taken = [run(device, sides["ours"])[1]["s"] for _ in range(runs_for(device, first))]
    return found | {"ours_s": statistics.median(taken)}


def measured(job: Job, size: str, device: str, dtype: str) -> dict[str, Any]:
    """The columns that a job fills.

    Raises:
        Exception: whatever goes wrong in it.
    """
    args = settings(job, size, device, dtype)
    kinds: dict[str, Callable[[Job, argparse.Namespace], dict[str, Any]]] = {
        PLAIN: plain,
        COMPILED: compiled,
    }
    work = kinds[job.kind]
    if job.name == "mindalle":
        work, args.dtype = tokens, str(TOKEN_DTYPES[device]).removeprefix("torch.")
    elif job.name.endswith("-sdxl"):
        work = against_sdxl
    return work(job, args) | {"machine": machine(args), "dtype": args.dtype}


def card_is_well(device: str) -> bool:
    """Whether the device still answers: after some faults it never does in this process."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.zeros(1, device=device).add_(1).item()
    except Exception:
        return False
    return True
