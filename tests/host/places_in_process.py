"""Where tensors lie, checked inside the host's own Python: outputs between nodes, conditions.

Started like in_process.py, whose start of the host and helpers it uses. A GPU is not needed:
torch's ``meta`` device stands in for the one that the host names, and shows what never went there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from in_process import close, comfy, host, memory, nodes, report, torch
from interface import differences, interface, running
from PIL import Image

from prior_art.edges import TextEncoding
from prior_art.nodes import NODES
from prior_art.nodes.koala import OWN

pack = SimpleNamespace(**{node.__name__: node for node in NODES})
META, CPU = torch.device("meta"), torch.device("cpu")
KARLO, PRIOR, DECODER = "shapes-karlo", "shapes-kandinsky-prior", "shapes-kandinsky"
OLD, KOALA, MINDALLE = "shapes-kandinsky-2-1", "shapes-koala-700m", "shapes-mindalle"
PROMPT = "a red circle on a blue background"


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of an edge, with the way to it; networks and their loaders' facts are none."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from tensors_in(part, f"{name}[{i}]")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors_in(part, f"{name}.{key}")
    elif isinstance(value, TextEncoding):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, comfy.clip_vision.Output):
        yield from tensors_in(vars(value), name)


class Graph:
    """Every node run once, each on what the others really gave."""

    def __init__(self, again: Any = None) -> None:
        self.again = again  # called with each node, its inputs and its outputs
        self.ran: set[type] = set()

    def run(self, node: type, *args: Any, **inputs: Any) -> tuple:
        outputs = node.execute(*args, **inputs).args
        self.ran.add(node)
        if self.again is not None:
            self.again(node, args, inputs, outputs)
        return outputs

    def one(self, node: type, *args: Any, **inputs: Any) -> Any:
        return self.run(node, *args, **inputs)[0]

    def all_nodes(self, image: torch.Tensor, mask: torch.Tensor) -> None:
        """Runs the pack.

        Args:
            image: ``[1, 64, 64, 3]``; mask: ``[1, 64, 64]``.
        """
        texts, embeds = self.encoders(image)
        self.karlo(image, texts, embeds)
        self.kandinsky(image, mask)
        self.mixes(texts, embeds)
        self.koala()
        self.mindalle(image, mask)

    def encoders(self, image: torch.Tensor) -> tuple[list, Any]:
        clip = self.one(pack.LoadTextEncoder, KARLO, "auto")
        texts = [self.one(pack.TextEncode, clip, text) for text in (PROMPT, "a green square", "")]
        self.run(pack.BatchPrompts, *texts[:2])
        vision = self.one(pack.LoadImageEncoder, KARLO, "auto")
        return texts, self.one(pack.ImageEncode, vision, image)

    def karlo(self, image: torch.Tensor, texts: list, embeds: Any) -> None:
        sides = {"positive": texts[0], "negative": texts[2], "seed": 1, "steps": 2, "cfg": 4.0}
        prior = self.one(pack.LoadPrior, KARLO, "auto")
        self.run(pack.PriorSample, prior, **sides, batch_size=1)
        model = self.one(pack.LoadDecoder, KARLO, "auto")
        small = self.one(pack.KarloDecoder, model, embeds, **sides, batch_size=1)
        upscaler = self.one(pack.LoadUpscaler, KARLO, "auto")
        self.run(pack.KarloUpscale, upscaler, small, seed=1, steps=2)
        self.run(pack.KarloUpscale, upscaler, small.half().to(image), seed=1, steps=2)

    def kandinsky(self, image: torch.Tensor, mask: torch.Tensor) -> None:
        clip = self.one(pack.LoadTextEncoder, PRIOR, "auto")
        sides = {
            "positive": self.one(pack.TextEncode, clip, PROMPT),
            "negative": self.one(pack.TextEncode, clip, ""),
        }
        vision = self.one(pack.LoadImageEncoder, PRIOR, "auto")
        self.run(pack.ZeroImage, vision)
        prior = self.one(pack.LoadPrior, PRIOR, "auto")
        common = {"seed": 1, "steps": 2, "cfg": 4.0, "batch_size": 1}
        given = {**sides, **common, "negative_embeds": "negative prompt"}
        made = self.run(pack.KandinskyPrior, prior, **given)
        given["negative_embeds"] = "zero image"
        made = self.run(pack.KandinskyPrior, prior, **given)[:2]
        self.run(pack.KandinskyPriorImage, prior, made[0], 0.0, **given)
        given = dict(zip(("image_embeds", "negative_image_embeds"), made, strict=True))
        given |= common
        vae = self.one(pack.LoadMoVQ, DECODER, "auto")
        model = self.one(pack.LoadLatentDecoder, DECODER, "auto", "published")
        self.run(pack.KandinskyDecoder, model, 64, 64, **given)
        self.run(pack.KandinskyImage, model, vae, image, 0.0, 0, 0, **given)
        self.run(pack.KandinskyImage, model, vae, image[:, :48], 1.0, 0, 0, **given)
        inpaint = self.one(pack.LoadLatentDecoder, f"{DECODER}-inpaint", "auto", "published")
        self.run(pack.KandinskyInpaint, inpaint, vae, image, mask, 0, 0, **given)
        self.run(pack.KandinskyInpaint, inpaint, vae, image[:, :48], mask[:, :48], 0, 0, **given)
        depth = self.one(pack.LoadLatentDecoder, f"{DECODER}-depth", "auto", "published")
        self.run(pack.KandinskyDepth, depth, image, 0, 0, **given)
        self.run(pack.KandinskyConditioning, *made, image)
        self.run(pack.KandinskySampler)
        self.run(pack.KandinskySchedule, model, 2, 1.0)
        old = self.one(pack.LoadMCLIP, OLD, "auto")
        said = [self.one(pack.TextEncode, old, text) for text in (PROMPT, "")]
        self.run(pack.KandinskyConditioning, *made, None, *said)

    def mixes(self, texts: list, embeds: Any) -> None:
        other = host.clip_vision_output(embeds.image_embeds.flip(1), embedding_space="shapes-vit-l")
        self.run(pack.MixEmbeddings, embeds, other, 0.5, 0.5)
        self.run(pack.InterpolateEmbeddings, embeds, other, 3, "slerp")
        self.run(pack.TextDifference, embeds, *texts[:2], 0.5)
        self.run(pack.CompareEmbeddings, embeds, other)
        self.run(pack.SaveEmbeddings, embeds, "places", "")
        self.run(pack.LoadEmbeddings, "places.safetensors")

    def koala(self) -> None:
        model, clip, _ = self.run(pack.LoadKoala, KOALA, "auto", "any KOALA", OWN, OWN, OWN)
        self.run(pack.KoalaInfo, model)
        said = self.one(pack.KoalaTextEncode, clip, PROMPT, 64, 64, 0, 0, 0, 0)
        self.run(pack.KoalaSample, model, said, 64, 64, 1, 2, 7.5, 1, "as published")

    def mindalle(self, image: torch.Tensor, mask: torch.Tensor) -> None:
        vae = self.one(pack.LoadVQGAN, MINDALLE, "auto")
        writer = self.one(pack.LoadARTransformer, MINDALLE, "auto")
        latent = self.one(pack.VQGANEncode, vae, image)
        self.run(pack.VQGANDecode, vae, latent)
        draw = {"seed": 1, "candidates": 2, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        self.run(pack.ARSample, writer, vae, PROMPT, **draw)
        self.run(pack.ARVariations, writer, vae, image, PROMPT, 7, **draw)
        half = torch.zeros_like(mask)
        half[:, 48:] = 1
        masked = {**latent, "noise_mask": half[:, None]}
        self.run(pack.ARComplete, writer, vae, masked, PROMPT, 1, **draw, image=image)
        self.run(pack.ARComplete, writer, vae, masked, PROMPT, 1, **draw)
        self.run(pack.ARScore, writer, vae, latent, PROMPT)
        towers = self.run(pack.LoadReranker, "shapes-clip", "auto")
        pictures = torch.cat([image, image.flip(2)])
        self.run(pack.CLIPRerank, *towers, pictures, PROMPT, 1)
        self.run(pack.ImageGrid, pictures, 2)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE ``[1, 64, 64, 3]`` and MASK ``[1, 64, 64]``."""
    noise = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:40, 8:30] = 1
    return torch.rand(1, 64, 64, 3, generator=noise), mask


