"""A component of a hub folder as a network: its config.json, its weights, the library's class.

Networks are diffusers' and transformers' classes, built on the meta device; the tensors that were
read are assigned to them, so a network is in memory once, and memory-mapped where its dtype is the
file's. Nothing here touches the internet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...edges import reason_of
from .catalogue import SYSTEMS, Source
from .checkpoint import (
    AGAIN,
    CheckpointError,
    cast,
    check_inside,
    load_strict,
    read_component,
    read_json,
)
from .configs import check_config, sizes_of
from .libraries import require


def part(source: Source, component: str) -> Path:
    """The folder of a component.

    Raises:
        CheckpointError: it is missing, or a link leads out of the model folders.
    """
    folder = source.folder(component)
    if not folder.is_dir():
        raise CheckpointError(
            f"'{source.path}' lacks the folder '{folder.name}'. Copy it there from where the others"
            f" came from. {SYSTEMS[source.system].cure}"
        )
    check_inside(folder, source.folders)
    return folder


def read_hub(
    source: Source, component: str, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    """A component's config, its tensors in or near ``dtype``, and its name for messages.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = part(source, component)
    check_inside(folder / "config.json", source.folders)
    config = read_json(folder / "config.json")
    tensors, name = read_component(folder, dtype, source.folders)
    return config, tensors, name


def build(make: Callable[[], nn.Module], name: str) -> nn.Module:
    """The network that ``make`` makes, on the meta device.

    Raises:
        CheckpointError: the config of ``name`` describes none.
    """
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:
        raise CheckpointError(
            f"the config.json of '{name}' describes no network that can be built"
            f" ({reason_of(error)}). {AGAIN}"
        ) from error


def build_diffusers(
    class_name: str, config: dict[str, Any], name: str, tensors: Sized
) -> nn.Module:
    """A network of a diffusers class, on the meta device; ``tensors`` are its weights'.

    Raises:
        CheckpointError: the config describes another class, or no network.
        LibraryError: diffusers cannot be imported.
    """
    cls = require("diffusers", class_name)
    expect(config.get("_class_name", class_name), class_name, name)
    check_config(class_name, config, name, len(tensors))
    with _quiet("diffusers"):
        return build(lambda: cls.from_config(dict(config)), name)


def build_transformers(
    class_name: str, config_name: str, config: dict[str, Any], name: str, tensors: Sized
) -> nn.Module:
    """A network of a transformers class, on the meta device; ``tensors`` are its weights'.

    Raises:
        CheckpointError: the config describes another class, or no network.
        LibraryError: transformers cannot be imported.
    """
    cls, config_class = require("transformers", class_name, config_name)
    check_config(config_name, config, name, len(tensors))
    found = config.get("architectures") or class_name
    expect(found if isinstance(found, str) else found[0], class_name, name)
    return build(lambda: cls(config_class.from_dict(sizes_of(config_name, config))), name)


def expect(found: str, wanted: str, name: str) -> None:
    """Refuse another class than the stage's.

    Raises:
        CheckpointError: names both.
    """
    if found != wanted:
        raise CheckpointError(
            f"'{name}' is a {found}, but this stage is a {wanted}. Choose another source"
        )


def fill(
    network: nn.Module,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    name: str,
    prefix: str = "",
) -> None:
    """Load strictly, in ``dtype``, ready for inference.

    Args:
        prefix: of keys that some versions of the library write and others do not.

    Raises:
        CheckpointError: keys missing or left over.
    """
    load_strict(network, cast(_align(network, tensors, prefix), dtype), name)
    network.eval().requires_grad_(False)


def _align(
    network: nn.Module, tensors: dict[str, torch.Tensor], prefix: str
) -> dict[str, torch.Tensor]:
    """Keys as the installed library spells them.

    Transformers' models carry ``text_model.`` or ``vision_model.`` in some versions and not in
    others, and old files hold ``position_ids``, which newer versions compute.
    """
    wanted = network.state_dict()
    aligned = {}
    for key, tensor in tensors.items():
        if key not in wanted:
            if key.endswith("embeddings.position_ids"):
                continue
            if prefix and prefix + key in wanted:
                key = prefix + key
            elif prefix and key.removeprefix(prefix) in wanted:
                key = key.removeprefix(prefix)
        aligned[key] = tensor
    return aligned


@contextmanager
def _quiet(name: str) -> Any:
    """Old configs hold arguments that the installed diffusers ignores; that is no warning."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
