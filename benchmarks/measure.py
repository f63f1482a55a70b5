"""What every benchmark here measures, and how: both sides in one process, alternating, medians.

Both sides get the same noise: ours is drawn in fp32 on the CPU, one stream a picture, whatever the
network computes in, and so is the peer's here (:func:`same_noise`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from prior_art.networks.leaf import channels_last

MIB = 2**20


@contextlib.contextmanager
def built_in(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Where and in what networks are built: on a GPU a billion random weights take no time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def ready(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network ready to run; nothing is left at zero, or an error in it would not show."""
    for name, parameter in network.named_parameters():
        if device.type != "meta" and not parameter.any():
            nn.init.normal_(parameter, 1.0 if name == "clip_std" else 0.0, 0.02)
    return nn.Module.to(network.eval().requires_grad_(False), device, dtype)  # diffusers' own warns


def apart(stage: Any) -> Any:
    """The peer's own copy of a stage, on a GPU; ours is laid out there as a host lays it out."""
    if stage.device.type != "cuda":
        return stage
    theirs = copy.deepcopy(stage)
    channels_last(stage.network)
    return theirs


@contextlib.contextmanager
def same_noise() -> Iterator[None]:
    """Let diffusers draw in fp32, as ours does.

    In fp16 a CPU draws other numbers from a seed: older releases of PyTorch always, newer ones
    where they are no multiple of 16.
    """
    from diffusers.utils import torch_utils

    plain = torch_utils.randn_tensor

    def draw(
        shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Tensor:
        drawn = plain(shape, generator, device, torch.float32, layout)
        return drawn if dtype is None else drawn.to(dtype)

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.") and vars(module).get("randn_tensor") is plain:
                stack.enter_context(mock.patch.object(module, "randn_tensor", draw))
        yield


def measure(device: torch.device, work: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Run `work`: its result; seconds, processor seconds, peak MiB (None where no one can tell)."""
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak, on Linux
    start, start_cpu = time.perf_counter(), time.process_time()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    took = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - start_cpu}
    if cuda:
        return result, took | {"peak_mib": torch.cuda.max_memory_allocated() / MIB}
    try:
        status = Path("/proc/self/status").read_text()
        took["peak_mib"] = float(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        took["peak_mib"] = None
    return result, took


def alternate(
    name: str,
    sides: Mapping[str, Callable[[], Tensor]],
    device: torch.device,
    runs: int,
    *,
    warm: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run the sides "ours" and "peer" in turn.

    Args:
        warm: run each once more before, unmeasured.

    Returns:
        The row: medians, ratios and the largest difference; and both last results.
    """
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    results: dict[str, Tensor] = {}
    for run in range(-int(warm), runs):
        for side, work in sides.items():
            with torch.no_grad(), same_noise():
                results[side], took = measure(device, work)
            if run >= 0:
                measured[side].append(took)
                print(f"  {name} run {run + 1} {side}: {took['s']:.4g} s", flush=True)
    row: dict[str, Any] = {}
    for key in ("s", "cpu_s", "peak_mib"):
        for side, taken in measured.items():
            values = [took[key] for took in taken]
            row[f"{side}_{key}"] = None if None in values else statistics.median(values)
    return row | ratios(row) | {"max_abs_diff": differ(results["ours"], results["peer"])}, results


def differ(a: Tensor, b: Tensor) -> float:
    """The largest difference of two results, each on whatever device its side leaves it."""
    return (a.cpu().float() - b.cpu().float()).abs().max().item()


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times longer the peer takes."""
    return {
        "ratio": row["peer_s"] / row["ours_s"],
        "cpu_ratio": row["peer_cpu_s"] / row["ours_cpu_s"],
    }


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of stages that ran one after the other."""
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key.endswith("_s")}
    for key in ("ours_peak_mib", "peer_peak_mib"):
        total[key] = max((row[key] for row in rows if row[key]), default=None)
    return total | ratios(total) | {"max_abs_diff": rows[-1]["max_abs_diff"]}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product here."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [measure(device, lambda: a @ b)[1] for _ in range(6)]
    return 2 * side**3 / min(took["s"] for took in times[1:])


def machine(args: argparse.Namespace) -> str:
    """What ran this, in a line."""
    name = platform.processor() or platform.machine()
    if args.device == "cuda":
        name = torch.cuda.get_device_name()
    elif sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}, {args.dtype}"
    )


def write(rows: list[dict[str, Any]], args: argparse.Namespace, **settings: Any) -> None:
    """Write what is measured so far to the file asked for."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {"machine": machine(args), "runs": args.runs} | settings
        args.json.write_text(json.dumps([row | settings for row in rows], indent=1) + "\n")


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a row."""
    columns = f"{'ours s':>10}{'peer s':>10}{'ratio':>8}{'CPU ratio':>11}{'max diff':>10}"
    print(f"\n{'work':44}{columns}{'peak MiB':>18}")
    for row in rows:
        peaks = " / ".join(
            "?" if row[key] is None else f"{row[key]:.0f}"
            for key in ("ours_peak_mib", "peer_peak_mib")
        )
        difference = row["max_abs_diff"]
        print(
            f"{row['work']:44}{row['ours_s']:10.4g}{row['peer_s']:10.4g}{row['ratio']:8.2f}"
            f"{row['cpu_ratio']:11.2f}{'' if difference is None else f'{difference:.1e}':>10}"
            f"{peaks:>18}"
        )
