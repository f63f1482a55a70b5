"""What a picture is worth: a worker that embeds pictures and captions and adds up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..edges import UserError
from ..host.embedded.door import Managed, manage, use
from ..loaders.clip import tokenize
from ..loaders.files.catalogue import Source
from ..loaders.files.safe import open_picture
from ..loaders.rerank import load_reranker
from ..samplers.clip import encode_image, encode_text
from ..samplers.parts.resize import resize_and_crop
from ..samplers.rerank import preprocess
from ..shapes.check import check
from ..shapes.grammar import parse
from .inception import load_inception
from .scores import Moments, Scores

AT_ONCE = 32


@dataclass(frozen=True)
class Part:
    """Pictures that are scored together.

    Attributes:
        number: its place among all parts.
        pictures: path and caption of each; references have none.
    """

    number: int
    pictures: tuple[tuple[Path, str | None], ...]


@dataclass(frozen=True)
class Measure:
    """How pictures are measured.

    Attributes:
        encoder: the CLIP's source.
        features: whether pictures are compared with references.
        inception: the weights whose features are; ``None`` takes the CLIP's image embeddings.
        side: for Inception the shorter side is resized to this and the centre cut out; 0 leaves
            pictures as they are.
        rules: whether the embedded family's checker looks at them.
    """

    encoder: Source
    features: bool
    inception: Path | None = None
    side: int = 0
    rules: bool = False


class Scorer:
    """Scores parts, one after the other, its networks loaded.

    On a CPU it computes in one thread, as sums in another order are other sums.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._clip = load_reranker(measure.encoder)
        self._text = manage(self._clip.network["text"])
        self._vision = manage(self._clip.network["vision"])
        self._inception: Managed | None = None
        if measure.inception is not None:
            self._inception = manage(load_inception(measure.inception))
        networks = (self._text, self._vision, self._inception)
        self._every = [one for one in networks if one is not None]
        if not torch.cuda.is_available():
            torch.set_num_threads(1)

    def run(self, part: Part) -> Scores:
        """A part's sums.

        Raises:
            UserError: a picture that cannot be read, or a caption that the rules do not know.
        """
        total = Scores()
        for start in range(0, len(part.pictures), AT_ONCE):
            some = part.pictures[start : start + AT_ONCE]
            pictures = [_opened(path) for path, _ in some]
            captions = [caption for _, caption in some if caption is not None]
            embeds = None
            if captions or (self._measure.features and not self._inception):
                embeds = self._embedded(pictures)
            if captions and embeds is not None:
                total += self._agreement(pictures, embeds, captions)
            if self._measure.features:
                if self._inception is not None:
                    embeds = self._inception_features(self._inception, pictures)
                total += Scores(Moments.of(np.asarray(embeds)))
        return total

    def _use(self, one: Managed) -> tuple[Any, torch.device, torch.dtype]:
        """A network on the device, where the others stay."""
        return use(one, beside=self._every)

    def _embedded(self, pictures: list[Image.Image]) -> torch.Tensor:
        clip = self._clip
        levels = (torch.from_numpy(np.array(one))[None].float() / 255 for one in pictures)
        pixels = torch.cat([preprocess(one, clip.size, clip.mean, clip.std) for one in levels])
        network, device, dtype = self._use(self._vision)
        return encode_image(network, pixels, device, dtype).cpu()

    def _agreement(
        self, pictures: list[Image.Image], embeds: torch.Tensor, captions: list[str]
    ) -> Scores:
        ids, mask, _ = tokenize(self._clip.tokenizer, captions)
        network, device, dtype = self._use(self._text)
        texts = encode_text(network, ids, mask, self._clip.space, device, dtype).pooled.cpu()
        cosines = F.cosine_similarity(embeds, texts, dim=-1).double()
        right = colours = 0
        if self._measure.rules:
            for picture, caption in zip(pictures, captions, strict=True):
                found, scene = check(picture), parse(caption)
                right += found.all_right(scene)
                colours += found.colours_right(scene)
        positive = float(cosines.clamp(min=0).sum())
        return Scores(None, len(captions), float(cosines.sum()), positive, right, colours)

    def _inception_features(self, inception: Managed, pictures: list[Image.Image]) -> torch.Tensor:
        network, device, _ = self._use(inception)
        side = self._measure.side
        features = []
        for picture in pictures:
            levels = resize_and_crop(picture, side) if side else np.asarray(picture)
            pixels = torch.from_numpy(np.array(levels)).permute(2, 0, 1)[None]
            features.append(network(pixels.to(device))[0].cpu())
        return torch.cat(features)


def _opened(path: Path) -> Image.Image:
    try:
        with open_picture(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"the picture '{path}' cannot be read: {error}") from error
