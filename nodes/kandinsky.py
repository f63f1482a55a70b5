"""Kandinsky's decoder: image embeddings become latents, alone or beside a picture, mask or depth.

Native samplers run the same MODEL: what they need beside it is here too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..edges import (
    EdgeError,
    Prior,
    TextEncoding,
    any_image_embeds,
    ask_size,
    check_image,
    check_mask,
    conditioning_to_any_text,
    conditioning_to_text,
    embeds_to_conditioning,
    image_embeds_of,
    known_space_of,
)
from ..host import host, io
from ..loaders import kandinsky
from ..loaders.files.catalogue import find_source
from ..loaders.kandinsky import LatentDecoder
from ..networks.kandinsky_movq import encode
from ..networks.memory import ENCODED_PIXEL, LATENT_PLACE, least_of_unet
from ..samplers.kandinsky import (
    Canvas,
    Condition,
    Known,
    known_mask,
    latent_size,
    mode_for,
    mode_of,
    sample_from_sigmas,
    sample_latents,
)
from ..samplers.kandinsky_schedule import published_sigmas
from ..samplers.parts.guidance import spread
from ..samplers.parts.noise import Noise
from ..samplers.parts.resize import resized
from ..samplers.parts.sampling import Sampling, Start
from ..samplers.prior import sample_prior
from .charts import cosine_to
from .node import Node
from .pictures import from_image, latent_preview, rgb_factors
from .widgets import (
    Bar,
    fingerprint,
    load_stage,
    named,
    noise_offset_input,
    noise_offset_output,
    sampling_inputs,
    seeded,
    source_inputs,
)

LARGEST = 4096


ROUNDED = (
    " Rounded up to a multiple of 64, as published; VAE Decode cuts the picture of an original"
    " checkpoint to this size."
)
SIZE = "In pixels." + ROUNDED
OWN_SIZE = "In pixels; 0 is the picture's own." + ROUNDED


def _embeds_inputs() -> list:
    return [
        io.ClipVisionOutput.Input(
            "image_embeds", tooltip="From a Kandinsky prior, Image Encode or Mix Image Embeddings."
        ),
        io.ClipVisionOutput.Input(
            "negative_image_embeds",
            tooltip="What to steer away from: the prior's second output.",
        ),
    ]


def _text_inputs(names: tuple[str, str] = ("positive", "negative")) -> list:
    tooltip = "For a decoder of Kandinsky 2.1 only, which reads the {} too: from Text Encode with"
    return [
        io.Conditioning.Input(
            name, optional=True, tooltip=tooltip.format(said) + " Load mCLIP (Kandinsky 2.1)."
        )
        for name, said in zip(names, ("prompt", "negative prompt"), strict=True)
    ]


def _schema(
    node_id: str,
    display_name: str,
    description: str,
    before: list,
    after: tuple = (),
    size: tuple[int, str] = (0, OWN_SIZE),
    reads_text: bool = True,
    aliases: tuple[str, ...] = (),
) -> io.Schema:
    """What the decoder nodes share: what they have of their own stands before and after the
    embeddings."""
    default, tooltip = size
    sides = [
        io.Int.Input(name, default=default, min=0, max=LARGEST, step=8, tooltip=tooltip)
        for name in ("width", "height")
    ]
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="PriorArt/Kandinsky/sample",
        search_aliases=list(aliases),
        description=description,
        inputs=[
            *before,
            *_embeds_inputs(),
            *after,
            *sides,
            *sampling_inputs(steps=100, cfg=4.0, least=1),
            io.Int.Input(
                "batch_size", default=1, min=1, max=64, tooltip="Pictures for each image embedding."
            ),
            noise_offset_input(),
            *(_text_inputs() if reads_text else ()),
        ],
        outputs=[
            io.Latent.Output(
                display_name="latent", tooltip="For VAE Decode with Kandinsky's MoVQ."
            ),
            noise_offset_output(),
        ],
    )


class KandinskyDecoder(Node):
    """Kandinsky's decoder with its published sampler."""

    ROW_BY_ROW = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "PriorArtKandinskyDecoder",
            "Kandinsky Decoder",
            "Samples latents from image embeddings with Kandinsky's decoder, with the"
            " sampler that its folder names: 2.2's DDPM with learned variance and dynamic"
            " thresholding, 2.1's DDIM.",
            aliases=("text to image", "unclip", "ddpm"),
            before=[io.Model.Input("model", tooltip="From Load Decoder (Kandinsky).")],
            size=(512, SIZE),
        )

    @classmethod
    def execute(cls, model: Any, width: int, height: int, **sampling: Any) -> io.NodeOutput:
        if width < 1 or height < 1:
            raise EdgeError(f"'width' and 'height' are {width} and {height}; ask for a picture")
        canvas = Canvas(latent_size(height, width))
        return _sample(model, (height, width), DecoderInputs(**sampling), canvas)


