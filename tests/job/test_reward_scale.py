"""The reward workers of a run are scaled while it trains, and end with it however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.job.test_smoke import ROOT, RUN_S, rows, start


def scale(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reward_server", "scale", *arguments, "--ray-address", address]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S)


def ray_address(process: subprocess.Popen[str]) -> str:
    """From the line that tells a person how to scale."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "--ray-address" in line:
            return line.split()[-1]
    pytest.fail(f"the run ended: {seen[-3000:]}")


def wait_for_steps(run_dir: Path, steps: int) -> None:
    deadline = time.monotonic() + RUN_S
    while not ((run_dir / "metrics.jsonl").exists() and len(rows(run_dir, "rl")) >= steps):
        assert time.monotonic() < deadline, f"waited for RL step {steps}"
        time.sleep(0.2)


@pytest.mark.slow
def test_reward_workers_are_scaled_while_the_run_trains_and_end_when_it_is_killed(cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(cache, "+exp=smoke", "learner.rl.steps=2000", f"output_dir={run_dir}")
    address = ray_address(process)
    wait_for_steps(run_dir, 2)
    for number in ("3", "1"):
        out = scale(address, number)
        assert out.returncode == 0, out.stderr
        assert f"{number} of {number} reward workers serve" in out.stdout
        wait_for_steps(run_dir, len(rows(run_dir, "rl")) + 10)
    recorded = rows(run_dir, "rl")
    assert all(row["failed"] == 0 for row in recorded), "an RL step lost samples"
    worker = next(line for line in scale(address).stdout.splitlines() if " serves at " in line)
    port = int(worker.rpartition(":")[2])
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while listens(port):
        assert time.monotonic() < deadline, "the reward worker outlived its run"
        time.sleep(0.5)


def listens(port: int) -> bool:
    wanted = f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(wanted) and line.split()[3] == "0A" for line in lines)


@pytest.mark.slow
def test_weights_that_lack_a_file_end_the_run_with_one_line(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    process = start(
        cache, "+exp=smoke", "reward=published", f"reward.weights={tmp_path}/weights",
        f"output_dir={tmp_path}/run",
    )  # fmt: skip
    output, _ = process.communicate(timeout=RUN_S)
    assert process.returncode == 2, output[-3000:]
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert f"{tmp_path}/weights" in line
    assert "Traceback" not in output
