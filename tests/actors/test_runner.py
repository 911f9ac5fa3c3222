"""The rollout actor under Ray, with a real reward server: what the driver sees."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.env import rollout_env
from actors.runner import VLLMEnvRunner
from actors.trajectory import SampleRequest
from actors.weights import weights_digest
from configs.schema import Config
from reward_server.directory import RewardAccess, RewardDirectory
from reward_server.worker import WorkerOptions
from rrg.data import StudySet
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import published

START_S = 120.0


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    # Processes take turns here: they may outnumber the cores.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def rewards(_ray: None) -> RewardDirectory:
    return RewardDirectory.start(WorkerOptions(), 1, namespace="run")


@pytest.fixture(scope="module")
def runner(_ray: None, rewards: RewardDirectory, run_config: Config, policy_dir: Path) -> Any:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    access = RewardAccess(run_config.reward.timeout_s, namespace=rewards.namespace)
    env = {"config": run_config, "policy_dir": str(policy_dir), "rewards": access}
    config = AlgorithmConfig().environment(env_config=env)
    actor = ray.remote(num_cpus=1, runtime_env={"env_vars": rollout_env(run_config.rollout)})(VLLMEnvRunner)
    handle = actor.remote(config=config, worker_index=1)
    ray.get(handle.assert_healthy.remote(), timeout=START_S)
    rewards.wait_for(1, START_S)
    return handle


def ask(runner: Any, request: SampleRequest) -> Any:
    return ray.get(runner.sample_and_metrics.remote(request=request), timeout=60)


def test_importing_the_runner_loads_neither_vllm_nor_transformers() -> None:
    # RLlib itself loads torch.
    code = "import sys, actors.runner, actors.env; sys.exit(bool({'vllm', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def wait_until_gone(address: str) -> None:
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return
        assert time.monotonic() < deadline, f"waited 30 s for the reward server at {address} to end"
        time.sleep(0.1)


def test_the_actor_answers_with_rewards_and_survives_refused_weights_and_a_reward_outage(
    runner: Any, rewards: RewardDirectory, policy: ReportPolicy, other_policy: ReportPolicy, studies: StudySet
) -> None:
    ref = published(policy, 4)
    shared = dataclasses.replace(ref, tensors=ray.put(ref.tensors), digest=weights_digest(ref.tensors))
    request = SampleRequest(0, 0, tuple(studies.studies), 4, shared)
    trajectories, metrics = ask(runner, request)
    assert [t.failed for t in trajectories] == [None] * 12
    assert all("bertscore" in t.components and t.reward != 0 for t in trajectories)
    assert ray.get(runner.get_state.remote()) == {"version": 4}
    assert metrics["tokens"] == sum(len(t.token_ids) for t in trajectories)

    greedy, _ = ask(runner, dataclasses.replace(request, greedy=True, samples_per_study=1, evidence=True))
    assert [len(t.evidence) for t in greedy] == [29] * 3

    wrong = dataclasses.replace(shared, version=5, canary=published(other_policy, 5).canary)
    with pytest.raises(ray.exceptions.RayTaskError, match="version 5 failed its canary"):
        ask(runner, dataclasses.replace(request, weights=wrong))
    again, _ = ask(runner, request)
    assert [t.logprobs.tobytes() for t in again] == [t.logprobs.tobytes() for t in trajectories]
    assert [t.reward for t in again] == [t.reward for t in trajectories]

    (address,) = rewards.status().addresses
    rewards.stop()
    wait_until_gone(address)  # Ray ends the workers a moment later
    failed, metrics = ask(runner, request)
    assert metrics["failed"] == 12
    assert all(t.failed is not None and t.failed.startswith("reward: waited for the scores") for t in failed)
    ray.get(runner.assert_healthy.remote(), timeout=10)