NOT_MOVED = {
    pack.KandinskySchedule: "the host keeps SIGMAS in main memory",
    pack.SaveEmbeddings: "gives on what it got",
}
NOT_RUN = {pack.LoadImageNormalizer: "needs another system's checkpoint"}


def outputs_wait_where_the_host_keeps_them() -> None:
    wrong = []

    def again(node: type, args: tuple, inputs: dict, outputs: tuple) -> None:
        shown = mock.patch.object(host, "show", lambda make: None)  # META has no numbers to show
        with mock.patch.object(memory, "intermediate_device", lambda: META), shown:
            there = node.execute(*args, **inputs).args
        places = {name: tensor.device for name, tensor in tensors_in(there)}
        assert places.keys() == {name for name, _ in tensors_in(outputs)}, node.__name__
        wanted = CPU if node in NOT_MOVED else META
        wrong.extend(f"{node.__name__}{n}: {d}" for n, d in places.items() if d != wanted)

    graph = Graph(again)
    graph.all_nodes(*pictures())
    assert not wrong, wrong
    assert graph.ran == set(NODES) - set(NOT_RUN), set(NODES) ^ graph.ran


def a_picture_for_a_widget_lies_in_the_temporary_folder_or_is_done_without() -> None:
    import folder_paths  # the host's, which in_process has found

    kept = host.show(lambda: pictures()[0].half())
    folder = Path(folder_paths.get_temp_directory()) / kept["subfolder"]
    assert kept["type"] == "temp" and Image.open(folder / kept["filename"]).size == (64, 64)
    before = sorted(folder.iterdir())
    full = OSError(28, "No space left on device")
    with mock.patch.object(Path, "write_bytes", side_effect=full):
        assert host.show(lambda: pictures()[0]) is None
    assert sorted(folder.iterdir()) == before


