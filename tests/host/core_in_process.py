"""The headless runner's core nodes against the host's own, on the same inputs, in its Python.

Started like in_process.py, whose start of the host and helpers it uses.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
from in_process import (
    FOLDER,
    WORK,
    close,
    find_source,
    host,
    load,
    nodes,
    report,
    tiny,
    torch,
)
from PIL import Image

from prior_art.edges import EdgeError, plain
from prior_art.headless.core_sampling import SAMPLERS, SCHEDULERS
from prior_art.headless.runner import node_classes
from prior_art.headless.table import HOST
from prior_art.headless.workflow import WorkflowError
from prior_art.host.embedded import door as embedded
from prior_art.loaders import kandinsky, koala
from prior_art.nodes.kandinsky import KandinskyConditioning
from prior_art.samplers.kandinsky import sample_from_sigmas
from prior_art.samplers.kandinsky_schedule import published_sigmas

asyncio.run(nodes.init_builtin_extra_nodes())

OURS = node_classes()
LONG = "the red cat sat on a (blue:1.4) mat and " * 12
PROMPTS = (
    "a red cat",
    "(red:1.6) cat",
    "a (red) ((cat))",
    "a (red (cat:0.3) bird:1.2) on (blue",
    r"a \(red:1.6\) cat",
    ") red ( cat (",
    "(red:) (cat:x) (:2) ()",
    "(red: 1.5 ) cat(bird:-1)",
    "",
    "   ",
    "(" + "red cat bird fish mat sat hat blue green " * 2 + ":1.3)",
    LONG,
    "red " * 75 + "cat",
    "red " * 70 + "(antidisestablishmentarianism red blue:0.7)",
)
"""Weights, nested and not, brackets that are none, and more than one chunk."""


def native(name: str, **inputs: Any) -> tuple:
    """A node of the host's own."""
    node = nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(node, "define_schema"):
        return node.execute(**inputs).args
    made = getattr(node(), node.FUNCTION)(**inputs)
    return made["result"] if isinstance(made, dict) else made


def ours(name: str, **inputs: Any) -> tuple:
    """The runner's node of that name."""
    return OURS[name].execute(**inputs).args


def same(found: Any, wanted: Any, tolerance: float) -> None:
    """Both hold the same numbers, however they are nested."""
    if isinstance(wanted, torch.Tensor):
        assert found.shape == wanted.shape, f"{found.shape} instead of {wanted.shape}"
        if wanted.numel():
            close(found, wanted, tolerance)
    elif isinstance(wanted, dict):
        skipped = {"downscale_ratio_spacial"}
        assert found.keys() - skipped == wanted.keys() - skipped, (found.keys(), wanted.keys())
        for key in wanted.keys() - skipped:
            same(found[key], wanted[key], tolerance)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, tolerance)
    else:
        assert found == wanted, (found, wanted)


def both(name: str, tolerance: float = 1e-5, **inputs: Any) -> None:
    """One node gives the same in both hosts, or both refuse."""
    try:
        wanted = native(name, **inputs)
    except Exception as error:
        try:
            ours(name, **inputs)
        except (WorkflowError, EdgeError):
            return
        raise AssertionError(f"{name} ran headless, but the host says {error}") from error
    try:
        same(ours(name, **inputs), wanted, tolerance)
    except Exception as error:
        shown = {k: v if isinstance(v, (int, float, str)) else "..." for k, v in inputs.items()}
        raise AssertionError(f"{name} {shown}: {error}") from error


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# -- latents, pictures, prompts --------------------------------------------------------------------