class KandinskyImage(Node):
    """Kandinsky's image to image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "PriorArtKandinskyImage",
            "Kandinsky Image to Image",
            "Begins with a picture instead of noise and repaints it after the image"
            " embedding, as published.",
            aliases=("img2img", "unclip"),
            before=[
                io.Model.Input("model", tooltip="The text-to-image decoder."),
                io.Vae.Input("vae", tooltip="From Load MoVQ."),
                io.Image.Input("image", tooltip="The pictures to begin with, of any size."),
            ],
            after=(
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the steps is run: 0 leaves the picture as it is, 1 begins"
                    " at noise. Published with 0.3.",
                ),
            ),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        image: Any,
        strength: float,
        width: int,
        height: int,
        **sampling: Any,
    ) -> io.NodeOutput:
        check_image(image, "image")
        asked, (_, loaded) = _asked(image, width, height), host.open("latent_decoder", model)
        pixels = _fitted(image, asked, "image", loaded.exact)
        canvas = Canvas(latent_size(*asked), start=Start(_encode(vae, pixels), strength))
        return _sample(model, asked, DecoderInputs(**sampling), canvas)


class KandinskyInpaint(Node):
    """Kandinsky's inpainting decoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "PriorArtKandinskyInpaint",
            "Kandinsky Inpaint",
            "Repaints the masked part of pictures after the image embedding with"
            " Kandinsky's inpainting decoder. What is white in the mask is repainted, and a"
            " little around it, as published; latents of the rest come back exactly.",
            aliases=("outpaint", "mask", "unclip"),
            before=[
                io.Model.Input("model", tooltip="The inpainting decoder (9 channels)."),
                io.Vae.Input("vae", tooltip="From Load MoVQ."),
                io.Image.Input("image", tooltip="The pictures to repaint, of any size."),
                io.Mask.Input("mask", tooltip="White is repainted. Resized to the pictures' size."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        image: Any,
        mask: Any,
        width: int,
        height: int,
        **sampling: Any,
    ) -> io.NodeOutput:
        check_image(image, "image")
        asked, (_, loaded) = _asked(image, width, height), host.open("latent_decoder", model)
        pixels = _fitted(image, asked, "image", loaded.exact)
        size = latent_size(*asked)
        stays = known_mask(_fitted_mask(mask, asked, loaded.exact), size)
        if bool(stays.all()):
            raise EdgeError(
                "'mask' is empty, so there is nothing to repaint; paint white what shall change,"
                " or invert the mask"
            )
        latents = _encode(vae, pixels)
        if len(stays) not in (1, len(latents)):
            raise EdgeError(
                f"'mask' has {len(stays)} masks for {len(latents)} pictures; wire one, or one each"
            )
        stays = stays.expand(len(latents), -1, -1, -1)
        # 2.1's network is only shown what stays.
        known = Known(latents, stays, blend=loaded.text_space is None)
        return _sample(model, asked, DecoderInputs(**sampling), Canvas(size, known=known))


class KandinskyDepth(Node):
    """Kandinsky 2.2's depth ControlNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "PriorArtKandinskyDepth",
            "Kandinsky Decoder (Depth)",
            "Samples latents from image embeddings that follow a depth map, with"
            " Kandinsky 2.2's ControlNet decoder.",
            aliases=("controlnet", "depth map", "unclip"),
            before=[
                io.Model.Input("model", tooltip="The depth decoder (8 channels)."),
                io.Image.Input("depth", tooltip="Depth maps as pictures, near is white."),
            ],
            reads_text=False,
        )

    @classmethod
    def execute(
        cls, model: Any, depth: Any, width: int, height: int, **sampling: Any
    ) -> io.NodeOutput:
        check_image(depth, "depth")
        asked = _asked(depth, width, height)
        hint = _fitted(depth, asked, "depth") * 0.5 + 0.5
        canvas = Canvas(latent_size(*asked))
        return _sample(model, asked, DecoderInputs(**sampling), canvas, hint)


class KandinskyConditioning(Node):
    """Image embeddings as CONDITIONING, for native samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKandinskyConditioning",
            display_name="Kandinsky Conditioning",
            category="PriorArt/Kandinsky/encode",
            search_aliases=["image embeds to conditioning", "controlnet"],
            description="Image embeddings as native conditioning, so that KSampler and"
            " SamplerCustom run a Kandinsky decoder. Native Combine and Average mix them.",
            inputs=[
                *_embeds_inputs(),
                io.Image.Input(
                    "depth", optional=True, tooltip="A depth map, for the depth decoder only."
                ),
                *_text_inputs(("text", "negative_text")),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive", display_name="positive", tooltip="For KSampler."
                ),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="For KSampler."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image_embeds: Any,
        negative_image_embeds: Any,
        depth: Any = None,
        text: list | None = None,
        negative_text: list | None = None,
    ) -> io.NodeOutput:
        if depth is not None:
            check_image(depth, "depth")
            depth = depth[..., :3].movedim(-1, 1).float()
        sides = []
        for name, output, text_name, said in (
            ("image_embeds", image_embeds, "text", text),
            ("negative_image_embeds", negative_image_embeds, "negative_text", negative_text),
        ):
            embeds = any_image_embeds(output, name)
            encoded = None if said is None else conditioning_to_any_text(said, text_name)
            space = known_space_of(output, name)
            sides.append(embeds_to_conditioning(embeds, space, depth, encoded))
        return io.NodeOutput(*host.offload(sides))


