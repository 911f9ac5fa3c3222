"""A run that is killed with -9 wherever it is, again and again, ends with the weights of one that never was."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path

import pytest

from learner.checkpoints import latest_checkpoint
from tests.job.test_smoke import PHASES, RUN_S, finish, kill, rows, start

KILLS = 5
SMALL = (
    "+exp=smoke", "evaluation.controls=false", "learner.sft.checkpoint_every=5", "learner.rl.checkpoint_every=1",
    "learner.rl.steps=6", "learner.rl.evaluate_every=3",
)  # fmt: skip


def recorded(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def weights(run_dir: Path) -> dict[str, str]:
    newest = latest_checkpoint(run_dir / "checkpoints")
    assert newest is not None
    files = sorted((newest / "policy").rglob("*.safetensors"))
    assert files
    return {str(path.relative_to(newest)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_random_points_ends_with_the_same_weights_bit_for_bit(cache: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(cache, *SMALL, f"output_dir={whole}"))
    rng = random.Random(0)
    for count, rest in sorted((rng.randrange(1, recorded(whole)), rng.uniform(0.0, 2.0)) for _ in range(KILLS)):
        arguments = [f"resume={killed}"] if (killed / "config.yaml").exists() else [*SMALL, f"output_dir={killed}"]
        process = start(cache, *arguments)
        deadline = time.monotonic() + RUN_S
        while recorded(killed) < count:
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < deadline, f"waited for row {count} of metrics.jsonl"
            time.sleep(0.05)
        time.sleep(rest)
        kill(process)
    finish(start(cache, f"resume={killed}"))
    assert weights(killed) == weights(whole)
    for phase in PHASES:
        assert rows(killed, phase) == rows(whole, phase)
    assert (
        json.loads((killed / "summary.json").read_text())["rl"]
        == json.loads((whole / "summary.json").read_text())["rl"]
    )