def latent_nodes() -> None:
    one, two = {"samples": noise(1, 4, 8, 12)}, {"samples": noise(3, 4, 8, 12, seed=1)}
    small, many = {"samples": noise(1, 4, 5, 3, seed=2)}, {"samples": noise(2, 4, 16, 10, seed=3)}
    masked = {**two, "noise_mask": picture(2, 1, 64, 96)}
    numbered = {**two, "batch_index": [4, 4, 7], "noise_mask": picture(1, 1, 64, 96)}
    both("EmptyLatentImage", width=100, height=71, batch_size=2)
    both("SetLatentNoiseMask", samples=one, mask=picture(96, 64))
    for second in (two, small, many, one):
        both("LatentBlend", samples1=one, samples2=second, blend_factor=0.3)
        both("LatentBlend", samples1=two, samples2=second, blend_factor=1.0)
        both("LatentBatch", samples1=numbered, samples2=second)
        both("LatentBatch", samples1=second, samples2=masked)
    for latent in (one, two, masked, numbered):
        for first, length in ((0, 1), (1, 5), (-2, 1), (9, 3), (-9, 2)):
            both("LatentFromBatch", samples=latent, batch_index=first, length=length)
        both("RepeatLatentBatch", samples=latent, amount=3)
        for behavior in ("random", "fixed"):
            both("LatentBatchSeedBehavior", samples=latent, seed_behavior=behavior)
        for method in ("nearest-exact", "bilinear", "area", "bicubic", "bislerp"):
            for width, height in ((64, 160), (0, 128), (200, 0), (0, 0), (8, 8)):
                for crop in ("disabled", "center"):
                    size = {"width": width, "height": height, "crop": crop}
                    both("LatentUpscale", 1e-4, samples=latent, upscale_method=method, **size)
            for factor in (0.3, 1.0, 1.5):
                size = {"upscale_method": method, "scale_by": factor}
                both("LatentUpscaleBy", 1e-4, samples=latent, **size)
        both("LatentUpscaleBy", samples=latent, upscale_method="bilinear", scale_by=0.01)


def pasted_latents() -> None:
    """Inside, over the edge, at it and beyond, with every length of feather."""
    ground, patch = {"samples": noise(2, 4, 8, 12)}, {"samples": noise(1, 4, 5, 4, seed=1)}
    large = {"samples": noise(2, 4, 11, 20, seed=2)}
    for source in (patch, large, {"samples": noise(3, 4, 2, 2)}):
        for x in (0, 16, 64, 88, 96, 104, 112, 200):
            for y in (0, 8, 48, 64, 72, 400):
                for feather in (0, 8, 16, 48, 72):
                    both(
                        "LatentComposite",
                        samples_to=ground,
                        samples_from=source,
                        x=x,
                        y=y,
                        feather=feather,
                    )
                for mask in (None, picture(1, 33, 17), picture(3, 8, 8)):
                    for stretch in (False, True):
                        place = {"x": x, "y": y, "resize_source": stretch, "mask": mask}
                        both("LatentCompositeMasked", destination=ground, source=source, **place)


def picture_nodes() -> None:
    one, two = picture(1, 40, 60, 3), picture(2, 33, 50, 3, seed=1)
    alpha = picture(1, 40, 60, 4, seed=2)
    for first in (one, two, alpha):
        for second in (one, two, alpha):
            both("ImageBatch", image1=first, image2=second)
            for x, y in ((0, 0), (20, 30), (60, 0), (59, 39), (500, 10), (0, 40)):
                for mask in (None, picture(1, 9, 9), picture(3, 64, 64)):
                    for stretch in (False, True):
                        place = {"x": x, "y": y, "resize_source": stretch, "mask": mask}
                        both("ImageCompositeMasked", destination=first, source=second, **place)
        both("ImageInvert", image=first)
        both("RepeatImageBatch", image=first, amount=3)
        for channel in ("red", "green", "blue", "alpha"):
            both("ImageToMask", image=first, channel=channel)
        for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos"):
            for width, height in ((64, 64), (0, 17), (200, 0), (0, 0), (10, 90)):
                for crop in ("disabled", "center"):
                    size = {"width": width, "height": height, "crop": crop}
                    both("ImageScale", 1e-4, image=first, upscale_method=method, **size)
            for factor in (0.3, 1.0, 2.5):
                both("ImageScaleBy", 1e-4, image=first, upscale_method=method, scale_by=factor)
        both("ImageScaleBy", image=first, upscale_method="bilinear", scale_by=0.01)
    both("SolidMask", value=0.3, width=7, height=9)
    both("InvertMask", mask=picture(2, 9, 9))
    both("MaskToImage", mask=picture(2, 9, 9))
    for value in ("a", 2, 0.5, True, None, [1, "b"], {"\u00e4": 1}, torch.Size([2])):
        both("PreviewAny", source=value)
    pixels = {"samples": noise(1, 3, 20, 24)}
    (vae,), (mine,) = (
        native("VAELoader", vae_name="pixel_space"),
        ours("VAELoader", vae_name="pixel_space"),
    )
    same(
        ours("VAEDecode", samples=pixels, vae=mine),
        native("VAEDecode", samples=pixels, vae=vae),
        1e-6,
    )
    same(ours("VAEEncode", pixels=one, vae=mine), native("VAEEncode", pixels=one, vae=vae), 1e-6)


