"""python -m prior_art.shapes.train SYSTEM: trains the embedded family, or goes on where it stopped.

Everything is drawn from the seed and the number of the step, so a run that was stopped ends at
the same weights as one that was not. Karlo's stages: clip (both towers), then prior and decoder,
which read the finished CLIP and may train at once in two processes, then sr (both upscaling
networks), which reads what those paint. minDALL-E's: vqgan, ar (the transformer), reranker (a CLIP
begun from the embedded Karlo's, in the folder clip), transfer (the class-conditional and the
unconditional variant). Kandinsky 2.2's: movq and clip, prior (reads clip), decoder (reads them
all), mend (the MoVQ on what that paints), inpaint and depth, which begin as the decoder; and, with
Karlo's finished CLIP and prior, 2.1's mclip, 2-1-prior and 2-1 (its decoder). KOALA's,
with the finished text encoders of Karlo and Kandinsky 2.2: vae, teacher (which stays with the
state and may train at once with it), 700m and 1b (its students), mend (the VAE on what they paint).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...training.state import read_state, save_atomically
from . import layout, recipe

STAGES = {
    "karlo": ("clip", "prior", "decoder", "sr"),
    "mindalle": ("vqgan", "ar", "reranker", "transfer"),
    "kandinsky": (
        *("movq", "clip", "prior", "decoder", "mend", "inpaint", "depth"),
        *("mclip", "2-1-prior", "2-1"),
    ),
    "koala": ("vae", "teacher", "700m", "1b", "mend"),
}


def train_stage(
    system: str,
    stage: str,
    out: Path,
    state: Path,
    *,
    device: torch.device | str = "cpu",
    steps: int | None = None,
    stop_after: int | None = None,
) -> None:
    """Trains one stage of a system and writes its files under ``out``.

    Args:
        state: where the training's own state lies, to resume from.
        steps: optimiser steps instead of the recipe's number.
        stop_after: leave after so many steps, as an interruption would; not for ``transfer``.

    Raises:
        Unfinished: ``stop_after`` came before the end; no weights were written.
    """
    limits = {"steps": steps, "stop_after": stop_after}
    train_one = {
        "karlo": _train_karlo,
        "mindalle": _train_mindalle,
        "kandinsky": _train_kandinsky,
        "koala": _train_koala,
    }
    train_one[system](stage, out, state, device, limits)


def _train_karlo(
    stage: str, out: Path, state: Path, device: torch.device | str, limits: dict[str, Any]
) -> None:
    from .clip import train_clip
    from .karlo_decoder import train_decoder
    from .karlo_sr import train_sr
    from .mended import mended_pairs
    from .prior import train_prior
    from .words import read_tokenizer

    layout.write_settings(out)
    tokenizer = read_tokenizer(out / "tokenizer")

    if stage == "clip":
        weights = train_clip(tokenizer, state, device, **limits)
    elif stage == "sr":
        weights = train_sr(lambda count: mended_pairs(out, count, device), state, device, **limits)
    else:
        trainer = train_prior if stage == "prior" else train_decoder
        towers = (
            layout.read_network(out, name).to(device) for name in ("text_encoder", "image_encoder")
        )
        weights = trainer(*towers, tokenizer, state, device, **limits)
    for name, tensors in weights.items():
        layout.write_network(out, name, tensors)


def _train_mindalle(
    stage: str, out: Path, state: Path, device: torch.device | str, limits: dict[str, Any]
) -> None:
    from ...loaders.files.catalogue import Source
    from ...loaders.mindalle import load_tokenizer, load_vqgan
    from .mindalle import train_ar, train_variants
    from .mindalle_vqgan import train_vqgan
    from .reranker import train_reranker

    layout.write_mindalle_settings(out)
    if stage == "vqgan":
        layout.write_vqgan(out, train_vqgan(state, device, **limits))
        return
    if stage == "transfer":
        for kind, weights in train_variants(out, state, device, limits["steps"]).items():
            layout.write_ar(out, kind, weights)
        return
    if stage == "reranker":
        weights = train_reranker(layout.WEIGHTS / "karlo", state, device, **limits)
        layout.write_clip(out.with_name("clip"), weights)
        return
    vqgan = load_vqgan(Source(out.name, "folder", out, "mindalle", frozenset())).network
    weights = train_ar(vqgan.to(device), load_tokenizer(out), state, device, **limits)
    layout.write_ar(out, "text", weights)


def _train_kandinsky(
    stage: str, out: Path, state: Path, device: torch.device | str, limits: dict[str, Any]
) -> None:
    from ...edges import SPACES
    from ...loaders.files.cache import keep
    from ...loaders.unclip import ZERO_IMAGE
    from ...samplers.clip import encode_zero_image
    from .clip import train_clip
    from .kandinsky import Latents, latent_pool, train_latent_decoder, train_latent_mode
    from .mended import mended_latents
    from .movq import mend_movq, train_movq
    from .prior import said_by, train_prior
    from .words import read_tokenizer

    layout.write_kandinsky_settings(out)
    tokenizer = read_tokenizer(out / "prior" / "tokenizer")

    def finished(name: str) -> torch.nn.Module:
        return layout.read_network(out, name).to(device)

    def pool(count: int) -> Latents:
        # Kept: looking at so many pictures takes minutes, and three stages want the same.
        kept = state / f"latents-{count}.pt"
        if not kept.is_file():
            text, image = finished("prior/text_encoder"), finished("prior/image_encoder")
            space = SPACES["shapes-vit-g"]
            said = said_by(finished("prior/prior"), text, tokenizer, space, device)
            made = latent_pool(finished("decoder/movq"), image, said, count, device)
            save_atomically(dataclasses.asdict(made), kept)
        return Latents(**read_state(kept))

    if stage in ("mclip", "2-1-prior", "2-1"):
        _train_old_kandinsky(stage, out, state, device, limits)
        return
    if stage == "movq":
        weights = {"decoder/movq": train_movq(state, device, **limits)}
    elif stage == "clip":
        towers = train_clip(tokenizer, state, device, **limits, width=recipe.WIDER)
        weights = {f"prior/{name}": tensors for name, tensors in towers.items()}
    elif stage == "prior":
        towers = finished("prior/text_encoder"), finished("prior/image_encoder")
        weights = {"prior/prior": train_prior(*towers, tokenizer, state, device, **limits)["prior"]}
    elif stage == "mend":
        trained = mend_movq(
            finished("decoder/movq"),
            lambda count: mended_latents(out, count, device),
            state,
            device,
            **limits,
        )
        weights = {"decoder/movq": trained}
    elif stage == "decoder":
        weights = {"decoder/unet": train_latent_decoder(pool, state, device, **limits)}
    else:
        decoder = finished("decoder/unet")
        trained = train_latent_mode(stage, decoder, pool, state, device, **limits)
        weights = {f"{stage}/unet": trained}
    for name, tensors in weights.items():
        layout.write_network(out, name, tensors)
    if stage == "clip":
        nothing = encode_zero_image(finished("prior/image_encoder"), device)
        keep(out / f"prior/{ZERO_IMAGE}.safetensors", ZERO_IMAGE, nothing.cpu())


def _train_old_kandinsky(
    stage: str, out: Path, state: Path, device: torch.device | str, limits: dict[str, Any]
) -> None:
    """Kandinsky 2.1, in the space of Karlo's CLIP."""
    from ...edges import SPACES
    from ...loaders import kandinsky
    from ...loaders.files.cache import keep
    from ...loaders.files.catalogue import Source
    from ...loaders.unclip import ZERO_IMAGE
    from ...samplers.clip import encode_zero_image
    from .kandinsky import Latents, latent_pool, train_old_decoder
    from .karlo_decoder import TextTable
    from .mclip import prompts_by, train_mclip
    from .prior import said_by, train_prior
    from .words import read_multilingual_tokenizer, read_tokenizer

    karlo = layout.WEIGHTS / "karlo"
    tokenizer = read_tokenizer(karlo / "tokenizer")
    towers = [
        layout.read_network(karlo, name).to(device) for name in ("text_encoder", "image_encoder")
    ]
    source = Source("2-1", "embedded", out / "2-1", "kandinsky", frozenset({"mclip"}))

    def pool(count: int) -> Latents:
        kept = state / f"latents-2-1-{count}.pt"
        if not kept.is_file():
            # Karlo's too: the published decoder paints from either.
            priors = [
                layout.read_network(folder, name).to(device)
                for folder, name in ((out, "2-1-prior/prior"), (karlo, "prior"))
            ]
            space = SPACES["shapes-vit-l"]
            said = [said_by(prior, towers[0], tokenizer, space, device) for prior in priors]
            movq = layout.read_network(out, "decoder/movq").to(device)
            made = latent_pool(movq, towers[1], torch.cat(said, dim=1), count, device)
            save_atomically(dataclasses.asdict(made), kept)
        return Latents(**read_state(kept))

    if stage == "mclip":
        wanted = TextTable(towers[0], tokenizer, device).pooled
        own = read_multilingual_tokenizer(out / "2-1/tokenizer")
        layout.write_mclip(
            out / "2-1/text_encoder", train_mclip(own, wanted, state, device, **limits)
        )
    elif stage == "2-1-prior":
        begin = layout.read_network(karlo, "prior")
        trained = train_prior(*towers, tokenizer, state, device, **limits, begin=begin)["prior"]
        layout.write_network(out, "2-1-prior/prior", trained)
        nothing = encode_zero_image(towers[1], device)
        keep(out / f"2-1-prior/{ZERO_IMAGE}.safetensors", ZERO_IMAGE, nothing.cpu())
    else:
        tower = kandinsky.load_mclip(source).network.to(device)
        own = read_multilingual_tokenizer(out / "2-1/tokenizer")
        trained = train_old_decoder(
            layout.read_network(out, "decoder/unet"),
            prompts_by(tower, own, device),
            pool,
            state,
            device,
            **limits,
        )
        layout.write_network(out, "2-1/unet", trained)


