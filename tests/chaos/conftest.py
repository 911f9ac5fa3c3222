"""A small run that nothing disturbs, and copies of its first step that are gone on with under faults."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from benchmarks.chaos import SMALL, Job, recorded, weights
from learner.checkpoints import latest_checkpoint
from tests.job.test_smoke import rows as timeless_rows

STEPS = 16


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """X-rays are rendered once for all runs."""
    os.environ.setdefault("LMRRG_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, with the checkpoints of all of its steps."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    with closing(Job(run_dir, *SMALL, f"learner.rl.steps={STEPS}", f"learner.rl.keep_checkpoints={STEPS}")) as job:
        job.end(0)
    return run_dir


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """What the run directory would hold had the run been killed behind its first step of RL."""
    run_dir = tmp_path / "run"
    later = [f"step_1_{step:06d}" for step in range(2, STEPS + 1)]
    shutil.copytree(whole, run_dir, ignore=shutil.ignore_patterns(*later, "latest", "*_rl.*", "summary.json"))
    rows = [*recorded(whole, "warm_start"), recorded(whole)[0]]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


@pytest.fixture
def start() -> Iterator[Callable[..., Job]]:
    """`Job`, ended with the test if it has not before."""
    with ExitStack() as jobs:
        yield lambda *arguments: jobs.enter_context(closing(Job(*arguments)))


def assert_same(run_dir: Path, whole: Path) -> None:
    """The same weights, bit for bit, and the same numbers of every step: nothing lost, doubled or failed."""
    ours, theirs = (latest_checkpoint(folder / "checkpoints", verify=True) for folder in (run_dir, whole))
    assert ours is not None
    assert theirs is not None
    assert ours.name == theirs.name
    assert weights(ours) == weights(theirs)
    assert all(row["failed"] == 0 for row in recorded(run_dir))
    for phase in ("warm_start", "rl", "evaluation"):
        assert timeless_rows(run_dir, phase) == timeless_rows(whole, phase)