def prompt_nodes() -> None:
    def prompt(rows: int, length: int, seed: int, **extra: Any) -> list:
        return [[noise(rows, length, 6, seed=seed), {"pooled_output": noise(rows, 4), **extra}]]

    first, second = prompt(1, 77, 1, width=3), prompt(1, 154, 2)
    plain = [[noise(1, 77, 6, seed=4), {}]]
    other = [[noise(1, 77, 5, seed=4), {}]]
    rows = prompt(3, 77, 3)
    for one in (first, second, plain, rows, other):
        both("ConditioningZeroOut", conditioning=one)
        for two in (first, second, plain, rows, other, first + plain):
            both("ConditioningCombine", conditioning_1=one, conditioning_2=two)
            both("ConditioningConcat", conditioning_to=one, conditioning_from=two)
            if {id(one), id(two)} != {id(second), id(rows)}:
                mix = {"conditioning_to": one, "conditioning_from": two}
                both("ConditioningAverage", **mix, conditioning_to_strength=0.7)


# -- prompts on the encoders -----------------------------------------------------------------------


def koala_source(name: str, stage: str) -> Any:
    return find_source(f"tiny-koala/{name}", stage, host.model_folders())


def text_pairs() -> tuple[Any, Any]:
    pairs = [koala.load_text_encoders(koala_source("koala-1b", "koala_text")) for _ in range(2)]
    return host.wrap("koala_text", pairs[0]), embedded.wrap("koala_text", pairs[1])


def weighted_prompts() -> None:
    clip, mine = text_pairs()
    for text in PROMPTS:
        wanted = native("CLIPTextEncode", clip=clip, text=text)[0]
        found = ours("CLIPTextEncode", clip=mine, text=text)[0]
        try:
            same(found, wanted, 2e-5)
        except AssertionError as error:
            raise AssertionError(f"{text!r}: {error}") from error
    sizes = {"width": 64, "height": 96, "crop_w": 1, "crop_h": 2}
    sizes |= {"target_width": 3, "target_height": 4}
    for first, second in ((LONG, "a cat"), ("a (cat:1.5)", LONG), ("red", "blue")):
        texts = {"text_g": first, "text_l": second, **sizes}
        wanted = native("CLIPTextEncodeSDXL", clip=clip, **texts)
        same(ours("CLIPTextEncodeSDXL", clip=mine, **texts), wanted, 2e-5)
    for text in ("embedding:x", "a embedding:x", "(embedding:x:1.2)"):
        try:
            ours("CLIPTextEncode", clip=mine, text=text)
        except EdgeError as error:
            assert "embedding:x" in str(error)
        else:
            raise AssertionError(f"{text} was taken for words")


