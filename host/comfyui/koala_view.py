"""diffusers' U-Net made of the weights of the host's: what :mod:`...networks.koala` makes fast.

The host's SDXL is a network of its own class with its own names, which runs a step operation by
operation. Where nothing hangs on it, the same tensors under diffusers' names are the same network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...loaders.files.hub import build_diffusers
from ...loaders.koala import config_of
from ...networks.graphs import forget
from ...networks.leaf import is_bare
from .memory import VIEW

if TYPE_CHECKING:
    from torch import nn

DEVICES = ("cuda",)
"""Kinds of device on which a view is faster than the host's own network."""


class View:
    """One U-Net's view, made when it is first asked for and let go with the weights."""

    def __init__(self) -> None:
        self._network: nn.Module | None = None
        self._made_of: list[nn.Parameter] = []

    def network(self, inner: Any) -> nn.Module:
        """A ``UNet2DConditionModel`` of the weights that ``inner``, the host's SDXL, has now."""
        weights = list(inner.diffusion_model.parameters())
        if any(old is not new for old, new in zip(self._made_of, weights, strict=False)):
            self.release()
        if self._network is None:
            self._network, self._made_of = _made(inner), weights
        return self._network

    def release(self) -> None:
        """Keep no weights, and nothing that was recorded with them."""
        if self._network is not None:
            forget(self._network)
        self._network, self._made_of = None, []


def _made(inner: Any) -> nn.Module:
    settings = inner.model_config.unet_config
    own = dict(inner.diffusion_model.named_parameters())
    names = comfy.utils.unet_to_diffusers(settings)
    tensors = {theirs: own[name] for theirs, name in names.items() if name in own}
    config = config_of(tensors, "diffusion_model")
    widths, head = config["block_out_channels"], settings["num_head_channels"]
    config["attention_head_dim"] = [max(1, width // head) for width in widths]
    network = build_diffusers("UNet2DConditionModel", config, "diffusion_model", tensors)
    network = network.eval().requires_grad_(False)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, assign=True)
    return network


def view_of(model: Any, compute: torch.dtype) -> nn.Module | None:
    """A loaded MODEL's U-Net as diffusers' network; ``None`` where that is not all it does: weights
    elsewhere or of another dtype than ``compute``, patches of blocks, hooks, another class.

    Args:
        model: the host's ModelPatcher around its SDXL.
    """
    view: View | None = model.get_attachment(VIEW)
    network = model.model.diffusion_model
    if (
        view is None
        or type(network) is not UNetModel
        or model.load_device.type not in DEVICES
        or model.model_options.get("transformer_options")
        or model.model.model_lowvram
        or not all(is_bare(part) and "forward" not in vars(part) for part in network.modules())
    ):
        return None
    place = torch.empty(0, device=model.load_device).device  # with its number
    plain = all(p.device == place and p.dtype == compute for p in network.parameters())
    return view.network(model.model) if plain else None
