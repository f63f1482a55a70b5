"""The toy's decoder as the host's MODEL, and back again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...edges import EdgeError
from ..api import Adapter
from .memory import Managed, manage

if TYPE_CHECKING:
    from ...loaders.toy import LoadedToy

FACTS = "prior_art_toy"


def wrap_toy(loaded: LoadedToy) -> Any:
    """The toy's decoder as the host's MODEL."""
    managed = manage(loaded.network)
    managed.patcher.set_attachments(FACTS, (managed, loaded))
    return managed.patcher


def open_toy(model: Any) -> tuple[Managed, LoadedToy]:
    """The decoder in a MODEL with the patches that were put on it since, and its loader's facts.

    Raises:
        EdgeError: another kind of MODEL.
    """
    known = model.get_attachment(FACTS)
    if known is None:
        raise EdgeError("'model' is no toy; this node needs that of 'Load Toy'")
    managed, loaded = known
    return replace(managed, patcher=model), loaded


ADAPTERS = {"toy_decoder": Adapter(wrap_toy, open_toy)}