def plain_prompts() -> None:
    """Karlo's encoder knows no syntax, and both doors say so in the same words."""
    from prior_art.host.comfyui import unclip as comfy_wrap

    clip, mine = (door.wrap("text_encoder", load("text_encoder")) for door in (host, embedded))
    for text in PROMPTS:
        said: dict[str, list[str]] = {"host": [], "ours": []}
        before, comfy_wrap.warn = comfy_wrap.warn, said["host"].append
        embedded.session.on_warning = said["ours"].append
        try:
            wanted = native("CLIPTextEncode", clip=clip, text=text)[0]
            found = ours("CLIPTextEncode", clip=mine, text=text)[0]
        finally:
            comfy_wrap.warn, embedded.session.on_warning = before, None
        same(found, wanted, 1e-5)
        assert [plain(message) for message in said["host"]] == said["ours"], said
        if text in ("(red:1.6) cat", LONG):
            assert said["ours"], "nothing was said"


def seen_pictures() -> None:
    tower, mine = (door.wrap("image_encoder", load("image_encoder")) for door in (host, embedded))
    for shape in ((2, 40, 120, 3), (1, 100, 30, 4), (1, 64, 64, 3), (1, 5, 5, 3)):
        image = picture(*shape)
        for crop in ("center", "none"):
            inputs = {"image": image, "crop": crop}
            (wanted,) = native("CLIPVisionEncode", clip_vision=tower, **inputs)
            (found,) = ours("CLIPVisionEncode", clip_vision=mine, **inputs)
            close(found.image_embeds, wanted.image_embeds, 1e-5)
    from comfy.clip_model import clip_preprocess

    wide = picture(1, 40, 120, 3)
    squashed = load("image_encoder").preprocess.whole()(wide)
    theirs = clip_preprocess(wide, size=squashed.shape[-1], crop=False)
    assert (squashed - theirs).abs().mean() < 0.02  # Pillow's bicubic is a little sharper


# -- samplers --------------------------------------------------------------------------------------


def koala_models() -> tuple[Any, Any]:
    unets = [
        koala.load_unet(koala_source("koala-1b", "koala_unet"), wanted=koala.ANY_SDXL)
        for _ in range(2)
    ]
    return host.wrap("koala_unet", unets[0], latent_rgb_factors=None), embedded.wrap(
        "koala_unet", unets[1], latent_rgb_factors=None
    )


def decoders(mode: str) -> tuple[Any, Any]:
    found = find_source(f"tiny-kandinsky/{mode}", "latent_decoder", host.model_folders())
    loaded = [kandinsky.load_latent_decoder(found, torch.float32) for _ in range(2)]
    return host.wrap("latent_decoder", loaded[0]), embedded.wrap("latent_decoder", loaded[1])


def sampled(models: tuple[Any, Any], name: str = "KSampler", **changes: Any) -> None:
    """A sampler gives the same latents over both hosts' MODELs."""
    inputs: dict[str, Any] = {
        "steps": 2,
        "cfg": 3.0,
        "scheduler": "normal",
        "sampler_name": "euler",
    }
    inputs |= {"KSampler": {"seed": 5, "denoise": 1.0}}.get(name, {"noise_seed": 5})
    if name == "SamplerCustom":
        inputs = {"noise_seed": 5, "cfg": 3.0, "add_noise": True}
    inputs |= changes
    wanted = native(name, model=models[0], **inputs)
    found = ours(name, model=models[1], **inputs)
    try:
        scale = max(1.0, wanted[0]["samples"].abs().max().item())
        same(found, wanted, 5e-4 * scale)
    except AssertionError as error:
        shown = {k: v for k, v in changes.items() if isinstance(v, (int, float, str))}
        raise AssertionError(f"{name} {shown}: {error}") from error


def koala_prompts(*texts: str) -> list[list]:
    _, mine = text_pairs()
    return [ours("CLIPTextEncode", clip=mine, text=text)[0] for text in texts]


