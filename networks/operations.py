"""Operations of our own, ``torch.ops.prior_art.<name>``: kernels in Triton, plain torch elsewhere.

A kernel that cannot be compiled or launched is reported once, and plain torch takes over until the
process ends.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("prior_art")

_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Torch before 2.4 has no operations of one's own, and no Triton that the kernels are written for.
_HAS_OPERATIONS = hasattr(torch.library, "custom_op")

_failed = False


def has_kernels(device: torch.device) -> bool:
    """Whether operations have kernels on a device: on a GPU, if Triton is there.

    On the meta device too: nothing is computed there, and what a GPU would run can be counted.
    """
    there = device.type == "meta" or (device.type == "cuda" and _HAS_TRITON and not _failed)
    return _HAS_OPERATIONS and there


def define(
    kernels: str,
    signature: str,
    plain: Callable[..., Any],
    like: Callable[..., Any],
    mutates: Sequence[str] = (),
) -> None:
    """Makes an operation of a kernel, of the same in plain torch, and of what its result is like.

    Args:
        kernels: the module of this package that has the kernel.
        signature: of the operation, whose first argument is a tensor; the kernel has its name.
        mutates: arguments that are written to.
    """
    name, given = signature.split("(", 1)
    if _HAS_OPERATIONS:
        operation = torch.library.custom_op(
            f"prior_art::{name}", plain, mutates_args=mutates, schema=f"({given}"
        )
        operation.register_kernel("cuda", lambda *args: launch(kernels, name, plain, *args))
        operation.register_fake(like)


def on_grid(kernel: Any, grid: tuple[int, ...]) -> Callable[..., Any]:
    """``kernel[grid]``, what launches a kernel in Triton, in a recording too.

    With CUDA's own allocator (cudaMallocAsync, which ComfyUI chooses) what a recording allocates
    has an address, but no memory until it is replayed, and Triton's launcher refuses a tensor whose
    address the driver does not know. It takes bare addresses as they are.
    """
    return functools.partial(_by_address, kernel, grid) if _allocates_later() else kernel[grid]


def _by_address(kernel: Any, grid: tuple[int, ...], *given: Any, **sizes: Any) -> None:
    import triton

    compiled = kernel.warmup(*given, grid=grid, **sizes)
    names = kernel.signature.parameters
    bound = kernel.signature.bind(*given, **{key: sizes[key] for key in sizes if key in names})
    values = [v.data_ptr() if isinstance(v, Tensor) else v for v in bound.arguments.values()]
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):  # it knows its constants
        pairs = zip(values, kernel.params, strict=True)
        values = [value for value, parameter in pairs if not parameter.is_constexpr]
    compiled[(*grid, 1, 1)[:3]](*values)


def _allocates_later() -> bool:
    """Whether what is allocated now is there only when what is recorded now is replayed."""
    return (
        torch.cuda.is_available()
        and torch.cuda.is_current_stream_capturing()
        and torch.cuda.get_allocator_backend() == "cudaMallocAsync"
    )


def launch(kernels: str, name: str, plain: Callable[..., Any], x: Tensor, *others: Any) -> Any:
    """The kernel's result, or that of plain torch from the first kernel that fails onwards.

    Raises:
        torch.cuda.OutOfMemoryError: its result has no room.
    """
    global _failed
    if not _failed:
        try:
            kernel = getattr(importlib.import_module(f".{kernels}", __package__), name)
            with torch.cuda.device(x.device):
                return kernel(x, *others)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            _failed = True
            logger.warning(
                "fused kernels do not run on this GPU, it goes on without them: %s: %s",
                type(error).__name__,
                str(error).strip().split("\n")[0],
            )
    return plain(x, *others)
