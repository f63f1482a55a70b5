"""The Inception network of published FIDs, by torch-fidelity, which keeps its bits.

torch-fidelity and not clean-fid: it has TensorFlow's own resize, of which the published figures
were made, without antialiasing, on 8 bits, to 299x299, and features equal to the original graph's.
clean-fid resizes by Pillow's antialiased bicubic, to other figures.

Sources: torch-fidelity (Obukhov et al. 2020); Heusel et al. 2017.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ..edges import UserError
from ..loaders.files.checkpoint import read_state_dict
from ..loaders.files.download import FILES
from ..loaders.files.libraries import LibraryError, require

WEIGHTS = FILES["inception"][0].rpartition("/")[2]

RESIZE = "TensorFlow 1's bilinear resize of 8 bits to 299x299, without antialiasing"


def find_inception(folders: list[Path]) -> Path:
    """Where the weights lie in the model folders.

    Raises:
        UserError: nowhere.
    """
    for folder in folders:
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise UserError(
        f"FID needs '{WEIGHTS}', which is not there. `prior-art download inception` puts it into"
        f" '{folders[0]}'; without --references only CLIP-score is measured"
    )


def load_inception(path: Path) -> Any:
    """The network: pictures ``[B, 3, H, W]`` uint8 to a tuple of features ``[B, 2048]``.

    Raises:
        CheckpointError: a damaged or foreign file.
        LibraryError: torch-fidelity cannot be imported.
    """
    try:
        network = require(
            "torch_fidelity.feature_extractor_inceptionv3", "FeatureExtractorInceptionV3"
        )
    except LibraryError as error:
        raise LibraryError(
            f'{error}. FID is measured by torch-fidelity: pip install ".[fid]"'
        ) from error
    # Its own reading would run what a file says: it gets what was read safely.
    safe = io.BytesIO()
    torch.save(read_state_dict(path), safe)
    safe.seek(0)
    try:
        return network("inception", ["2048"], feature_extractor_weights_path=safe)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"'{path}' does not hold the Inception of '{WEIGHTS}'; download it again"
        ) from error
