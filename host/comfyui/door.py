"""The door into the real ComfyUI: devices, memory, folders, progress and the host's own types.

The same names as :mod:`.embedded`. The wrappers that make our networks the host's MODEL, CLIP
and CLIP_VISION are in :mod:`.comfy_wrap`, Kandinsky's MODEL and SAMPLER in :mod:`.comfy_latent`,
KOALA in the host's own classes in :mod:`.comfy_koala`, autoencoders in :mod:`.comfy_vae`, the
memory management behind them in :mod:`.comfy_memory`, and what older and newer hosts call
differently in :mod:`.comfy_compat`.
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
from .compat import io, warn
from .kandinsky import (
    latent_sampler,
    latent_sigmas,
    open_latent_decoder,
    wrap_latent_decoder,
)
from .karlo import (
    clip_vision_output,
    open_decoder,
    open_image_encoder,
    open_text_encoder,
    with_image_normalizer,
    wrap_decoder,
    wrap_image_encoder,
    wrap_text_encoder,
)
from .koala import (
    encode_sdxl,
    koala_facts,
    load_sdxl_vae_file,
    load_text_pair_files,
    model_files,
    use_koala,
    wrap_koala,
    wrap_sdxl_vae,
    wrap_text_pair,
)
from .memory import Managed, manage, use
from .vae import open_movq, open_vqgan, wrap_movq, wrap_vqgan

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "ComfyUI"
FOLDER = "prior_art"
EMBEDDINGS = "image_embeds"
EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".th", ".bin"}
PREVIEW_SIZE = 512

logger = logging.getLogger("prior_art")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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


def embedding_folders() -> list[Path]:
    """Where files of image embeddings are: the first is written to."""
    output, given = folder_paths.get_output_directory(), folder_paths.get_input_directory()
    return [Path(output) / EMBEDDINGS, Path(given)]


def pick_dtype(choice: str, role: Role) -> torch.dtype:
    """The storage dtype for a network.

    Args:
        choice: ``auto`` asks the host; ``fp32``, ``fp16`` and ``bf16`` are taken at their word.
        role: the host keeps encoders apart from sampled networks.

    Raises:
        ValueError: another ``choice``.
    """
    if choice in DTYPES:
        return DTYPES[choice]
    if choice != "auto":
        raise ValueError(f"unknown dtype '{choice}'; choose auto, {', '.join(DTYPES)}")
    encoder = role == "encoder"
    device = memory.text_encoder_device() if encoder else memory.get_torch_device()
    if memory.is_device_cpu(device):
        return torch.float32  # half precision would be cast at each use
    picked = memory.text_encoder_dtype(device) if encoder else memory.unet_dtype(device=device)
    return picked if picked in DTYPES.values() else torch.float16


def progress(total: int) -> Callable[[int, Image | None], None]:
    """A progress bar of ``total`` steps on the running node.

    Returns:
        ``update(step, preview)``, which shows the step and, where given, a picture. It raises the
        host's interrupt exception when the user stopped the run.
    """
    bar = comfy.utils.ProgressBar(total)

    def update(step: int, preview: Image | None = None) -> None:
        picture = None if preview is None else ("JPEG", preview, PREVIEW_SIZE)
        bar.update_absolute(step, total, picture)
        memory.throw_exception_if_processing_interrupted()

    return update


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


__all__ = [
    "NAME",
    "ComfyExtension",
    "Managed",
    "clip_vision_output",
    "embedding_folders",
    "encode_sdxl",
    "free_memory",
    "io",
    "koala_facts",
    "latent_sampler",
    "latent_sigmas",
    "load_sdxl_vae_file",
    "load_text_pair_files",
    "manage",
    "model_files",
    "model_folders",
    "offload",
    "open_decoder",
    "open_image_encoder",
    "open_latent_decoder",
    "open_movq",
    "open_text_encoder",
    "open_vqgan",
    "pick_dtype",
    "progress",
    "use",
    "use_koala",
    "warn",
    "with_image_normalizer",
    "wrap_decoder",
    "wrap_image_encoder",
    "wrap_koala",
    "wrap_latent_decoder",
    "wrap_movq",
    "wrap_sdxl_vae",
    "wrap_text_encoder",
    "wrap_text_pair",
    "wrap_vqgan",
]
