"""Reward workers and rollout actors of a run are scaled while it trains, and end with it however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.job.test_smoke import ROOT, RUN_S, rows, start

REWARDS, ROLLOUTS = ("reward_server", "scale"), ("actors.scale",)


def scale(command: tuple[str, ...], address: str, *arguments: str) -> str:
    whole = [sys.executable, "-m", *command, *arguments, "--ray-address", address]
    out = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S)
    assert out.returncode == 0, out.stderr
    return out.stdout


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
def test_roles_are_scaled_while_the_run_trains_and_end_when_it_is_killed(cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(cache, "+exp=smoke", "learner.rl.steps=2000", f"output_dir={run_dir}")
    address = ray_address(process)
    wait_for_steps(run_dir, 2)
    assert heard_outside(process) == [], "a run of one machine listens on loopback only"
    for command, number, told in (
        (REWARDS, "3", "3 of 3 reward workers serve"),
        (ROLLOUTS, "2", "2 of 2 rollout actors serve"),
        (REWARDS, "1", "1 of 1 reward workers serve"),
        (ROLLOUTS, "1", "1 of 1 rollout actors serve"),
    ):
        assert told in scale(command, address, number)
        wait_for_steps(run_dir, len(rows(run_dir, "rl")) + 10)
    recorded = rows(run_dir, "rl")
    assert all(row["failed"] == 0 for row in recorded), "an RL step lost samples"
    worker = next(line for line in scale(REWARDS, address).splitlines() if " serves at " in line)
    port = int(worker.rpartition(":")[2])
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert "rollout actors: 2 of 2 serve" in output
    assert "rollout actors: 1 of 1 serve" in output
    assert "Bringing back" not in output, "nothing was broken"
    deadline = time.monotonic() + 60
    while listens(port):
        assert time.monotonic() < deadline, "the reward worker outlived its run"
        time.sleep(0.5)


def heard_outside(process: subprocess.Popen[str]) -> list[str]:
    """Where the run's processes listen to other machines."""
    whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return [
        f"{one.name()} {connection.laddr.ip}:{connection.laddr.port}"
        for one in whole
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    ]


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
