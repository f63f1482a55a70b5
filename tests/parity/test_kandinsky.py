"""Kandinsky 2.2's stages against diffusers' pipelines, on the same weights and seeds, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.loaders import kandinsky, unclip
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.catalogue import find_source
from prior_art.networks.kandinsky_movq import decode, encode
from prior_art.samplers.clip import encode_text, encode_zero_image
from prior_art.samplers.kandinsky import (
    Canvas,
    Condition,
    Known,
    known_mask,
    latent_size,
    sample_latents,
)
from prior_art.samplers.kandinsky_schedule import LatentSchedule
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling, Start
from prior_art.samplers.prior import sample_prior

from ..tiny import DIM, kandinsky_pipeline, tiny_kandinsky

pytestmark = pytest.mark.slow

SEED, STEPS, CLOSE = 1234, 6, 1e-4
PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
PROMPT, NEGATIVE = "a red cat", "the bird and the cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kandinsky(tmp_path_factory.mktemp("models"))


def close(ours: torch.Tensor, theirs: Any) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=CLOSE, rtol=CLOSE)


def streams(count: int, seed: int = SEED) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def embeds(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def prior(folder: Path, count: int, *, negative: str | None = None, **options: Any) -> torch.Tensor:
    """Our prior; with ``negative`` its embeddings come behind the prompt's."""
    source = find_source("prior", "prior", [folder])
    loaded, tower = unclip.load_prior(source), unclip.load_text_encoder(source)

    def encoded(text: str) -> Any:
        ids, mask, _ = tokenize(tower.tokenizer, [text])
        return encode_text(tower.network, ids, mask, tower.space, **PLACE)

    noise = Noise.seeded(SEED, count if negative is None else 2 * count)
    steps = options.pop("num_inference_steps", STEPS)
    return sample_prior(
        loaded.network,
        loaded.schedule,
        encoded(PROMPT),
        encoded(negative or ""),
        Sampling(noise, **PLACE, num_inference_steps=steps),
        with_negative=negative is not None,
        **options,
    )


def decoder(folder: Path, mode: str) -> kandinsky.LatentDecoder:
    return kandinsky.load_latent_decoder(find_source(mode, "latent_decoder", [folder]))


def latents(folder: Path, mode: str, image: torch.Tensor, count: int, **options: Any) -> Any:
    loaded = decoder(folder, mode)
    hint, steps = options.pop("hint", None), options.pop("num_inference_steps", STEPS)
    canvas = Canvas(options.pop("size"), options.pop("start", None))
    return sample_latents(
        loaded.network,
        options.pop("schedule", loaded.schedule),
        Condition(image, hint=hint),
        Condition(options.pop("negative_embeds", embeds(1, 9)), hint=hint),
        canvas,
        Sampling(Noise.seeded(SEED, count), **PLACE, num_inference_steps=steps),
        **options,
    )


def painted(folder: Path, made: torch.Tensor) -> torch.Tensor:
    movq = kandinsky.load_movq(find_source("decoder", "movq", [folder]))
    return decode(movq.network, made)


# -- the prior ----------------------------------------------------------------------------------


def test_prior(folder: Path) -> None:
    pipe = kandinsky_pipeline(folder, "prior")
    wanted = pipe(PROMPT, num_images_per_prompt=2, num_inference_steps=STEPS, generator=streams(2))
    close(prior(folder, 2), wanted.image_embeds)
    zero = encode_zero_image(
        unclip.load_image_encoder(find_source("prior", "image_encoder", [folder])).network, "cpu"
    )
    close(zero.expand(2, -1), wanted.negative_image_embeds)


@pytest.mark.parametrize("count", [1, 2])
def test_prior_with_a_negative_prompt(folder: Path, count: int) -> None:
    """Three rows a step where the pipeline runs four."""
    pipe = kandinsky_pipeline(folder, "prior")
    wanted = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        generator=streams(2 * count),
    )
    ours = prior(folder, count, negative=NEGATIVE)
    close(ours, torch.cat([wanted.image_embeds, wanted.negative_image_embeds]))


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_image_to_image_prior(folder: Path, strength: float) -> None:
    pipe = kandinsky_pipeline(folder, "prior", "KandinskyV22PriorEmb2EmbPipeline")
    wanted = pipe(
        PROMPT,
        image=embeds(1, 3),
        strength=strength,
        num_images_per_prompt=2,
        num_inference_steps=10,
        generator=streams(2),
    )
    ours = prior(folder, 2, start=Start(embeds(1, 3), strength), num_inference_steps=10)
    close(ours, wanted.image_embeds)


def test_interpolation_is_the_weighted_sum(folder: Path) -> None:
    """Of what the prior makes of each text and the image encoder of each picture."""
    pipe = kandinsky_pipeline(folder, "prior")
    image = picture(40, 48)
    wanted = pipe.interpolate(
        [PROMPT, image], [0.3, 0.7], num_inference_steps=STEPS, generator=streams(1)
    )
    source = find_source("prior", "image_encoder", [folder])
    encoder = unclip.load_image_encoder(source)
    with torch.no_grad():
        seen = encoder.network(
            encoder.preprocess(torch.from_numpy(np.asarray(image) / np.float32(255))[None])
        ).image_embeds
    close(0.3 * prior(folder, 1) + 0.7 * seen, wanted.image_embeds)


