"""Kandinsky 2.2's stages: PriorArt against diffusers on the same random weights, in one process.

    python benchmarks/kandinsky.py --stage all --size published --threads 1 --json out.json

The prior's peer runs the pipeline's loop with diffusers' network and scheduler (its image encoder
of 1.8 billion weights has no part in that); the others are diffusers' own pipeline and its own
mask preparation. Same weights, embeddings and noise on both sides; runs alternate and the median
counts. `--pixels` is the picture's edge, `--decoder-steps` how many steps its decoder takes. `all`
is the sum of prior, decoder and MoVQ, each side fed by its own stage before.
"""

from __future__ import annotations

import argparse
import copy
import gc
from functools import partial
from pathlib import Path
from typing import Any

import karlo
import torch
from karlo import PriorStage, generator, prompt, streams
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

from prior_art.edges import SPACES
from prior_art.networks.kandinsky_movq import at_latent_size, decode
from prior_art.samplers.kandinsky import (
    Canvas,
    Condition,
    known_mask,
    latent_size,
    sample_latents,
)
from prior_art.samplers.kandinsky_schedule import LatentSchedule
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Callback, Sampling
from prior_art.shapes.train import recipe

PUBLISHED: dict[str, dict[str, Any]] = {
    "prior": {"embedding_dim": 1280},
    "decoder": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 8,
        "layers_per_block": 3,
        "block_out_channels": (384, 768, 1152, 1536),
        "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        "attention_head_dim": 64,
        "cross_attention_dim": 768,
        "encoder_hid_dim": 1280,
        "encoder_hid_dim_type": "image_proj",
        "addition_embed_type": "image",
        "resnet_time_scale_shift": "scale_shift",
    },
    "movq": {
        "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
        "block_out_channels": (128, 256, 256, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 16384,
        "norm_type": "spatial",
    },
}
EMBEDDED: dict[str, dict[str, Any]] = {
    "prior": recipe.PRIOR | {"embedding_dim": recipe.WIDER},
    "decoder": recipe.LATENT_DECODER,
    "movq": recipe.MOVQ,
}
SIZES = {"published": PUBLISHED, "embedded": EMBEDDED}
GUIDANCE = 4.0


class Prior(PriorStage):
    """Karlo's stage with Kandinsky's width and clamp; the loop is the same."""

    def build(self) -> None:
        self.config = PUBLISHED if self.config is karlo.PUBLISHED else EMBEDDED
        super().build()
        self.scheduler = type(self.scheduler)(**recipe.WIDER_PRIOR_SCHEDULER)
        self.schedule = type(self.schedule).from_config(recipe.WIDER_PRIOR_SCHEDULER)


class Stage:
    """What the others share: networks of one size, where and in what they run."""

    network: nn.Module = nn.Identity()
    callback: Callback | None = None  # of our sampler

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(1)
        self.config = SIZES[args.size]
        self.device, self.dtype = torch.device(args.device), getattr(torch, args.dtype)
        self.pixels, self.steps, self.batch = args.pixels, args.decoder_steps, args.batch
        self.build()

    def make(self, kind: type[nn.Module], config: dict[str, Any]) -> nn.Module:
        with built_in(self.device, self.dtype):
            network = kind(**config)
        return ready(network, self.device, self.dtype)

    def build(self) -> None:
        """Make the networks."""


class Decoder(Stage):
    """Image embeddings to latents: diffusers' pipeline, asked for latents."""

    def build(self) -> None:
        from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

        self.network = self.make(UNet2DConditionModel, self.config["decoder"])
        # The pipeline wants to know how much its MoVQ enlarges; this one never runs.
        movq = self.make(VQModel, recipe.MOVQ)
        scheduler = DDPMScheduler(**recipe.LATENT_SCHEDULER)
        self.pipe = KandinskyV22Pipeline(unet=self.network, scheduler=scheduler, movq=movq)
        self.pipe.set_progress_bar_config(disable=True)
        self.schedule = LatentSchedule.from_config(dict(scheduler.config))
        self.zero = 0.1 * torch.randn(1, self.config["prior"]["embedding_dim"])

    def ours(self, given: Tensor) -> Tensor:
        noise = Noise(streams(self.batch))
        return sample_latents(
            self.network,
            self.schedule,
            Condition(given),
            Condition(self.zero),
            Canvas(latent_size(self.pixels, self.pixels)),
            Sampling(noise, self.device, self.dtype, self.steps, self.callback),
            GUIDANCE,
        )

    def peer(self, given: Tensor) -> Tensor:
        return self.pipe(
            image_embeds=given.to(self.device, self.dtype),
            negative_image_embeds=self.zero.to(self.device, self.dtype).expand_as(given),
            height=self.pixels,
            width=self.pixels,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=streams(self.batch),
            output_type="latent",
        ).images

    def called(self) -> list[nn.Module]:
        return [self.network]


