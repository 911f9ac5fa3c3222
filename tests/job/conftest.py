"""What the tests of whole jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of all runs: X-rays are rendered once."""
    return tmp_path_factory.mktemp("cache")