class KandinskySampler(Node):
    """The published sampler as SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKandinskySampler",
            display_name="Kandinsky DDPM",
            category="PriorArt/Kandinsky/sample",
            search_aliases=["ddpm", "learned variance", "dynamic thresholding"],
            description="Kandinsky's published sampler (learned variance, dynamic thresholding)"
            " for native SamplerCustom, with Kandinsky Schedule's sigmas.",
            inputs=[],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(host.wrap("latent_sampler", sample_from_sigmas))


class KandinskySchedule(Node):
    """The published timesteps as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtKandinskySchedule",
            display_name="Kandinsky Schedule",
            category="PriorArt/Kandinsky/sample",
            search_aliases=["scheduler", "sigmas"],
            description="The sigmas of Kandinsky's published timesteps, for SamplerCustom.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Decoder (Kandinsky)."),
                io.Int.Input(
                    "steps", default=100, min=1, max=1000, tooltip="Published with 100 steps."
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the steps is run; below 1 for image to image.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom.")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, denoise: float) -> io.NodeOutput:
        _, loaded = host.open("latent_decoder", model)
        with named(strength="denoise"):
            return io.NodeOutput(published_sigmas(loaded.schedule, steps, denoise))


# -- what they share ----------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderInputs:
    """The sockets and widgets that every decoder node has."""

    image_embeds: Any
    negative_image_embeds: Any
    seed: int
    steps: int
    cfg: float
    batch_size: int
    noise_offset: int = 0
    positive: list | None = None
    negative: list | None = None


# What the sampler calls the inputs of the decoder nodes.
DECODER = {
    "start": "image",
    "known.latents": "image",
    "known.mask": "mask",
    "positive.hint": "depth",
    "negative.hint": "depth",
    "positive.image_embeds": "image_embeds",
    "negative.image_embeds": "negative_image_embeds",
    "positive.text_hidden": "positive",
    "positive.text_pooled": "positive",
    "negative.text_hidden": "negative",
    "negative.text_pooled": "negative",
}


def _sample(
    model: Any,
    asked: tuple[int, int],
    inputs: DecoderInputs,
    canvas: Canvas,
    hint: torch.Tensor | None = None,
) -> io.NodeOutput:
    """The LATENT of a decoder, for a picture of the height and width that were ``asked`` for, and
    the stream's position after it. ``hint`` is depth ``[R, 3, H, W]`` in 0..1."""
    managed, loaded = host.open("latent_decoder", model)
    sides = _conditions(loaded, inputs, hint)
    _check_decoder(loaded, mode_for(canvas.known is not None, hint is not None))
    rows = [len(sides[0].image_embeds)]
    rows += [] if canvas.start is None else [len(canvas.start.clean)]
    rows += [] if canvas.known is None else [len(canvas.known.latents)]
    rows += [] if hint is None else [len(hint)]
    count = max(rows) * inputs.batch_size
    places = canvas.size[0] * canvas.size[1] * count
    network, device, dtype = host.use(managed, activations=places * LATENT_PLACE)
    host.check_room(
        least_of_unet(network, places, dtype),
        f"{count} pictures of {8 * canvas.size[1]}x{8 * canvas.size[0]}",
        "lower 'batch_size', 'width' or 'height'",
    )
    bar = Bar(lambda x0: latent_preview(x0, loaded.latent_rgb_factors))
    with named(**DECODER):
        noise = seeded(inputs.seed, count, inputs.noise_offset)
        sampling = Sampling(noise, device, dtype, inputs.steps, bar)
        latents = sample_latents(network, loaded.schedule, *sides, canvas, sampling, inputs.cfg)
    latents = host.offload(latents)
    if loaded.exact:
        ask_size(latents, *asked)
    return io.NodeOutput({"samples": latents}, inputs.noise_offset + noise.drawn)


def _conditions(
    loaded: LatentDecoder, inputs: DecoderInputs, hint: torch.Tensor | None
) -> tuple[Condition, Condition]:
    """What the decoder is told, positive and negative.

    Raises:
        EdgeError: embeddings or prompts of another encoder, no prompts for a decoder that reads
            them, or prompts for one that reads none.
    """
    embeds = [
        image_embeds_of(getattr(inputs, name), loaded.space, name)
        for name in ("image_embeds", "negative_image_embeds")
    ]
    prompts = {"positive": inputs.positive, "negative": inputs.negative}
    texts: list[TextEncoding | None] = []
    for name, prompt in prompts.items():
        if prompt is None:
            texts.append(None)
            continue
        if loaded.text_space is None:
            raise EdgeError(
                f"'{name}' is wired, but 'model' is a decoder of Kandinsky 2.2, which reads no"
                " prompt: its prior has read it. Take the wire out, or load Kandinsky 2.1's decoder"
            )
        width = loaded.network.config.encoder_hid_dim
        texts.append(conditioning_to_text(prompt, loaded.text_space, name, width))
    wanted = texts if inputs.cfg > 1 else texts[:1]
    if loaded.text_space is not None and None in wanted:
        raise EdgeError(
            "'model' is a decoder of Kandinsky 2.1, which reads the prompt too; encode prompt and"
            " negative prompt with its mCLIP and wire them into 'positive' and 'negative'"
        )
    first, second = (
        Condition(
            image_embeds,
            None if text is None else text.hidden,
            None if text is None else text.pooled,
            hint,
        )
        for image_embeds, text in zip(embeds, texts, strict=True)
    )
    return first, second


_FOLDERS = {
    "text-to-image": "kandinsky-2-2-decoder",
    "inpainting": "kandinsky-2-2-decoder-inpaint",
    "depth": "kandinsky-2-2-controlnet-depth",
}


def _check_decoder(loaded: LatentDecoder, wanted: str) -> None:
    """Refuse a decoder of another mode than the node's.

    Raises:
        EdgeError: names both, and what to load.
    """
    mode = mode_of(loaded.network)
    if mode != wanted:
        raise EdgeError(
            f"'model' is a {mode} decoder, but this node needs one for {wanted}; load"
            f" {_FOLDERS[wanted]} with 'Load Decoder (Kandinsky)'"
        )


def _asked(image: torch.Tensor, width: int, height: int) -> tuple[int, int]:
    """Height and width, the picture's own where they are 0."""
    return height or image.shape[1], width or image.shape[2]


def _fitted(
    image: torch.Tensor, asked: tuple[int, int], name: str, exact: bool = False
) -> torch.Tensor:
    """IMAGE -> ``[B, 3, H, W]`` in -1..1 of the wanted size, rounded up to multiples of 64, by
    Pillow's bicubic filter on 8 bits, reduced first where it is much larger, as published.

    Args:
        exact: resized to what was asked for, as the original repository does; the last row and
            column are repeated up to the multiples, which it does without.
    """
    from PIL import Image

    own = tuple(image.shape[1:3])
    height, width = latent_size(*asked)
    whole = 8 * height, 8 * width
    wanted = asked if exact else whole
    if max(whole) > LARGEST:
        raise EdgeError(
            f"'{name}' would be {whole[1]}x{whole[0]}; the limit is {LARGEST} pixels a side"
        )
    if wanted != own:
        host.warn(
            f"'{name}' is {own[1]}x{own[0]}; it was resized to {wanted[1]}x{wanted[0]}"
            + ("" if exact else ", as a Kandinsky decoder's sides are multiples of 64")
        )
        image = resized(image[..., :3], wanted, Image.Resampling.BICUBIC, reducing_gap=1)
    return _extended(from_image(image), wanted, whole)


def _extended(rows: torch.Tensor, size: tuple[int, int], whole: tuple[int, int]) -> torch.Tensor:
    """``[B, C, H, W]`` of this size with its last row and column repeated up to another."""
    if size == whole:
        return rows
    return F.pad(rows, (0, whole[1] - size[1], 0, whole[0] - size[0]), mode="replicate")


def _fitted_mask(mask: torch.Tensor, asked: tuple[int, int], exact: bool) -> torch.Tensor:
    """MASK ``[B, H, W]`` that covers the pictures: of their size by Pillow's Lanczos filter on 8
    bits, as diffusers does, or, ``exact``, as it is, whose nearest places the original takes.

    Raises:
        EdgeError: no MASK, or NaN in it.
    """
    from PIL import Image

    mask = check_mask(mask, "mask")
    height, width = latent_size(*asked)
    whole = 8 * height, 8 * width
    if exact and asked == whole:
        return mask
    if exact:
        near = F.interpolate(mask[:, None].float(), asked, mode="nearest")
        return _extended(near, asked, whole)[:, 0]
    return (
        mask if tuple(mask.shape[1:]) == whole else resized(mask, whole, Image.Resampling.LANCZOS)
    )


def _encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """MoVQ latents ``[B, 4, h, w]`` of ``[B, 3, H, W]`` in -1..1, one picture after another."""
    managed, _ = host.open("movq", vae)
    held = ENCODED_PIXEL * pixels[0, 0].numel()
    network, device, dtype = host.use(managed, activations=held)
    rows = []
    for row in pixels:
        host.stop_if_asked()
        rows.append(encode(network, row[None].to(device, dtype)).float())
    return torch.cat(rows)


class LoadLatentDecoder(Node):
    """Kandinsky's decoder as a native MODEL over MoVQ's latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadLatentDecoder",
            display_name="Load Decoder (Kandinsky)",
            category="PriorArt/Kandinsky/load",
            search_aliases=["kandinsky 2.1", "kandinsky 2.2", "unclip", "controlnet depth"],
            description="Loads a decoder of Kandinsky 2.2 or 2.1 as a native MODEL: text-to-image,"
            " inpainting (9 channels) or depth (8 channels). Kandinsky Decoder samples it as"
            " published; native KSampler runs it too, with image embeddings through Kandinsky"
            " Conditioning.",
            inputs=[
                *source_inputs("latent_decoder"),
                io.Combo.Input(
                    "sampler",
                    options=["published", "p_sampler", "plms_sampler"],
                    default="published",
                    tooltip="What the Kandinsky Decoder nodes sample with. published: a folder's"
                    " own scheduler, an original checkpoint's ddim_sampler. p_sampler and"
                    " plms_sampler: the original repository's others, ancestral and multistep.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="For the Kandinsky Decoder nodes or KSampler."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str, sampler: str) -> tuple:
        return fingerprint("latent_decoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str, sampler: str) -> io.NodeOutput:
        loaded = load_stage(
            kandinsky.load_latent_decoder, "latent_decoder", source, dtype, sampler=sampler
        )
        found = find_source(source, "latent_decoder", host.model_folders())
        if "movq" in found.stages:
            factors = rgb_factors(
                found.folder("movq"), lambda: host.wrap("movq", kandinsky.load_movq(found))
            )
            loaded = replace(loaded, latent_rgb_factors=factors)
        return io.NodeOutput(host.wrap("latent_decoder", loaded))


class LoadMCLIP(Node):
    """Kandinsky 2.1's text model as the host's CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadMCLIP",
            display_name="Load mCLIP (Kandinsky 2.1)",
            category="PriorArt/Kandinsky/load",
            search_aliases=["xlm-roberta", "multilingual clip"],
            description="Loads the multilingual text model (XLM-R) that Kandinsky 2.1's decoder"
            " reads prompts with. Its prior reads them with CLIP, from Load Text Encoder.",
            inputs=source_inputs("mclip"),
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="For Text Encode, for the decoder.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("mclip", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(
            host.wrap("text_encoder", load_stage(kandinsky.load_mclip, "mclip", source, dtype))
        )


