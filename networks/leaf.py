"""What a host may have done to a layer, and whether its weights can be read past it."""

from __future__ import annotations

import torch
from torch import nn


def is_bare(leaf: nn.Module) -> bool:
    """Whether a layer computes with its parameters as they are.

    A host may have hung patches on it, which ComfyUI keeps in attributes called ``..._function``,
    or hooks, or put in weights of a tensor class of its own; all of that works when it is called.
    """
    # Asked of every layer before each run: so without the generators of nn.Module.
    return (
        not any(name.endswith("_function") and value for name, value in vars(leaf).items())
        and not (leaf._forward_hooks or leaf._forward_pre_hooks)
        and all(type(p) is nn.Parameter for p in leaf._parameters.values() if p is not None)
    )


def is_plain(leaf: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a leaf is of this kind, with a bias, bare, and on the CPU in fp32.

    A host may have swapped the leaf for one that casts or moves its weight when called: with such
    parameters there is nothing to cast or move.
    """
    return (
        isinstance(leaf, kind)
        and leaf.weight is not None
        and leaf.bias is not None
        and is_bare(leaf)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in leaf.parameters())
    )


def channels_last(network: nn.Module) -> None:
    """Lay convolutions' weights on an NVIDIA device out as its kernels read them.

    Their channels come last there. Weights that lie so already or elsewhere are not touched, and
    moves between devices keep it.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4 and _reads_channels_last(parameter.device):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _reads_channels_last(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None