def batched(*prompts: list) -> list:
    """Several prompts as rows of one."""
    pooled = torch.cat([p[0][1]["pooled_output"] for p in prompts])
    return [[torch.cat([p[0][0] for p in prompts]), {"pooled_output": pooled}]]


def empty(count: int = 1, high: int = 8, wide: int = 8) -> dict:
    return {"samples": torch.zeros(count, 4, high, wide)}


def koala_takes_the_latents_sizes() -> None:
    models = koala_models()
    red, blue = koala_prompts("a red cat", "a blue bird")
    for high, wide in ((8, 8), (12, 8), (6, 10)):
        sampled(models, positive=red, negative=blue, latent_image=empty(1, high, wide))
    sized = [[red[0][0], {**red[0][1], "width": 200, "crop_h": 3}]]
    sampled(models, positive=sized, negative=blue, latent_image=empty(1, 12, 8))
    sampled(models, positive=red, negative=blue, cfg=1.0, latent_image=empty(2, 12, 8))


def odd_sizes() -> None:
    """KOALA's U-Net fits its halves; Kandinsky's cannot, and both hosts say the same."""
    red, blue = koala_prompts("a red cat", "a blue bird")
    sampled(koala_models(), positive=red, negative=blue, latent_image=empty(1, 9, 7))
    positive, negative = image_prompts()
    said = []
    for run, model in zip((native, ours), decoders("decoder"), strict=True):
        try:
            run(
                "KSampler",
                **{"model": model, "seed": 1, "steps": 2, "cfg": 3.0, "denoise": 1.0},
                **{"sampler_name": "euler", "scheduler": "normal"},
                positive=positive,
                negative=negative,
                latent_image=empty(1, 9, 8),
            )
        except EdgeError as error:
            said.append(str(error))
    assert len(said) == 2 and said[0] == said[1] and "64x72" in said[0], said


def rows_are_fitted() -> None:
    """Prompts, masks and noise numbers of other counts than the latents'."""
    models = koala_models()
    red, blue, green = koala_prompts("a red cat", "a blue bird", "green")
    two, three = batched(red, green), batched(red, green, blue)
    known = {"samples": noise(3, 4, 8, 8)}
    for positive, negative in ((two, blue), (three, two), (red, three)):
        for count in (1, 2, 4):
            sampled(models, positive=positive, negative=negative, latent_image=empty(count))
    for masks in (1, 2, 5):
        latent = {**known, "noise_mask": picture(masks, 1, 50, 40)}
        sampled(models, positive=red, negative=blue, latent_image=latent, denoise=0.6)
        sampled(models, positive=red, negative=blue, latent_image=latent, sampler_name="ddim")
    for numbers in ([0, 0, 0], [2, 0, 5]):
        latent = {**known, "batch_index": numbers}
        sampled(models, positive=red, negative=blue, latent_image=latent)
    wide = {"samples": torch.zeros(2, 16, 8, 8)}
    sampled(models, positive=red, negative=blue, latent_image=wide)


def prompts_are_combined() -> None:
    models = koala_models()
    red, blue, long = koala_prompts("a red cat", "a blue bird", LONG)
    for positive, negative in ((red + blue, blue), (red, blue + red + red), (long, blue)):
        sampled(models, positive=positive, negative=negative, latent_image=empty(2))
    positive, negative = image_prompts()
    sampled(
        decoders("decoder"),
        positive=positive + image_prompts(3)[0],
        negative=negative,
        latent_image=empty(2),
    )