class LoadMoVQ(Node):
    """Kandinsky's MoVQ as the host's VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadMoVQ",
            display_name="Load MoVQ",
            category="PriorArt/Kandinsky/load",
            search_aliases=["vae loader", "vqgan", "kandinsky"],
            description="Loads Kandinsky's MoVQ, which turns latents into pictures and back, as a"
            " native VAE: VAE Encode, VAE Decode and their tiled forms work on it.",
            inputs=source_inputs("movq"),
            outputs=[
                io.Vae.Output(
                    display_name="vae", tooltip="For VAE Decode and the Kandinsky Decoder nodes."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("movq", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(kandinsky.load_movq, "movq", source, dtype)
        return io.NodeOutput(host.wrap("movq", loaded))


ZERO, NEGATIVE = "zero image", "negative prompt"


def _kandinsky_inputs() -> tuple[list, list]:
    """What both of Kandinsky's prior nodes have before and after their own inputs."""
    before = [
        io.Custom("UNCLIP_PRIOR").Input("prior", tooltip="From Load Prior (unCLIP)."),
        io.Conditioning.Input("positive", tooltip="The prompt, from Text Encode (unCLIP)."),
        io.Conditioning.Input(
            "negative",
            tooltip="What to steer away from; an empty prompt, encoded, where there is none.",
        ),
    ]
    after = [
        io.Combo.Input(
            "negative_embeds",
            options=[ZERO, NEGATIVE],
            default=ZERO,
            tooltip="What the decoder shall steer away from. zero image: the embedding of a picture"
            " of zeros, as published without a negative prompt. negative prompt: what the prior"
            " makes of it, as published with one; image i of those uses the seed after its"
            " picture's.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=64,
            tooltip="Image embeddings to sample for the prompt.",
        ),
        noise_offset_input(),
        io.Conditioning.Input(
            "negative_decoder_prompt",
            optional=True,
            tooltip="What the decoder shall steer away from, from Text Encode (unCLIP): its"
            " negative image embeddings are then what the prior makes of this prompt. Leave it"
            " unwired for what negative_embeds says.",
        ),
    ]
    return before, after


