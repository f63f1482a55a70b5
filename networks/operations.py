"""Operations of our own, ``torch.ops.prior_art.<name>``: kernels in Triton, plain torch elsewhere.

A kernel that cannot be compiled or launched is reported once, and plain torch takes over until the
process ends.
"""

from __future__ import annotations

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
