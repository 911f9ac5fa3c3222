"""Reward workers that are scaled, killed and moved while clients score, on a Ray cluster of several nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from reward_server.cluster import namespaces
from reward_server.directory import NAME, RewardAccess, RewardDirectory
from reward_server.errors import RewardError, RewardSetupError
from reward_server.keeper import State
from reward_server.scorer import Scorer, ScorerOptions
from reward_server.security import ephemeral_security
from reward_server.worker import WorkerOptions

ROOT = Path(__file__).parents[2]
PAIR = ("No pneumothorax. Mild cardiomegaly.", "There is no pneumothorax.")
START_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two nodes for reward workers, each with room for two."""
    folder = tempfile.mkdtemp(prefix="rd", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        # Else every Ray on this machine that looks for a cluster would find this one.
        patch.setenv("RAY_TMPDIR", folder)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1, resources={"reward": 2})
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def directory(cluster: Cluster) -> Iterator[RewardDirectory]:
    """One worker, on a node's own address behind TLS."""
    server, client = ephemeral_security()
    own = "reward" if "reward" in ray.cluster_resources() else None
    options = WorkerOptions(host=None, security=server, resource=own)
    made = RewardDirectory.start(options, 1, namespace="run", security=client)
    made.wait_for(1, START_S)
    yield made
    end(made)


def end(directory: RewardDirectory) -> None:
    directory.stop()
    until(lambda: directory.namespace not in namespaces(NAME))


