"""The graph: one file per stage, each node a schema, a few checks and one call."""

from __future__ import annotations

from ..host import host
from .embeddings import (
    CompareEmbeddings,
    InterpolateEmbeddings,
    LoadEmbeddings,
    MixEmbeddings,
    SaveEmbeddings,
    TextDifference,
)
from .image import ImageEncode, ZeroImage
from .kandinsky import (
    KandinskyConditioning,
    KandinskyDecoder,
    KandinskyDepth,
    KandinskyImage,
    KandinskyInpaint,
    KandinskySampler,
    KandinskySchedule,
)
from .karlo import KarloDecoder
from .koala import KoalaInfo, KoalaSample, KoalaTextEncode
from .load import (
    LoadARTransformer,
    LoadDecoder,
    LoadImageEncoder,
    LoadImageNormalizer,
    LoadKoala,
    LoadLatentDecoder,
    LoadMCLIP,
    LoadMoVQ,
    LoadPrior,
    LoadReranker,
    LoadTextEncoder,
    LoadUpscaler,
    LoadVQGAN,
)
from .mindalle import ARComplete, ARSample, ARScore, ARVariations
from .rerank import CLIPRerank, ImageGrid
from .text import BatchPrompts, TextEncode
from .unclip import KandinskyPrior, KandinskyPriorImage, PriorSample
from .upscale import KarloUpscale
from .vqgan import VQGANDecode, VQGANEncode

NODES = [
    LoadTextEncoder,
    LoadImageEncoder,
    LoadPrior,
    LoadDecoder,
    LoadUpscaler,
    LoadImageNormalizer,
    TextEncode,
    BatchPrompts,
    ImageEncode,
    ZeroImage,
    PriorSample,
    KarloDecoder,
    KarloUpscale,
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
    MixEmbeddings,
    InterpolateEmbeddings,
    TextDifference,
    CompareEmbeddings,
    SaveEmbeddings,
    LoadEmbeddings,
    LoadKoala,
    KoalaInfo,
    KoalaTextEncode,
    KoalaSample,
    LoadVQGAN,
    LoadARTransformer,
    LoadReranker,
    VQGANEncode,
    VQGANDecode,
    ARSample,
    ARVariations,
    ARComplete,
    ARScore,
    CLIPRerank,
    ImageGrid,
]


class PriorArtExtension(host.ComfyExtension):
    """The list of nodes that the host registers."""

    async def get_node_list(self) -> list[type]:
        """Every node class of the pack, in the order of the stages."""
        return NODES
