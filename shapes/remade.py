"""What the finished decoder makes of half-forgotten true pictures: what its upscaler will be given.

A decoder's small pictures differ from true ones in their own way: blunt tips, lobes, hollow sides.
Noise that leaves place and size in sight, taken away again by the decoder itself, gives pairs of
such a small picture and the true large one, from which the upscaler learns to mend them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..samplers.schedule import UnCLIPSchedule, predict_x0, previous_sample
from . import recipe
from .loop import draw_for
from .pictures import training_batch
from .stages_decoder import Decoder, TextTable
from .stages_sr import Pairs

_STEPS, _GUIDANCE = 25, 8.0  # as published
_FROM = (300, 720)  # the steps to begin at: later ones forget where the shape was
_AT_ONCE = 64


@torch.no_grad()
def remade_pairs(
    unet: nn.Module,
    text_proj: nn.Module,
    table: TextTable,
    image_encoder: nn.Module,
    count: int,
    device: torch.device | str,
) -> Pairs:
    """``count`` pairs of known scenes; equal counts and networks give equal pairs."""
    schedule = UnCLIPSchedule(variance="learned_range")
    steps = [step for step in schedule.steps(_STEPS) if step.timestep <= _FROM[1]]
    most = sum(step.timestep > _FROM[0] for step in steps)
    decoder = Decoder(unet, text_proj)
    learned = text_proj.learned_classifier_free_guidance_embeddings
    parts = []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("remade", 0, start)
        rows = draw.numpy.integers(len(table.scenes), size=min(_AT_ONCE, count - start))
        pictures = torch.from_numpy(training_batch([table.scenes[i] for i in rows], draw.numpy)[0])
        pictures = pictures.to(device)
        small = F.avg_pool2d(pictures, recipe.FINAL_SIDE // recipe.DECODER_SIDE)
        said = torch.cat([torch.zeros(len(rows), dtype=torch.long), torch.from_numpy(rows) + 1])
        said = said.to(device)
        embeds = image_encoder(pictures).image_embeds
        image = torch.cat([learned.expand(len(rows), -1), embeds])
        begun = steps[int(draw.numpy.integers(most)) :]
        x = begun[0].sqrt_alpha * small
        x = x + begun[0].sqrt_beta * draw.randn(*small.shape).to(device)
        for step in begun:
            out = decoder(
                torch.cat([x, x]), torch.full((2 * len(rows),), step.timestep, device=device),
                image, table.pooled[said], table.hidden[said], table.mask[said],
            )  # fmt: skip
            base, noise = out[:, :3].chunk(2)
            x0 = predict_x0(schedule, step, x, base + _GUIDANCE * (noise - base))
            fresh = None if step.last else draw.randn(*x.shape).to(device)
            x = previous_sample(step, x, x0, fresh, out[len(rows) :, 3:])
        parts.append((pictures, x.clamp(-1, 1)))
    return Pairs(*(torch.cat(kind) for kind in zip(*parts, strict=True)))
