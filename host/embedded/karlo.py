"""Karlo's decoder as MODEL, and back again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...edges import EdgeError
from ..api import Adapter
from .memory import Managed, manage

if TYPE_CHECKING:
    from ...loaders.karlo import LoadedDecoder


@dataclass(frozen=True)
class Model:
    """MODEL: Karlo's decoder."""

    managed: Managed
    loaded: LoadedDecoder
    kind = "Karlo's decoder"
    own_node = "Karlo Decoder"


def wrap_decoder(loaded: LoadedDecoder) -> Model:
    """Karlo's decoder as MODEL."""
    return Model(manage(loaded.network), loaded)


def open_decoder(model: Any) -> tuple[Managed, LoadedDecoder]:
    """The decoder in a MODEL, and its loader's facts.

    Raises:
        EdgeError: another kind of MODEL.
    """
    if not isinstance(model, Model):
        raise EdgeError(
            f"'model' is another kind of MODEL ({type(model).__name__}); this node needs Karlo's"
            " decoder from 'Load Decoder (unCLIP)'"
        )
    return model.managed, model.loaded


ADAPTERS = {"decoder": Adapter(wrap_decoder, open_decoder)}