def _train_koala(
    stage: str, out: Path, state: Path, device: torch.device | str, limits: dict[str, Any]
) -> None:
    from . import koala
    from .karlo_sr import Pairs
    from .words import read_tokenizer

    layout.write_koala_settings(out)

    def finished(name: str) -> torch.nn.Module:
        return layout.read_network(out, name).to(device)

    def text() -> Any:
        towers = (
            layout.read_network(layout.WEIGHTS / system, name).to(device)
            for system, name in (("karlo", "text_encoder"), ("kandinsky", "prior/text_encoder"))
        )
        return koala.text_table(
            (*towers,), read_tokenizer(layout.WEIGHTS / "karlo/tokenizer"), device
        )

    def pairs(count: int) -> Pairs:
        words, vae = text(), finished(layout.KOALA_VAE)
        made = [
            koala.sampled_pairs(finished(f"{kind}/unet"), vae, words, count // 2, device)
            for kind in koala.STUDENTS
        ]
        return Pairs(
            torch.cat([part.pictures for part in made]), torch.cat([part.seen for part in made])
        )

    teacher = state / "teacher.pt"
    if stage == "teacher":
        save_atomically(koala.train_teacher(text(), state, device, **limits), teacher)
        return
    if stage == "vae":
        weights = koala.train_vae(state, device, **limits)
    elif stage == "mend":
        weights = koala.mend_vae(finished(layout.KOALA_VAE), pairs, state, device, **limits)
    else:
        guide = recipe.koala_unet("teacher").to(device).requires_grad_(False).eval()
        guide.load_state_dict(read_state(teacher))
        smaller = finished("700m/unet") if stage == "1b" else None
        trained = koala.train_student(stage, guide, smaller, text(), state, device, **limits)
        layout.write_network(out, f"{stage}/unet", trained)
        return
    layout.write_network(out, layout.KOALA_VAE, weights)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m prior_art.shapes.train", description=__doc__)
    parser.add_argument("system", choices=sorted(STAGES))
    parser.add_argument("--stage", help="one stage only (default: all, in order)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="where the weights go (default: the package)")
    parser.add_argument(
        "--state", type=Path, help="where the state to resume from lies (default: .train/SYSTEM)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    out = chosen.out or layout.WEIGHTS / chosen.system
    state = chosen.state or Path(".train") / chosen.system
    stages = STAGES[chosen.system]
    if chosen.stage and chosen.stage not in stages:
        parser.error(f"{chosen.system} has the stages {', '.join(stages)}, not '{chosen.stage}'")
    for stage in (chosen.stage,) if chosen.stage else stages:
        train_stage(chosen.system, stage, out, state, device=chosen.device, steps=chosen.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
