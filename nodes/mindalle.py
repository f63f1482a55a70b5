"""minDALL-E: a prompt becomes a grid of codes, one after another; and what else that can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..edges import EdgeError, Transformer, check_image, check_mask, latent_of
from ..host import host, io
from ..loaders import mindalle
from ..loaders.mindalle import tokenize
from ..loaders.mindalle_vqgan import VQGAN
from ..networks.memory import DECODED_PIXEL
from ..networks.mindalle import ARTransformer
from ..networks.mindalle_vqgan import codes_of, decode, embeddings, encode
from ..samplers.mindalle import (
    Draw,
    bytes_per_candidate,
    complete_by_likelihood,
    log_probabilities,
    sample_tokens,
)
from ..samplers.parts.chunks import in_chunks
from ..samplers.rerank import order
from .node import Node
from .pictures import fit, from_image, preview, thumbnails, to_image
from .widgets import (
    drawn_input,
    fingerprint,
    from_json,
    load_stage,
    named,
    seed_input,
    seeded,
    source_inputs,
    unpacking,
)

TOKENS = "PRIOR_ART_TOKENS"
"""The type of the token grid, the widget of AR Complete and AR Variations, and what it shows."""

SCORED = "PRIOR_ART_SCORED_TOKENS"
"""What AR Score tells the token grids, and of how many pictures."""

SCORED_PICTURES = 96


def _model_inputs() -> list[Any]:
    return [
        io.Custom("AR_TRANSFORMER").Input("ar_transformer", tooltip="From Load minDALL-E."),
        io.Vae.Input("vae", tooltip="From Load VQGAN, of the same model."),
    ]


def _text_input() -> Any:
    return io.String.Input(
        "text",
        default="",
        multiline=True,
        dynamic_prompts=True,
        tooltip="The prompt, in English and lower-cased by the model. What is too long is cut, and"
        " characters that the model does not know become [UNK], each with a warning. Class-"
        "conditional and unconditional models do not read it.",
    )


def _class_input() -> Any:
    return io.Int.Input(
        "class_id",
        default=0,
        min=0,
        max=1_000_000,
        optional=True,
        tooltip="The class of a class-conditional model, from 0; other models do not read it.",
    )


def _redraw_input(else_: str) -> Any:
    return drawn_input(
        "redraw",
        TOKENS,
        "The codes to draw anew, painted in the token grid: JSON, a text of 0 (stays) and 1 (is"
        f" drawn anew) for each row of codes. {else_}",
    )


def _draw_inputs(candidates: str) -> list[Any]:
    return [
        seed_input(),
        io.Int.Input("candidates", default=16, min=1, max=4096, tooltip=candidates),
        io.Int.Input(
            "top_k",
            default=256,
            min=0,
            max=1_000_000,
            tooltip="Draw each code from the k likeliest; published with 256. 0 draws from all.",
        ),
        io.Float.Input(
            "top_p",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Then from the likeliest that together reach this probability. 1, as"
            " published, switches it off; 0 is refused.",
        ),
        io.Float.Input(
            "temperature",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.01,
            tooltip="Below 1 keeps to likely codes, above 1 spreads; published with 1. 0 always"
            " takes the likeliest code, so that all candidates are equal.",
        ),
        _class_input(),
    ]


class ARSample(Node):
    """Candidates for a prompt, each from a random stream of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtARSample",
            display_name="AR Sample",
            category="PriorArt/minDALL-E/sample",
            search_aliases=["mindalle", "dalle", "dall-e", "autoregressive", "text to image"],
            description="Writes pictures code by code with minDALL-E, exactly as published. Many"
            " candidates share the work on the prompt; let CLIP Rerank choose among them.",
            inputs=[
                *_model_inputs(),
                _text_input(),
                *_draw_inputs(
                    "Pictures to draw; published with 96. They are drawn as many at once as memory"
                    " allows, which changes nothing in them."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For VAE Decode, VQGAN Decode or AR Score."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        ar_transformer: Transformer,
        vae: Any,
        text: str,
        seed: int,
        candidates: int,
        top_k: int,
        top_p: float,
        temperature: float,
        class_id: int = 0,
    ) -> io.NodeOutput:
        pair = _load(ar_transformer, vae, candidates)
        context = _context(ar_transformer, text, class_id)
        with _drawing():
            draw = pair.draw(seed, candidates, top_k, top_p, temperature)
            tokens = sample_tokens(pair.network, context, draw)
        return io.NodeOutput(to_latent(pair.coder, pair.codes(tokens)))


class ARVariations(Node):
    """Other endings of a picture: exact, the kept rows' codes stay."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtARVariations",
            display_name="AR Variations",
            category="PriorArt/minDALL-E/sample",
            search_aliases=["mindalle", "dalle", "dall-e", "autoregressive"],
            description="Keeps the first rows of a picture's codes and draws the rest anew, exactly"
            " as the model would have gone on. Of codes painted in the token grid this is exact"
            " where none stays after the first one drawn anew, else an approximation.",
            has_intermediate_output=True,
            inputs=[
                *_model_inputs(),
                io.Image.Input(
                    "image",
                    tooltip="One picture, or one for each candidate. Another size is resized and"
                    " cropped, with a warning.",
                ),
                _text_input(),
                io.Int.Input(
                    "keep_rows",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Rows of codes to keep, from the top. minDALL-E's pictures have 16, the"
                    " embedded family's 8.",
                ),
                *_draw_inputs("Variations to draw."),
                _redraw_input("Empty, all below 'keep_rows' is."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="For VAE Decode or AR Score.")
            ],
        )

    @classmethod
    def execute(
        cls,
        ar_transformer: Transformer,
        vae: Any,
        image: Any,
        text: str,
        keep_rows: int,
        seed: int,
        candidates: int,
        top_k: int,
        top_p: float,
        temperature: float,
        class_id: int = 0,
        redraw: str = "",
    ) -> io.NodeOutput:
        _, vqgan = host.open("vqgan", vae)
        redrawn = _painted(redraw, vqgan.grid)
        if redrawn is None and not 0 < keep_rows < vqgan.grid:
            raise EdgeError(
                f"'keep_rows' is {keep_rows}, but this model's pictures have {vqgan.grid} rows of"
                f" codes; keep 1 to {vqgan.grid - 1} of them"
            )
        codes, _ = encode_image(vae, image, "image")
        pair = _load(ar_transformer, vae, candidates)
        context = _context(ar_transformer, text, class_id)
        with _drawing():
            draw = pair.draw(seed, candidates, top_k, top_p, temperature)
            if redrawn is None:
                redrawn = torch.arange(vqgan.grid)[:, None].expand(-1, vqgan.grid) >= keep_rows
                leading = codes[:, :keep_rows].flatten(1)
                tokens = sample_tokens(pair.network, context, draw, leading)
            else:
                known, given = ~redrawn.flatten(), codes.flatten(1)
                tokens, _ = complete_by_likelihood(pair.network, context, given, known, draw)
        shown = _shown(codes[0], redrawn, lambda: image[:1])
        return io.NodeOutput(to_latent(pair.coder, pair.codes(tokens)), ui=shown)


class ARComplete(Node):
    """A picture with a region drawn anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtARComplete",
            display_name="AR Complete",
            category="PriorArt/minDALL-E/sample",
            search_aliases=["mindalle", "dalle", "dall-e", "autoregressive", "inpaint", "outpaint"],
            description="Draws the masked region of a picture anew. Exact where everything after"
            " the region's first code is masked too, in reading order. For any other mask an"
            " approximation: candidates are drawn from left to right around the codes that stay,"
            " and the best of N are taken, by how likely they make what follows them.",
            has_intermediate_output=True,
            inputs=[
                *_model_inputs(),
                io.Latent.Input(
                    "latent_image",
                    tooltip="One picture: from VQGAN Encode, with native Set Latent Noise Mask"
                    " after it or the region painted below. A code is drawn anew if any of its"
                    " pixels is masked. A mask that is not square is cropped to its centre, as"
                    " VQGAN Encode crops pictures.",
                ),
                _text_input(),
                io.Int.Input(
                    "keep",
                    default=4,
                    min=0,
                    max=4096,
                    tooltip="How many of the candidates to give out, the best first. 0 gives all.",
                ),
                *_draw_inputs(
                    "Completions to draw. Where the mask makes it an approximation, more are"
                    " better."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture itself: pixels outside of the mask are put back from it."
                    " Unwired, the whole picture is what the VQGAN makes of its codes.",
                ),
                _redraw_input("A noise mask of 'latent_image' wins."),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The completions, best first, without a mask."
                ),
                io.Image.Output(
                    display_name="image", tooltip="The completed pictures, best first."
                ),
                io.Float.Output(
                    display_name="log_weights",
                    is_output_list=True,
                    tooltip="How likely each completion makes the codes that follow it: the"
                    " logarithm of their probability; 0 where the completion is exact.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        ar_transformer: Transformer,
        vae: Any,
        latent_image: dict,
        text: str,
        keep: int,
        seed: int,
        candidates: int,
        top_k: int,
        top_p: float,
        temperature: float,
        class_id: int = 0,
        image: Any = None,
        redraw: str = "",
    ) -> io.NodeOutput:
        mask = _redrawn_pixels(latent_image, redraw, host.open("vqgan", vae)[1])
        if image is not None:
            check_image(image, "image")
        pair = _load(ar_transformer, vae, candidates)
        codes = pair.codes_of(latent_image, "latent_image")
        if len(codes) > 1:
            raise EdgeError(
                f"'latent_image' holds {len(codes)} pictures; complete one at a time, with 'Latent"
                " From Batch'"
            )
        if image is not None:
            image = fit(image[:1], pair.vqgan.image_size, "image")
        context = _context(ar_transformer, text, class_id)
        known = ~_masked_codes(mask, pair.vqgan.grid)
        with _drawing("latent_image"):
            draw = pair.draw(seed, candidates, top_k, top_p, temperature)
            tokens, weights = complete_by_likelihood(
                pair.network, context, codes[0].flatten(), known, draw
            )
        best = order(weights)[: keep or None]
        completed = pair.codes(tokens[best])
        latent = to_latent(pair.coder, completed)
        pictures = decode_codes(vae, completed)
        if image is not None:
            pictures = _put_back(pictures, image, mask)
        shown = _shown(
            codes[0],
            ~known.view_as(codes[0]),
            lambda: decode_codes(vae, codes) if image is None else image,
            masked=latent_image.get("noise_mask") is not None,
        )
        return io.NodeOutput(latent, pictures, weights[best].tolist(), ui=shown)


class ARScore(Node):
    """How likely a model finds a picture for a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtARScore",
            display_name="AR Score",
            category="PriorArt/minDALL-E/sample",
            search_aliases=["mindalle", "dalle", "dall-e", "log likelihood", "perplexity"],
            description="The logarithm of the probability that the model gives each picture for a"
            " prompt, exact, in one pass. The difference between two prompts tells which fits"
            " better.",
            has_intermediate_output=True,
            inputs=[
                *_model_inputs(),
                io.Latent.Input("samples", tooltip="Pictures, from AR Sample or VQGAN Encode."),
                _text_input(),
                _class_input(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="log_likelihoods",
                    is_output_list=True,
                    tooltip="log p(picture given prompt) of each picture; nearer to 0 is likelier.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The same as text, a line for each picture, the likeliest first.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, ar_transformer: Transformer, vae: Any, samples: dict, text: str, class_id: int = 0
    ) -> io.NodeOutput:
        count = len(latent_of(samples, "samples"))
        pair = _load(ar_transformer, vae, count)
        context = _context(ar_transformer, text, class_id)
        tokens = pair.codes_of(samples, "samples").flatten(1)

        def score(rows: slice) -> torch.Tensor:
            host.stop_if_asked()
            return log_probabilities(pair.network, context, tokens[rows], pair.device, pair.dtype)

        with named(tokens="samples"):
            each = torch.cat(in_chunks(score, count, min(pair.chunk, AT_LEAST)))
        scores = each.sum(dim=1)
        scored = [
            {"codes": codes, "log_probs": logs}
            for codes, logs in zip(
                tokens[:SCORED_PICTURES].tolist(), each[:SCORED_PICTURES].tolist(), strict=True
            )
        ]
        lines = [f"picture {i + 1}: {scores[i]:.2f}" for i in order(scores).tolist()]
        return io.NodeOutput(scores.tolist(), "\n".join(lines), ui={SCORED: scored})


@dataclass(frozen=True)
class Pair:
    """A transformer and the VQGAN whose codes it writes, on their devices.

    Attributes:
        network, device, dtype: the transformer, as the host lends it.
        coder, place: the VQGAN and its device.
        vqgan: what its loader knows about it.
        chunk: how many candidates fit into memory at once.
        compiled: whether the transformer's blocks run by torch.compile.
    """

    network: ARTransformer
    device: torch.device
    dtype: torch.dtype
    coder: nn.Module
    place: torch.device
    vqgan: VQGAN
    chunk: int
    compiled: bool

    def draw(
        self, seed: int, candidates: int, top_k: int, top_p: float, temperature: float
    ) -> Draw:
        """How so many candidates are drawn.

        Raises:
            EdgeError: options out of range.
        """
        return Draw(
            seeded(seed, candidates),
            self.device,
            self.dtype,
            callback=Watch(self, candidates),
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            chunk=self.chunk,
            compiled=self.compiled,
        )

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``[B, T]`` as codes ``[B, h, w]`` where the VQGAN is."""
        return tokens.view(len(tokens), self.vqgan.grid, self.vqgan.grid).to(self.place)

    def codes_of(self, latent: dict, name: str) -> torch.Tensor:
        """Codes ``[B, h, w]`` of a LATENT of this model's size.

        Raises:
            EdgeError: another system's, or of another size.
        """
        codes = _codes(self.coder, latent_of(latent, name).to(self.place), name)
        grid = self.vqgan.grid
        if codes.shape[1:] != (grid, grid):
            raise EdgeError(
                f"'{name}' is {codes.shape[2]}x{codes.shape[1]} codes, but this transformer writes"
                f" {grid}x{grid}. Encode the picture with 'VQGAN Encode', which resizes it"
            )
        return codes


def _load(model: Transformer, vae: Any, count: int) -> Pair:
    """Both networks on the device, and how many of ``count`` candidates fit beside them.

    Raises:
        EdgeError: another kind of VAE, or two that do not belong together.
    """
    tokenizer, vqgan = host.open("vqgan", vae)
    config = model.config
    if vqgan.codes != config.image_vocab or vqgan.grid**2 != config.image_tokens:
        raise EdgeError(
            f"'vae' ('{vqgan.name}') makes {vqgan.grid}x{vqgan.grid} codes out of {vqgan.codes},"
            f" but 'ar_transformer' ('{model.name}') writes {config.image_tokens} codes out of"
            f" {config.image_vocab}. They come from different models; load both from one source"
        )
    coder, place, _ = host.use(tokenizer)
    each = bytes_per_candidate(config, torch.float32) // 4
    network, device, dtype = host.use(
        model.managed, activations=min(count, AT_LEAST) * each, beside=[tokenizer]
    )
    fitting = int(0.9 * host.free_memory()) // bytes_per_candidate(config, dtype)
    chunk = max(1, min(count, fitting))
    return Pair(network, device, dtype, coder, place, vqgan, chunk, model.compiled)


def _drawing(picture: str = "image") -> AbstractContextManager[None]:
    """What the drawing samplers call a node's inputs, of which ``picture`` has the codes."""
    return named(leading=picture, tokens=picture, compiled="compile")


def _codes(network: nn.Module, latent: torch.Tensor, name: str) -> torch.Tensor:
    """Codes ``[B, h, w]`` nearest to a LATENT's samples, on the network's device.

    Raises:
        EdgeError: another system's LATENT.
    """
    width = network.quantize.embedding.weight.shape[1]
    if latent.shape[1] != width:
        raise EdgeError(
            f"'{name}': a LATENT of shape {list(latent.shape)} is not this VQGAN's, which is"
            f" [B, {width}, h, w]: codebook embeddings. Make one with 'VQGAN Encode', a VAE Encode"
            " with this VQGAN, or 'AR Sample'"
        )
    return codes_of(network, latent)


# Candidates for which the host makes room, if need be at the price of other networks' places.
AT_LEAST = 16


def _context(model: Transformer, text: str, class_id: int) -> torch.Tensor | None:
    """What the candidates are conditioned on, with warnings about what the model does not see."""
    config = model.config
    if config.text_vocab is None:
        if text.strip():
            kind = "no prompt" if config.classes is None else "a class, no prompt"
            host.warn(f"'{model.name}' reads {kind}; 'text' is not used")
        if config.classes is not None and class_id >= config.classes:
            raise EdgeError(
                f"'class_id' is {class_id}, but '{model.name}' knows {config.classes} classes; give"
                f" one from 0 to {config.classes - 1}"
            )
        return None if config.classes is None else torch.tensor([[class_id]])
    tokens = tokenize(model.tokenizer, [text], config.text_tokens)
    if tokens.unknown[0]:
        host.warn(
            f"the prompt holds characters that this model does not know: '{tokens.unknown[0]}'; it"
            " reads them as [UNK]"
        )
    if tokens.cut[0]:
        host.warn(
            f"the prompt has more than {config.text_tokens} tokens; not seen by the model:"
            f" '{tokens.cut[0]}'"
        )
    return tokens.ids


class Watch:
    """Tells the host of every token, and shows the first candidates once a row, or less often: all
    previews together take a tenth of the time."""

    SHOWN = 4
    SHARE = 0.1

    def __init__(self, pair: Pair, count: int) -> None:
        self.pair = pair
        self.total = pair.network.config.image_tokens
        self.update = host.progress(count * self.total)
        self.finished = 0  # candidates of the chunks before
        self.row = 0
        self.started = time.monotonic()
        self.spent = 0.0

    def __call__(self, done: int, total: int, tokens: torch.Tensor) -> None:
        """What the sampler calls after each token of a chunk."""
        count, row = len(tokens), done // self.pair.vqgan.grid
        picture = None
        if row != self.row:
            self.row = row
            elapsed = time.monotonic() - self.started
            if row and self.spent <= self.SHARE * elapsed:
                picture = self._show(tokens[: self.SHOWN], row)
        self.update(self.finished * total + count * done, picture)
        if done == total:
            self.finished += count

    def _show(self, tokens: torch.Tensor, rows: int) -> Any:
        """The whole rows so far, decoded alone, above grey."""
        started, grid = time.monotonic(), self.pair.vqgan.grid
        codes = tokens[:, : rows * grid].view(len(tokens), rows, grid).to(self.pair.place)
        pixels = decode(self.pair.coder, codes)
        missing = self.pair.vqgan.image_size - pixels.shape[2]
        picture = preview(nn.functional.pad(pixels, (0, 0, 0, missing)), self.SHOWN)
        self.spent += time.monotonic() - started
        return picture


# -- masks ------------------------------------------------------------------------------------


def _mask_of(latent: dict, name: str) -> torch.Tensor:
    """A LATENT's noise mask ``[1, 1, S, S]``, cropped to its centre where it is not square.

    Raises:
        EdgeError: there is none, there are several, or it masks nothing.
    """
    mask = latent.get("noise_mask") if isinstance(latent, dict) else None
    if mask is None:
        raise EdgeError(
            f"'{name}' has no noise mask, so there is nothing to draw anew; put 'Set Latent Noise"
            " Mask' before it, paint codes in the node's token grid, or use 'AR Variations'"
        )
    mask = check_mask(mask.reshape(-1, *mask.shape[-2:]), name)
    mask = mask[:, None].float().cpu()
    if len(mask) > 1 and not bool((mask == mask[:1]).all()):
        raise EdgeError(f"'{name}' has {len(mask)} noise masks; complete one picture at a time")
    high, wide = mask.shape[2:]
    side = min(high, wide)
    top, left = (high - side) // 2, (wide - side) // 2
    mask = mask[:1, :, top : top + side, left : left + side]
    if not bool((mask >= 0.5).any()):
        raise EdgeError(
            f"the noise mask of '{name}' is empty, or only masks what was cropped away; paint the"
            " region to be drawn anew"
        )
    return mask


def _painted(text: str, grid: int) -> torch.Tensor | None:
    """Which codes ``[grid, grid]`` the token grid's ``text`` draws anew; ``None``: it is empty.

    Raises:
        EdgeError: no such grid, another model's, or one that draws nothing anew.
    """
    example = 'a text of 0 and 1 for each row of codes, such as ["0000", "0110", "0110", "0000"]'
    rows = from_json(text, "redraw", example)
    if rows is None:
        return None
    if not isinstance(rows, list) or not all(
        isinstance(row, str) and not row.strip("01") for row in rows
    ):
        raise EdgeError(f"'redraw' is no grid of codes; give {example}, or clear it in the node")
    if {len(rows), *map(len, rows)} != {grid}:
        widest = max(map(len, rows), default=0)
        raise EdgeError(
            f"'redraw' has {len(rows)} rows of up to {widest} codes, but this model's pictures have"
            f" {grid}x{grid}; clear the token grid and paint it again"
        )
    painted = torch.tensor([[mark == "1" for mark in row] for row in rows])
    if not bool(painted.any()):
        raise EdgeError("'redraw' has no 1, so nothing is drawn anew; paint codes, or clear it")
    return painted


def _redrawn_pixels(latent: dict, redraw: str, vqgan: VQGAN) -> torch.Tensor:
    """The noise mask of a LATENT ``[1, 1, S, S]``, or where it has none the codes painted.

    Raises:
        EdgeError: neither, or one that draws nothing anew.
    """
    painted = _painted(redraw, vqgan.grid)
    if painted is None:
        return _mask_of(latent, "latent_image")
    if latent.get("noise_mask") is not None:
        host.warn("the noise mask of 'latent_image' wins over the codes painted in the token grid")
        return _mask_of(latent, "latent_image")
    side = vqgan.image_size // vqgan.grid
    return painted.float()[None, None].repeat_interleave(side, 2).repeat_interleave(side, 3)


def _shown(
    codes: torch.Tensor,
    redrawn: torch.Tensor,
    picture: Callable[[], torch.Tensor],
    masked: bool = False,
) -> dict[str, list] | None:
    """What the token grid shows of a run.

    Args:
        codes: ``[h, w]`` of the picture as it was.
        redrawn: ``[h, w]`` bool, which of them are drawn anew.
        picture: makes it, IMAGE ``[1, H, W, 3]``.
        masked: whether a noise mask said so.
    """
    kept = host.show(lambda: thumbnails(picture(), 1, longest=512))
    if kept is None:
        return None
    rows = ["".join("01"[mark] for mark in row) for row in redrawn.int().tolist()]
    return {TOKENS: [{"codes": codes.tolist(), "picture": kept, "redrawn": rows, "masked": masked}]}


def _masked_codes(mask: torch.Tensor, grid: int) -> torch.Tensor:
    """Which codes ``[grid * grid]`` have a masked pixel."""
    return nn.functional.adaptive_max_pool2d(mask, (grid, grid)).flatten() >= 0.5


def _put_back(pictures: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """IMAGE with the pixels of ``image`` ``[1, S, S, 3]`` where the mask is 0."""
    soft = nn.functional.interpolate(mask, image.shape[1:3], mode="bilinear", antialias=True)
    soft = soft[0, 0, :, :, None].to(pictures)
    return pictures * soft + image.to(pictures) * (1 - soft)


class LoadVQGAN(Node):
    """minDALL-E's VQGAN as the host's VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadVQGAN",
            display_name="Load VQGAN",
            category="PriorArt/minDALL-E/load",
            search_aliases=["vae loader", "taming", "mindalle", "dalle"],
            description="Loads minDALL-E's VQGAN, which turns a picture into a grid of codes and"
            " back, as a native VAE: VAE Encode, VAE Decode and their tiled forms work on it.",
            inputs=source_inputs("vqgan"),
            outputs=[
                io.Vae.Output(
                    display_name="vae", tooltip="For AR Sample, VQGAN Decode, VAE Decode."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return fingerprint("vqgan", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = load_stage(mindalle.load_vqgan, "vqgan", source, dtype, progress=unpacking())
        return io.NodeOutput(host.wrap("vqgan", loaded))


class LoadARTransformer(Node):
    """minDALL-E's transformer, with its tokenizer where it reads text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadARTransformer",
            display_name="Load minDALL-E",
            category="PriorArt/minDALL-E/load",
            search_aliases=["dalle", "dall-e", "mindalle", "autoregressive", "checkpoint loader"],
            description="Loads minDALL-E's transformer, which writes a picture's codes one after"
            " another. Text-conditional, class-conditional and unconditional models are told apart"
            " by their weights.",
            inputs=[
                *source_inputs("ar_transformer"),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    tooltip="Run the transformer by torch.compile. Needs a C++ compiler (and Triton"
                    " on a GPU) and takes a minute before the first picture; sums may round"
                    " differently. CUDA graphs, which need no compiler, are used on NVIDIA either"
                    " way.",
                ),
            ],
            outputs=[
                io.Custom("AR_TRANSFORMER").Output(
                    display_name="ar_transformer",
                    tooltip="For AR Sample, AR Complete, AR Variations and AR Score.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str, compile: bool = False) -> tuple:
        return fingerprint("ar_transformer", source)

    @classmethod
    def execute(cls, source: str, dtype: str, compile: bool = False) -> io.NodeOutput:
        loaded = load_stage(
            mindalle.load_transformer, "ar_transformer", source, dtype, progress=unpacking()
        )
        managed = host.manage(loaded.network)
        return io.NodeOutput(
            Transformer(managed, loaded.tokenizer, loaded.config, loaded.name, compile)
        )


CODES = "A picture's codes as text, a line for each row of the grid, for Preview as Text."


class VQGANEncode(Node):
    """A picture's codes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtVQGANEncode",
            display_name="VQGAN Encode",
            category="PriorArt/minDALL-E/encode",
            search_aliases=["image to tokens", "image codes", "vae encode"],
            description="Turns pictures into codes as published: resized and cropped to the size"
            " that the model was made for, then the nearest entries of the codebook. Native VAE"
            " Encode takes pictures of any size.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load VQGAN."),
                io.Image.Input(
                    "image",
                    tooltip="Pictures of any size. What is not square or has another size is"
                    " resized and cropped, with a warning.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For AR Complete, AR Score and VAE Decode."
                ),
                io.String.Output(display_name="codes", is_output_list=True, tooltip=CODES),
            ],
        )

    @classmethod
    def execute(cls, vae: Any, image: Any) -> io.NodeOutput:
        codes, network = encode_image(vae, image, "image")
        return io.NodeOutput(to_latent(network, codes), as_text(codes))


class VQGANDecode(Node):
    """The picture of codes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtVQGANDecode",
            display_name="VQGAN Decode",
            category="PriorArt/minDALL-E/sample",
            search_aliases=["tokens to image", "image codes", "vae decode"],
            description="Finds the codes nearest to a latent and decodes them, some pictures at a"
            " time, as many as memory allows. Native VAE Decode gives the same pictures.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load VQGAN."),
                io.Latent.Input("samples", tooltip="From AR Sample, VQGAN Encode or VAE Encode."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures."),
                io.String.Output(display_name="codes", is_output_list=True, tooltip=CODES),
            ],
        )

    @classmethod
    def execute(cls, vae: Any, samples: dict) -> io.NodeOutput:
        latent = latent_of(samples, "samples")
        managed, _ = host.open("vqgan", vae)
        network, device, _ = host.use(managed)
        codes = _codes(network, latent.to(device), "samples")
        return io.NodeOutput(decode_codes(vae, codes), as_text(codes))


def encode_image(vae: Any, image: torch.Tensor, name: str) -> tuple[torch.Tensor, nn.Module]:
    """Codes ``[B, h, w]`` of an IMAGE, fitted to the VQGAN, and the network on its device."""
    check_image(image, name)
    managed, vqgan = host.open("vqgan", vae)
    pixels = from_image(fit(image, vqgan.image_size, name))
    network, device, dtype = host.use(managed, activations=DECODED_PIXEL * pixels[0, 0].numel())

    def work(rows: slice) -> torch.Tensor:
        host.stop_if_asked()
        return encode(network, pixels[rows].to(device, dtype))

    codes = in_chunks(work, len(pixels), _at_once(pixels[0, 0].numel(), dtype))
    return torch.cat(codes), network


def decode_codes(vae: Any, codes: torch.Tensor) -> torch.Tensor:
    """IMAGE of codes ``[B, h, w]``, in chunks that fit into memory."""
    managed, vqgan = host.open("vqgan", vae)
    pixels = codes[0].numel() * vqgan.factor**2
    network, device, dtype = host.use(managed, activations=DECODED_PIXEL * pixels)
    update = host.progress(len(codes))

    def work(rows: slice) -> torch.Tensor:
        part = codes[rows].to(device)
        image = host.offload(to_image(decode(network, part).float()))
        update(rows.start + len(part))
        return image

    return torch.cat(in_chunks(work, len(codes), _at_once(pixels, dtype)))


def to_latent(network: nn.Module, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """LATENT of codes ``[B, h, w]`` on the network's device."""
    return {"samples": host.offload(embeddings(network, codes).float())}


def as_text(codes: torch.Tensor) -> list[str]:
    """Codes ``[B, h, w]`` as one text a picture, a line a row."""
    return ["\n".join(" ".join(map(str, row)) for row in picture) for picture in codes.tolist()]


def _at_once(pixels: int, dtype: torch.dtype) -> int:
    """How many pictures of so many pixels fit into the memory that is free."""
    return max(1, host.free_memory() // (DECODED_PIXEL * pixels * dtype.itemsize))


NODES = [
    LoadVQGAN,
    LoadARTransformer,
    VQGANEncode,
    VQGANDecode,
    ARSample,
    ARVariations,
    ARComplete,
    ARScore,
]
