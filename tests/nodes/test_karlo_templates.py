"""Each template, run headless on the embedded family, gives the published pipelines' picture.

With the family's trained weights and the published defaults, whole chains agree in fp32 to 1e-4;
networks of random weights are compared stage by stage in tests/parity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.loaders import mindalle
from prior_art.loaders.files.catalogue import find_source

from .conftest import text_of

pytestmark = pytest.mark.slow

WEIGHTS = Path(__file__).resolve().parents[2] / "shapes" / "weights"
FAMILY = WEIGHTS / "karlo"
PROMPT = "a large red circle on a white background"


def streams(seed, count):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def picture_of(run):
    return np.stack([np.asarray(Image.open(path)) for path in run.pictures]).astype(int)


@pytest.mark.parametrize(("name", "count"), [("karlo_text_to_image", 1), ("karlo_three_seeds", 3)])
def test_text_to_image_is_the_published_pipeline(runner, template, find, tiny, name, count):
    prompt = template(name, "shapes-karlo")
    find(prompt, "Prompt")["inputs"]["text"] = PROMPT
    find(prompt, "PrimitiveInt")["inputs"]["value"] = 5
    run = runner.run(prompt)
    published = (
        tiny.pipeline(FAMILY)
        .to(torch.float32)(
            PROMPT,
            num_images_per_prompt=count,
            generator=streams(5, count),
            output_type="np",
        )
        .images
    )
    key = next(k for k, n in prompt.items() if n["class_type"] == "PriorArtKarloUpscale")
    assert np.abs(run.values[key][0].numpy() - published).max() <= 1e-4
    assert np.abs(picture_of(run) - np.floor(published * 255)).max() <= 1


def test_image_variation_is_the_published_pipeline(runner, template, find, tiny):
    runner.input_folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    photograph = Image.fromarray(colours)
    photograph.save(runner.input_folder / "example.png")
    prompt = template("karlo_image_variation", "shapes-karlo")
    find(prompt, "PrimitiveInt")["inputs"]["value"] = 3
    run = runner.run(prompt)
    published = (
        tiny.variation_pipeline(FAMILY)
        .to(torch.float32)(
            photograph,
            num_images_per_prompt=3,
            generator=streams(3, 3),
            output_type="np",
        )
        .images
    )
    key = next(k for k, n in prompt.items() if n["class_type"] == "PriorArtKarloUpscale")
    assert np.abs(run.values[key][0].numpy() - published).max() <= 1e-4


def test_an_image_of_a_batch_can_be_made_again_alone(runner, template, find):
    prompt = template("karlo_three_seeds", "shapes-karlo")
    three = picture_of(runner.run(prompt))
    find(prompt, "PrimitiveInt")["inputs"]["value"] += 1
    find(prompt, "PriorArtPrior")["inputs"]["batch_size"] = 1
    alone = picture_of(runner.run(prompt))
    assert np.abs(three[1] - alone[0]).max() <= 1
    assert np.abs(three[0] - alone[0]).max() > 1


def test_changing_the_upscalers_steps_runs_only_the_upscaler(runner, template, find):
    prompt = template("karlo_text_to_image")
    for stage in ("PriorArtPrior", "PriorArtKarloDecoder"):
        find(prompt, stage)["inputs"]["steps"] = 3
    runner.run(prompt)
    find(prompt, "PriorArtKarloUpscale")["inputs"]["steps"] = 4
    ran = runner.run(prompt).seconds
    assert {prompt[key]["class_type"] for key in ran} == {"PriorArtKarloUpscale", "SaveImage"}


def plainly(network, context, seed):
    """A candidate's codes by the published loop: a full pass for each, torch.multinomial."""
    stream, codes = torch.Generator().manual_seed(seed), torch.zeros(1, 0, dtype=torch.long)
    while codes.shape[1] < network.config.image_tokens:
        # The network reads no token after the one it is asked for.
        open_end = torch.nn.functional.pad(codes, (0, network.config.image_tokens - codes.shape[1]))
        logits = network(context, open_end)[0, codes.shape[1]]
        least = logits.topk(min(256, len(logits))).values[-1]
        p = torch.where(logits >= least, logits, -torch.inf).softmax(-1)
        codes = torch.cat([codes, torch.multinomial(p, 1, generator=stream)[None]], dim=1)
    return codes[0]