def _kandinsky_outputs() -> list:
    return [
        io.ClipVisionOutput.Output(
            display_name="image_embeds",
            tooltip="For the Kandinsky Decoder nodes or native unCLIPConditioning.",
        ),
        io.ClipVisionOutput.Output(
            "negative_image_embeds",
            display_name="negative_image_embeds",
            tooltip="For the decoder's negative_image_embeds.",
        ),
        noise_offset_output(),
    ]


class KandinskyPrior(Node):
    """Kandinsky's prior: the embedding of a picture, and of what it shall not be."""

    ROW_BY_ROW = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        before, after = _kandinsky_inputs()
        return io.Schema(
            node_id="PriorArtKandinskyPrior",
            display_name="Prior Sample (Kandinsky)",
            category="PriorArt/Kandinsky/sample",
            search_aliases=["diffusion prior", "text to image embedding", "unclip"],
            description="Samples image embeddings for a prompt with Kandinsky's prior, and the"
            " negative ones that its decoder subtracts. Image i of the batch uses seed + i.",
            inputs=[*before, *sampling_inputs(steps=25, cfg=4.0), *after],
            outputs=_kandinsky_outputs(),
        )

    @classmethod
    def execute(cls, prior: Prior, **sampling: Any) -> io.NodeOutput:
        return _sample_prior(prior, PriorInputs(**sampling))


