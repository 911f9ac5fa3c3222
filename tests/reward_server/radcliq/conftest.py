"""Random-weight checkpoints in the published formats and pairs of reports, each made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoints import write_checkpoints
from benchmarks.reports import Pair, nasty_pairs, varied_pairs


@pytest.fixture(scope="session")
def mini_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder: small models, whose labels, graphs and scores vary. Not for writing."""
    folder: Path = tmp_path_factory.mktemp("weights")
    write_checkpoints(folder, "mini")
    return folder


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return varied_pairs(48)


@pytest.fixture(scope="session", name="nasty_pairs")
def _nasty_pairs() -> list[Pair]:
    return nasty_pairs()
