"""Our networks in the host's memory management.

The host moves weights between devices leaf by leaf and, when memory is short, leaves some behind
and brings them over at each use. That only works for its own leaf classes, so every leaf of a
network becomes one of them (:func:`swap_leaves`), and the network goes into a ModelPatcher, which
is what the host counts, loads, evicts and patches with LoRAs.

Newer hosts bring weights over at each use even where all would fit. A network of ours that fits
goes into the patcher that loads it whole before it runs (:class:`Resident`): then nothing of the
host's stands between a sampler and the weights, and its steps can be recorded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import torch
from torch import nn

from ...networks.graphs import forget
from ...networks.leaf import channels_last
from ..room import main_memory, refuse_larger

LEAVES = (
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "GroupNorm",
    "LayerNorm",
    "Embedding",
)

VIEW = "prior_art_view"
"""Where a ModelPatcher, and every clone of it, keeps another network made of the same weights."""


class CastEmbedding(comfy.ops.manual_cast.Embedding):
    """A token table that answers in the compute dtype.

    The host's answers in the dtype of its weights, from where half precision would spread through
    the whole encoder on a device that computes in fp32.
    """

    compute_dtype: torch.dtype = torch.float32
    bias = None  # the host gives it to each instance as it is built, which ours is not

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(*args, **kwargs).to(self.compute_dtype)


def swap_leaves(network: nn.Module, compute_dtype: torch.dtype | None = None) -> list[str]:
    """Turn every leaf of ``network`` into the host's class of that name, in place.

    Such a leaf casts its weights at each call; one whose weights are stored as they are computed
    with is told not to, until the host leaves it behind.

    Args:
        network: any network made of torch's own leaves.
        compute_dtype: what embeddings answer in; the weights' dtype where not given.

    Returns:
        The names of modules that hold parameters and are no leaf the host can manage: raw
        parameters of inner modules, and classes it does not know. :func:`bring_rest` moves them.
    """
    swaps = {
        getattr(nn, name): getattr(comfy.ops.manual_cast, name)
        for name in LEAVES
        if hasattr(comfy.ops.manual_cast, name)
    }
    swaps[nn.Embedding] = CastEmbedding
    rest = []
    for name, module in network.named_modules():
        module.__class__ = swaps.get(type(module), type(module))
        stored = {parameter.dtype for parameter in module.parameters(recurse=False)}
        if type(module) in swaps.values():
            module.comfy_cast_weights = compute_dtype is not None and not stored <= {compute_dtype}
            if isinstance(module, CastEmbedding):
                module.compute_dtype = compute_dtype or module.weight.dtype
        elif stored:
            rest.append(name)
    return rest


def _steady_vision_stem(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep the stem of a CLIP vision model in the compute dtype.

    transformers casts the picture to the dtype of the first convolution's weights, and the class
    embedding is a raw parameter next to it: 0.2% of the model, stored as it is computed.
    """
    for module in network.modules():
        if hasattr(module, "patch_embedding") and hasattr(module, "class_embedding"):
            module.patch_embedding.to(dtype)
            module.class_embedding.data = module.class_embedding.data.to(dtype)


def weight_dtype(network: nn.Module) -> torch.dtype:
    """The dtype that most of a network's weights are stored in."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in network.parameters():
        counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0]


def compute_dtype_for(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype the host would compute in on ``device`` with weights stored as ``stored``."""
    return memory.unet_manual_cast(stored, device) or stored


class Holder(nn.Module):
    """What the patcher owns: a module of our own around a library's.

    A diffusers model cannot be handed over bare, its ``device`` has no setter.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def bring_rest(patcher: Any, device: torch.device, *_: Any) -> None:
    """Move what no leaf holds, after the host has loaded a network.

    A partial load leaves the raw parameters and the buffers of inner modules behind (a class
    embedding, position ids); they are small, and library code mixes them with activations.
    """
    for module in patcher.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.device != device:
                parameter.data = parameter.data.to(device)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)


class Resident(comfy.model_patcher.ModelPatcher):
    """The host's patcher that loads weights before they are used, all of them where there is room.

    What was made of the weights where they lie goes before they do.
    """

    def load(self, device_to: Any = None, *args: Any, **kwargs: Any) -> None:
        """Put weights on the device, in the format that its convolutions read."""
        super().load(device_to, *args, **kwargs)
        channels_last(self.model)

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Give some memory back: the recordings', and that of weights."""
        self._let_go()
        return super().partially_unload(*args, **kwargs)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        """Take patches off and, with ``unpatch_weights``, weights off the device."""
        if unpatch_weights:
            self._let_go()
        return super().unpatch_model(device_to, unpatch_weights)

    def _let_go(self) -> None:
        forget(self.model)
        view = self.get_attachment(VIEW)
        if view is not None:
            view.release()


