"""KOALA's U-Nets: PriorArt against diffusers, and both KOALAs against SDXL, in one process.

    python benchmarks/koala.py --unet all --pixels 1024 --steps 1 --threads 1 --json out.json

The peer of a U-Net is diffusers' StableDiffusionXLPipeline, given prompt embeddings and asked for
latents, on the same random weights and noise; runs alternate and the median counts. The rows
"against SDXL" compare our own stage on two U-Nets, as the model card's table does (25 steps on an
RTX 4090: 2.49 times for KOALA-700M, 1.95 for KOALA-1B).
"""

from __future__ import annotations

import argparse
import gc
from functools import partial
from pathlib import Path
from typing import Any

import torch
from karlo import generator, streams
from measure import (
    alternate,
    apart,
    built_in,
    machine,
    matmul_rate,
    print_table,
    ratios,
    ready,
    write,
)
from torch import Tensor, nn

from prior_art.edges import SDXLText
from prior_art.loaders.koala import WIDTHS
from prior_art.networks.koala import prepare_sdxl
from prior_art.samplers.koala import FACTOR, LATENT_SCALE, EulerSchedule, sample_koala
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Callback, Sampling
from prior_art.shapes.train import recipe

# Layers a block, transformer blocks of each level, mid block: the table of the model card.
UNETS: dict[str, tuple[int, tuple[int, int, int], bool]] = {
    "koala-700m": (1, (1, 2, 5), False),
    "koala-1b": (1, (1, 2, 6), True),
    "sdxl": (2, (1, 2, 10), True),
}
EMBEDDED = {"koala-700m": "700m", "koala-1b": "1b", "sdxl": "teacher"}
GUIDANCE = 7.5
SIZES = 6 * 256
"""Of the pooled prompt's vector: as many numbers tell of the picture's sizes."""


def config_of(name: str, size: str = "published") -> dict[str, Any]:
    """The published diffusers config, or the embedded family's."""
    if size == "embedded":
        return recipe.KOALA_UNETS[EMBEDDED[name]]
    layers, depths, middle = UNETS[name]
    return {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": layers,
        "block_out_channels": WIDTHS,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "transformer_layers_per_block": depths,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": SIZES + 1280,
    }


class UNet:
    """One U-Net under both samplers."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        from diffusers import (
            AutoencoderKL,
            EulerDiscreteScheduler,
            StableDiffusionXLPipeline,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        torch.manual_seed(1)
        self.device, self.dtype = torch.device(args.device), getattr(torch, args.dtype)
        self.pixels, self.steps, self.batch = args.pixels, args.steps, args.batch
        self.config = config_of(name, args.size)
        hidden = self.config["cross_attention_dim"]
        pooled = self.config["projection_class_embeddings_input_dim"] - SIZES
        small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        with built_in(self.device, self.dtype):
            network = UNet2DConditionModel(**self.config)
            # The pipeline asks these two for sizes, device and dtype; they never run.
            vae = AutoencoderKL(block_out_channels=(32,) * 4, scaling_factor=LATENT_SCALE)
            encoder = CLIPTextModelWithProjection(
                CLIPTextConfig(**small, num_attention_heads=1, projection_dim=pooled)
            )
        self.network = ready(network, self.device, self.dtype)
        self.prepare = partial(prepare_sdxl, self.network)
        self.callback: Callback | None = None
        self.parameters = sum(p.numel() for p in network.parameters())
        self.pipe = StableDiffusionXLPipeline(
            vae=ready(vae, self.device, self.dtype),
            text_encoder=None,
            text_encoder_2=ready(encoder, self.device, self.dtype),
            tokenizer=None,
            tokenizer_2=None,
            unet=self.network,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                timestep_spacing="leading",
                steps_offset=1,
            ),
            add_watermarker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)
        drawn = generator()
        self.text, self.negative = (
            SDXLText(
                torch.randn(1, 77, hidden, generator=drawn), torch.randn(1, pooled, generator=drawn)
            )
            for _ in range(2)
        )

    def ours(self, given: Tensor | None = None) -> Tensor:
        side = self.pixels // FACTOR
        noise = Noise(streams(self.batch))
        latent = sample_koala(
            self.prepare,
            EulerSchedule(),
            self.text,
            self.negative,
            (side, side),
            Sampling(noise, self.device, self.dtype, self.steps, self.callback),
            GUIDANCE,
        )
        return latent * LATENT_SCALE

    def peer(self, given: Tensor | None = None) -> Tensor:
        def here(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, self.dtype).repeat_interleave(self.batch, dim=0)

        return self.pipe(
            prompt_embeds=here(self.text.hidden),
            pooled_prompt_embeds=here(self.text.pooled),
            negative_prompt_embeds=here(self.negative.hidden),
            negative_pooled_prompt_embeds=here(self.negative.pooled),
            height=self.pixels,
            width=self.pixels,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=streams(self.batch),
            output_type="latent",
        ).images

    def called(self) -> list[nn.Module]:
        """What the peer calls at every step."""
        return [self.network]


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one U-Net."""
    unet = UNet(name, args)
    print(f"{name}: {unet.parameters / 1e6:.1f}M parameters", flush=True)
    found, _ = alternate(
        name,
        {"ours": unet.ours, "peer": apart(unet).peer},
        unet.device,
        args.runs,
        warm=args.device == "cuda",
    )
    work = f"{name}, {args.steps} steps, {args.pixels}px"
    return {"work": work, "size": args.size} | found


def against_sdxl(row: dict[str, Any], sdxl: dict[str, Any]) -> dict[str, Any]:
    """Our stage on a KOALA beside our stage on SDXL."""
    keys = ("s", "cpu_s", "peak_mib")
    sides = {f"ours_{key}": row[f"ours_{key}"] for key in keys}
    sides |= {f"peer_{key}": sdxl[f"ours_{key}"] for key in keys}
    found = {"work": f"{row['work']}, against SDXL", "size": row["size"], **sides}
    return found | ratios(found) | {"max_abs_diff": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--unet", choices=[*UNETS, "all"], default="all")
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.set_defaults(batch=1, size="published")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args), flush=True)

    rows: dict[str, dict[str, Any]] = {}
    for name in UNETS if args.unet == "all" else [args.unet]:
        rows[name] = compare(name, args)
        gc.collect()
        found = list(rows.values())
        if "sdxl" in rows:
            found += [against_sdxl(r, rows["sdxl"]) for n, r in rows.items() if n != "sdxl"]
        write(found, args)

    print_table(found)
    rate = matmul_rate(torch.device(args.device), getattr(torch, args.dtype))
    print(f"a matrix product here: {rate / 1e12:.3g} TFLOP/s")


if __name__ == "__main__":
    main()
