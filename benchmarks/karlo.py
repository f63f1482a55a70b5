"""Karlo's stages: PriorArt against diffusers on the same random weights, in one process.

    python benchmarks/karlo.py --stage all --size published --threads 1 --json out.json

The peer runs the loops of diffusers' ``UnCLIPPipeline`` with its networks and its
``UnCLIPScheduler``; both sides see the same weights, prompt and noise, one picture at a time. Runs
alternate and the median counts. Processor time is printed beside: on a machine that is busy with
something else, it is the steadier of the two. Peak memory includes the weights. `all` is the sum of
the stages, each side fed by its own stage before, and the difference is that of the final pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_art.edges import SPACES, EmbeddingSpace, TextEncoding
from prior_art.networks.unclip import TextProjection, UnCLIPDecoder, UnCLIPUpscaler
from prior_art.samplers import prior, unclip
from prior_art.samplers.schedule import UnCLIPSchedule
from prior_art.shapes import recipe

WIDTHS = (320, 640, 960, 1280)
PUBLISHED: dict[str, dict[str, Any]] = {
    "prior": {},
    "decoder": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "layers_per_block": 3,
        "block_out_channels": WIDTHS,
        "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        "attention_head_dim": 64,
        "cross_attention_dim": 1536,
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "identity",
    },
    "text_proj": {
        "clip_embeddings_dim": 768,
        "time_embed_dim": 4 * WIDTHS[0],
        "cross_attention_dim": 1536,
    },
    "sr": {
        "sample_size": 256,
        "in_channels": 6,
        "out_channels": 3,
        "layers_per_block": 3,
        "block_out_channels": WIDTHS,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 4,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 4,
        "add_attention": False,
    },
}
EMBEDDED: dict[str, dict[str, Any]] = {
    "prior": recipe.PRIOR,
    "decoder": recipe.DECODER,
    "text_proj": recipe.TEXT_PROJECTION,
    "sr": recipe.SUPER_RES,
}
SIZES = {"published": PUBLISHED, "embedded": EMBEDDED}
STEPS = {"prior": 25, "decoder": 25, "sr": 7}
PRIOR_GUIDANCE, DECODER_GUIDANCE = 4.0, 8.0
SCHEDULERS = {
    "prior": recipe.SCHEDULERS["prior_scheduler"],
    "decoder": recipe.SCHEDULERS["decoder_scheduler"],
    "sr": recipe.SCHEDULERS["super_res_scheduler"],
}
MIB = 2**20


def generator() -> torch.Generator:
    """The noise of every stage of either side."""
    return torch.Generator().manual_seed(7)


# ---------------------------------------------------------------- the peer, as UnCLIPPipeline loops


def denoise(
    scheduler: Any, steps: int, x: Tensor, predict: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The pipeline's loop: predict, then `UnCLIPScheduler.step`."""
    source = generator()
    torch.randn(x.shape, generator=source)  # the pipeline drew its first latents from it
    scheduler.set_timesteps(steps, device=x.device)
    for i, t in enumerate(scheduler.timesteps):
        last = i + 1 == len(scheduler.timesteps)
        following = None if last else scheduler.timesteps[i + 1]
        x = scheduler.step(
            predict(x, t), t, x, prev_timestep=following, generator=source
        ).prev_sample
    return x


