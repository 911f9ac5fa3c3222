"""A Ray cluster that can't be had is told from one that refuses our token: by the commands that scale one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120
THEIRS, OURS = "a" * 64, "b" * 64
RUN = """
import ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""
# Other tests may run clusters of their own on this machine: which there are is told here. "" stands for none.
SCALE = """
import sys
from functools import cache
from reward_server.cluster import send_token
send_token()
from ray._private import services
running, *arguments = sys.argv[1:]
services.find_gcs_addresses = cache(lambda: set(filter(None, [running])))
services.find_bootstrap_address = lambda folder: None
from reward_server.cli import main
sys.exit(main(["scale", *arguments]))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster that wants a token."""
    env = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": THEIRS}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    yield run.stdout.readline().strip()
    run.communicate("\n", timeout=WAIT_S)


def scale(running: str, *arguments: str, token: str) -> tuple[int, list[str]]:
    """Exit status and the lines of stderr."""
    env = os.environ | {"RAY_AUTH_TOKEN": token}
    command = [sys.executable, "-c", SCALE, running, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT_S)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("given", [True, False])
def test_a_cluster_that_does_not_take_our_token_is_named_at_once_in_one_line(address: str, given: bool) -> None:
    started = time.monotonic()
    arguments = ["--ray-address", address] if given else []
    status, (line,) = scale(address, *arguments, token=OURS)
    assert status == 2
    assert f"a Ray cluster runs at {address} and does not take our token: give its own by RAY_AUTH_TOKEN_PATH" in line
    assert time.monotonic() - started < 15


def test_with_its_token_the_cluster_is_reached(address: str) -> None:
    status, (line,) = scale(address, token=THEIRS)
    assert status == 2
    assert "does not take our token" not in line
    assert "in this Ray cluster" in line


def test_where_none_runs_that_is_what_is_said() -> None:
    status, lines = scale("", token=OURS)
    assert (status, lines) == (
        2,
        ["reward_server scale: no Ray cluster runs on this machine: give --ray-address HOST:PORT"],
    )


def test_a_cluster_that_has_ended_is_not_waited_for() -> None:
    status, (line,) = scale("127.0.0.1:9", token=OURS)
    assert status == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in line
