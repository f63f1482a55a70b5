"""The door into the real ComfyUI: devices, memory, folders, progress and the host's own types.

Its names are those of :class:`..api.Host`. What makes a system's networks the host's MODEL, CLIP,
CLIP_VISION and VAE is in the file of that system, autoencoders that the host does not know in
:mod:`.vae`, memory management in :mod:`.memory`, and what older and newer hosts call differently in
:mod:`.compat`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as memory
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension

from ...edges import Role, placed
from ..api import DTYPES, adapters, named_dtype
from .compat import io, warn
from .editor import show
from .memory import Managed, check_room, manage, use
from .unclip import clip_vision_output

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "ComfyUI"
FOLDER = "prior_art"
EMBEDDINGS = "image_embeds"
EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".th", ".bin"}
PREVIEW_SIZE = 512

logger = logging.getLogger("prior_art")


def _register_folder() -> None:
    """Make models/prior_art a folder of the host's, after what extra_model_paths.yaml named."""
    default = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(default))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(EXTENSIONS))
    try:
        default.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a read-only models folder is no reason not to start
        logger.debug("could not make %s: %s", default, error)


_register_folder()


def model_folders() -> list[Path]:
    """Where weights may lie: models/prior_art and its extra paths, then the diffusers folders."""
    names = (FOLDER, "diffusers")
    return [Path(path) for name in names for path in folder_paths.get_folder_paths(name)]


def cache_folder() -> Path:
    """The pack's own folder, beside what ComfyUI keeps for a user."""
    return Path(folder_paths.get_user_directory()) / FOLDER


def embedding_folders() -> list[Path]:
    """Where files of image embeddings are: the first is written to."""
    output, given = folder_paths.get_output_directory(), folder_paths.get_input_directory()
    return [Path(output) / EMBEDDINGS, Path(given)]


def pick_dtype(choice: str, role: Role) -> torch.dtype:
    """The storage dtype for a network; the host keeps encoders apart from sampled networks.

    Raises:
        EdgeError: another ``choice``.
    """
    if choice != "auto":
        return named_dtype(choice)
    encoder = role == "encoder"
    device = memory.text_encoder_device() if encoder else memory.get_torch_device()
    if memory.is_device_cpu(device):
        return torch.float32  # half precision would be cast at each use
    picked = memory.text_encoder_dtype(device) if encoder else memory.unet_dtype(device=device)
    return picked if picked in DTYPES.values() else torch.float16


def progress(total: int) -> Callable[..., None]:
    """A progress bar of ``total`` steps on the running node.

    Returns:
        ``update(step, preview)``, which shows the step and, where given, a picture. It raises the
        host's interrupt exception when the user stopped the run.
    """
    bar = comfy.utils.ProgressBar(total)

    def update(step: int, preview: Image | None = None) -> None:
        picture = None if preview is None else ("JPEG", preview, PREVIEW_SIZE)
        bar.update_absolute(step, total, picture)
        stop_if_asked()

    return update


def stop_if_asked() -> None:
    """Raise the host's interrupt exception when the user stopped the run."""
    memory.throw_exception_if_processing_interrupted()


def free_memory() -> int:
    """Bytes that are free on the device that computes."""
    return int(memory.get_free_memory(memory.get_torch_device()))


def offload(value: Any) -> Any:
    """A node's output on the device where the host keeps what waits between nodes.

    A tensor, or the lists and dicts of CONDITIONING and LATENT: what native nodes add to it or
    average with it lies there too, and a sampler only runs conditions in one batch that lie on one
    device.
    """
    return placed(value, memory.intermediate_device())


def model_files(kind: str) -> list[str]:
    """Files of the host's own folder ``kind`` ("text_encoders", "vae")."""
    return folder_paths.get_filename_list(kind)


def load_files(stage: str, *names: str) -> Any:
    """Such files as the host's type.

    Raises:
        CheckpointError: a file is damaged, or another model's.
    """
    return ADAPTERS[stage].load_files(*names)


def wrap(stage: str, loaded: Any, **options: Any) -> Any:
    """What a loader made, as the host's type."""
    return ADAPTERS[stage].wrap(loaded, **options)


def open(stage: str, value: Any) -> tuple[Any, Any]:
    """The network in a value of the host's type, for :func:`use`, and what its loader knew.

    Raises:
        EdgeError: another kind of that type.
    """
    return ADAPTERS[stage].open(value)


ADAPTERS = adapters(__package__)

__all__ = [
    "NAME",
    "ComfyExtension",
    "Managed",
    "cache_folder",
    "check_room",
    "clip_vision_output",
    "embedding_folders",
    "free_memory",
    "io",
    "load_files",
    "manage",
    "model_files",
    "model_folders",
    "offload",
    "open",
    "pick_dtype",
    "progress",
    "show",
    "stop_if_asked",
    "use",
    "warn",
    "wrap",
]
