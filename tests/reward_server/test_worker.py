"""The Ray actor that hosts a server."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from reward_server.client import RewardClient
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scorer import Scorer, ScorerOptions
from reward_server.worker import Serving, WorkerOptions, create_worker

PAIR = ("No pneumothorax.", "There is no pneumothorax.")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="rw", dir="/tmp")
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def worker(cluster: None) -> Iterator[Any]:
    made = create_worker(WorkerOptions())
    yield made
    ray.kill(made)


def serving(worker: Any) -> Serving:
    found: Serving = ray.get(worker.serve.remote(), timeout=90)
    return found


def test_a_worker_serves_the_same_scores_says_what_it_computes_and_ends(worker: Any, scorer: Scorer) -> None:
    found = serving(worker)
    assert found.address.startswith("127.0.0.1:")
    assert found.description == scorer.description
    with RewardClient([found.address], timeout_s=20) as client:
        assert client.score([PAIR]) == scorer.score([PAIR])
    ray.get(worker.stop.remote(5.0), timeout=30)
    with RewardClient([found.address], timeout_s=2) as client, pytest.raises(RewardError, match="UNAVAILABLE"):
        client.score([PAIR])


def test_a_killed_worker_comes_back_on_another_port(worker: Any) -> None:
    before = serving(worker)
    os.kill(ray.get(worker.hello.remote()), signal.SIGKILL)
    after, deadline = before, time.monotonic() + 60
    while after == before and time.monotonic() < deadline:
        after = serving(worker)
    assert after.address != before.address
    with RewardClient([after.address], timeout_s=20) as client:
        assert client.score([PAIR])[0]["graph_f1"] == 1


def test_weights_that_are_not_there_are_an_error_that_names_them(cluster: None, tmp_path: Path) -> None:
    made = create_worker(WorkerOptions(ScorerOptions("published", weights=str(tmp_path / "gone"))))
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        serving(made)
    assert isinstance(caught.value.cause, RewardSetupError)
    assert f"{tmp_path}/gone does not exist" in str(caught.value.cause)
    ray.kill(made)