class KandinskyPriorImage(Node):
    """Kandinsky's image-to-image prior: a picture's embedding, led towards a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        before, after = _kandinsky_inputs()
        return io.Schema(
            node_id="PriorArtKandinskyPriorImage",
            display_name="Prior Image to Image (Kandinsky)",
            category="PriorArt/Kandinsky/sample",
            search_aliases=["img2img", "diffusion prior", "unclip"],
            description="Begins with a picture's embedding instead of noise and leads it towards"
            " the prompt with Kandinsky's prior.",
            inputs=[
                *before,
                io.ClipVisionOutput.Input(
                    "image_embeds", tooltip="Of the picture, from Image Encode or another prior."
                ),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the steps is run: 0 leaves the embedding as it is, 1"
                    " begins at noise. Published with 0.3.",
                ),
                *sampling_inputs(steps=25, cfg=4.0),
                *after,
            ],
            outputs=_kandinsky_outputs(),
        )

    @classmethod
    def execute(
        cls, prior: Prior, image_embeds: Any, strength: float, **sampling: Any
    ) -> io.NodeOutput:
        start = image_embeds_of(image_embeds, prior.space, "image_embeds")
        return _sample_prior(prior, PriorInputs(**sampling), Start(start, strength))


@dataclass(frozen=True)
class PriorInputs:
    """The sockets and widgets that both of Kandinsky's prior nodes have."""

    positive: list
    negative: list
    seed: int
    steps: int
    cfg: float
    negative_embeds: str
    batch_size: int
    noise_offset: int = 0
    negative_decoder_prompt: list | None = None


