"""Training of the KOALA member: SDXL's autoencoder, a teacher of SDXL's kind, and two students.

What latents are is decided: a picture eight times smaller and, in the fourth channel, its
silhouette, which tells of the kind however near the two colours are. So encoder and decoder learn
apart, and the U-Nets need neither. The decoder draws from latents that noise, white and slow, has
slipped, as sampling does: first with half of its levels, as the others are slow and know no more,
then with all of them, and when the students paint, from what these make.

The teacher learns first as it is, then under the published guidance (see ``stages_decoder``). The
students begin with those of its weights that they have a place for and learn, under that guidance,
from pictures and from it: its noise, and what comes out of its self-attention (arXiv 2312.04005:
of all features these are the ones worth learning from). The larger student goes on from the smaller
one, which by then draws better than so briefly trained a teacher.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...edges import SDXLText
from ...networks.koala import prepare_sdxl
from ...samplers.koala import FACTOR, LATENT_SCALE, EulerSchedule, encode_text_pair, sample_koala
from ...samplers.parts.noise import Noise
from ...samplers.parts.sampling import Sampling
from ..grammar import Scene, training_scenes
from ..pictures import oddly_coloured, training_batch
from . import recipe
from .karlo_sr import Pairs, edge_loss, picture_weight
from .loop import Draw, Plan, draw_for, some_of, train
from .mended import nearest_true

ENCODER = Plan("koala_encoder", steps=700, batch=16, rate=1.5e-3, ema=0.99, warmup=20)
COARSE = Plan("koala_coarse", steps=3000, batch=16, rate=1.5e-3, ema=0.995, warmup=20)
FINE = Plan("koala_fine", steps=1500, batch=8, rate=1.2e-3, ema=0.99, warmup=20)
POOL = 12288
TEACHER = Plan("koala_teacher", steps=800, batch=32, rate=1.5e-3, ema=0.997)
TEACHER_GUIDED = Plan("koala_teacher_guided", steps=400, batch=32, rate=1e-3, ema=0.995, warmup=50)
# The 1B begins as the finished 700M, so that most of its course is its mid block's.
STUDENTS = {
    kind: Plan(f"koala_{kind}", steps=steps, batch=32, rate=1.2e-3, ema=0.995, warmup=50)
    for kind, steps in (("700m", 4200), ("1b", 2000))
}
MENDING = Plan("koala_mending", steps=1000, batch=8, rate=8e-4, ema=0.99, warmup=20)
PAIRS = 2048
GUIDANCE = 7.5  # as published
_OUTLINES, _HARDNESS = 3.0, 10.0
_SLIP = 0.4  # the most, in deviations of the latents
_SPREAD = 0.64  # of the colours' channels, and mean and spread of the silhouette's: all of them
_COVERED, _COVERED_SPREAD = 0.2, 0.33  # together have a deviation of one
_NO_VARIANCE = -20.0  # the log of what the autoencoder says of its latents' variance
_DROP = 0.12
_TAUGHT = {"700m": 2 / 7, "1b": 1 / 8}  # of a student's course
_OUTPUTS, _FEATURES = 0.5, 0.1  # weights of the teacher's noise and of its self-attention
_AT_ONCE = 64


def _scenes(draw: Draw, count: int) -> tuple[np.ndarray, list[Scene]]:
    """Random training scenes and their places in ``training_scenes()``; triangles, whose tips are
    the hardest to draw, come twice as often."""
    scenes = training_scenes()
    often = np.array([2.0 if scene.kind == "triangle" else 1.0 for scene in scenes])
    chosen = draw.numpy.choice(len(scenes), size=count, p=often / often.sum())
    return chosen, [scenes[i] for i in chosen]


def _pictures(
    draw: Draw, count: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``[count, 3, 64, 64]`` in -1..1, every second in colours off the palette, and their
    silhouettes ``[count, 1, 64, 64]`` in 0..1."""
    _, shown = _scenes(draw, count)
    pictures, masks = training_batch(shown, draw.numpy)
    pictures[1::2] = oddly_coloured(shown[1::2], masks[1::2], draw.numpy)
    return torch.from_numpy(pictures).to(device), torch.from_numpy(masks).to(device)


