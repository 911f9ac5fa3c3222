"""The rollout actor under Ray, with a real reward server: what the driver sees."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.env import rollout_env
from actors.errors import last_failure
from actors.runner import VLLMEnvRunner
from actors.trajectory import SampleRequest, WeightsRef
from actors.weights import weights_digest
from configs.schema import Config, RolloutConfig
from reward_server.directory import RewardAccess, RewardDirectory
from reward_server.worker import WorkerOptions
from rrg.data import StudySet
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import published

START_S = 120.0


@pytest.fixture(scope="module")
def _ray(rollout_config: RolloutConfig) -> Iterator[None]:
    # Processes take turns here: they may outnumber the cores.
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        runtime_env={"env_vars": rollout_env(rollout_config)},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def rewards(_ray: None) -> RewardDirectory:
    return RewardDirectory.start(WorkerOptions(), 1, namespace="run")


@pytest.fixture(scope="module")
def group(_ray: None, rewards: RewardDirectory, run_config: Config, policy_dir: Path) -> Iterator[Any]:
    """RLlib's group, of one actor that takes two requests at once."""
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    access = RewardAccess(run_config.reward.timeout_s, namespace=rewards.namespace)
    config = AlgorithmConfig().environment(
        env_config={"config": run_config, "policy_dir": str(policy_dir), "rewards": access}
    )
    config.env_runners(
        env_runner_cls=VLLMEnvRunner,
        num_env_runners=1,
        create_local_env_runner=False,
        max_requests_in_flight_per_env_runner=2,
    )
    config.fault_tolerance(
        restart_failed_env_runners=True,
        delay_between_env_runner_restarts_s=0.1,
        env_runner_health_probe_timeout_s=0.05,
    )
    group = EnvRunnerGroup(config=config, local_env_runner=False)
    rewards.wait_for(1, START_S)
    yield group
    group.stop()


def call(group: Any, method: str, **kwargs: Any) -> Any:
    (answer,) = group.foreach_env_runner(method, kwargs=kwargs, local_env_runner=False, timeout_seconds=60)
    return answer


def shared(policy: ReportPolicy, version: int) -> WeightsRef:
    ref = published(policy, version)
    return dataclasses.replace(ref, tensors=ray.put(ref.tensors), digest=weights_digest(ref.tensors))


@pytest.fixture(scope="module")
def request_0(_ray: None, policy: ReportPolicy, studies: StudySet) -> SampleRequest:
    return SampleRequest(0, 0, tuple(studies.studies), 4, shared(policy, 4))


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


def lost(group: Any) -> bool:
    return group.healthy_env_runner_ids() == []


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + START_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {START_S:g} s"
        time.sleep(0.05)
    return value


def test_the_actor_answers_with_rewards_and_evidence(group: Any, request_0: SampleRequest) -> None:
    trajectories, metrics = call(group, "sample_and_metrics", request=request_0)
    assert [t.failed for t in trajectories] == [None] * 12
    assert all("bertscore" in t.components and t.reward != 0 for t in trajectories)
    assert call(group, "get_state") == {"version": 4}
    assert metrics["tokens"] == sum(len(t.token_ids) for t in trajectories)
    assert call(group, "get_metrics") == metrics
    again = call(group, "sample", request=request_0)
    assert [t.logprobs.tobytes() for t in again] == [t.logprobs.tobytes() for t in trajectories]
    assert [t.reward for t in again] == [t.reward for t in trajectories]
    greedy = dataclasses.replace(request_0, greedy=True, samples_per_study=1, evidence=True)
    assert [len(t.evidence) for t in call(group, "sample", request=greedy)] == [29] * 3


def test_offered_weights_reach_an_actor_at_work(
    group: Any, request_0: SampleRequest, other_policy: ReportPolicy
) -> None:
    offered = shared(other_policy, 6)
    for step in (0, 1):
        asked = dataclasses.replace(request_0, step=step, samples_per_study=64, score=False, live=True)
        assert group.foreach_env_runner_async("sample_and_metrics", tag="sample", kwargs={"request": asked}) == 1
    group.foreach_env_runner_async("offer", tag="offer", kwargs={"weights": offered})
    assert wait_for(lambda: group.fetch_ready_async_reqs(tags="offer", timeout_seconds=0.05)) == [(1, None)]
    assert group.num_in_flight_async_reqs("sample") >= 1, "it did not wait for the reports"
    answers: list[Any] = []
    while len(answers) < 2:
        answers += [answer for _, answer in group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.05)]
    (first, _), (second, _) = answers
    assert {int(version) for t in first for version in t.versions} <= {4, 6}
    assert {int(version) for t in second for version in t.versions} == {6}


def test_refused_weights_end_the_actor_and_another_takes_its_place(
    group: Any, request_0: SampleRequest, other_policy: ReportPolicy, policy_dir: Path
) -> None:
    wrong = dataclasses.replace(request_0.weights, version=5, canary=published(other_policy, 5).canary)
    asked = dataclasses.replace(request_0, weights=wrong)
    group.foreach_env_runner_async("sample_and_metrics", tag="sample", kwargs={"request": asked})
    wait_for(lambda: not group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.05) and lost(group))
    said = last_failure(policy_dir.parent)
    assert said is not None
    assert "WeightsError" in said, "the run's directory tells why the actor ended"
    assert wait_for(group.probe_unhealthy_env_runners) == [1]
    assert call(group, "get_state") == {"version": None}
    assert all(t.failed is None for t in call(group, "sample", request=request_0))


def test_a_reward_outage_fails_the_reports_and_the_actor_lives_on(
    group: Any, rewards: RewardDirectory, request_0: SampleRequest
) -> None:
    (address,) = rewards.status().addresses
    rewards.stop()
    wait_until_gone(address)  # Ray ends the workers a moment later
    failed, metrics = call(group, "sample_and_metrics", request=request_0)
    assert metrics["failed"] == 12
    assert all(t.failed is not None and t.failed.startswith("reward: waited for the scores") for t in failed)
    call(group, "assert_healthy")