def samplers_and_schedules() -> None:
    models = koala_models()
    red, blue = koala_prompts("a red cat", "a blue bird")
    sides = {"positive": red, "negative": blue, "latent_image": {"samples": noise(1, 4, 8, 8)}}
    for name in SAMPLERS:
        sampled(models, **sides, sampler_name=name, scheduler="karras", steps=4)
    for schedule in SCHEDULERS:
        sampled(models, **sides, scheduler=schedule, denoise=0.55)
        for steps in (1, 2, 7, 40):
            if (schedule, steps) == ("kl_optimal", 1):
                continue
            for denoise in (1.0, 0.99995, 0.3, 0.0):
                inputs = {"scheduler": schedule, "steps": steps, "denoise": denoise}
                wanted = native("BasicScheduler", model=models[0], **inputs)
                same(ours("BasicScheduler", model=models[1], **inputs), wanted, 1e-4)
    sampled(models, **sides, denoise=0.0)
    for start, end, left, add in (
        (0, 10000, "disable", "enable"),
        (2, 10000, "disable", "enable"),
        (0, 3, "enable", "enable"),
        (1, 3, "disable", "disable"),
        (9, 10000, "disable", "enable"),
        (3, 2, "disable", "enable"),
    ):
        changes = {"start_at_step": start, "end_at_step": end, "add_noise": add}
        changes["return_with_leftover_noise"] = left
        sampled(models, "KSamplerAdvanced", **sides, steps=4, **changes)
    sigmas = native("BasicScheduler", model=models[0], scheduler="karras", steps=5, denoise=1.0)[0]
    for part in (sigmas, sigmas[:3], sigmas[2:], sigmas[:1]):
        for noisy in (True, False):
            inputs = {**sides, "sigmas": part, "cfg": 2.0, "noise_seed": 3, "add_noise": noisy}
            (theirs,) = native("KSamplerSelect", sampler_name="dpmpp_2m")
            (mine,) = ours("KSamplerSelect", sampler_name="dpmpp_2m")
            wanted = native("SamplerCustom", model=models[0], sampler=theirs, **inputs)
            found = ours("SamplerCustom", model=models[1], sampler=mine, **inputs)
            same(found, wanted, 5e-4 * max(1.0, wanted[0]["samples"].abs().max().item()))


def image_prompts(rows: int = 1, depth: torch.Tensor | None = None) -> tuple:
    sides = []
    for seed, count in ((1, rows), (9, 1)):
        embeds = noise(count, tiny.DIM, seed=seed)
        sides.append(
            host.clip_vision_output(embeds, embedding_space="custom-32d", made_by="a test")
        )
    return KandinskyConditioning.execute(*sides, depth).args


def kandinsky_modes() -> None:
    """Decoders of every mode, with rows, masks and maps of other counts than the latents'."""
    for mode in ("decoder", "inpaint", "depth"):
        models = decoders(mode)
        for rows in (1, 2, 3):
            depth = picture(rows, 70, 60, 3) if mode == "depth" else None
            positive, negative = image_prompts(rows, depth)
            for count in (1, 3):
                sides = {"positive": positive, "negative": negative}
                sampled(models, **sides, latent_image=empty(count))
                latent = {"samples": noise(count, 4, 8, 8), "noise_mask": picture(rows, 1, 50, 64)}
                sampled(models, **sides, latent_image=latent)
    positive, negative = image_prompts(2)
    models = decoders("inpaint")
    for part in (slice(None), slice(3)):
        sigmas = published_sigmas(host.open("latent_decoder", models[0])[1].schedule, 5, 1.0)[part]
        latent = {"samples": noise(3, 4, 8, 8), "noise_mask": picture(2, 1, 50, 64)}
        inputs = {"positive": positive, "negative": negative, "latent_image": latent, "cfg": 4.0}
        inputs |= {"sigmas": sigmas, "noise_seed": 3, "add_noise": True}
        wanted = native(
            "SamplerCustom",
            model=models[0],
            sampler=host.wrap("latent_sampler", sample_from_sigmas),
            **inputs,
        )
        found = ours(
            "SamplerCustom",
            model=models[1],
            sampler=embedded.wrap("latent_sampler", sample_from_sigmas),
            **inputs,
        )
        same(found, wanted, 5e-4)


# -- autoencoders and files ------------------------------------------------------------------------


