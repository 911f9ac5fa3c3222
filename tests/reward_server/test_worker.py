"""The Ray actor that hosts a server."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from reward_server.client import RewardClient
from reward_server.errors import RewardError
from reward_server.scorer import Scorer
from reward_server.worker import addresses, start_workers
from tests.reward_server.test_server import PAIR


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        folder = tempfile.mkdtemp(prefix="rw", dir="/tmp")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=100 * 2**20
        )
    yield
    if started:
        ray.shutdown()


@pytest.fixture
def worker(cluster: None) -> Iterator[Any]:
    (made,) = start_workers(1, backend="embedded", threads=1, local=True)
    yield made
    ray.kill(made)


def test_a_worker_serves_the_same_scores_and_ends(worker: Any, scorer: Scorer) -> None:
    (address,) = addresses([worker], timeout_s=60)
    assert address.startswith("127.0.0.1:")
    with RewardClient([address], timeout_s=20) as client:
        assert client.score([PAIR]) == scorer.score([PAIR])
        ray.get(worker.stop.remote(), timeout=30)
        with pytest.raises(RewardError):
            client.score([PAIR])


def test_a_killed_worker_comes_back(worker: Any) -> None:
    (before,) = addresses([worker], timeout_s=60)
    ray.kill(worker, no_restart=False)
    after, deadline = before, time.monotonic() + 60
    while after == before and time.monotonic() < deadline:
        (after,) = addresses([worker], timeout_s=60)
    assert after != before
    with RewardClient([after], timeout_s=20) as client:
        assert client.score([PAIR])[0]["graph_f1"] == 1


def test_an_unknown_backend_is_an_error_that_names_it(cluster: None) -> None:
    (made,) = start_workers(1, backend="none", threads=1, local=True)
    with pytest.raises(RewardError, match="unknown reward backend 'none'"):
        addresses([made], timeout_s=60)


def test_waiting_for_workers_ends_in_time(cluster: None) -> None:
    (made,) = start_workers(1, backend="embedded", threads=1, local=True, num_cpus=(os.cpu_count() or 1) + 100)
    with pytest.raises(RewardError, match="waited 1 s for 1 reward workers"):
        addresses([made], timeout_s=1)
    ray.kill(made)
