"""The base of every node: what comes in is compared with its schema before the node sees it.

A host checks a widget's own value against its bounds, but not what is wired into it, and a wire of
any type may bring anything at all.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from ..edges import EdgeError, Prior, Transformer, Upscaler, check_text
from ..host import host, io
from ..loaders.files.checkpoint import asking

MADE: dict[str, type | tuple[type, ...]] = {
    "UNCLIP_PRIOR": Prior,
    "UNCLIP_UPSCALER": Upscaler,
    "AR_TRANSFORMER": Transformer,
    "IMAGE": torch.Tensor,
    "MASK": torch.Tensor,
    "LATENT": dict,
    "CONDITIONING": list,
}
"""What travels on wires whose types the nodes themselves read. MODEL, CLIP, CLIP_VISION and VAE are
opened by the host, which knows its own."""


LONGEST = 100_000
"""Characters of a text: tokenizers take seconds for more, and models read 77 to 512 tokens."""


class Node(io.ComfyNode):
    """A node whose ``execute`` gets what its schema says, or is not called; what it reads can be
    stopped.

    Attributes:
        ROW_BY_ROW: row i of what it gives depends on row i of what it gets and on seed + i alone,
            so that rows of a table can run together in it.
    """

    ROW_BY_ROW = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Put the check in front of the class's own ``execute``."""
        super().__init_subclass__(**options)
        own = cls.__dict__.get("execute")
        # ComfyUI copies a class with all that is in it, and locks the copy.
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            setattr(cls, "execute", classmethod(_checked(own.__func__)))  # noqa: B010


def _checked(execute: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(execute)

    @wraps(execute)
    def run(cls: Any, *given: Any, **inputs: Any) -> Any:
        named = dict(signature.bind(cls, *given, **inputs).arguments)
        named.pop("cls")
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        for socket in cls.define_schema().inputs:
            if socket.id in named and not (socket.optional and named[socket.id] is None):
                named[socket.id] = check_input(socket, named[socket.id])
        with asking(host.stop_if_asked):
            return execute(cls, **named)

    return run


def check_input(socket: Any, value: Any) -> Any:
    """An input's value as its type: numpy's numbers, say, as Python's own.

    Args:
        socket: of the schema; its bounds are the widget's.
        value: from a widget or a wire.

    Raises:
        EdgeError: another type, a number out of bounds, NaN; names the input.
    """
    name, kind = socket.id, socket.io_type
    if kind in ("INT", "FLOAT"):
        number = _whole(name, value) if kind == "INT" else _number(name, value)
        limits = socket.as_dict()
        low, high = limits.get("min"), limits.get("max")
        if (low is not None and number < low) or (high is not None and number > high):
            raise EdgeError(f"'{name}' is {number}; give a number from {low} to {high}")
        return number
    if kind == "BOOLEAN":
        if not isinstance(value, (bool, int, float, np.bool_, np.number)):
            raise EdgeError(f"'{name}' is {_shown(value)}, which is no switch; give true or false")
        return bool(value)
    if kind in ("STRING", "COMBO"):
        check_text(value, name)
        if len(value) > LONGEST:
            raise EdgeError(
                f"'{name}' has {len(value)} characters, of which no model sees the end; give at"
                f" most {LONGEST}"
            )
    elif kind in MADE and not isinstance(value, MADE[kind]):
        raise EdgeError(
            f"'{name}' got {_shown(value)}, which is no {kind}. What to wire into it:"
            f" {socket.tooltip}"
        )
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise EdgeError(
            f"'{name}' is {_shown(value)}, which is no whole number; give one without a fraction"
        ) from None


def _number(name: str, value: Any) -> float:
    number = math.nan
    if not isinstance(value, str):
        with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise EdgeError(f"'{name}' is {_shown(value)}; give a finite number")
    return number


def _shown(value: Any) -> str:
    """A value for a message: short ones as they are, others by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"
