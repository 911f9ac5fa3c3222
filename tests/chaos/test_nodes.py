"""Nodes of a Ray cluster that vanish while a job runs on them: three raylets and their processes on this machine."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from benchmarks.chaos import Job
from tests.chaos.conftest import assert_same

# From the death of a node to the end of a run that cannot do without it.
END_S = 180.0
STORE = 150 << 20


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The head, for the reward workers."""
    with pytest.MonkeyPatch.context() as patch:
        # Else every Ray on this machine that looks for a cluster would find this one.
        patch.setenv("RAY_TMPDIR", tempfile.mkdtemp(prefix="rc", dir="/tmp"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        head = {"num_cpus": 1, "resources": {"reward": 1}, "include_dashboard": False, "object_store_memory": STORE}
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()


def add_node(cluster: Cluster, role: str) -> Any:
    """A node with room for one process of the role."""
    return cluster.add_node(num_cpus=1, resources={role: 1}, object_store_memory=STORE)


def kill_raylet(node: Any) -> None:
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_rollout_node_that_dies_is_replaced_and_a_learner_node_ends_the_run_which_goes_on_with_another(
    cluster: Cluster, start: Callable[..., Job], begun: Path, whole: Path
) -> None:
    learner, rollout = add_node(cluster, "learner"), add_node(cluster, "rollout")
    job = start(begun, f"cluster.address={cluster.address}")
    job.wait_for_step(2)
    kill_raylet(rollout)
    add_node(cluster, "rollout")
    job.wait_for_step(4)
    kill_raylet(learner)
    output = job.end(4, END_S)
    assert "learner rank 0 died" in output
    assert "Traceback" not in output
    add_node(cluster, "learner")
    start(begun, f"cluster.address={cluster.address}").end(0)
    assert_same(begun, whole)