def slips(draw: Draw, shape: torch.Size, most: float = _SLIP) -> torch.Tensor:
    """Noise of a deviation of up to ``most``, part white and part slow, ``[B, C, h, h]``."""
    count, channels, side = shape[:3]
    slow = F.interpolate(
        draw.randn(count, channels, 3, 3), size=side, mode="bicubic", align_corners=True
    )
    share = torch.rand(count, 1, 1, 1, generator=draw.torch)
    mixed = share.sqrt() * draw.randn(*shape) + (1 - share).sqrt() * slow
    return most * torch.rand(count, 1, 1, 1, generator=draw.torch) * mixed


def true_latents(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """What pictures are to be encoded as ``[B, 4, 8, 8]``, of deviation one.

    Args:
        pictures: ``[B, 3, 64, 64]`` in -1..1; masks: their silhouettes ``[B, 1, 64, 64]`` in 0..1.
    """
    covered = (F.avg_pool2d(masks, FACTOR) - _COVERED) / _COVERED_SPREAD
    return torch.cat([F.avg_pool2d(pictures, FACTOR) / _SPREAD, covered], dim=1)


def _found(vae: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """The mean of the latents ``[B, 4, 8, 8]`` as the network has them."""
    return vae.quant_conv(vae.encoder(pictures)).chunk(2, dim=1)[0]


def _drawn(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """The picture of latents as the network has them."""
    return vae.decoder(vae.post_quant_conv(latents))


def _picture_loss(made: torch.Tensor, wanted: torch.Tensor, edges: float) -> torch.Tensor:
    plain = F.mse_loss(made, wanted) + F.l1_loss(made, wanted)
    return plain + edges * edge_loss(made, wanted)


def outline_loss(made: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """How far silhouettes are from the true ones: one less intersection over union, softly.

    A made picture's silhouette is where it is nearer to the shape's colour than to the ground's, so
    that pairs of near colours count as much as others.
    """
    ground = pictures[:, :, :1, :1]  # no shape reaches a corner
    away = (pictures - ground).flatten(2)
    farthest = away.square().sum(1).argmax(1)
    line = away[torch.arange(len(away)), :, farthest][:, :, None, None]

    def along(shown: torch.Tensor) -> torch.Tensor:
        return ((shown - ground) * line).sum(1) / line.square().sum(1)

    found, masks = torch.sigmoid(_HARDNESS * (along(made) - 0.5)), along(pictures)
    both = (found * masks).sum(dim=(1, 2))
    either = (found + masks - found * masks).sum(dim=(1, 2))
    return (1 - both / either).mean()


def drawing_loss(made: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Pictures, their edges and their outlines."""
    plain, outline = _picture_loss(made, wanted, 3.0), outline_loss(made, wanted)
    figures = {"picture": plain.item(), "outline": outline.item()}
    return plain + _OUTLINES * outline, figures


class Coarse(nn.Module):
    """The first half of a decoder, and a layer that makes pictures of what it knows."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        decoder = vae.decoder
        self.post_quant_conv, self.conv_in = vae.post_quant_conv, decoder.conv_in
        self.mid_block = decoder.mid_block
        self.up_blocks = nn.ModuleList(decoder.up_blocks[:2])
        width = vae.config.block_out_channels[-2]
        self.head = nn.Conv2d(width, 3 * 2**2, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures ``[B, 3, 64, 64]``."""
        x = self.mid_block(self.conv_in(self.post_quant_conv(latents)))
        for block in self.up_blocks:
            x = block(x)
        return F.pixel_shuffle(self.head(F.silu(x)), 2)


def encoder_loss(
    vae: nn.Module, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """How far latents are from what they should be."""
    pictures, masks = _pictures(draw, batch, device)
    away = (_found(vae, pictures) - true_latents(pictures, masks)).square().mean(dim=(0, 2, 3))
    return away.mean(), {"colours": away[:3].mean().item(), "covered": away[3].item()}


def decoder_loss(
    drawn: Callable[[torch.Tensor], torch.Tensor],
    draw: Draw,
    batch: int,
    device: torch.device | str,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The picture from latents that have slipped."""
    pictures, masks = _pictures(draw, batch, device)
    latents = true_latents(pictures, masks)
    return drawing_loss(drawn(latents + slips(draw, latents.shape).to(device)), pictures)


@torch.no_grad()
def settle(vae: nn.Module) -> None:
    """Takes latents of deviation one to the published deviation, and their variance away."""
    mean, variance = vae.quant_conv.weight.chunk(2)
    mean.div_(LATENT_SCALE)
    variance.zero_()
    mean, variance = vae.quant_conv.bias.chunk(2)
    mean.div_(LATENT_SCALE)
    variance.fill_(_NO_VARIANCE)
    vae.post_quant_conv.weight.mul_(LATENT_SCALE)


def train_vae(
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of an autoencoder whose latents are of the published deviation."""
    torch.manual_seed(ENCODER.seed)
    vae = recipe.koala_vae().to(device)
    coarse = Coarse(vae).to(device)
    seeing = nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv})
    drawing = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    for plan, learning, loss_of in (
        (COARSE, coarse, partial(decoder_loss, coarse)),
        (FINE, drawing, partial(decoder_loss, partial(_drawn, vae))),
        (ENCODER, seeing, partial(encoder_loss, vae)),
    ):
        plan = plan.limited(steps)
        weights = train(
            plan,
            learning,
            # Bound now: the next turn of the loop has others.
            lambda draw, loss_of=loss_of, batch=plan.batch: loss_of(draw, batch, device),
            folder / f"{plan.stage}.pt",
            stop_after=stop_after,
        )
        learning.load_state_dict(weights)
    settle(vae)
    return {name: value.detach().cpu() for name, value in vae.state_dict().items()}


@dataclasses.dataclass(frozen=True)
class Latents:
    """Training pictures.

    Attributes:
        latents: ``[N, 4, 8, 8]`` of a deviation of about one; rows: int64 ``[N]``, the scene of
            each in ``training_scenes()``.
    """

    latents: torch.Tensor
    rows: torch.Tensor


def latent_pool(count: int) -> Latents:
    """``count`` training pictures; equal counts give equal pools."""
    latents, rows = [], []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("koala latents", 0, start)
        chosen, scenes = _scenes(draw, min(_AT_ONCE, count - start))
        latents.append(true_latents(*map(torch.from_numpy, training_batch(scenes, draw.numpy))))
        rows.append(torch.from_numpy(chosen))
    return Latents(torch.cat(latents), torch.cat(rows))


def text_table(
    towers: tuple[nn.Module, nn.Module], tokenizer: Any, device: torch.device | str
) -> SDXLText:
    """What guidance subtracts (rows 0, the empty prompt, and 1, zeros, as diffusers has it), and
    every training prompt, all 77 tokens of them."""
    prompts = ["", "", *(scene.prompt for scene in training_scenes())]
    ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids.to(device)
    text = encode_text_pair(*towers, ids, ids)
    text.hidden[1].zero_()
    text.pooled[1].zero_()
    return text


@lru_cache(maxsize=1)
def _levels() -> torch.Tensor:
    """Noise over signal by timestep, float32 ``[1000]``."""
    return torch.from_numpy(EulerSchedule().sigmas())


def predict(
    unet: nn.Module, x: torch.Tensor, steps: torch.Tensor, text: SDXLText, rows: torch.Tensor
) -> torch.Tensor:
    """The noise in ``x`` ``[B, 4, h, w]`` for rows of the table, as SDXL is told of it."""
    side = recipe.FINAL_SIDE
    sizes = torch.tensor([side, side, 0, 0, side, side], dtype=x.dtype, device=x.device)
    rows = rows.to(x.device)
    more = {"text_embeds": text.pooled[rows], "time_ids": sizes.expand(len(x), -1)}
    return unet(x, steps.to(x.device), text.hidden[rows], added_cond_kwargs=more).sample


@contextmanager
def self_attention(unet: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Keeps what comes out of every self-attention of one call, by its module's name."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, module in unet.named_modules()
        if name.endswith(".attn1")
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def in_teacher(name: str) -> str:
    """The teacher's name of a student's weight or module.

    A student has the first block of each level going down, the first and the last going up (the
    last takes the level's skipped input, of another width), and the first transformer blocks.
    """
    last = recipe.KOALA_UNETS["teacher"]["layers_per_block"]
    return re.sub(r"^(up_blocks\.\d+\.(?:resnets|attentions))\.1\.", rf"\1.{last}.", name)


@torch.no_grad()
def begin_as(student: nn.Module, teacher: nn.Module) -> None:
    """Gives a student its weights of the teacher."""
    known = dict(teacher.named_parameters())
    for name, tensor in student.named_parameters():
        tensor.copy_(known[in_teacher(name)])


def noise_loss(
    unet: nn.Module,
    text: SDXLText,
    pool: Latents,
    draw: Draw,
    batch: int,
    device: torch.device | str,
    guidance: float = 1.0,
    teacher: nn.Module | None = None,
    teaching: float = 0.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Noise prediction, under this much guidance, and ``teaching`` times what differs from the
    teacher's."""
    chosen = torch.from_numpy(draw.numpy.integers(len(pool.rows), size=batch))
    latents, said = pool.latents[chosen].to(device), pool.rows[chosen] + 2
    nothing = torch.randint(2, (batch,), generator=draw.torch)
    dropped = torch.rand(batch, generator=draw.torch) < _DROP
    said = torch.where(dropped, nothing, said)

    steps = draw.timesteps(batch)
    level = _levels()[steps].view(-1, 1, 1, 1).to(device)
    signal = (level.square() + 1).rsqrt()
    noise = draw.randn(*latents.shape).to(device)
    noisy = signal * (latents + level * noise)
    weight = picture_weight(signal, level * signal)

    with self_attention(unet) as mine:
        predicted = predict(unet, noisy, steps, text, said)
    loss, figures = torch.zeros((), device=device), {}
    if teacher is not None and teaching > 0:
        # Half of them, as it is slow.
        half = slice(batch // 2)
        with torch.no_grad(), self_attention(teacher) as wanted:
            right = predict(teacher, noisy[half], steps[half], text, said[half])
        # Counted as it will be once guidance has multiplied it.
        amiss = (weight[half] * (guidance * (predicted[half] - right)).square()).mean()
        features = torch.stack(
            [
                (out[half] - (goal := wanted[in_teacher(name)])).square().mean()
                / goal.square().mean()
                for name, out in mine.items()
            ]
        ).mean()
        loss = teaching * (_OUTPUTS * amiss + _FEATURES * features)
        figures = {"amiss": amiss.item(), "features": features.item()}
    if guidance > 1:
        with torch.no_grad():
            base = predict(unet, noisy, steps, text, nothing)
        guided = base + guidance * (predicted - base)
        predicted = torch.where(dropped.view(-1, 1, 1, 1).to(device), predicted, guided)
    error = (weight * (predicted - noise).square()).mean()
    return loss + error, {"error": error.item()} | figures


def train_teacher(
    text: SDXLText,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of the teacher."""
    torch.manual_seed(TEACHER.seed)
    unet, known = recipe.koala_unet("teacher").to(device), latent_pool(some_of(POOL, steps))
    for plan, guidance in ((TEACHER, 1.0), (TEACHER_GUIDED, GUIDANCE)):
        plan = plan.limited(steps)
        weights = train(
            plan,
            unet,
            # Bound now: the next turn of the loop has another plan.
            lambda draw, batch=plan.batch, guidance=guidance: noise_loss(
                unet, text, known, draw, batch, device, guidance
            ),
            folder / f"{plan.stage}.pt",
            stop_after=stop_after,
        )
        unet.load_state_dict(weights)
    return weights


def train_student(
    kind: str,
    teacher: nn.Module,
    smaller: nn.Module | None,
    text: SDXLText,
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights of the student "700m" or "1b" of a finished teacher.

    Args:
        smaller: a finished student, whose weights are taken for the teacher's.
    """
    plan = STUDENTS[kind].limited(steps)
    torch.manual_seed(plan.seed)
    unet, known = recipe.koala_unet(kind).to(device), latent_pool(some_of(POOL, steps))
    begin_as(unet, teacher)
    if smaller is not None:
        unet.load_state_dict(smaller.state_dict(), strict=False)

    def loss_of(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        # Less and less: a student outgrows a teacher of so short a training.
        teaching = 1 - draw.step / (_TAUGHT[kind] * plan.steps)
        return noise_loss(
            unet, text, known, draw, plan.batch, device, GUIDANCE, teacher, max(0.0, teaching)
        )

    return train(
        plan,
        unet,
        loss_of,
        folder / f"{plan.stage}.pt",
        stop_after=stop_after,
    )


@torch.no_grad()
def sampled_pairs(
    unet: nn.Module,
    vae: nn.Module,
    text: SDXLText,
    count: int,
    device: torch.device | str,
) -> Pairs:
    """Latents of known scenes that a finished student samples, and the true pictures nearest to
    what they show."""
    side = recipe.FINAL_SIDE // FACTOR
    pictures, seen = [], []
    for start in range(0, count, _AT_ONCE):
        draw = draw_for("koala pairs", 0, start)
        chosen, scenes = _scenes(draw, min(_AT_ONCE, count - start))
        rows = torch.from_numpy(chosen).to(device) + 2
        streams = [
            torch.Generator().manual_seed(int(seed))
            for seed in draw.numpy.integers(2**62, size=len(scenes))
        ]
        latents = sample_koala(
            partial(prepare_sdxl, unet),
            EulerSchedule(),
            SDXLText(text.hidden[rows], text.pooled[rows]),
            SDXLText(text.hidden[:1], text.pooled[:1]),
            (side, side),
            Sampling(Noise(streams), torch.device(device), torch.float32, num_inference_steps=25),
        )
        shown = F.avg_pool2d(_drawn(vae, latents), 4).clamp(-1, 1)
        seen.append(latents * LATENT_SCALE)
        pictures += [
            nearest_true(one, scene.kind) for one, scene in zip(shown, scenes, strict=True)
        ]
    return Pairs(torch.stack(pictures), torch.cat(seen))


def mending_loss(
    vae: nn.Module, pairs: Pairs, draw: Draw, batch: int, device: torch.device | str
) -> tuple[torch.Tensor, dict[str, float]]:
    """True pictures from their latents, which have slipped, and from sampled ones."""
    pictures, _ = _pictures(draw, batch - batch // 2, device)
    with torch.no_grad():
        found = _found(vae, pictures) * LATENT_SCALE
    found = found + slips(draw, found.shape).to(device)
    chosen = torch.from_numpy(draw.numpy.integers(len(pairs.seen), size=batch // 2)).to(device)
    made = _drawn(vae, torch.cat([found, pairs.seen[chosen]]) / LATENT_SCALE)
    return drawing_loss(made, torch.cat([pictures, pairs.pictures[chosen]]))


def mend_vae(
    vae: nn.Module,
    pairs: Callable[[int], Pairs],
    folder: Path,
    device: torch.device | str,
    steps: int | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The weights of the finished autoencoder, its decoder taught on what the students make."""
    plan = MENDING.limited(steps)
    known = pairs(some_of(PAIRS, steps))
    # Without post_quant_conv, which settling has made small: the rate is not for such weights.
    vae.decoder.requires_grad_(True)
    weights = train(
        plan,
        vae.decoder,
        lambda draw: mending_loss(vae, known, draw, plan.batch, device),
        folder / "mending.pt",
        stop_after=stop_after,
    )
    vae.decoder.load_state_dict(weights)
    return {name: value.detach().cpu() for name, value in vae.state_dict().items()}
