"""python -m prior_art.shapes.score SYSTEM: how often the pictures obey their prompts.

Draws all-different prompts, a quarter of them of combinations that training never saw, paints them
with the pack's own loaders and samplers at the published defaults, and lets the rules of
``check`` judge. Karlo paints picture i with the seed ``seed + i`` in all three stages. minDALL-E
paints ``--candidates`` a prompt, of which the reranker picks the one to be judged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .check import Finding, check
from .grammar import Scene, draw_prompts, held_out

_STAGES = ("text_encoder", "prior", "decoder", "upscaler")


@dataclass(frozen=True)
class Score:
    """Parts of the prompts, 0..1.

    Attributes:
        all_right: both colours and the kind.
        colours: both colours.
        prompts: how many there were.
        held_out: ``all_right`` among the combinations that training never saw.
    """

    all_right: float
    colours: float
    prompts: int
    held_out: float

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.__dict__, indent=2) + "\n"


def score(scenes: Sequence[Scene], findings: Sequence[Finding]) -> Score:
    """Counts what was found against what was asked."""
    pairs = list(zip(scenes, findings, strict=True))
    right = [finding.all_right(scene) for scene, finding in pairs]
    colours = [finding.colours_right(scene) for scene, finding in pairs]
    hidden = held_out()
    new = [ok for ok, scene in zip(right, scenes, strict=True) if scene.combination in hidden]
    return Score(
        all_right=sum(right) / max(1, len(right)),
        colours=sum(colours) / max(1, len(colours)),
        prompts=len(pairs),
        held_out=sum(new) / max(1, len(new)),
    )


class KarloPainter:
    """Karlo's whole chain, from loaded weights to pictures."""

    def __init__(self, weights: Path | None = None, device: str = "cpu"):
        from ..loaders import karlo, unclip
        from ..loaders.sources import Source, find_source

        if weights is None:
            sources = {stage: find_source("shapes-karlo", stage, []) for stage in _STAGES}
        else:
            here = weights.resolve()
            one = Source(here.name, "folder", here, "karlo", frozenset(_STAGES), (here,))
            sources = dict.fromkeys(_STAGES, one)
        self.device, self.dtype = torch.device(device), torch.float32
        self.text = unclip.load_text_encoder(sources["text_encoder"], self.dtype)
        self.prior = unclip.load_prior(sources["prior"], self.dtype)
        self.decoder = karlo.load_decoder(sources["decoder"], self.dtype)
        self.upscaler = karlo.load_upscaler(sources["upscaler"], self.dtype)
        for part in (self.text, self.prior, self.decoder, self.upscaler):
            part.network.to(self.device)

    def paint(self, prompts: Sequence[str], seed: int) -> np.ndarray:
        """One picture a prompt at the published defaults: uint8 ``[B, 64, 64, 3]``."""
        from ..loaders.clip import tokenize
        from ..samplers.clip import encode_text
        from ..samplers.noise import generators
        from ..samplers.prior import sample_prior
        from ..samplers.unclip import sample_decoder, upscale

        place = {"device": self.device, "dtype": self.dtype}

        def encode(texts: list[str]):
            ids, mask, _ = tokenize(self.text.tokenizer, texts)
            return encode_text(self.text.network, ids, mask, self.text.space, **place)

        # One stream a picture runs through all stages, as in the published pipeline.
        streams = generators(seed, len(prompts))
        text, empty = encode(list(prompts)), encode([""])
        image = sample_prior(
            self.prior.network, self.prior.schedule, text, empty, generators=streams, **place
        )
        small = sample_decoder(
            self.decoder.network,
            self.decoder.schedule,
            image,
            text,
            empty,
            generators=streams,
            **place,
        )
        large = upscale(
            self.upscaler.network, self.upscaler.schedule, small, generators=streams, **place
        )
        pixels = ((large + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()


class MinDALLEPainter:
    """minDALL-E's whole chain, from loaded weights to the reranker's favourites."""

    def __init__(self, weights: Path | None = None, device: str = "cpu", candidates: int = 1):
        from ..loaders import mindalle
        from ..loaders.reranker import load_reranker
        from ..loaders.sources import Source, find_source

        if weights is None:
            source = find_source("shapes-mindalle", "ar_transformer", [])
        else:
            source = Source(weights.name, "folder", weights.resolve(), "mindalle", frozenset())
        self.place = {"device": torch.device(device), "dtype": torch.float32}
        self.candidates = candidates
        self.vqgan = mindalle.load_vqgan(source).network.to(device)
        self.transformer = mindalle.load_transformer(source)
        self.transformer.network.to(device)
        if candidates > 1:
            self.reranker = load_reranker(find_source("shapes-clip", "reranker", []))
            self.reranker.network.to(device)

    def paint(self, prompts: Sequence[str], seed: int) -> np.ndarray:
        """One picture a prompt: uint8 ``[B, 64, 64, 3]``. Prompt i's first seed is
        ``seed + i * candidates``."""
        painted = []
        for i, prompt in enumerate(prompts):
            pictures = self._candidates(prompt, seed + i * self.candidates)
            best = self._best(prompt, pictures) if self.candidates > 1 else 0
            painted.append((pictures[best] * 255).round().to(torch.uint8).cpu().numpy())
        return np.stack(painted)

    def _candidates(self, prompt: str, seed: int) -> torch.Tensor:
        from ..loaders.mindalle import tokenize
        from ..networks.vqgan import decode
        from ..samplers.autoregressive import sample_tokens
        from ..samplers.noise import generators

        network, config = self.transformer.network, self.transformer.config
        context = tokenize(self.transformer.tokenizer, [prompt], config.text_tokens).ids
        streams = generators(seed, self.candidates)
        tokens = sample_tokens(network, context, generators=streams, **self.place)
        side = round(config.image_tokens**0.5)
        codes = tokens.view(-1, side, side).to(self.place["device"])
        return (decode(self.vqgan, codes) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def _best(self, prompt: str, pictures: torch.Tensor) -> int:
        from ..loaders.clip import tokenize
        from ..samplers.clip import encode_image, encode_text
        from ..samplers.rerank import order, preprocess, rerank_scores

        clip = self.reranker
        ids, mask, _ = tokenize(clip.tokenizer, [prompt])
        text = encode_text(clip.network["text"], ids, mask, clip.space, **self.place).pooled
        seen = preprocess(pictures, clip.size, clip.mean, clip.std)
        image = encode_image(clip.network["vision"], seen, **self.place)
        return int(order(rerank_scores(text, image))[0])


def contact_sheet(
    pictures: np.ndarray, right: Sequence[bool], columns: int = 20, gap: int = 3
) -> Image.Image:
    """All pictures in rows, each in a thin frame: grey where right, red where not."""
    count, side = len(pictures), pictures.shape[1]
    cell, columns = side + 2 * gap, min(columns, len(pictures))
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (128, 128, 128))
    for i, (picture, ok) in enumerate(zip(pictures, right, strict=True)):
        x, y = i % columns * cell, i // columns * cell
        if not ok:
            sheet.paste((255, 0, 0), (x, y, x + cell, y + cell))
        sheet.paste(Image.fromarray(picture), (x + gap, y + gap))
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m prior_art.shapes.score", description=__doc__)
    parser.add_argument("system", choices=("karlo", "mindalle"))
    parser.add_argument("--prompts", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--json", type=Path, help="where the figures go (they are printed too)")
    parser.add_argument("--out", type=Path, help="where a contact sheet goes (PNG)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and the noise")
    parser.add_argument("--batch", type=int, default=25, help="pictures at once (default: 25)")
    parser.add_argument(
        "--candidates", type=int, default=1, help="minDALL-E: pictures to pick from (default: 1)"
    )
    parser.add_argument("--weights", type=Path, help="another folder than the embedded one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)

    scenes = draw_prompts(chosen.prompts, chosen.seed)
    if chosen.system == "karlo":
        painter = KarloPainter(chosen.weights, chosen.device)
    else:
        painter = MinDALLEPainter(chosen.weights, chosen.device, chosen.candidates)
    pictures = []
    for start in tqdm(range(0, len(scenes), chosen.batch), desc="painting", unit="batch"):
        prompts = [scene.prompt for scene in scenes[start : start + chosen.batch]]
        pictures.append(painter.paint(prompts, chosen.seed + start * chosen.candidates))
    painted = np.concatenate(pictures)
    findings = [check(picture) for picture in painted]
    result = score(scenes, findings)
    print(result.as_json(), end="")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(result.as_json(), encoding="utf-8", newline="\n")
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        right = [f.all_right(s) for f, s in zip(findings, scenes, strict=True)]
        contact_sheet(painted, right).save(chosen.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