# -- the decoder --------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 100)])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_text_to_image(folder: Path, height: int, width: int, guidance: float) -> None:
    pipe = kandinsky_pipeline(folder, "decoder")
    wanted = pipe(
        image_embeds=embeds(1),
        negative_image_embeds=embeds(1, 9),
        height=height,
        width=width,
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        generator=streams(1),
        output_type="pt",
    ).images
    made = latents(
        folder, "decoder", embeds(1), 1, size=latent_size(height, width), guidance_scale=guidance
    )
    close(painted(folder, made), wanted)


def test_two_prompts_two_pictures_each(folder: Path) -> None:
    pipe = kandinsky_pipeline(folder, "decoder")
    wanted = pipe(
        image_embeds=embeds(2),
        negative_image_embeds=embeds(2, 9),
        height=64,
        width=64,
        num_images_per_prompt=2,
        num_inference_steps=STEPS,
        generator=streams(4),
        output_type="latent",
    ).images
    ours = latents(folder, "decoder", embeds(2), 4, size=(8, 8), negative_embeds=embeds(2, 9))
    close(ours, wanted)


DDIM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


@pytest.mark.parametrize(
    "changed", [{}, {"set_alpha_to_one": True, "thresholding": True, "sample_max_value": 1.5}]
)
def test_ddim(folder: Path, changed: dict[str, Any]) -> None:
    from diffusers import DDIMScheduler

    pipe = kandinsky_pipeline(folder, "decoder")
    pipe.scheduler = DDIMScheduler(**DDIM | changed)
    wanted = pipe(
        image_embeds=embeds(1),
        negative_image_embeds=embeds(1, 9),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        generator=streams(1),
        output_type="latent",
    ).images
    schedule = LatentSchedule.from_config(DDIM | changed | {"_class_name": "DDIMScheduler"})
    close(latents(folder, "decoder", embeds(1), 1, size=(8, 8), schedule=schedule), wanted)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64)])
def test_image_to_image(folder: Path, width: int, height: int) -> None:
    """diffusers hands its image processor width for height and height for width: it is asked for
    the swapped size, and so makes the right one."""
    pipe = kandinsky_pipeline(folder, "decoder", "KandinskyV22Img2ImgPipeline")
    image = picture(width, height)
    wanted = pipe(
        image=image,
        image_embeds=embeds(1),
        negative_image_embeds=embeds(1, 9),
        height=width,
        width=height,
        strength=0.5,
        num_inference_steps=10,
        generator=streams(1),
        output_type="latent",
    ).images
    assert wanted.shape[-2:] == (height // 8, width // 8)
    movq = kandinsky.load_movq(find_source("decoder", "movq", [folder]))
    ours = latents(
        folder,
        "decoder",
        embeds(1),
        1,
        size=latent_size(height, width),
        start=Start(encode(movq.network, pixels(image)), 0.5),
        num_inference_steps=10,
    )
    close(ours, wanted)


def _inpainted(folder: Path, image: Image.Image, mask: np.ndarray, rows: int, seed: int) -> Any:
    movq = kandinsky.load_movq(find_source("decoder", "movq", [folder]))
    size = latent_size(image.height, image.width)
    stays = known_mask(torch.from_numpy(mask)[None], size)
    known = Known(encode(movq.network, pixels(image)), stays)
    loaded = decoder(folder, "inpaint")
    return sample_latents(
        loaded.network,
        loaded.schedule,
        Condition(embeds(1)),
        Condition(embeds(1, 9)),
        Canvas(size, known=known),
        Sampling(Noise.seeded(seed, rows), **PLACE, num_inference_steps=STEPS),
    ), known


def region(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.float32)
    mask[: height // 2, width // 4 : -width // 4] = 1
    return mask


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64)])
def test_inpainting(folder: Path, width: int, height: int) -> None:
    pipe = kandinsky_pipeline(folder, "inpaint")
    image, mask = picture(width, height), region(height, width)
    wanted = pipe(
        image=image,
        mask_image=mask.copy(),
        image_embeds=embeds(1),
        negative_image_embeds=embeds(1, 9),
        height=height,
        width=width,
        num_inference_steps=STEPS,
        generator=streams(1),
        output_type="latent",
    ).images
    close(_inpainted(folder, image, mask, 1, SEED)[0], wanted)


def test_inpainting_a_batch_is_each_alone(folder: Path) -> None:
    """diffusers keeps image 0's surroundings in every image of a batch, so singles are the rule."""
    image, mask = picture(64, 64), region(64, 64)
    together, known = _inpainted(folder, image, mask, 3, SEED)
    for i in range(3):
        close(together[i : i + 1], _inpainted(folder, image, mask, 1, SEED + i)[0])
    stays = known.mask.bool().expand_as(known.latents)
    for row in together:
        assert torch.equal(row[stays[0]], known.latents[stays])


@pytest.mark.parametrize("shape", [(8, 8), (12, 96), (1, 5)])
def test_the_mask_grows_as_published(shape: tuple[int, int]) -> None:
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask

    mask = (np.random.default_rng(3).random(shape) > 0.9).astype(np.float32)
    wanted = prepare_mask(1 - torch.from_numpy(mask)[None, None])
    assert torch.equal(known_mask(torch.from_numpy(mask)[None], shape), wanted)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_depth(folder: Path, guidance: float) -> None:
    pipe = kandinsky_pipeline(folder, "depth")
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    wanted = pipe(
        image_embeds=embeds(1),
        negative_image_embeds=embeds(1, 9),
        hint=hint,
        height=64,
        width=64,
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        generator=streams(1),
        output_type="pt",
    ).images
    made = latents(folder, "depth", embeds(1), 1, size=(8, 8), hint=hint, guidance_scale=guidance)
    close(painted(folder, made), wanted)