def native_encoders_outputs_wait_there_too() -> None:
    clip = pack.LoadTextEncoder.execute(KARLO, "auto").args[0]
    vision = pack.LoadImageEncoder.execute(KARLO, "auto").args[0]
    with mock.patch.object(memory, "intermediate_device", lambda: META):
        made = nodes.CLIPTextEncode().encode(clip, PROMPT)
        seen = nodes.CLIPVisionEncode().encode(vision, pictures()[0], "center")
    places = {name: tensor.device for name, tensor in tensors_in([made, seen])}
    assert len(places) == 6 and set(places.values()) == {META}, places


def half_precision_pictures_and_masks_are_welcome() -> None:
    """A host told to keep intermediates in fp16 hands such in: the numbers are the same as of
    pictures in fp32 that hold no more."""
    image, mask = (part.half() for part in pictures())
    expected, found = [], []
    for results, inputs in ((expected, (image.float(), mask.float())), (found, (image, mask))):
        graph = Graph(lambda node, a, i, outputs, results=results: results.append((node, outputs)))
        graph.all_nodes(*inputs)
    for (node, one), (_, other) in zip(expected, found, strict=True):
        pairs = zip(tensors_in(one), tensors_in(other), strict=True)
        for (name, a), (_, b) in pairs:
            assert torch.equal(a.float(), b.float()), f"{node.__name__}{name}"


def native_nodes_take_half_precision() -> None:
    """The host's own nodes on our encoders and autoencoders, in such a host."""
    image, _ = pictures()
    image = image.half()
    vision = pack.LoadImageEncoder.execute(KARLO, "auto").args[0]
    for crop in ("center", "none"):
        for picture in (image, image[:, :48]):
            (half,) = nodes.CLIPVisionEncode().encode(vision, picture, crop)
            (full,) = nodes.CLIPVisionEncode().encode(vision, picture.float(), crop)
            assert torch.equal(half.image_embeds, full.image_embeds), crop
    for vae in (
        pack.LoadMoVQ.execute(DECODER, "auto").args[0],
        pack.LoadVQGAN.execute(MINDALLE, "auto").args[0],
        pack.LoadKoala.execute(KOALA, "auto", "any KOALA", OWN, OWN, OWN).args[2],
    ):
        (full,) = nodes.VAEEncode().encode(vae, image.float())
        (half,) = nodes.VAEEncode().encode(vae, image)
        # The host turns 0..1 into -1..1 in half precision; near ties a code may be another.
        assert (half["samples"] - full["samples"]).abs().mean() < 0.01
        latent = full["samples"].half()
        (full,) = nodes.VAEDecode().decode(vae, {"samples": latent.float()})
        (half,) = nodes.VAEDecode().decode(vae, {"samples": latent})
        close(half, full, 0.002)


