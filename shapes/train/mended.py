"""What a finished chain paints, and what it should have painted: lessons for what draws last.

A decoder's pictures differ from true ones in their own way: blunt tips, lobes, hollow sides. For
each the nearest true picture is known: of all silhouettes of the right kind the one that, in two
plain colours, comes closest. So Karlo's upscaler and Kandinsky's MoVQ learn to mend what they will
be given.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ..grammar import KINDS, Scene, training_scenes
from ..pictures import silhouette_pool
from . import recipe
from .karlo_sr import Pairs
from .loop import draw_for

_AT_ONCE = 64
_WORN = 0.3  # of an embedding's own deviation
_STEPS = 30  # a third of the published: their slips are the same, and it is a third of the time


def nearest_true(small: torch.Tensor, kind: str) -> torch.Tensor:
    """The picture of this kind that comes closest to a small one.

    Args:
        small: ``[3, 16, 16]`` in -1..1.

    Returns:
        ``[3, 64, 64]`` in -1..1, in the two colours that fit best.
    """
    masks = torch.from_numpy(silhouette_pool()[KINDS.index(kind)]).flatten(0, 1)
    masks = masks[:, None].to(small.device, torch.float32) / 255
    part = F.avg_pool2d(masks, recipe.FINAL_SIDE // recipe.DECODER_SIDE).flatten(1)
    seen = small.flatten(1).T  # [256, 3]
    # Least squares of ground + mask * step for every mask at once.
    centred, mean = part - part.mean(1, keepdim=True), seen.mean(0)
    along = centred @ (seen - mean)
    power = centred.square().sum(1, keepdim=True)
    best = int((along.square().sum(1, keepdim=True) / power).argmax())
    step = along[best] / power[best]
    ground = mean - step * part[best].mean()
    return (ground[:, None, None] + step[:, None, None] * masks[best]).clamp(-1, 1)


@torch.no_grad()
def mended_pairs(karlo: Path, count: int, device: torch.device | str) -> Pairs:
    """``count`` small pictures of known scenes, each with the true one nearest to it.

    Args:
        karlo: folder of the member, whose text encoder, prior and decoder are finished.
    """
    from ...loaders import karlo as loaders
    from ...loaders import unclip
    from ...loaders.clip import tokenize
    from ...loaders.files.catalogue import Source
    from ...samplers.clip import encode_text
    from ...samplers.karlo import sample_decoder
    from ...samplers.parts.noise import Noise
    from ...samplers.parts.sampling import Sampling
    from ...samplers.prior import sample_prior

    source = Source(karlo.name, "folder", karlo.resolve(), "karlo", frozenset())
    place = {"device": torch.device(device), "dtype": torch.float32}
    text, prior, decoder = (
        load(source, torch.float32)
        for load in (unclip.load_text_encoder, unclip.load_prior, loaders.load_decoder)
    )
    for part in (text, prior, decoder):
        part.network.to(device)

    def encode(prompts: list[str]):
        ids, mask, _ = tokenize(text.tokenizer, prompts)
        return encode_text(text.network, ids, mask, text.space, **place)

    known, pictures, seen = training_scenes(), [], []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("mended", 0, start)
        rows = draw.numpy.integers(len(known), size=min(_AT_ONCE, count - start))
        scenes: list[Scene] = [known[i] for i in rows]
        sampling = Sampling(Noise.seeded(start, len(scenes)), **place, num_inference_steps=25)
        said, empty = encode([scene.prompt for scene in scenes]), encode([""])
        image = sample_prior(prior.network, prior.schedule, said, empty, sampling)
        small = sample_decoder(decoder.network, decoder.schedule, image, said, empty, sampling)
        seen.append(small)
        pictures += [
            nearest_true(one, scene.kind) for one, scene in zip(small, scenes, strict=True)
        ]
    return Pairs(torch.stack(pictures), torch.cat(seen))


@torch.no_grad()
def mended_latents(kandinsky: Path, count: int, device: torch.device | str) -> Pairs:
    """``count`` sampled latents of known scenes, each with the true picture nearest to what it
    shows.

    Args:
        kandinsky: folder of the member, of which all but inpainting and depth is finished.
    """
    from ...networks.kandinsky_movq import decode
    from ...samplers.kandinsky import Canvas, Condition, sample_latents
    from ...samplers.parts.noise import Noise
    from ...samplers.parts.sampling import Sampling
    from ..painters import KandinskyPainter

    painter = KandinskyPainter(kandinsky, str(device))
    known, pictures, seen = training_scenes(), [], []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("mended latents", 0, start)
        rows = draw.numpy.integers(len(known), size=min(_AT_ONCE, count - start))
        scenes = [known[i] for i in rows]
        noise = Noise.seeded(start, len(scenes))
        embeds = painter.embeds([scene.prompt for scene in scenes], noise)
        # Every second one a little off all that the decoder was taught on, as new combinations are:
        # those it draws worst.
        worn = draw.randn(*embeds[1::2].shape).to(embeds)
        embeds[1::2] += _WORN * worn * embeds.std(0, keepdim=True)
        latents = sample_latents(
            painter.decoder.network,
            painter.decoder.schedule,
            Condition(embeds),
            Condition(painter.zero),
            Canvas((8, 8)),
            Sampling(noise, **painter.place, num_inference_steps=_STEPS),
        )
        shown = F.avg_pool2d(decode(painter.movq.network, latents), 4).clamp(-1, 1)
        seen.append(latents)
        pictures += [
            nearest_true(one, scene.kind) for one, scene in zip(shown, scenes, strict=True)
        ]
    return Pairs(torch.stack(pictures), torch.cat(seen))