def stays(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes of weights lie on ``device`` as a whole while they are used.

    They do where the host may use the memory as it sees fit and has enough of it for them, with
    what it holds back for computing. Whether it is free at the moment is not asked: the host makes
    room by putting others out, and reckons with what a stage says it will hold.
    """
    if memory.vram_state not in (memory.VRAMState.NORMAL_VRAM, memory.VRAMState.HIGH_VRAM):
        return False
    return size <= memory.maximum_vram_for_weights(device)


def patcher_of(module: nn.Module, load: torch.device, offload: torch.device) -> Any:
    """A ModelPatcher around a network of ours: one that loads it whole before it runs or, where it
    does not fit, of the kind that this host uses for its own models."""
    kind: Any = Resident
    core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    if core is not comfy.model_patcher.ModelPatcher and not stays(memory.module_size(module), load):
        kind = core
    patcher = kind(module, load_device=load, offload_device=offload)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, bring_rest)
    return patcher


@dataclass(frozen=True)
class Managed:
    """A network in the host's care.

    The patcher is held here and nowhere else: when the edge that carries this object leaves the
    host's cache, the network goes with it.

    Attributes:
        patcher: the host's ModelPatcher around a module with a ``network``.
        compute_dtype: what activations are computed in.
    """

    patcher: Any
    compute_dtype: torch.dtype


def prepare(network: nn.Module, device: torch.device) -> torch.dtype:
    """Make ``network`` ready for the host's management; the dtype it will compute in."""
    dtype = compute_dtype_for(weight_dtype(network), device)
    swap_leaves(network, dtype)
    _steady_vision_stem(network, dtype)
    return dtype


def manage(network: nn.Module) -> Managed:
    """Hand a sampled network to the host's memory management."""
    device = memory.get_torch_device()
    dtype = prepare(network, device)
    return Managed(patcher_of(Holder(network), device, memory.unet_offload_device()), dtype)


def use(
    managed: Managed, activations: int = 0, beside: Sequence[Managed] = ()
) -> tuple[nn.Module, torch.device, torch.dtype]:
    """Load a network now, making room for it and for what it will hold.

    Args:
        activations: how many numbers that is, in the dtype it computes in.
        beside: networks that the same stage uses too, loaded with it.

    Returns:
        The network, the device to compute on and the dtype to compute in.
    """
    patchers = [managed.patcher, *(other.patcher for other in beside)]
    bytes_held = activations * managed.compute_dtype.itemsize
    memory.load_models_gpu(patchers, memory_required=bytes_held)
    model = managed.patcher.model
    # The host's own models are called whole.
    network = getattr(model, "network", model)
    return network, managed.patcher.load_device, managed.compute_dtype


def check_room(needed: int, what: str, cure: str) -> None:
    """Refuse what the device that computes could not hold even if it held nothing else: what is
    free at the moment says little, as the host puts others out for what runs.

    Raises:
        EdgeError: see :func:`~..room.refuse_larger`.
    """
    device, there = memory.get_torch_device(), None
    if device.type == "cpu":
        there = main_memory()
    elif device.type == "cuda" and os.name != "nt":  # Windows lends a card main memory
        there = int(memory.get_total_memory(device))
    refuse_larger(needed, there, what, cure)


def kind_of(inner: Any, outer: Any) -> str:
    """What a foreign object of the host is, in words for a message."""
    if inner is None:
        return f"no model of the host ({type(outer).__name__})"
    config = getattr(inner, "model_config", None)
    name = type(config).__name__ if config is not None else type(inner).__name__
    return f"another model ({name})"


class Adopted(nn.Module):
    """A network whose children are registered here under their own names, so that a LoRA's
    ``lora_unet_down_blocks_0_...`` finds them below the host's ``diffusion_model``."""

    def __init__(self, network: nn.Module, children_of: nn.Module) -> None:
        super().__init__()
        for name, child in children_of.named_children():
            self.add_module(name, child)
        self._network = (network,)  # in a tuple: not registered a second time

    @property
    def network(self) -> nn.Module:
        """The network as our samplers know it, made of the same leaves."""
        return self._network[0]

    @property
    def dtype(self) -> torch.dtype:
        return weight_dtype(self)