class MoVQ(Stage):
    """Latents to pictures."""

    def build(self) -> None:
        from diffusers import VQModel

        self.theirs = self.make(VQModel, self.config["movq"])
        self.network = at_latent_size(copy.deepcopy(self.theirs))

    def ours(self, given: Tensor) -> Tensor:
        return decode(self.network, given.to(self.device, self.dtype))

    def peer(self, given: Tensor) -> Tensor:
        return self.theirs.decode(
            given.to(self.device, self.dtype), force_not_quantize=True, return_dict=False
        )[0]

    def called(self) -> list[nn.Module]:
        return [self.theirs.decoder]


class Mask(Stage):
    """The inpainting mask at the latents' size, from the picture's."""

    def ours(self, given: Tensor) -> Tensor:
        return known_mask(given, latent_size(self.pixels, self.pixels))

    def peer(self, given: Tensor) -> Tensor:
        from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask

        size = latent_size(self.pixels, self.pixels)
        return prepare_mask(nn.functional.interpolate(1 - given[:, None], size, mode="nearest"))


NAMES = ("prior", "decoder", "movq", "mask")


def make(name: str, args: argparse.Namespace) -> Any:
    if name != "prior":
        return {"decoder": Decoder, "movq": MoVQ, "mask": Mask}[name](args)
    space = SPACES["laion-vit-bigg-14" if args.size == "published" else "shapes-vit-g"]
    return Prior(args, (prompt(space, 14, 2), prompt(space, 2, 3)))


def compare(
    name: str, stage: Any, given: tuple[Tensor, Tensor], args: argparse.Namespace
) -> dict[str, Any]:
    """Both sides of a stage; the results are in `ours` and `peer`."""
    found, results = alternate(
        name,
        {"ours": partial(stage.ours, given[0]), "peer": partial(apart(stage).peer, given[1])},
        stage.device,
        args.runs,
        warm=args.size == "embedded" or args.device == "cuda" or name == "mask",
    )
    said = f", {stage.steps} steps" if name in ("prior", "decoder") else ""
    said += "" if name == "prior" else f", {args.pixels}px"
    row = {"work": f"kandinsky {name}{said}", "size": args.size}
    return {"row": row | found, **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stage", choices=[*NAMES, "all"], default="all")
    parser.add_argument("--size", choices=list(SIZES), default="published")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--decoder-steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.set_defaults(steps=None, batch=1)  # steps of the prior: the published number
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args), flush=True)

    dim = SIZES[args.size]["prior"]["embedding_dim"]
    size = latent_size(args.pixels, args.pixels)
    mask = torch.zeros(1, args.pixels, args.pixels)
    mask[:, args.pixels // 4 : -args.pixels // 4, args.pixels // 8 : -args.pixels // 3] = 1
    # What a stage gets when it is measured alone.
    alone = {
        "prior": torch.zeros(()),
        "decoder": torch.randn(1, dim, generator=generator()),
        "movq": 0.5 * torch.randn(1, 4, *size, generator=generator()),
        "mask": mask,
    }
    names = ["prior", "decoder", "movq"] if args.stage == "all" else [args.stage]
    given, rows = (alone[names[0]],) * 2, []

    for name in names:
        stage = make(name, args)
        found = compare(name, stage, given, args)
        given = found["ours"], found["peer"]
        rows.append(found["row"])
        write(rows, args)
        del stage
        gc.collect()
    if args.stage == "all":
        work = f"kandinsky all, 25 and {args.decoder_steps} steps, {args.pixels}px"
        rows.append({"work": work, "size": args.size} | summed(rows))
        write(rows, args)

    print_table(rows)
    rate = matmul_rate(torch.device(args.device), getattr(torch, args.dtype))
    print(f"a matrix product here: {rate / 1e12:.3g} TFLOP/s")


if __name__ == "__main__":
    main()
