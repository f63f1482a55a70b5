"""Whatever is wrong with an input of whatever node, one error names that input by its socket."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prior_art.edges import EdgeError
from prior_art.host import host
from prior_art.nodes.embeddings import (
    CompareEmbeddings,
    InterpolateEmbeddings,
    MixEmbeddings,
    SaveEmbeddings,
    TextDifference,
)
from prior_art.nodes.kandinsky import (
    KandinskyConditioning,
    KandinskyDecoder,
    KandinskyDepth,
    KandinskyImage,
    KandinskyInpaint,
    KandinskyPrior,
    KandinskyPriorImage,
    KandinskySchedule,
    LoadLatentDecoder,
    LoadMCLIP,
    LoadMoVQ,
)
from prior_art.nodes.karlo import KarloDecoder, KarloUpscale, LoadDecoder, LoadUpscaler
from prior_art.nodes.koala import KoalaSample, KoalaTextEncode, LoadKoala
from prior_art.nodes.mindalle import (
    ARComplete,
    ARSample,
    ARScore,
    ARVariations,
    LoadARTransformer,
    LoadVQGAN,
    VQGANDecode,
    VQGANEncode,
)
from prior_art.nodes.rerank import CLIPRerank, ImageGrid, LoadReranker
from prior_art.nodes.unclip import (
    BatchPrompts,
    ImageEncode,
    LoadImageEncoder,
    LoadPrior,
    LoadTextEncoder,
    PriorSample,
    TextEncode,
)

NAN, INF = float("nan"), float("inf")
VIT_L, VIT_G = ("shapes-vit-l", 64), ("shapes-vit-g", 96)
FAST = {"seed": 0, "steps": 2, "cfg": 2.0, "batch_size": 1}
PRIOR = {**FAST, "negative_embeds": "zero image"}


def embeds(space: tuple[str, int], rows: int = 1) -> Any:
    values = torch.randn(rows, space[1], generator=torch.Generator().manual_seed(rows))
    return host.clip_vision_output(values, embedding_space=space[0], made_by="a test")


def picture(side: int = 64, rows: int = 1) -> torch.Tensor:
    return torch.rand(rows, side, side, 3, generator=torch.Generator().manual_seed(rows))


def left(rows: int = 1) -> torch.Tensor:
    mask = torch.zeros(rows, 64, 64)
    mask[:, :, :32] = 1
    return mask


@pytest.fixture(scope="module")
def valid() -> dict[str, dict[str, Any]]:
    """Inputs of each node, of the embedded family, that it takes."""

    def load(node: type, source: str, *options: str) -> Any:
        found = node.execute(source, "fp32", *options).args
        return found[0] if len(found) == 1 else found

    karlo, kandinsky = "shapes-karlo", "shapes-kandinsky"
    own = ("from the source",) * 3
    clip = load(LoadTextEncoder, karlo)
    wide = load(LoadTextEncoder, f"{kandinsky}-prior")
    koala, pair, _ = load(LoadKoala, "shapes-koala-1b", "any KOALA", *own)
    vae, movq = load(LoadVQGAN, "shapes-mindalle"), load(LoadMoVQ, kandinsky)
    model = {
        mode: load(LoadLatentDecoder, kandinsky + suffix, "published")
        for mode, suffix in (("text", ""), ("inpaint", "-inpaint"), ("depth", "-depth"))
    }
    mclip = load(LoadMCLIP, f"{kandinsky}-2-1")
    older = load(LoadLatentDecoder, f"{kandinsky}-2-1", "published")
    prompt = TextEncode.execute(clip, "a red circle").args[0]
    empty = TextEncode.execute(clip, "").args[0]
    wider = TextEncode.execute(wide, "a red circle").args[0]
    many = TextEncode.execute(mclip, "a red circle").args[0]
    sized = KoalaTextEncode.execute(pair, "a red circle", 64, 64, 0, 0, 0, 0).args[0]
    text, vision = load(LoadReranker, "shapes-clip")
    ar = {"ar_transformer": load(LoadARTransformer, "shapes-mindalle"), "vae": vae}
    codes = VQGANEncode.execute(vae, picture()).args[0]
    draw = {"text": "red", "seed": 0, "candidates": 1}
    draw |= {"top_k": 4, "top_p": 0.9, "temperature": 1.0, "class_id": 0}
    g = {"image_embeds": embeds(VIT_G), "negative_image_embeds": embeds(VIT_G), "noise_offset": 0}
    size = {"width": 64, "height": 64}
    wide_prior = {"prior": load(LoadPrior, f"{kandinsky}-prior"), "noise_offset": 0}
    wide_prior |= {"positive": wider, "negative": wider}
    both = {"image_embeds_a": embeds(VIT_L), "image_embeds_b": embeds(VIT_L)}
    prompts = {"positive": prompt, "negative": empty, "noise_offset": 0}
    return {
        "PriorSample": {"prior": load(LoadPrior, karlo), **prompts, **FAST},
        "KarloDecoder": {
            "model": load(LoadDecoder, karlo), "image_embeds": embeds(VIT_L), **prompts, **FAST
        },
        "KarloUpscale": {
            "upscaler": load(LoadUpscaler, karlo), "image": picture(16), "seed": 0, "steps": 2
        },
        "KandinskyPrior": wide_prior | PRIOR,
        "KandinskyPriorImage": wide_prior
        | PRIOR
        | {"image_embeds": embeds(VIT_G), "strength": 1.0},
        "KandinskyDecoder": {"model": model["text"], **g, **size, **FAST},
        "KandinskyDecoder 2.1": {
            **{"model": older, **g, **size, **FAST, "positive": many, "negative": many},
            **{"image_embeds": embeds(VIT_L), "negative_image_embeds": embeds(VIT_L)},
        },
        "KandinskyImage": {
            **{"model": model["text"], "vae": movq, "image": picture(), "strength": 1.0},
            **{**g, **size, **FAST},
        },
        "KandinskyInpaint": {
            **{"model": model["inpaint"], "vae": movq, "image": picture(), "mask": left()},
            **{**g, **size, **FAST},
        },
        "KandinskyDepth": {"model": model["depth"], "depth": picture(), **g, **size, **FAST},
        "KandinskyConditioning": {
            **{"image_embeds": embeds(VIT_L), "negative_image_embeds": embeds(VIT_L)},
            **{"depth": picture(), "text": many, "negative_text": many},
        },
        "KandinskySchedule": {"model": model["text"], "steps": 2, "denoise": 1.0},
        "KoalaSample": {
            **{"model": koala, "positive": sized, "negative": sized, **size, **FAST},
            "timestep_spacing": "as published",
        },
        "BatchPrompts": {"conditioning_a": prompt, "conditioning_b": empty},
        "MixEmbeddings": {**both, "weight_a": 0.5, "weight_b": 0.5, "mode": "weighted sum"},
        "InterpolateEmbeddings": {**both, "count": 3, "mode": "lerp"},
        "TextDifference": {
            "image_embeds": embeds(VIT_L), "text": prompt, "from_text": empty, "strength": 0.5
        },
        "CompareEmbeddings": both,
        "SaveEmbeddings": {"image_embeds": embeds(VIT_L), "name": "a", "note": ""},
        "ImageEncode": {"clip_vision": load(LoadImageEncoder, karlo), "image": picture()},
        "VQGANEncode": {"vae": vae, "image": picture()},
        "VQGANDecode": {"vae": vae, "samples": codes},
        "ARSample": ar | draw,
        "ARVariations": ar | draw | {"image": picture(), "keep_rows": 7},
        "ARComplete": ar
        | draw
        | {"keep": 0, "image": picture(), "latent_image": {**codes, "noise_mask": left()[:, None]}},
        "ARScore": ar | {"samples": codes, "text": "red", "class_id": 0},
        "CLIPRerank": {
            **{"clip": text, "clip_vision": vision, "image": picture(), "text": "red", "keep": 0}
        },
        "ImageGrid": {"image": picture(), "columns": 1},
    }  # fmt: skip


NODES = {
    node.__name__: node
    for node in (
        *(PriorSample, KarloDecoder, KarloUpscale, KandinskyPrior, KandinskyPriorImage),
        *(KandinskyDecoder, KandinskyImage, KandinskyInpaint, KandinskyDepth),
        *(KandinskyConditioning, KandinskySchedule, KoalaSample, BatchPrompts, MixEmbeddings),
        *(InterpolateEmbeddings, TextDifference, CompareEmbeddings, SaveEmbeddings, ImageEncode),
        *(VQGANEncode, VQGANDecode, ARSample, ARVariations, ARComplete, ARScore),
        *(CLIPRerank, ImageGrid),
    )
} | {"KandinskyDecoder 2.1": KandinskyDecoder}


def with_part(conditioning: list, **changes: Any) -> list:
    ((hidden, extra),) = conditioning
    return [[changes.pop("hidden", hidden), {**extra, **changes}]]


def bad_images(image: torch.Tensor) -> dict[str, Any]:
    return {
        "to 255": image * 255,
        "8 bits": (image * 255).to(torch.uint8),
        "from -1": image * 2 - 1,
        "NaN": image * NAN,
        "infinite": image / 0,
        "one picture": image[0],
        "grey": image[..., :1],
        "none": image[:0],
        "a list": [image],
    }


def bad_masks(mask: torch.Tensor) -> dict[str, Any]:
    return {
        "to 255": mask * 255,
        "8 bits": (mask * 255).to(torch.uint8),
        "negative": mask - 1,
        "NaN": mask * NAN,
        "one number": mask[0, 0],
        "none": mask[:0],
    }


def bad_prompts(prompt: list) -> dict[str, Any]:
    hidden, extra = prompt[0]
    pooled = extra["pooled_output"]
    return {
        "empty": [],
        "no list": hidden,
        "combined": prompt + prompt,
        "nothing": [[None, extra]],
        "NaN": with_part(prompt, hidden=hidden * NAN),
        "infinite": with_part(prompt, pooled_output=pooled.abs() / 0),
        "one row": with_part(prompt, hidden=hidden[0]),
        "no tokens": with_part(prompt, hidden=hidden[:, :0]),
        "three for one": with_part(prompt, hidden=hidden.expand(3, -1, -1)),
        "wider pooled": with_part(prompt, pooled_output=torch.cat([pooled, pooled], 1)),
        "wider": with_part(prompt, hidden=torch.cat([hidden, hidden], 2)),
        "joined": with_part(prompt, hidden=torch.cat([hidden, hidden], 1)),
    }


def bad_embeds(output: Any) -> dict[str, Any]:
    values, space = output.image_embeds, output.embedding_space

    def of(changed: Any) -> Any:
        return host.clip_vision_output(changed, embedding_space=space)

    return {
        "None": None,
        "no embedding": of(None),
        "NaN": of(values * NAN),
        "infinite": of(values.abs() / 0),
        "one row": of(values[0]),
        "three axes": of(values[None]),
        "none": of(values[:0]),
        "wider": of(torch.cat([values, values], 1)),
    }


def bad_latents(latent: dict) -> dict[str, Any]:
    samples = latent["samples"]
    found = {
        "empty": {},
        "no dict": samples,
        "NaN": {**latent, "samples": samples * NAN},
        "one": {**latent, "samples": samples[0]},
        "none": {**latent, "samples": samples[:0]},
        "another system's": {**latent, "samples": samples[:, :3]},
    }
    if "noise_mask" in latent:
        for how in ("to 255", "8 bits", "negative", "NaN"):
            found[f"mask {how}"] = {**latent, "noise_mask": bad_masks(latent["noise_mask"])[how]}
    return found


def bad_values(socket: Any, value: Any) -> dict[str, Any]:
    """Values that no input of this type takes."""
    kind, options = socket.io_type, socket.options
    if kind == "IMAGE":
        return bad_images(value)
    if kind == "MASK":
        return bad_masks(value)
    if kind == "CONDITIONING":
        return bad_prompts(value)
    if kind == "CLIP_VISION_OUTPUT":
        return bad_embeds(value)
    if kind == "LATENT":
        return bad_latents(value)
    if kind == "FLOAT":
        return {"NaN": NAN, "infinite": INF, "minus infinite": -INF}
    if kind == "INT" and socket.id not in ("seed", "class_id"):
        return {"too small": options["min"] - 1}
    return {}


# Which is right: chunks of a long prompt are KOALA's too; a prompt's width only its decoder knows.
TAKEN = {
    ("KoalaSample", "joined"),
    ("KandinskyConditioning", "wider"),
    ("KandinskyConditioning", "wider pooled"),
    ("TextDifference", "wider"),
    ("KandinskySchedule", "minus infinite denoise"),
}


@pytest.mark.parametrize("name", NODES)
def test_a_bad_input_is_named(name: str, valid: dict[str, Any], tmp_path: Any, monkeypatch) -> None:
    monkeypatch.setattr(host.session, "output_folder", tmp_path)
    monkeypatch.setattr(host.session, "on_warning", lambda message: None)
    node, inputs = NODES[name], valid[name]
    node.execute(**inputs)
    wrong = []
    for socket in node.define_schema().inputs:
        if socket.id not in inputs:
            continue
        for how, value in bad_values(socket, inputs[socket.id]).items():
            if (name, how) in TAKEN:
                continue
            try:
                node.execute(**{**inputs, socket.id: value})
                wrong.append(f"{socket.id}, {how}: taken")
            except EdgeError as error:
                if f"'{socket.id}'" not in str(error):
                    wrong.append(f"{socket.id}, {how}: {error}")
            except Exception as error:
                wrong.append(f"{socket.id}, {how}: raw {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


ROWS = [
    ("KarloDecoder", "image_embeds", embeds(VIT_L, 2), {"positive": 3}),
    ("KandinskyDecoder", "negative_image_embeds", embeds(VIT_G, 3), {"image_embeds": 2}),
    ("KandinskyDecoder 2.1", "positive", 3, {"image_embeds": 2}),
    ("KandinskyDecoder 2.1", "negative", 3, {"image_embeds": 2}),
    ("KandinskyImage", "image", picture(rows=2), {"image_embeds": 3}),
    ("KandinskyInpaint", "mask", left(2), {"image": 3}),
    ("KandinskyInpaint", "image", picture(rows=2), {"image_embeds": 3}),
    ("KandinskyDepth", "depth", picture(rows=2), {"image_embeds": 3}),
    ("KandinskyPriorImage", "image_embeds", embeds(VIT_G, 2), {"positive": 3}),
    ("PriorSample", "negative", 3, {"positive": 2}),
    ("KoalaSample", "negative", 3, {"positive": 2}),
    ("MixEmbeddings", "image_embeds_b", embeds(VIT_L, 3), {"image_embeds_a": 2}),
    ("ARVariations", "image", picture(rows=2), {"candidates": 3}),
]


def rows_of(value: Any, count: int) -> Any:
    """The same with so many rows."""
    if isinstance(value, int):
        return count
    if isinstance(value, torch.Tensor):
        return value.repeat(count, *[1] * (value.ndim - 1))
    if isinstance(value, list):
        ((hidden, extra),) = value
        more = {k: rows_of(v, count) for k, v in extra.items() if isinstance(v, torch.Tensor)}
        return [[rows_of(hidden, count), {**extra, **more}]]
    return embeds((value.embedding_space, value.image_embeds.shape[1]), count)


@pytest.mark.parametrize(("name", "socket", "bad", "others"), ROWS, ids=lambda x: str(x)[:30])
def test_rows_that_do_not_fit_are_named(
    name: str, socket: str, bad: Any, others: dict[str, int], valid: dict[str, Any], monkeypatch
) -> None:
    monkeypatch.setattr(host.session, "on_warning", lambda message: None)
    inputs = dict(valid[name])
    for other, count in others.items():
        inputs[other] = rows_of(inputs[other], count)
    inputs[socket] = rows_of(inputs[socket], bad) if isinstance(bad, int) else bad
    with pytest.raises(EdgeError, match=f"'{socket}'"):
        NODES[name].execute(**inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_slightly_more_than_white_are_taken(dtype, valid) -> None:
    image = (picture() * 1.03 - 0.015).to(dtype)
    assert float(image.min()) < -0.005 and float(image.max()) > 1.005
    for name in ("ImageEncode", "VQGANEncode", "ImageGrid", "CLIPRerank"):
        NODES[name].execute(**{**valid[name], "image": image})
    mask = left().to(dtype) * 1.1 - 0.05
    NODES["KandinskyInpaint"].execute(**{**valid["KandinskyInpaint"], "mask": mask})


LARGE = 3e38


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("MixEmbeddings", {"weight_a": 10.0, "mode": "weighted sum"}),
        ("MixEmbeddings", {"weight_b": 10.0, "mode": "add"}),
        ("MixEmbeddings", {"mode": "slerp"}),
        ("MixEmbeddings", {"weight_a": -9.0, "weight_b": 10.0, "mode": "average"}),
        ("MixEmbeddings", {"mode": "average, length kept"}),
        ("InterpolateEmbeddings", {"mode": "slerp"}),
        ("TextDifference", {"strength": 10.0}),
        ("CompareEmbeddings", {}),
        ("SaveEmbeddings", {"normalise": True}),
    ],
)
def test_a_mixture_beyond_floats_is_refused(name, changes, valid, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(host.session, "output_folder", tmp_path)
    inputs = {**valid[name], **changes}
    for key, value in inputs.items():
        if hasattr(value, "image_embeds"):
            signs = value.image_embeds.sign()
            signs[:, :32] *= -1 if key.endswith("_b") else 1
            inputs[key] = host.clip_vision_output(LARGE * signs, embedding_space=VIT_L[0])
    with pytest.raises(EdgeError, match="too large"):
        NODES[name].execute(**inputs)


def test_large_embeddings_that_fit_are_mixed_right(valid) -> None:
    a = torch.full((1, 64), 1e30)
    both = {
        f"image_embeds_{x}": host.clip_vision_output(v, embedding_space=VIT_L[0])
        for x, v in (("a", a), ("b", a * torch.tensor([1.0, -1.0]).repeat(32)))
    }
    said, _ = CompareEmbeddings.execute(**both).args
    assert math.isclose(float(said), 0.0, abs_tol=1e-3)
    said, _ = CompareEmbeddings.execute(both["image_embeds_a"], both["image_embeds_a"]).args
    assert float(said) == 1


@pytest.mark.parametrize("lengths", [(2, 1), (1, 3), (3, 2)])
def test_koala_takes_prompts_of_several_lengths(lengths, valid) -> None:
    """ComfyUI's encoders make chunks of 77 tokens: prompts of 154 beside one of 77. It repeats the
    shorter until they are equal, which to attention is the same."""
    inputs = {**valid["KoalaSample"], "seed": 3}

    def repeated(times: int) -> list:
        return with_part(prompt, hidden=torch.cat([prompt[0][0]] * times, 1))

    prompt = inputs["positive"]
    wanted = KoalaSample.execute(**inputs).args[0]["samples"]
    changed = dict(zip(("positive", "negative"), map(repeated, lengths), strict=True))
    got = KoalaSample.execute(**{**inputs, **changed}).args[0]["samples"]
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", ["ImageEncode", "VQGANEncode", "CLIPRerank", "ARVariations"])
def test_a_picture_like_a_thread_is_refused_before_memory_is_taken(name, valid) -> None:
    for shape in ((1, 1, 10**6, 3), (1, 10**6, 1, 3)):
        with pytest.raises(EdgeError, match=r"'image' is .*; resized until its shorter side"):
            NODES[name].execute(**{**valid[name], "image": torch.zeros(shape)})


def test_the_picture_of_very_many_cosines_stays_small() -> None:
    _, picture = CompareEmbeddings.execute(embeds(VIT_L, 300), embeds(VIT_L, 2)).args
    assert picture.shape == (1, 13 * 300, 13 * 2, 3)
    with pytest.raises(EdgeError, match="'image_embeds_b' has 4097 rows"):
        CompareEmbeddings.execute(embeds(VIT_L), embeds(VIT_L, 4097))