def values(run, prompt, kind):
    return run.values[next(k for k, n in prompt.items() if n["class_type"] == kind)]


def decoded(codes):
    """Pictures ``[B, 64, 64, 3]`` of codes ``[B, 64]`` by the library's network."""
    network = mindalle.load_vqgan(find_source("shapes-mindalle", "vqgan", [])).network
    entries = network.quantize.get_codebook_entry(codes, (len(codes), 8, 8, 32))
    pictures = network.decoder(network.post_quant_conv(entries))
    return (pictures * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


@torch.no_grad()
def test_rerank_is_the_published_chain(runner, template, find):
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    prompt = template("mindalle_rerank", None)
    asked = find(prompt, "PriorArtARSample")["inputs"]
    text = text_of(prompt, find(prompt, "PriorArtARSample"))
    assert text_of(prompt, find(prompt, "PriorArtCLIPRerank")) == text
    run = runner.run(prompt)
    model = mindalle.load_transformer(find_source("shapes-mindalle", "ar_transformer", []))
    said = mindalle.tokenize(model.tokenizer, [text], model.config.text_tokens).ids
    codes = torch.stack(
        [plainly(model.network, said, asked["seed"] + i) for i in range(asked["candidates"])]
    )
    pictures = values(run, prompt, "VAEDecode")[0]
    assert (pictures - decoded(codes)).abs().max() <= 1e-4
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip").float().eval()
    prepare = CLIPImageProcessorPil.from_pretrained(WEIGHTS / "clip")
    ids = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")([text], return_tensors="pt")
    shown = [Image.fromarray((picture.numpy() * 255).astype(np.uint8)) for picture in pictures]
    near = clip(**ids, **prepare(shown, return_tensors="pt")).logits_per_image[:, 0]
    best = near.argsort(descending=True, stable=True)[:4]
    kept, scores, places = values(run, prompt, "PriorArtCLIPRerank")
    assert places == best.tolist()
    expected = near[best] / clip.logit_scale.exp()
    assert (torch.tensor(scores) - expected).abs().max() <= 1e-5
    assert torch.equal(kept, pictures[best])


def test_completion_keeps_what_the_mask_leaves(runner, template, find):
    runner.input_folder.mkdir()
    photograph = np.zeros((64, 64, 4), np.uint8)
    photograph[..., :3], photograph[..., 3] = (225, 32, 32), 255
    photograph[32:, :, 3] = 0  # the editor's mask is the picture's transparency
    Image.fromarray(photograph).save(runner.input_folder / "example.png")
    prompt = template("mindalle_completion", None)
    run = runner.run(prompt)
    given = values(run, prompt, "PriorArtVQGANEncode")[0]["samples"]
    found, pictures, weights = values(run, prompt, "PriorArtARComplete")
    assert torch.equal(found["samples"][:, :, :4], given[:, :, :4].expand(3, -1, -1, -1))
    assert len(found["samples"][:, :, 4:].flatten(1).unique(dim=0)) == 3
    assert (pictures[:, :32] - torch.tensor([225, 32, 32]) / 255).abs().max() < 1e-6
    assert len(weights) == 3


@torch.no_grad()
def test_the_class_grid_is_the_published_loop(runner, template, find):
    prompt = template("mindalle_class_grid", None)
    asked = find(prompt, "PriorArtARSample")["inputs"]
    run = runner.run(prompt)
    model = mindalle.load_transformer(find_source("shapes-mindalle-class", "ar_transformer", []))
    context = torch.tensor([[asked["class_id"]]])
    codes = torch.stack([plainly(model.network, context, asked["seed"] + i) for i in range(9)])
    rows = [torch.cat(list(row), dim=1) for row in decoded(codes).split(3)]
    grid = values(run, prompt, "PriorArtImageGrid")[0]
    assert (grid[0] - torch.cat(rows)).abs().max() <= 1e-4
