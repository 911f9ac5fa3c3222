"""Reward servers that a run is given are asked before anything else starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import Config, RewardConfig
from learner.rewards import require_servers
from reward_server.backends import create_scorer
from reward_server.errors import RewardSetupError
from reward_server.scorer import ScorerOptions
from rrg.errors import UserError
from tests.reward_server.conftest import RunningServer

ROOT = Path(__file__).parents[2]


def test_servers_that_are_not_there_end_a_run_at_its_beginning_with_the_field_and_the_way_out(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "learner.main",
        "+exp=smoke",
        "reward.address=127.0.0.1:9",
        f"output_dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: reward.address=127.0.0.1:9: waited 10 s for 127.0.0.1:9 to serve")
    assert "leave it out" in line
    assert "data" not in done.stdout


def test_servers_that_compute_something_else_are_told_at_once_and_the_right_ones_are_taken() -> None:
    running = RunningServer(create_scorer(ScorerOptions("embedded")))
    try:
        require_servers(Config(reward=RewardConfig(backend="embedded", address=running.address)))
        with pytest.raises(RewardSetupError, match=r"reward\.backend=published"):
            require_servers(Config(reward=RewardConfig(backend="published", address=running.address)))
    finally:
        running.stop()


def test_without_an_address_nobody_is_asked() -> None:
    require_servers(Config(reward=RewardConfig()))
    with pytest.raises(UserError, match=r"reward\.address=127\.0\.0\.1:9"):
        require_servers(Config(reward=RewardConfig(address="127.0.0.1:9")), wait_s=0.2)
