"""The toy's decoder as MODEL, and back again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...edges import EdgeError
from ..api import Adapter
from .memory import Managed, manage

if TYPE_CHECKING:
    from ...loaders.toy import LoadedToy


@dataclass(frozen=True)
class ToyModel:
    """MODEL: the toy's decoder."""

    managed: Managed
    loaded: LoadedToy
    kind = "the toy"
    own_node = "Toy Sample"


def wrap_toy(loaded: LoadedToy) -> ToyModel:
    """The toy's decoder as MODEL."""
    return ToyModel(manage(loaded.network), loaded)


def open_toy(model: Any) -> tuple[Managed, LoadedToy]:
    """The decoder in a MODEL, and its loader's facts.

    Raises:
        EdgeError: another kind of MODEL.
    """
    if not isinstance(model, ToyModel):
        raise EdgeError(f"'model' is a {type(model).__name__}; this node needs that of 'Load Toy'")
    return model.managed, model.loaded


ADAPTERS = {"toy_decoder": Adapter(wrap_toy, open_toy)}
