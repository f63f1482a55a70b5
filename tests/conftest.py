"""What every test has: a cache folder that is nobody's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prior_art.host.embedded.door import CACHE_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the embedded host keeps what it has computed, instead of in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder / "prior_art"