def autoencoders() -> None:
    """Plain, in tiles and for inpainting: SDXL's, MoVQ and VQGAN."""
    movq = find_source("tiny-kandinsky/decoder", "movq", host.model_folders())
    loaders = (
        ("sdxl", lambda: koala.load_vae(koala_source("koala-1b", "koala_vae"))),
        ("movq", lambda: kandinsky.load_movq(movq)),
    )
    for kind, loader in loaders:
        stage = "koala_vae" if kind == "sdxl" else "movq"
        vae, mine = host.wrap(stage, loader()), embedded.wrap(stage, loader())
        for high, wide in ((8, 12), (20, 9)):
            latent = {"samples": noise(1, 4, high, wide)}
            wanted = native("VAEDecode", samples=latent, vae=vae)
            same(ours("VAEDecode", samples=latent, vae=mine), wanted, 1e-4)
            for tile, overlap in ((512, 64), (64, 16), (96, 64)):
                tiles = {"tile_size": tile, "overlap": overlap}
                tiles |= {"temporal_size": 64, "temporal_overlap": 8}
                wanted = native("VAEDecodeTiled", samples=latent, vae=vae, **tiles)
                same(ours("VAEDecodeTiled", samples=latent, vae=mine, **tiles), wanted, 1e-4)
        for high, wide in ((64, 96), (130, 77)):
            image, mask = picture(1, high, wide, 3), picture(1, 40, 30)
            wanted = native("VAEEncode", pixels=image, vae=vae)
            same(ours("VAEEncode", pixels=image, vae=mine), wanted, 1e-3)
            for tile, overlap in ((512, 64), (64, 16)):
                tiles = {"tile_size": tile, "overlap": overlap}
                tiles |= {"temporal_size": 64, "temporal_overlap": 8}
                wanted = native("VAEEncodeTiled", pixels=image, vae=vae, **tiles)
                same(ours("VAEEncodeTiled", pixels=image, vae=mine, **tiles), wanted, 1e-3)
            for grow in (0, 6, 7):
                paint = {"pixels": image, "mask": mask, "grow_mask_by": grow}
                wanted = native("VAEEncodeForInpaint", vae=vae, **paint)
                same(ours("VAEEncodeForInpaint", vae=mine, **paint), wanted, 1e-3)


