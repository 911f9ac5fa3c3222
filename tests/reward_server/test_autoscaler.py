"""Reward workers that find no place are the autoscaler's demand: it adds nodes for them and no others.

A real autoscaler with a provider that starts its nodes as processes on this machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from reward_server.directory import RewardAccess, RewardDirectory
from reward_server.security import ephemeral_security
from reward_server.worker import WorkerOptions
from tests.reward_server.test_directory import PAIR, START_S, Load, until

HEAD_ID = "f" * 51 + "00000"  # the provider's name for the head node
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a head node whose autoscaler may add four nodes for rewards and four for rollouts."""
    folder = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))
    ip = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((ip, 0))
        address = f"{ip}:{free.getsockname()[1]}"
    config = {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "use_node_id_as_ip": True,
        },
        # What `ray up` fills in, all of it empty: nodes are started by the provider itself.
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in (*COMMANDS, "cluster_synced_files")},
        "upscaling_speed": 1.0,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "reward": {"resources": {"CPU": 1, "reward": 1}, "node_config": {}, "min_workers": 0, "max_workers": 4},
            "rollout": {"resources": {"CPU": 1, "rollout": 1}, "node_config": {}, "min_workers": 0, "max_workers": 4},
        },
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
    env = os.environ | {
        "RAY_TMPDIR": str(folder),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),  # as this process, which may have chosen
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", address.rpartition(":")[2]),
        *("--num-cpus", "1", "--include-dashboard", "false", "--disable-usage-stats"),
        *("--autoscaling-config", str(folder / "cluster.yaml"), "--object-store-memory", str(150 * 2**20)),
    ]
    started = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr
    ray.init(address=address, log_to_driver=False)
    yield address
    ray.shutdown()
    # Not `ray stop`: it would end every Ray of this user.
    until(lambda: not end_processes_of(folder), 60)


def end_processes_of(folder: Path) -> int:
    """Kills the processes that have the folder in their command line; how many there were."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
                found += 1
        except (OSError, ProcessLookupError):
            continue  # it has ended
    return found


def nodes(resource: str) -> int:
    return sum(resource in node["Resources"] for node in ray.nodes() if node["Alive"])


def test_the_autoscaler_adds_nodes_for_reward_workers_only_and_takes_them_back(cluster: str) -> None:
    server, client = ephemeral_security()
    options = WorkerOptions(host=None, security=server, resource="reward")
    directory = RewardDirectory.start(options, 1, namespace="run", security=client)
    directory.wait_for(1, START_S)
    with RewardAccess(60.0, namespace="run").open() as asker:
        expected = asker.score([PAIR])[0]
    with Load(RewardAccess(60.0, namespace="run"), expected) as load:
        began = time.monotonic()
        directory.scale(3)
        directory.wait_for(3, START_S)
        print(f"1 -> 3 workers, a node each: {time.monotonic() - began:.0f} s")
        # Ray may start one more, when it looks while a node is on its way, and takes it back.
        until(lambda: nodes("reward") == 3)
        assert nodes("rollout") == 0
        directory.scale(1)
        until(lambda: nodes("reward") == 1)
        assert nodes("rollout") == 0
    assert load.problems == []
    print(f"{len(load.latencies)} calls, worst {1000 * max(load.latencies):.0f} ms")
