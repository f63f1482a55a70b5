"""One loader per stage: pick where the weights come from, get the host's own type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..edges import Prior, Transformer, Upscaler
from ..host import host, io
from ..loaders import kandinsky, karlo, koala, mindalle, unclip
from ..loaders.files.catalogue import find_source, list_sources, stage_of
from ..loaders.files.checkpoint import CheckpointError
from ..loaders.rerank import load_reranker
from ..networks.koala_vae import colours_of
from ..samplers.rerank import preprocess

CATEGORY = "PriorArt/load"
DTYPES = ["auto", "fp32", "fp16", "bf16"]


def _inputs(stage: str) -> list:
    names = [source.name for source in list_sources(stage, host.model_folders())]
    return [
        io.Combo.Input(
            "source",
            options=names,
            tooltip="Where the weights come from: the embedded family that ships with the pack"
            " (shapes-…), a diffusers folder or an original checkpoint under models/prior_art.",
        ),
        io.Combo.Input(
            "dtype",
            options=DTYPES,
            default="auto",
            tooltip=(
                "Number format of the weights. auto is fp32: this network is small, and half"
                " precision changes what it finds."
                if stage_of(stage).full
                else "Number format of the weights. auto asks the host; sampling maths is fp32"
                " whatever is chosen here."
            ),
        ),
    ]


def _fingerprint(stage: str, source: str) -> tuple:
    """Changes when the files behind a source change, so that the host loads them again."""
    path = find_source(source, stage, host.model_folders()).path
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    # What a loader itself leaves there is no change.
    stats = [(f.name, f.stat()) for f in files if f.is_file() and f.name != kandinsky.ZERO_IMAGE]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _load(loader: Callable, stage: str, source: str, dtype: str, **options: Any) -> Any:
    found = find_source(source, stage, host.model_folders())
    kind = stage_of(stage)
    if dtype == "auto" and kind.full:
        dtype = "fp32"
    return loader(found, host.pick_dtype(dtype, kind.role), **options)


def _unpacking() -> Callable[[str, int, int], None]:
    """Shows how far each file of an archive is unpacked; a click on stop ends it."""
    bars: dict[str, Callable] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = host.progress(total)
        bars[name](done)

    return tell


class LoadTextEncoder(io.ComfyNode):
    """The text tower of an unCLIP system as the host's CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadTextEncoder",
            display_name="Load Text Encoder (unCLIP)",
            category=CATEGORY,
            description="Loads the CLIP text tower of Karlo or Kandinsky, with its tokenizer."
            " Native CLIP Text Encode works on it too.",
            inputs=_inputs("text_encoder"),
            outputs=[io.Clip.Output(display_name="clip", tooltip="For Text Encode (unCLIP).")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("text_encoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(unclip.load_text_encoder, "text_encoder", source, dtype)
        return io.NodeOutput(host.wrap_text_encoder(loaded))


class LoadImageEncoder(io.ComfyNode):
    """The image tower of an unCLIP system as the host's CLIP_VISION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadImageEncoder",
            display_name="Load Image Encoder (unCLIP)",
            category=CATEGORY,
            description="Loads the CLIP image tower of Karlo or Kandinsky, to vary and mix"
            " pictures. Native CLIP Vision Encode works on it too.",
            inputs=_inputs("image_encoder"),
            outputs=[
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="For Image Encode (unCLIP)."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("image_encoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(unclip.load_image_encoder, "image_encoder", source, dtype)
        return io.NodeOutput(host.wrap_image_encoder(loaded))


class LoadPrior(io.ComfyNode):
    """The diffusion prior: text embedding in, image embedding out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadPrior",
            display_name="Load Prior (unCLIP)",
            category=CATEGORY,
            description="Loads the unCLIP prior, the network that turns a text embedding into an"
            " image embedding.",
            inputs=_inputs("prior"),
            outputs=[
                io.Custom("UNCLIP_PRIOR").Output(
                    display_name="prior", tooltip="For Prior Sample (unCLIP) or (Kandinsky)."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("prior", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(unclip.load_prior, "prior", source, dtype)
        found = find_source(source, "prior", host.model_folders())
        zero = kandinsky.zero_image(found) if found.system == "kandinsky-prior" else None
        managed = host.manage(loaded.network)
        return io.NodeOutput(Prior(managed, loaded.schedule, loaded.space, zero))


class LoadDecoder(io.ComfyNode):
    """Karlo's decoder as a native MODEL in pixel space."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadDecoder",
            display_name="Load Decoder (unCLIP)",
            category=CATEGORY,
            description="Loads Karlo's decoder as a native MODEL whose latent is the 3-channel"
            " picture itself: Karlo Decoder samples it as published, native KSampler runs it too"
            " (text through CONDITIONING, the image embedding through unCLIPConditioning, decode"
            " with the pixel_space VAE).",
            inputs=_inputs("decoder"),
            outputs=[
                io.Model.Output(display_name="model", tooltip="For Karlo Decoder or KSampler.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("decoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(host.wrap_decoder(_load(karlo.load_decoder, "decoder", source, dtype)))


class LoadLatentDecoder(io.ComfyNode):
    """Kandinsky's decoder as a native MODEL over MoVQ's latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadLatentDecoder",
            display_name="Load Decoder (Kandinsky)",
            category=CATEGORY,
            description="Loads a decoder of Kandinsky 2.2 or 2.1 as a native MODEL: text-to-image,"
            " inpainting (9 channels) or depth (8 channels). Kandinsky Decoder samples it as"
            " published; native KSampler runs it too, with image embeddings through Kandinsky"
            " Conditioning.",
            inputs=[
                *_inputs("latent_decoder"),
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
        return _fingerprint("latent_decoder", source)

    @classmethod
    def execute(cls, source: str, dtype: str, sampler: str) -> io.NodeOutput:
        loaded = _load(
            kandinsky.load_latent_decoder, "latent_decoder", source, dtype, sampler=sampler
        )
        return io.NodeOutput(host.wrap_latent_decoder(loaded))


class LoadMCLIP(io.ComfyNode):
    """Kandinsky 2.1's text tower as the host's CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadMCLIP",
            display_name="Load mCLIP (Kandinsky 2.1)",
            category=CATEGORY,
            description="Loads the multilingual text tower (XLM-R) that Kandinsky 2.1's decoder"
            " reads prompts with. Its prior reads them with CLIP, from Load Text Encoder.",
            inputs=_inputs("mclip"),
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="For Text Encode, for the decoder.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("mclip", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(
            host.wrap_text_encoder(_load(kandinsky.load_mclip, "mclip", source, dtype))
        )


class LoadMoVQ(io.ComfyNode):
    """Kandinsky's MoVQ as the host's VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadMoVQ",
            display_name="Load MoVQ",
            category=CATEGORY,
            description="Loads Kandinsky's MoVQ, which turns latents into pictures and back, as a"
            " native VAE: VAE Encode, VAE Decode and their tiled forms work on it.",
            inputs=_inputs("movq"),
            outputs=[
                io.Vae.Output(
                    display_name="vae", tooltip="For VAE Decode and the Kandinsky Decoder nodes."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("movq", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(host.wrap_movq(_load(kandinsky.load_movq, "movq", source, dtype)))


class LoadUpscaler(io.ComfyNode):
    """Karlo's two super-resolution networks: the steps, and the last step's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadUpscaler",
            display_name="Load Upscaler (Karlo)",
            category=CATEGORY,
            description="Loads Karlo's super-resolution: the network of the first steps and the"
            " fine-tuned one that takes the last step.",
            inputs=_inputs("upscaler"),
            outputs=[
                io.Custom("UNCLIP_UPSCALER").Output(
                    display_name="upscaler", tooltip="For Karlo Upscale."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("upscaler", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(karlo.load_upscaler, "upscaler", source, dtype)
        managed = host.manage(loaded.network)
        return io.NodeOutput(Upscaler(managed, loaded.schedule, loaded.low_size, loaded.high_size))


class LoadVQGAN(io.ComfyNode):
    """minDALL-E's VQGAN as the host's VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadVQGAN",
            display_name="Load VQGAN",
            category=CATEGORY,
            description="Loads minDALL-E's VQGAN, which turns a picture into a grid of codes and"
            " back, as a native VAE: VAE Encode, VAE Decode and their tiled forms work on it.",
            inputs=_inputs("vqgan"),
            outputs=[
                io.Vae.Output(
                    display_name="vae", tooltip="For AR Sample, VQGAN Decode, VAE Decode."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("vqgan", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(mindalle.load_vqgan, "vqgan", source, dtype, progress=_unpacking())
        return io.NodeOutput(host.wrap_vqgan(loaded))


class LoadARTransformer(io.ComfyNode):
    """minDALL-E's transformer, with its tokenizer where it reads text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadARTransformer",
            display_name="Load minDALL-E",
            category=CATEGORY,
            description="Loads minDALL-E's transformer, which writes a picture's codes one after"
            " another. Text-conditional, class-conditional and unconditional models are told apart"
            " by their weights.",
            inputs=[
                *_inputs("ar_transformer"),
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
        return _fingerprint("ar_transformer", source)

    @classmethod
    def execute(cls, source: str, dtype: str, compile: bool = False) -> io.NodeOutput:
        loaded = _load(
            mindalle.load_transformer, "ar_transformer", source, dtype, progress=_unpacking()
        )
        managed = host.manage(loaded.network)
        return io.NodeOutput(
            Transformer(managed, loaded.tokenizer, loaded.config, loaded.name, compile)
        )


class LoadReranker(io.ComfyNode):
    """Both towers of one CLIP, to rank pictures by a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtLoadReranker",
            display_name="Load CLIP (Rerank)",
            category=CATEGORY,
            description="Loads both towers of a CLIP for CLIP Rerank: ViT-B/32 as published with"
            " minDALL-E, or any other in transformers' or OpenAI's layout. Pictures are prepared as"
            " minDALL-E does.",
            inputs=_inputs("reranker"),
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="The text tower, for CLIP Rerank."),
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="The image tower, for CLIP Rerank."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, dtype: str) -> tuple:
        return _fingerprint("reranker", source)

    @classmethod
    def execute(cls, source: str, dtype: str) -> io.NodeOutput:
        loaded = _load(load_reranker, "reranker", source, dtype)
        prepare = partial(preprocess, size=loaded.size, mean=loaded.mean, std=loaded.std)
        text = unclip.TextEncoder(loaded.network["text"], loaded.tokenizer, loaded.space)
        image = unclip.ImageEncoder(loaded.network["vision"], prepare, loaded.space)
        return io.NodeOutput(host.wrap_text_encoder(text), host.wrap_image_encoder(image))


class LoadImageNormalizer(io.ComfyNode):
    """Stable unCLIP's statistics of image embeddings, put into its MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [s.name for s in list_sources("image_normalizer", host.model_folders())]
        return io.Schema(
            node_id="PriorArtLoadImageNormalizer",
            display_name="Load Image Normalizer (Stable unCLIP)",
            category=CATEGORY,
            description="ComfyUI noises the image embeddings of a Stable Diffusion 2.1 unCLIP"
            " checkpoint without the statistics that it was trained with. This puts them in, so"
            " that unCLIPConditioning does what diffusers' StableUnCLIPPipeline does: for Karlo's"
            " prior in front of sd21-unclip-l.",
            inputs=[
                io.Model.Input("model", tooltip="From native unCLIPCheckpointLoader."),
                io.Combo.Input(
                    "source",
                    options=names,
                    tooltip="A folder with an image_normalizer, as that of"
                    " stabilityai/stable-diffusion-2-1-unclip-small, under models/prior_art.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For KSampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, **others: Any) -> tuple:
        return _fingerprint("image_normalizer", source)

    @classmethod
    def execute(cls, model: Any, source: str) -> io.NodeOutput:
        found = find_source(source, "image_normalizer", host.model_folders())
        return io.NodeOutput(
            host.with_image_normalizer(model, *unclip.load_image_normalizer(found))
        )


OWN = "from the source"


class LoadKoala(io.ComfyNode):
    """KOALA's three parts from one folder, or a U-Net file beside SDXL's encoders and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def other(name: str, stage: str, kind: str, what: str) -> Any:
            names = [source.name for source in list_sources(stage, host.model_folders())]
            return io.Combo.Input(
                name,
                options=[OWN, *names, *host.model_files(kind)],
                default=OWN,
                tooltip=f"Where {what} comes from. A folder brings its own; a U-Net file needs"
                " another folder's or SDXL's own file.",
            )

        return io.Schema(
            node_id="PriorArtLoadKoala",
            display_name="Load KOALA",
            category=CATEGORY,
            description="Loads a KOALA (or SDXL) in the hub's folder layout, or a KOALA U-Net file:"
            " the compressed U-Net, both of SDXL's text encoders and its VAE.",
            inputs=[
                *_inputs("koala_unet"),
                io.Combo.Input(
                    "variant",
                    options=koala.WANTED,
                    default=koala.ANY_KOALA,
                    tooltip="What must be in the file; anything else is refused by name. any SDXL"
                    " loads SDXL-Base and its like too.",
                ),
                other("clip_l", "koala_text", "text_encoders", "the first text encoder"),
                other("clip_g", "koala_text", "text_encoders", "the second text encoder"),
                other("vae", "koala_vae", "vae", "the VAE"),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KOALA Sample or KSampler."),
                io.Clip.Output(display_name="clip", tooltip="For Text Encode (KOALA)."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode; computed in fp32."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, source: str, clip_l: str, clip_g: str, vae: str, **others: str
    ) -> tuple:
        chosen = [("koala_unet", source), ("koala_text", clip_l), ("koala_text", clip_g)]
        own = [name for kind in ("text_encoders", "vae") for name in host.model_files(kind)]
        return tuple(
            _fingerprint(stage, name)
            for stage, name in (*chosen, ("koala_vae", vae))
            # The host's own loaders do not watch their files either.
            if name != OWN and name not in own
        )

    @classmethod
    def execute(
        cls, source: str, dtype: str, variant: str, clip_l: str, clip_g: str, vae: str
    ) -> io.NodeOutput:
        unet = _load(koala.load_unet, "koala_unet", source, dtype, wanted=variant)
        clip_l, clip_g, vae = (
            _named(source, chosen, name)
            for name, chosen in (("clip_l", clip_l), ("clip_g", clip_g), ("vae", vae))
        )
        text, (coder, colours) = _text_pair(clip_l, clip_g, dtype), _sdxl_vae(vae, dtype)
        return io.NodeOutput(host.wrap_koala(unet, colours), text, coder)


def _named(source: str, chosen: str, name: str) -> str:
    """Where a part beside the U-Net comes from.

    Raises:
        CheckpointError: from a source that is a U-Net alone.
    """
    if chosen != OWN:
        return chosen
    if find_source(source, "koala_unet", host.model_folders()).kind == "checkpoint":
        raise CheckpointError(
            f"'{source}' is a U-Net alone; choose where SDXL's text encoders and VAE come from"
            f" ('{name}' is '{OWN}')"
        )
    return source


def _text_pair(clip_l: str, clip_g: str, dtype: str) -> Any:
    """CLIP of two folders' encoders, or of two of the host's files."""
    names = clip_l, clip_g
    own = [name in host.model_files("text_encoders") for name in names]
    if all(own):
        return host.load_text_pair_files(*names)
    if any(own):
        raise CheckpointError(
            f"'clip_l' ('{names[0]}') and 'clip_g' ('{names[1]}') are a folder and a file; choose"
            " both of one kind"
        )
    first = second = _load(koala.load_text_encoders, "koala_text", clip_l, dtype)
    if clip_g != clip_l:
        second = _load(koala.load_text_encoders, "koala_text", clip_g, dtype)
    return host.wrap_text_pair(
        replace(first, second=second.second, second_tokenizer=second.second_tokenizer)
    )


def _sdxl_vae(name: str, dtype: str) -> tuple[Any, Any]:
    """VAE of a folder or of the host's file, and the colours of its latents."""
    if name in host.model_files("vae"):
        return host.load_sdxl_vae_file(name), None
    loaded = _load(koala.load_vae, "koala_vae", name, dtype)
    return host.wrap_sdxl_vae(loaded), colours_of(loaded.network)