def _sample_prior(prior: Prior, inputs: PriorInputs, start: Start | None = None) -> io.NodeOutput:
    """Both embeddings, and the stream's position after them; ``start`` is what the prior begins
    with, if not with noise."""
    _check_negatives(prior, inputs)
    both, space = inputs.negative_embeds == NEGATIVE, prior.space
    text = conditioning_to_text(inputs.positive, space, "positive", space.dim)
    negative = conditioning_to_text(inputs.negative, space, "negative", space.dim)
    count = max(len(text.pooled), 0 if start is None else len(start.clean)) * inputs.batch_size
    away = inputs.negative_decoder_prompt
    prompt = None
    if away is not None:
        prompt = conditioning_to_text(away, space, "negative_decoder_prompt")
        spread(prompt.mask, count, "negative_decoder_prompt")
    network, device, dtype = host.use(prior.managed)
    bar = Bar(runs=1 if prompt is None else 2)

    def sample(text: TextEncoding, noise: Noise, **options: Any) -> torch.Tensor:
        bar.preview = cosine_to(text.pooled)
        sampling = Sampling(noise, device, dtype, inputs.steps, bar)
        with named(text="positive", start="image_embeds"):
            return host.offload(
                sample_prior(
                    network, prior.schedule, text, negative, sampling, inputs.cfg, **options
                )
            )

    with named():
        noise = seeded(inputs.seed, count, inputs.noise_offset)
        if both or prompt is not None:  # the next seed's, so that no row depends on the batch
            other = seeded((inputs.seed + 1) % 2**64, count, inputs.noise_offset)
            noise = Noise([*noise.generators, *other.generators])
    if both:
        embeds, found = sample(text, noise, start=start, with_negative=True).split(count)
    elif prompt is not None:
        # From noise, whatever picture the prompt's own embedding begins with.
        found = sample(prompt, Noise(noise.generators[count:]))
        noise = Noise(noise.generators[:count])
        embeds = sample(text, noise, start=start)
    else:
        embeds = sample(text, noise, start=start)
        found = host.offload(prior.zero_image).expand(count, -1)
    made = [
        host.clip_vision_output(
            part, embedding_space=space.name, made_by="Prior Sample (Kandinsky)"
        )
        for part in (embeds, found.clone())
    ]
    return io.NodeOutput(*made, inputs.noise_offset + noise.drawn)


