"""What older and newer hosts call differently.

Nodes are written against the newest node API. :func:`fitted` drops the arguments that the running
host does not know, so that one schema registers on all of them.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from comfy_api.latest import io as host_io

from ...edges import plain

logger = logging.getLogger("prior_art")


def fitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, minus the keyword arguments that its signature does not have."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{key: kwargs[key] for key in kwargs if key in parameters})

    return call


def _fitted_input(kind: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`fitted`, but every input takes an ``extra_dict``: the editor is told what is in it."""
    make = fitted(kind)

    def call(*args: Any, extra_dict: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        if extra_dict is not None:  # every host's inputs have it, not all of them as an argument
            made.extra_dict = extra_dict
        return made

    return call


def _fitted_type(host_type: Any) -> SimpleNamespace:
    """One of the host's edge types with an ``Input`` and an ``Output`` that drop news."""
    fit = {"Input": _fitted_input, "Output": fitted}
    parts = {part: fit[part](getattr(host_type, part)) for part in fit if hasattr(host_type, part)}
    return SimpleNamespace(io_type=getattr(host_type, "io_type", None), **parts)


@functools.cache
def _custom(io_type: str) -> SimpleNamespace:
    return _fitted_type(host_io.Custom(io_type))


class FittedIO:
    """The host's ``io``, name by name, with fitted schemas, inputs and outputs."""

    Custom = staticmethod(_custom)

    def __getattr__(self, name: str) -> Any:
        found = getattr(host_io, name)
        if hasattr(found, "Input"):
            found = _fitted_type(found)
        elif name == "Schema":
            found = fitted(found)
        setattr(self, name, found)
        return found


io = FittedIO()


def warn(message: str) -> None:
    """Tell the user, in the log and, where the host can, on the running node. Never fails."""
    message = plain(message)
    logger.warning("%s", message)
    try:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer

        context = get_executing_context()
        if context is not None:
            server = PromptServer.instance
            server.send_progress_text(f"\u26a0 {message}", context.node_id, server.client_id)
    except Exception as error:
        logger.debug("could not show the warning on the node: %s", error)