def files() -> dict[str, tuple[bytes, float]]:
    """Picture files by name, and how many levels of 255 they may differ."""
    rng = np.random.default_rng(0)
    made: dict[str, tuple[bytes, float]] = {}

    def save(name: str, image: Image.Image, levels: float, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, format=Path(name).suffix[1:].replace("jpg", "jpeg"), **options)
        made[name] = (file.getvalue(), levels)

    for width, height in ((70, 50), (47, 33), (48, 33), (47, 34)):
        blocks = rng.integers(0, 256, (-(-height // 6), -(-width // 6), 3), dtype=np.uint8)
        levels = np.kron(blocks, np.ones((6, 6, 1), np.uint8))[:height, :width]
        levels = levels // 2 + rng.integers(0, 128, levels.shape, dtype=np.uint8)
        colours = Image.fromarray(levels)
        alpha = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        seen = colours.copy()
        seen.putalpha(alpha)
        grey = seen.convert("LA")
        size = f"{width}x{height}"
        for sampling, name in enumerate(("444", "422", "420")):
            limit = 5 if name == "422" else 3
            save(f"{size}-{name}.jpg", colours, limit, quality=90, subsampling=sampling)
            whole = made[f"{size}-{name}.jpg"][0]
            made[f"{size}-{name}-cut.jpg"] = (whole[: len(whole) * 2 // 3], limit)
            made[f"{size}-{name}-end.jpg"] = (whole[:-2], limit)
        save(f"{size}-progressive.jpg", colours, 3, progressive=True)
        for mode in ("L", "CMYK"):
            save(f"{size}-{mode}.jpg", colours.convert(mode), 1.3)
        for kind in ("png", "tiff", "bmp", "gif"):
            for mode in ("RGB", "L", "P", "1"):
                save(f"{size}-{mode}.{kind}", colours.convert(mode), 0.2)
        for kind in ("png", "tiff"):
            save(f"{size}-alpha.{kind}", seen, 0.2)
        save(f"{size}-grey-alpha.png", grey, 0.2)
        for name in (f"{size}-RGB.png", f"{size}-alpha.png"):
            whole = made[name][0]
            made[f"cut-{name}"] = (whole[: len(whole) * 2 // 3], 0.0)
            made[f"end-{name}"] = (whole[:-12], 0.0)
        save(f"{size}-see-through.png", colours.convert("P"), 0.2, transparency=3)
        save(f"{size}-see-through.gif", colours.convert("P"), 0.2, transparency=3)
        save(f"{size}-lossless.webp", colours, 0.2, lossless=True)
        save(f"{size}-alpha.webp", seen, 0.2, lossless=True)
        if width % 2 == 0:
            save(f"{size}-lossy.webp", colours, 1.6)
            save(f"{size}-lossy-alpha.webp", seen, 1.6)
        wide = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        for kind in ("png", "tiff"):
            save(f"{size}-16.{kind}", Image.fromarray(wide), 0.01)
        big = Image.frombytes("I;16B", (width, height), wide.astype(">u2").tobytes())
        save(f"{size}-16-big-endian.tiff", big, 0.01)
    others = [colours.rotate(90 * i, expand=False) for i in range(3)]
    for kind in ("gif", "png", "webp"):
        more = {"save_all": True, "append_images": others, "duration": 100}
        save(
            f"moving.{kind}", colours, 0.2, **more, **({"lossless": True} if kind == "webp" else {})
        )
    save("pages.tiff", colours, 0.0, save_all=True, append_images=others)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        save(f"turn-{turn}.jpg", colours, 3, exif=exif, subsampling=0)
        save(f"turn-{turn}.png", colours, 0.0, exif=exif)
        save(f"turn-{turn}.webp", colours, 0.2, exif=exif, lossless=True)
    save("profile.png", colours, 0.0, icc_profile=bytes(3_000_000))
    return made


def picture_files() -> None:
    import folder_paths

    folder = WORK / "pictures"
    folder.mkdir(exist_ok=True)
    folder_paths.set_input_directory(str(folder))
    embedded.session.input_folder = folder
    for name, (data, levels) in files().items():
        (folder / name).write_bytes(data)
        image, mask = native("LoadImage", image=name)
        found, seen = ours("LoadImage", image=name)
        assert found.shape == image.shape and seen.shape == mask.shape, (
            name,
            image.shape,
            mask.shape,
        )
        for one, other, limit in ((found, image, levels + 1e-3), (seen, mask, 0.2)):
            try:
                close(one * 255, other * 255, limit)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
    both("LoadImageMask", image="70x50-alpha.png", channel="alpha")
    both("LoadImageMask", image="70x50-alpha.png", channel="green")


CHECKS = {
    check.__name__: check
    for check in (
        latent_nodes,
        pasted_latents,
        picture_nodes,
        prompt_nodes,
        weighted_prompts,
        plain_prompts,
        seen_pictures,
        koala_takes_the_latents_sizes,
        odd_sizes,
        rows_are_fitted,
        prompts_are_combined,
        samplers_and_schedules,
        kandinsky_modes,
        autoencoders,
        picture_files,
    )
}

if __name__ == "__main__":
    import comfyui_version

    if f"v{comfyui_version.__version__}" != HOST:  # equality is claimed with that one only
        CHECKS = {name: lambda: None for name in CHECKS}
    tiny.tiny_karlo(FOLDER / "tiny")
    tiny.tiny_koala(FOLDER / "tiny-koala")
    tiny.tiny_kandinsky(FOLDER / "tiny-kandinsky")
    report(CHECKS)