def _check_negatives(prior: Prior, inputs: PriorInputs) -> None:
    """Refuse what does not say which negative embeddings are wanted.

    Raises:
        EdgeError: names the widget.
    """
    wanted, wired = inputs.negative_embeds, inputs.negative_decoder_prompt is not None
    if wanted not in (ZERO, NEGATIVE):
        raise EdgeError(f"'negative_embeds' is '{wanted}'; choose '{ZERO}' or '{NEGATIVE}'")
    if wanted == NEGATIVE and wired:
        raise EdgeError(
            f"'negative_decoder_prompt' is wired and 'negative_embeds' is '{NEGATIVE}': both say"
            f" what the decoder shall steer away from. Take the wire out, or choose '{ZERO}'"
        )
    if wanted == ZERO and prior.zero_image is None and not wired:
        raise EdgeError(
            "this prior has no embedding of a picture of zeros: it is another system's, or the"
            " folder 'image_encoder' is missing beside it. Use 'Prior Sample (unCLIP)' for another"
            f" system's, put the folder there, or set 'negative_embeds' to '{NEGATIVE}'"
        )
    if wanted == NEGATIVE and inputs.cfg <= 1:
        raise EdgeError(
            f"'cfg' is {inputs.cfg}, which leaves the negative prompt out, so there is no embedding"
            f" of it; set 'cfg' above 1, or 'negative_embeds' to '{ZERO}'"
        )


NODES = [
    LoadLatentDecoder,
    LoadMoVQ,
    LoadMCLIP,
    KandinskyPrior,
    KandinskyPriorImage,
    KandinskyDecoder,
    KandinskyImage,
    KandinskyInpaint,
    KandinskyDepth,
    KandinskyConditioning,
    KandinskySampler,
    KandinskySchedule,
]
