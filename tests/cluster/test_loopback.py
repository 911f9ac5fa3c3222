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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=ROOT, env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    yield run.stdout.readline().strip()
    run.communicate("\n", timeout=WAIT_S)


@pytest.mark.parametrize("given", ["its address", "none"])
def test_a_run_of_one_machine_is_found(address: str, given: str) -> None:
    assert address.startswith("127.0.0.1:")
    named = ["--ray-address", address] if given == "its address" else []
    out = subprocess.run(
        [sys.executable, "-m", "actors.scale", *named], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert out.returncode == 0, out.stderr
    assert "0 of 1 rollout actors serve" in out.stdout