def conditions(model: Any, entries: dict[str, list]) -> dict[str, dict[str, torch.device]]:
    """Where one step finds each side's conditions: prompts wait in main memory, ``meta`` computes.

    Args:
        entries: CONDITIONING by side.
    """
    channels = model.model.latent_format.latent_channels
    found = {}
    for side, ((hidden, extra),) in entries.items():
        noise = torch.zeros(1, channels, 8, 8, device=META)
        conds = model.model.extra_conds(
            **extra, cross_attn=hidden, device=META, noise=noise, prompt_type=side, seed=1
        )
        found[side] = {key: cond.cond.device for key, cond in conds.items()}
    return found


def both_sides_conditions_lie_on_one_device() -> None:
    """The host runs both sides of guidance in one batch only then, and complains otherwise."""
    image, _ = pictures()
    clip = pack.LoadTextEncoder.execute(KARLO, "auto").args[0]
    texts = [pack.TextEncode.execute(clip, text).args[0] for text in (PROMPT, "")]
    karlo = pack.LoadDecoder.execute(KARLO, "auto").args[0]
    vision = pack.LoadImageEncoder.execute(KARLO, "auto").args[0]
    embeds = pack.ImageEncode.execute(vision, image).args[0]
    (led,) = nodes.unCLIPConditioning().apply_adm(texts[0], embeds, 1.0, 0.1)
    cases = {"Karlo": (karlo, led, texts[1])}

    vision = pack.LoadImageEncoder.execute(PRIOR, "auto").args[0]
    sides = pack.ImageEncode.execute(vision, image).args[0], pack.ZeroImage.execute(vision).args[0]
    for mode in ("", "-inpaint", "-depth"):
        model = pack.LoadLatentDecoder.execute(f"{DECODER}{mode}", "auto", "published").args[0]
        cases[f"Kandinsky{mode}"] = model, *pack.KandinskyConditioning.execute(*sides, image).args

    clip = pack.LoadMCLIP.execute(OLD, "auto").args[0]
    model = pack.LoadLatentDecoder.execute(OLD, "auto", "published").args[0]
    texts = [pack.TextEncode.execute(clip, text).args[0] for text in (PROMPT, "")]
    made = pack.KandinskyConditioning.execute(embeds, embeds, None, *texts).args
    cases["Kandinsky 2.1"] = model, *made

    model, clip, _ = pack.LoadKoala.execute(KOALA, "auto", "any KOALA", OWN, OWN, OWN).args
    said = [
        pack.KoalaTextEncode.execute(clip, text, 64, 64, 0, 0, 0, 0).args[0]
        for text in (PROMPT, "")
    ]
    cases["KOALA"] = model, *said
    pooled = said[0][0][1]["pooled_output"]
    image_embeds = SimpleNamespace(image_embeds=pooled, embedding_space="", made_by="a test")
    (led,) = nodes.unCLIPConditioning().apply_adm(said[0], image_embeds, 1.0, 0.0)
    cases["KOALA, unCLIP"] = model, led, said[1]
    for name, (model, positive, negative) in cases.items():
        found = conditions(model, {"positive": positive, "negative": negative})
        assert found["positive"] == found["negative"], (name, found)


def the_door_is_what_the_interface_says() -> None:
    assert host.NAME == "ComfyUI"
    assert differences(running(host, interface()), interface()) == []


if __name__ == "__main__":
    report(
        {
            check.__name__: check
            for check in (
                outputs_wait_where_the_host_keeps_them,
                a_picture_for_a_widget_lies_in_the_temporary_folder_or_is_done_without,
                native_encoders_outputs_wait_there_too,
                half_precision_pictures_and_masks_are_welcome,
                native_nodes_take_half_precision,
                both_sides_conditions_lie_on_one_device,
                the_door_is_what_the_interface_says,
            )
        }
    )