class Stage(ABC):
    """A stage of one size: the networks, its inputs, and how either side runs it."""

    name: str

    def __init__(self, args: argparse.Namespace, text: tuple[TextEncoding, TextEncoding]) -> None:
        from diffusers import UnCLIPScheduler

        torch.manual_seed(1)
        self.config = SIZES[args.size]
        self.device, self.dtype = torch.device(args.device), getattr(torch, args.dtype)
        self.steps = min(args.steps or STEPS[self.name], STEPS[self.name])
        self.positive, self.negative = text
        self.scheduler = UnCLIPScheduler(**SCHEDULERS[self.name])
        self.schedule = UnCLIPSchedule.from_config(SCHEDULERS[self.name])
        self.build()

    def place(self, network: nn.Module) -> nn.Module:
        """Ready to run, where and in what the benchmark runs; nothing is left at zero."""
        for name, parameter in network.named_parameters():
            if not parameter.any():
                nn.init.normal_(parameter, 1.0 if name == "clip_std" else 0.0, 0.02)
        return network.eval().requires_grad_(False).to(self.device, self.dtype)

    def start(self, *shape: int) -> Tensor:
        """The first latents."""
        return torch.randn(shape, generator=generator()).to(self.device, self.dtype)

    def conditioning(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, pooled embeddings and masks, unconditional row first."""
        return tuple(
            torch.cat([getattr(self.negative, key), getattr(self.positive, key)]).to(
                self.device, self.dtype if key != "mask" else torch.bool
            )
            for key in ("hidden", "pooled", "mask")
        )

    def shared(self) -> dict[str, Any]:
        """The arguments that every sampler takes."""
        return {
            "num_inference_steps": self.steps,
            "generators": [generator()],
            "device": self.device,
            "dtype": self.dtype,
        }

    @abstractmethod
    def build(self) -> None:
        """Make the networks."""

    @abstractmethod
    def ours(self, given: Tensor) -> Tensor:
        """Our sampler's result from the stage before's."""

    @abstractmethod
    def peer(self, given: Tensor) -> Tensor:
        """The published pipeline's result from the stage before's."""


class PriorStage(Stage):
    name = "prior"

    def build(self) -> None:
        from diffusers import PriorTransformer

        self.network = self.place(PriorTransformer(**self.config["prior"]))

    def ours(self, given: Tensor) -> Tensor:
        return prior.sample_prior(
            self.network,
            self.schedule,
            self.positive,
            self.negative,
            guidance_scale=PRIOR_GUIDANCE,
            **self.shared(),
        )

    def peer(self, given: Tensor) -> Tensor:
        hidden, pooled, mask = self.conditioning()

        def predict(x: Tensor, t: Tensor) -> Tensor:
            out = self.network(
                torch.cat([x] * 2),
                timestep=t,
                proj_embedding=pooled,
                encoder_hidden_states=hidden,
                attention_mask=mask,
            ).predicted_image_embedding
            uncond, cond = out.chunk(2)
            return uncond + PRIOR_GUIDANCE * (cond - uncond)

        x = self.start(1, self.positive.space.dim)
        return self.network.post_process_latents(denoise(self.scheduler, self.steps, x, predict))


class DecoderStage(Stage):
    name = "decoder"

    def build(self) -> None:
        from diffusers import UNet2DConditionModel
        from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

        unet = self.place(UNet2DConditionModel(**self.config["decoder"]))
        self.text_proj = self.place(UnCLIPTextProjModel(**self.config["text_proj"]))
        mine = self.place(TextProjection(**self.config["text_proj"]))
        mine.load_state_dict(self.text_proj.state_dict())
        self.network = UnCLIPDecoder(unet, mine)

    def ours(self, given: Tensor) -> Tensor:
        return unclip.sample_decoder(
            self.network,
            self.schedule,
            given,
            self.positive,
            self.negative,
            guidance_scale=DECODER_GUIDANCE,
            **self.shared(),
        )

    def peer(self, given: Tensor) -> Tensor:
        hidden, pooled, mask = self.conditioning()
        context, labels = self.text_proj(
            image_embeddings=given.to(self.device, self.dtype),
            prompt_embeds=pooled,
            text_encoder_hidden_states=hidden,
            do_classifier_free_guidance=True,
        )
        mask = F.pad(mask, (self.text_proj.clip_extra_context_tokens, 0), value=True)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            out = self.network.unet(
                sample=torch.cat([x] * 2),
                timestep=t,
                encoder_hidden_states=context,
                class_labels=labels,
                attention_mask=mask,
            ).sample
            uncond, cond = out.chunk(2)
            uncond, _ = uncond.split(3, dim=1)
            cond, variance = cond.split(3, dim=1)
            return torch.cat([uncond + DECODER_GUIDANCE * (cond - uncond), variance], dim=1)

        size = self.config["decoder"]["sample_size"]
        x = self.start(1, 3, size, size)
        return denoise(self.scheduler, self.steps, x, predict).clamp(-1, 1)


class UpscaleStage(Stage):
    name = "sr"

    def build(self) -> None:
        from diffusers import UNet2DModel

        first, last = (self.place(UNet2DModel(**self.config["sr"])) for _ in range(2))
        self.network = UnCLIPUpscaler(first, last)

    def ours(self, given: Tensor) -> Tensor:
        return unclip.upscale(self.network, self.schedule, given, **self.shared())

    def peer(self, given: Tensor) -> Tensor:
        size = self.config["sr"]["sample_size"]
        guide = F.interpolate(
            given.to(self.device, self.dtype),
            size=[size, size],
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )

        def predict(x: Tensor, t: Tensor) -> Tensor:
            unet = self.network.last if int(t) == 0 else self.network.first
            return unet(sample=torch.cat([x, guide], dim=1), timestep=t).sample

        return denoise(self.scheduler, self.steps, self.start(1, 3, size, size), predict).clamp(
            -1, 1
        )


STAGES: dict[str, type[Stage]] = {s.name: s for s in (PriorStage, DecoderStage, UpscaleStage)}


# ------------------------------------------------------------------------------------- measuring


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


def compare(stage: Stage, given: tuple[Tensor, Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of a stage, alternating; medians, and the results in `ours` and `peer`."""
    measured: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    results: dict[str, Tensor] = {}
    sides = {"ours": (stage.ours, given[0]), "peer": (stage.peer, given[1])}
    warm = args.size == "embedded" or args.device == "cuda"
    for run in range(-int(warm), args.runs):
        for side, (work, value) in sides.items():
            with torch.no_grad():
                results[side], took = measure(stage.device, lambda w=work, v=value: w(v))
            if run >= 0:
                measured[side].append(took)
                print(f"  {stage.name} run {run + 1} {side}: {took['s']:.2f} s", flush=True)
    difference = (results["ours"].float() - results["peer"].float()).abs().max().item()
    row = {"work": f"karlo {stage.name}, {stage.steps} steps", "size": args.size}
    for key in ("s", "cpu_s", "peak_mib"):
        for side, runs in measured.items():
            values = [took[key] for took in runs]
            row[f"{side}_{key}"] = None if None in values else statistics.median(values)
    return {"row": row | ratios(row) | {"max_abs_diff": difference}, **results}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times longer the peer takes."""
    return {
        "ratio": row["peer_s"] / row["ours_s"],
        "cpu_ratio": row["peer_cpu_s"] / row["ours_cpu_s"],
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product here."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [measure(device, lambda: a @ b)[1] for _ in range(6)]
    return 2 * side**3 / min(took["s"] for took in times[1:])


def sr_flops(config: dict[str, Any]) -> float:
    """Operations of one super-resolution step, counted without computing it."""
    from diffusers import UNet2DModel
    from torch.utils.flop_counter import FlopCounterMode

    size = config["sample_size"]
    with torch.device("meta"):
        network, x = UNet2DModel(**config), torch.empty(1, 6, size, size)
    with FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(1, dtype=torch.long, device="meta"))
    return counter.get_total_flops()


def prompt(space: EmbeddingSpace, tokens: int, seed: int) -> TextEncoding:
    """A text encoding of random numbers, padded to 77."""
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, 77, space.dim, generator=source)
    pooled = torch.randn(1, space.dim, generator=source)
    return TextEncoding(hidden, pooled, torch.arange(77)[None] < tokens, space)


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


def compile_networks(stage: Stage) -> None:
    """torch.compile for both sides: every network's forward, and our own walk through a U-Net."""
    networks = [stage.network] if isinstance(stage, PriorStage) else list(stage.network.children())
    for network in networks:
        network.compile()
    for name in ("prepare_decoder", "prepare_upscaler"):
        plain = getattr(unclip, name)
        if not hasattr(plain, "plain"):

            def wrapped(*args: Any, plain: Any = plain) -> Any:
                return torch.compile(plain(*args))

            wrapped.plain = plain
            setattr(unclip, name, wrapped)


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write what is measured so far to the file asked for."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {"machine": machine(args), "runs": args.runs, "compiled": args.compile}
        args.json.write_text(json.dumps([row | settings for row in rows], indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--size", choices=list(SIZES), default="published")
    parser.add_argument("--steps", type=int, help="at most so many steps a stage (2 or more)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args), flush=True)

    space = SPACES["openai-vit-l-14" if args.size == "published" else "shapes-vit-l"]
    text = prompt(space, 14, 2), prompt(space, 2, 3)
    names = list(STAGES) if args.stage == "all" else [args.stage]
    rows = []
    # What a stage gets when it is measured alone.
    side = SIZES[args.size]["decoder"]["sample_size"]
    alone = {
        "prior": torch.zeros(()),
        "decoder": torch.randn(1, space.dim, generator=generator()),
        "sr": torch.rand(1, 3, side, side, generator=generator()) * 2 - 1,
    }
    given = (alone[names[0]],) * 2
    for name in names:
        stage = STAGES[name](args, text)
        if args.compile:
            compile_networks(stage)
        found = compare(stage, given, args)
        given = found["ours"], found["peer"]
        rows.append(found["row"])
        write(rows, args)
        if name == "sr":
            count = sr_flops(stage.config["sr"]) * stage.steps
            rate = matmul_rate(stage.device, stage.dtype)
            share, peer = (count / found["row"][key] / rate for key in ("ours_s", "peer_s"))
            print(
                f"  sr: {count / stage.steps / 1e12:.3g} TFLOP a step as published; its rate is"
                f" {share:.0%} (peer {peer:.0%}) of a matrix product's {rate / 1e12:.3g} TFLOP/s"
            )
        del stage
        gc.collect()
    if args.stage == "all":
        steps = "/".join(row["work"].split()[-2] for row in rows)
        total = {"work": f"karlo all, {steps} steps", "size": args.size}
        total |= {key: sum(row[key] for row in rows) for key in rows[0] if key.endswith("_s")}
        for key in ("ours_peak_mib", "peer_peak_mib"):
            total[key] = max((row[key] for row in rows if row[key]), default=None)
        rows.append(total | ratios(total) | {"max_abs_diff": rows[-1]["max_abs_diff"]})

    columns = f"{'ours s':>10}{'peer s':>10}{'ratio':>8}{'CPU ratio':>11}{'max diff':>10}"
    print(f"\n{'work':28}{columns}{'peak MiB':>18}")
    for row in rows:
        peaks = " / ".join(
            "?" if row[key] is None else f"{row[key]:.0f}"
            for key in ("ours_peak_mib", "peer_peak_mib")
        )
        print(
            f"{row['work']:28}{row['ours_s']:10.3f}{row['peer_s']:10.3f}{row['ratio']:8.2f}"
            f"{row['cpu_ratio']:11.2f}{row['max_abs_diff']:10.1e}{peaks:>18}"
        )
    write(rows, args)


if __name__ == "__main__":
    main()
