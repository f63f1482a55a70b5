"""A graphics card that is none, for scripts inside the host's own Python: its memory is counted,
its numbers are real.

The device is ``cpu:0``, which is another device than ``cpu`` to the host's bookkeeping, and the
same to torch: the host loads, evicts, patches and leaves behind as on a card, and what is computed
can be compared. What it cannot show: streams, pinned memory, CUDA graphs, and comfy-aimdo itself,
which is replaced by an account of what it was asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from in_process import comfy, memory, torch

DEVICE = torch.device("cpu", 0)
GIB = 1024**3
HAS_DYNAMIC = hasattr(comfy.model_patcher, "ModelPatcherDynamic")


class Pages:
    """What the host asks of comfy-aimdo's virtual memory for one network."""

    def __init__(self, size: int, device: int) -> None:
        self.held = 0

    def prioritize(self) -> None:
        pass

    def alloc(self, size: int) -> tuple:
        self.held += size
        return self, 0, size

    def loaded_size(self) -> int:
        return self.held

    def free_memory(self, size: int) -> int:
        freed, self.held = self.held, 0
        return freed


class Pinned:
    """Main memory that the host pins for one network: nothing."""

    size = 0

    def __init__(self, *args: int) -> None:
        pass


class Card:
    """A device of so much memory, and whose weights lie there."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.models: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def used(self) -> int:
        """Bytes of weights."""
        vbars = [v for m in self.models for v in getattr(m, "dynamic_vbars", {}).values()]
        return sum(m.model_loaded_weight_memory for m in self.models) + sum(v.held for v in vbars)

    def free(self, device: torch.device | None = None, torch_free_too: bool = False) -> object:
        """What the host calls for free memory."""
        free = self.total - self.used() if device in (None, DEVICE) else 64 * GIB
        return (free, 0) if torch_free_too else free


@contextmanager
def card(
    total: int = GIB, dynamic: bool = False, state: str = "NORMAL_VRAM", half: bool = False
) -> Iterator[Card]:
    """The host with such a card, empty at first.

    Args:
        total: bytes, all of which the host gives to weights.
        dynamic: the host brings weights over leaf by leaf, as on NVIDIA by default.
        state: name of its way with memory, as ``--lowvram`` sets it.
        half: it computes in half precision too, which the host then chooses.
    """
    found = Card(total)
    made = comfy.model_patcher.ModelPatcher.__init__

    def begin(self, model, load_device, *args, **kwargs) -> None:
        made(self, model, load_device, *args, **kwargs)
        if load_device == DEVICE:
            found.models.add(model)

    changes = {
        "vram_state": memory.VRAMState[state],
        "get_torch_device": lambda: DEVICE,
        "text_encoder_device": lambda: DEVICE,
        "is_device_cpu": lambda device: device == torch.device("cpu"),
        "get_free_memory": found.free,
        "get_total_memory": lambda *args, **kwargs: total,
        "minimum_inference_memory": lambda: 0,
        "extra_reserved_memory": lambda: 0,
        "should_use_fp16": lambda *args, **kwargs: half,
        "should_use_bf16": lambda *args, **kwargs: half,
    }
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(mock.patch.object(memory, name, value))
        stack.enter_context(mock.patch.object(comfy.model_patcher.ModelPatcher, "__init__", begin))
        if dynamic:
            aimdo = "comfy_aimdo.model_vbar.ModelVBAR", "comfy_aimdo.host_buffer.HostBuffer"
            for name, fake in zip(aimdo, (Pages, Pinned), strict=True):
                stack.enter_context(mock.patch(name, fake))
            kind = comfy.model_patcher.ModelPatcherDynamic
            stack.enter_context(mock.patch.object(comfy.model_patcher, "CoreModelPatcher", kind))
        try:
            yield found
        finally:
            memory.unload_all_models()
            memory.free_memory(1e30, DEVICE)


@contextmanager
def casts() -> Iterator[list[torch.nn.Module]]:
    """The leaves whose weights the host casts or brings over, one entry a call."""
    seen: list[torch.nn.Module] = []
    real = comfy.ops.cast_bias_weight

    def counted(leaf, *args, **kwargs):
        seen.append(leaf)
        return real(leaf, *args, **kwargs)

    with mock.patch.object(comfy.ops, "cast_bias_weight", counted):
        yield seen
