"""A Ray that listens on loopback alone, as that of a run of one machine, is reached by the commands that scale it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120
RUN = """
import ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
from actors.scale import start_scale
kept = start_scale(1, 4, ray.get_runtime_context().namespace)
ray.get(kept.status.remote())
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


# Other tests may run clusters of their own on this machine: which there are is told here. "" stands for no flag.
SCALE = """
import sys
from functools import cache
from reward_server.cluster import send_token
send_token()
from ray._private import services
running, given = sys.argv[1:]
services.find_gcs_addresses = cache(lambda: set(running.split(",")))
services.find_bootstrap_address = lambda folder: None
from actors.scale import main
sys.exit(main(["--ray-address", given] if given else []))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=ROOT, env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    yield run.stdout.readline().strip()
    run.communicate("\n", timeout=WAIT_S)


def scale(running: str, given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCALE, running, given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)


@pytest.mark.parametrize("given", [True, False])
def test_a_run_of_one_machine_is_found(address: str, given: bool) -> None:
    assert address.startswith("127.0.0.1:")
    out = scale(address, address if given else "")
    assert out.returncode == 0, out.stderr
    assert "0 of 1 rollout actors serve" in out.stdout


def test_of_several_runs_on_a_machine_none_is_scaled_unasked(address: str) -> None:
    both = f"{address},192.0.2.1:6379"
    out = scale(both, "")
    assert (out.returncode, out.stdout) == (2, "")
    assert (
        f"2 Ray clusters run on this machine ({', '.join(sorted(both.split(',')))}): give --ray-address" in out.stderr
    )
    assert "0 of 1 rollout actors serve" in scale(both, address).stdout