def until(condition: Callable[[], bool], timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


class Load:
    """A client that scores without a pause, in a thread, and checks every score."""

    def __init__(self, access: RewardAccess, expected: dict[str, float]) -> None:
        self.access, self.expected = access, expected
        self.latencies: list[float] = []
        self.problems: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        until(lambda: len(self.latencies) > 3)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        with self.access.open() as client:
            while not self._ended.is_set():
                started = time.monotonic()
                try:
                    scores = client.score([PAIR] * 3)
                    if scores != [pytest.approx(self.expected, abs=1e-6)] * 3:
                        self.problems.append(f"another score: {scores}")
                except RewardError as error:
                    self.problems.append(str(error))
                self.latencies.append(time.monotonic() - started)


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> dict[str, float]:
    return scorer.score([PAIR])[0]


def test_workers_scale_up_and_down_and_die_without_an_error_of_a_client(
    directory: RewardDirectory, expected: dict[str, float]
) -> None:
    with Load(RewardAccess(60.0, namespace="run"), expected) as load:
        directory.scale(3)
        status = directory.wait_for(3, START_S)
        three = status.addresses
        assert len(set(three)) == 3
        assert not any(address.startswith("127.") for address in three)

        victim = status.workers[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        until(lambda: three[0] not in directory.status().addresses)
        assert len(set(directory.wait_for(3, START_S).addresses) - set(three)) == 1

        scored = len(load.latencies)
        directory.scale(1)
        assert len(directory.status().addresses) == 1
        until(lambda: len(directory.status().workers) == 1)
        until(lambda: len(load.latencies) > scored + 20)
    assert load.problems == []
    print(f"{len(load.latencies)} calls, worst {1000 * max(load.latencies):.0f} ms")


def test_clients_without_the_certificate_and_token_are_refused(directory: RewardDirectory) -> None:
    address = tuple(directory.status().addresses)
    access = RewardAccess(3.0, address)
    with access.open() as client, pytest.raises(RewardError):
        client.score([PAIR])
    security = directory.security()
    assert security.token is not None
    assert security.token not in repr(security)
    with RewardAccess(20.0, address, security).open() as client:
        assert len(client.score([PAIR])) == 1


def test_the_workers_of_a_dead_node_come_back_on_another(
    cluster: Cluster, directory: RewardDirectory, expected: dict[str, float]
) -> None:
    node = cluster.add_node(num_cpus=1, resources={"reward": 1})
    directory.scale(5)  # all the room there is
    directory.wait_for(5, START_S)
    with Load(RewardAccess(60.0, namespace="run"), expected) as load:
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: any(worker.state is State.WAITING for worker in directory.status().workers))
        assert len(directory.wait_for(4, START_S).addresses) == 4
    assert load.problems == []
    cluster.add_node(num_cpus=1, resources={"reward": 1})
    directory.wait_for(5, START_S)


def test_a_directory_that_dies_comes_back_with_its_workers_and_clients_wait(
    directory: RewardDirectory, expected: dict[str, float]
) -> None:
    (before,) = directory.status().addresses
    with Load(RewardAccess(60.0, namespace="run"), expected) as load:
        ray.kill(ray.get_actor("RewardDirectory", namespace="run"), no_restart=False)
        until(lambda: directory.status().addresses not in ([], [before]))
        scored = len(load.latencies)
        until(lambda: len(load.latencies) > scored + 20)
    assert load.problems == []


DRIVER = """
import ray, sys, time
from reward_server.directory import RewardDirectory
from reward_server.worker import WorkerOptions
ray.init(address=sys.argv[1], log_to_driver=False)
directory = RewardDirectory.start(WorkerOptions(), 1, namespace="other", detached=sys.argv[2] == "detached")
print(directory.wait_for(1, 120).workers[0].pid, flush=True)
time.sleep(600)
"""


def killed_driver(cluster: Cluster, kind: str) -> Path:
    """Starts a directory in a driver and kills that; the folder of its worker in /proc."""
    command = [sys.executable, "-c", DRIVER, str(cluster.address), kind]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = Path("/proc") / driver.stdout.readline().strip()
    assert worker.is_dir()
    driver.kill()
    driver.wait(30)
    return worker


def test_the_workers_end_with_a_driver_that_is_killed(cluster: Cluster) -> None:
    worker = killed_driver(cluster, "attached")
    until(lambda: not worker.is_dir() and "other" not in namespaces(NAME), 60)


def test_a_detached_directory_and_its_workers_outlive_their_driver(cluster: Cluster) -> None:
    worker = killed_driver(cluster, "detached")
    time.sleep(5)
    directory = RewardDirectory.find("other")
    directory.scale(2)
    directory.wait_for(2, START_S)
    assert worker.is_dir()
    end(directory)


def test_weights_that_are_missing_end_the_wait_with_their_name(cluster: Cluster, tmp_path: Path) -> None:
    options = WorkerOptions(ScorerOptions("published", weights=str(tmp_path / "gone")))
    made = RewardDirectory.start(options, 1, namespace="broken")
    with pytest.raises(RewardSetupError, match=r"reward-0 could not start \(.*gone does not exist"):
        made.wait_for(1, START_S)
    end(made)


def test_a_worker_without_a_place_waits_and_is_seen_to_wait(cluster: Cluster) -> None:
    made = RewardDirectory.start(WorkerOptions(resource="nowhere"), 1, namespace="waiting")
    with pytest.raises(RewardError, match=r"waited 2 s for 1 reward workers to serve: reward-0 waits for a place"):
        made.wait_for(1, 2.0)
    with pytest.raises(RewardSetupError, match="reward directory in the namespace 'waiting' already"):
        RewardDirectory.start(WorkerOptions(), 1, namespace="waiting")
    end(made)


def command(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reward_server", "scale", *arguments, "--ray-address", str(cluster.address)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S,
    )


def test_the_command_line_scales_a_run_and_says_what_is_there(cluster: Cluster, directory: RewardDirectory) -> None:
    out = command(cluster, "2")
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "2 of 2 reward workers serve in the namespace run"
    assert "reward-1 serves at" in out.stdout
    assert len(directory.status().addresses) == 2

    out = command(cluster, "9", "--timeout", "1", "--namespace", "run")
    assert out.returncode == 2
    assert "waited 1 s: 2 of 9 reward workers serve; the others stay wanted" in out.stderr

    out = command(cluster)
    assert out.returncode == 0, out.stderr
    assert "reward-8 waits for a place in the cluster" in out.stdout
    assert "of 9 reward workers serve" in out.stdout


def test_the_command_line_names_what_is_missing(cluster: Cluster) -> None:
    out = command(cluster, "2")
    assert out.returncode == 2
    assert "0 runs in this Ray cluster have reward workers" in out.stderr
    assert "Traceback" not in out.stderr
    out = command(cluster, "2", "--namespace", "gone")
    assert "no run of the Ray namespace 'gone' has reward workers" in out.stderr
