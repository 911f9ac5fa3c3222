"""Rollout, reward and update overlap: nothing is lost, nothing is too old, and a run can be gone on with."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from learner.checkpoints import latest_checkpoint, read_state
from learner.inflight import read_inflight
from tests.job.test_smoke import finish, kill, rows, start, wait_for_rows

ASYNC = ("+exp=smoke", "evaluation.controls=false", "learner.rl.evaluate_every=0", "learner.rl.checkpoint_every=1")
SAMPLES = 16  # of a step of `smoke`


def rollout_actors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [child] if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::VLLMEnvRunner") else []
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [1, 3])
def test_no_sample_is_lost_doubled_or_too_old_also_when_an_actor_is_killed(
    cache: Path, tmp_path: Path, staleness: int
) -> None:
    run_dir = tmp_path / "run"
    process = start(cache, *ASYNC, f"rollout.max_staleness={staleness}", "learner.rl.steps=10", f"output_dir={run_dir}")
    wait_for_rows(process, run_dir, "rl", 3)
    (actor,) = rollout_actors(process)
    actor.send_signal(signal.SIGKILL)
    finish(process)
    recorded = rows(run_dir, "rl")
    assert [row["step"] for row in recorded] == list(range(1, 11))
    assert all(row["samples"] == SAMPLES and row["failed"] == 0 for row in recorded)
    assert max(row["staleness_max"] for row in recorded) <= staleness
    assert max(row["staleness_mean"] for row in recorded) > 0


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_reports_that_were_written(cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(cache, *ASYNC, "rollout.max_staleness=3", "learner.rl.steps=8", f"output_dir={run_dir}")
    wait_for_rows(process, run_dir, "rl", 4)
    left = kill(process)
    newest = latest_checkpoint(run_dir / "checkpoints")
    assert newest is not None
    step = read_state(newest).step
    kept = read_inflight(newest)
    assert all(step <= later <= step + 3 for later in kept)
    for trajectories in kept.values():
        places = [(one.study_id, one.sample_index) for one in trajectories]
        assert len(set(places)) == len(places) <= SAMPLES
    output = finish(start(cache, f"resume={run_dir}"))
    assert "resumed from" in output
    recorded = rows(run_dir, "rl")
    assert [row["step"] for row in recorded] == list(range(1, 9))
    assert all(row["samples"] == SAMPLES and row["failed"] == 0 for row in recorded)
    assert not psutil.wait_procs(left, timeout=90)[1], "a process outlived its run"
