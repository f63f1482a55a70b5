"""A second device where there is none: ``cuda`` that computes on the CPU, with a GPU's rules.

What lies "there" is remembered by its storage. Tensors of both devices in one operation are an
error, as are generators of one for numbers on the other; a single number of the CPU may stand
beside anything. Libraries see ``tensor.device`` say ``cuda:0``; ``is_cuda`` stays false, so that
no kernel is launched, and ``torch.version.hip`` is set, so that nothing is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)
INDEXING = ("index", "_unsafe_index", "index_put_", "_index_put_impl_")
"""May take places from the CPU."""


class Memory:
    """Which storages lie there. A weak reference keeps an address from being used again."""

    def __init__(self) -> None:
        self._there: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._there

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = StorageWeakRef(storage)


class Checks(TorchDispatchMode):
    """Refuses operations over both devices, and remembers where their results lie."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        # Where results lie, or, ``beside``, only those that are made of no tensor: what a function
        # of tensors makes for itself lies with them.
        self.wanted: str | None = None
        self.beside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in given if tensor in self.memory]
        here = [tensor for tensor in given if tensor.dim() and tensor not in self.memory]
        mixed = there and here and name != "copy_"
        if mixed and not (name in INDEXING and args[0] in self.memory):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        out = func(*args, **(kwargs or {}))
        lands = args[0] in self.memory if name == "copy_" else bool(there)
        if self.wanted is not None and not (given and self.beside):
            lands = self.wanted == "cuda"
        if lands:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.memory.add(leaf)
        return out


class Pretends(TorchFunctionMode):
    """Turns calls that name the device into calls for the CPU, and says where tensors lie."""

    def __init__(self, memory: Memory, checks: Checks) -> None:
        super().__init__()
        self.memory, self.checks = memory, checks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return THERE if args[0] in self.memory else func(*args)
        if func is Tensor.pin_memory:
            return args[0]
        if func in (Tensor.cpu, Tensor.cuda):
            return self.moved(args[0], "cpu" if func is Tensor.cpu else "cuda")
        kwargs.pop("pin_memory", None)
        named = [d for d in map(device_in, tree_leaves((args, kwargs))) if d is not None]
        if func is Tensor.to:
            like = [a for a in args[1:] if isinstance(a, Tensor)]
            named = ["cuda" if a in self.memory else "cpu" for a in like] or named
        if not named:
            there = self.any_there(args, kwargs)
            with self.wanting("cuda" if there else None, beside=True):
                out = func(*args, **kwargs)
            if there and func is Tensor.new_tensor:  # which no dispatcher sees
                self.memory.add(out)
            return out
        generator = kwargs.get("generator")
        if generator is not None and getattr(generator, "of", "cpu") != named[0]:
            raise RuntimeError(f"Expected a '{named[0]}' device type for generator")
        args, kwargs = tree_map(lambda x: HERE if device_in(x) == "cuda" else x, (args, kwargs))
        if func is Tensor.to:
            return self.moved(func(*args, **kwargs), named[0], unlike=args[0])
        with self.wanting(named[0]):
            out = func(*args, **kwargs)
        if named[0] == "cuda" and isinstance(out, Tensor):
            self.memory.add(out)
        return out

    def moved(self, tensor: Tensor, to: str, unlike: Tensor | None = None) -> Tensor:
        """``tensor`` on a device; ``unlike`` is what it was cast from, whose place tells its."""
        source = tensor if unlike is None else unlike
        if (source in self.memory) == (to == "cuda"):
            return tensor
        with self.wanting(to):
            return tensor.clone()

    def any_there(self, *given: Any) -> bool:
        leaves = (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        return any(leaf in self.memory for leaf in leaves)

    @contextlib.contextmanager
    def wanting(self, device: str | None, beside: bool = False) -> Iterator[None]:
        """While this lasts, results lie on ``device``."""
        checks = self.checks
        before = checks.wanted, checks.beside
        checks.wanted, checks.beside = device, beside
        try:
            yield
        finally:
            checks.wanted, checks.beside = before


def device_in(value: Any) -> str | None:
    """The device that an argument names."""
    if isinstance(value, torch.device):
        return value.type
    return value.split(":")[0] if isinstance(value, str) and value[:4] in ("cuda", "cpu") else None


class Stream(torch.Generator):
    """A generator of either device."""

    def __new__(cls, device: Any = "cpu") -> Stream:
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        self.of = torch.device(device).type


@contextlib.contextmanager
def second_device() -> Iterator[Memory]:
    """A ``cuda`` for the time being."""
    memory = Memory()
    checks = Checks(memory)
    stream = SimpleNamespace(wait_event=lambda _: None, wait_stream=lambda _: None)
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None)
    stands_in = {
        "synchronize": lambda *_: None,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "empty_cache": lambda: None,
        "get_device_name": lambda *_: "pretended",
        "current_stream": lambda *_: stream,
        "Stream": lambda *_: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "is_available": lambda: True,
        "Event": lambda *_, **__: event,
    }
    with contextlib.ExitStack() as stack:
        for name, value in stands_in.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch("torch.Generator", Stream))
        stack.enter_context(mock.patch("torch.version.hip", "none"))
        stack.enter_context(checks)
        stack.enter_context(Pretends(memory, checks))
        yield memory
