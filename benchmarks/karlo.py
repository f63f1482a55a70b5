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
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    alternate,
    apart,
    built_in,
    machine,
    matmul_rate,
    print_table,
    ready,
    summed,
    write,
)
from torch import Tensor, nn

import prior_art.loaders  # noqa: F401, fills SPACES
from prior_art.edges import SPACES, EmbeddingSpace, TextEncoding
from prior_art.networks.karlo import TextProjection, UnCLIPDecoder, UnCLIPUpscaler
from prior_art.samplers import karlo as unclip
from prior_art.samplers import prior
from prior_art.samplers.parts.noise import Noise, generators
from prior_art.samplers.parts.sampling import Callback, Sampling
from prior_art.samplers.parts.schedule import UnCLIPSchedule
from prior_art.shapes.train import recipe

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


def generator() -> torch.Generator:
    """The noise of every stage of either side."""
    return streams(1)[0]


def streams(batch: int) -> list[torch.Generator]:
    """The same of a batch, a stream a picture."""
    return generators(7, batch)


# ---------------------------------------------------------------- the peer, as UnCLIPPipeline loops


def denoise(
    scheduler: Any, steps: int, x: Tensor, predict: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The pipeline's loop: predict, then `UnCLIPScheduler.step`."""
    source = streams(len(x))
    for stream in source:
        torch.randn(x.shape[1:], generator=stream)  # the pipeline drew its first latents from it
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
    callback: Callback | None = None  # of our sampler

    def __init__(self, args: argparse.Namespace, text: tuple[TextEncoding, TextEncoding]) -> None:
        from diffusers import UnCLIPScheduler

        torch.manual_seed(1)
        self.config = SIZES[args.size]
        self.device, self.dtype = torch.device(args.device), getattr(torch, args.dtype)
        self.steps = min(args.steps or STEPS[self.name], STEPS[self.name])
        self.batch = args.batch
        self.positive, self.negative = text
        self.scheduler = UnCLIPScheduler(**SCHEDULERS[self.name])
        self.schedule = UnCLIPSchedule.from_config(SCHEDULERS[self.name])
        self.build()

    def make(self, kind: type[nn.Module], config: dict[str, Any]) -> nn.Module:
        """A network, where and in what the benchmark runs."""
        with built_in(self.device, self.dtype):
            network = kind(**config)
        return ready(network, self.device, self.dtype)

    def start(self, *shape: int) -> Tensor:
        """The first latents."""
        drawn = [torch.randn(shape, generator=stream) for stream in streams(self.batch)]
        return torch.stack(drawn).to(self.device, self.dtype)

    def conditioning(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, pooled embeddings and masks, unconditional rows first."""
        return tuple(
            torch.cat([getattr(self.negative, key), getattr(self.positive, key)])
            .repeat_interleave(self.batch, dim=0)
            .to(self.device, self.dtype if key != "mask" else torch.bool)
            for key in ("hidden", "pooled", "mask")
        )

    def sampling(self) -> Sampling:
        """What every sampler takes."""
        noise = Noise(streams(self.batch))
        return Sampling(noise, self.device, self.dtype, self.steps, self.callback)

    def called(self) -> list[nn.Module]:
        """What the peer calls at every step."""
        return [self.network]

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

        self.network = self.make(PriorTransformer, self.config["prior"])

    def ours(self, given: Tensor) -> Tensor:
        return prior.sample_prior(
            self.network,
            self.schedule,
            self.positive,
            self.negative,
            self.sampling(),
            PRIOR_GUIDANCE,
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

        x = self.start(self.positive.space.dim)
        return self.network.post_process_latents(denoise(self.scheduler, self.steps, x, predict))


class DecoderStage(Stage):
    name = "decoder"

    def build(self) -> None:
        from diffusers import UNet2DConditionModel
        from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

        unet = self.make(UNet2DConditionModel, self.config["decoder"])
        self.text_proj = self.make(UnCLIPTextProjModel, self.config["text_proj"])
        mine = self.make(TextProjection, self.config["text_proj"])
        mine.load_state_dict(self.text_proj.state_dict())
        self.network = UnCLIPDecoder(unet, mine)

    def called(self) -> list[nn.Module]:
        return [self.network.unet]

    def ours(self, given: Tensor) -> Tensor:
        return unclip.sample_decoder(
            self.network,
            self.schedule,
            given,
            self.positive,
            self.negative,
            self.sampling(),
            DECODER_GUIDANCE,
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
        x = self.start(3, size, size)
        return denoise(self.scheduler, self.steps, x, predict).clamp(-1, 1)


class UpscaleStage(Stage):
    name = "sr"

    def build(self) -> None:
        from diffusers import UNet2DModel

        first, last = (self.make(UNet2DModel, self.config["sr"]) for _ in range(2))
        self.network = UnCLIPUpscaler(first, last)

    def called(self) -> list[nn.Module]:
        return list(self.network.children())

    def ours(self, given: Tensor) -> Tensor:
        return unclip.upscale(self.network, self.schedule, given, self.sampling())

    def peer(self, given: Tensor) -> Tensor:
        size = self.config["sr"]["sample_size"]
        guide = F.interpolate(
            given.to(self.device, torch.float32),  # not every device can do this in fp16
            size=[size, size],
            mode="bicubic",
            align_corners=False,
            antialias=True,
        ).to(self.dtype)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            unet = self.network.last if int(t) == 0 else self.network.first
            return unet(sample=torch.cat([x, guide], dim=1), timestep=t).sample

        x = self.start(3, size, size)
        return denoise(self.scheduler, self.steps, x, predict).clamp(-1, 1)


STAGES: dict[str, type[Stage]] = {s.name: s for s in (PriorStage, DecoderStage, UpscaleStage)}


# ------------------------------------------------------------------------------------- measuring


def compare(stage: Stage, given: tuple[Tensor, Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of a stage; the results are in `ours` and `peer`."""
    found, results = alternate(
        stage.name,
        {"ours": partial(stage.ours, given[0]), "peer": partial(apart(stage).peer, given[1])},
        stage.device,
        args.runs,
        warm=args.size == "embedded" or args.device == "cuda",
    )
    row = {"work": f"karlo {stage.name}, {stage.steps} steps", "size": args.size}
    return {"row": row | found, **results}


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
    parser.set_defaults(batch=1)
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
        write(rows, args, compiled=args.compile)
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
        rows.append(total | summed(rows))

    print_table(rows)
    write(rows, args, compiled=args.compile)


if __name__ == "__main__":
    main()
