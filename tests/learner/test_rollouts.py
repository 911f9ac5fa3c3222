"""The driver's side of the rollouts on RLlib's own actor management, with actors that write reports at once.

The engine is left out on purpose: actors have to die at chosen moments here. `tests/job/test_async.py` has it all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import ray
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.runner import VLLMEnvRunner
from actors.scale import _scale, _watch, start_scale
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    LearnerConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
)
from learner.algorithm import WARM_START_CHUNK, ReportRLConfig, steps_within
from learner.rollouts import Rollouts
from reward_server.errors import RewardError, RewardSetupError
from rrg.canary import Canary
from rrg.errors import ProcessError

STEPS, SAMPLES = 6, 3


class QuickRunner(EnvRunner):  # type: ignore[misc]
    """Writes a token a sample, for 0.1 s; its pid is told in the text."""

    apply = VLLMEnvRunner.apply
    _stopping = False
    _offered = -1

    async def sample_and_metrics(self, *, request: SampleRequest) -> tuple[list[Trajectory], dict[str, float]]:
        await asyncio.sleep(0.1)
        version = max(request.weights.version, self._offered if request.live else -1)
        trajectories = [
            Trajectory(
                study_id=study,
                sample_index=index,
                seed=0,
                prompt_length=1,
                token_ids=np.zeros(1, np.int32),
                logprobs=np.zeros(1, np.float32),
                versions=np.array([version], np.int32),
                finish_reason="stop",
                text=f"step {request.step} greedy {request.greedy}",
            )
            for study in request.study_ids
            for index in range(request.samples_per_study)
        ]
        return trajectories, {"busy_s": 0.1, "reward_busy_s": 0.05, "reward_wait_s": 0.0, "sync_s": 0.0}

    def offer(self, weights: WeightsRef) -> None:
        self._offered = weights.version

    def get_spaces(self) -> dict[str, tuple[Any, Any]]:
        empty: gymnasium.Space[Any] = gymnasium.spaces.Discrete(1)
        return {"__env__": (empty, empty), "__env_single__": (empty, empty)}

    def sample(self, **kwargs: Any) -> None: ...
    def get_metrics(self) -> dict[str, float]:
        return {}

    def assert_healthy(self) -> None: ...
    def stop(self) -> None: ...


def config(staleness: int) -> Config:
    rollout = RolloutConfig(num_actors=2, samples_per_study=SAMPLES, max_staleness=staleness, timeout_s=60.0)
    learner = LearnerConfig(rl=RLConfig(steps=STEPS))
    return Config(DataConfig("rendered_openi"), ModelConfig(), rollout, RewardConfig(), learner, ClusterConfig())


def studies_of(step: int) -> list[str]:
    return [f"s{index}" for index in range(step, step + 5)]


def weights(version: int) -> WeightsRef:
    return WeightsRef(version, {}, Canary((), np.zeros(0, np.float32), np.zeros((0, 1), np.float32)))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    settings = ReportRLConfig().report(config(request.param), tmp_path, rewards=None)  # type: ignore[arg-type]
    settings.env_runners(env_runner_cls=QuickRunner)
    made = EnvRunnerGroup(config=settings, default_policy_class=None, local_env_runner=False)
    yield made
    made.stop()


def pids(group: Any) -> list[int]:
    found: list[int] = group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
    return found


def whole(trajectories: list[Trajectory], step: int) -> bool:
    places = [(one.study_id, one.sample_index) for one in trajectories]
    return places == [(study, index) for study in studies_of(step) for index in range(SAMPLES)]


@pytest.mark.parametrize(("group", "staleness"), [(0, 0), (2, 2)], indirect=["group"])
def test_every_step_gets_its_samples_once_though_actors_are_killed(group: Any, staleness: int) -> None:
    rollouts = Rollouts(group, config(staleness), studies_of, first=0, restored={})
    rollouts.publish(weights(0))
    for step in range(STEPS):
        if step in (1, 3):
            os.kill(pids(group)[0], signal.SIGKILL)
        batch = rollouts.batch(step)
        assert whole(batch.trajectories, step)
        assert all(0 <= step - int(one.versions[0]) <= staleness for one in batch.trajectories)
        until = time.monotonic() + 0.5  # an update
        while rollouts.under_way and time.monotonic() < until:
            rollouts.poll()
        if step == 2:
            written = rollouts.generate(["a", "b"], evidence=False)
            assert [one.study_id for one in written] == ["a", "b"]
            assert all("greedy True" in one.text for one in written)
        rollouts.publish(weights(step + 1))
    assert not rollouts.under_way
    assert rollouts.finished() == {}
    assert set(rollouts.busy_shares(10.0)) == {"rollout", "reward"}


@pytest.mark.parametrize("group", [0], indirect=True)
def test_what_may_have_killed_an_actor_is_looked_for_at_its_first_loss(group: Any) -> None:
    def look() -> None:
        raise ProcessError("learner rank 0 died")

    rollouts = Rollouts(group, config(0), studies_of, first=0, restored={}, after_loss=look)
    rollouts.publish(weights(0))
    rollouts.batch(0)
    rollouts.publish(weights(1))
    os.kill(pids(group)[0], signal.SIGKILL)
    with pytest.raises(ProcessError, match="learner rank 0 died"):
        rollouts.batch(1)


@pytest.mark.parametrize(("group", "staleness"), [(0, 0), (2, 2)], indirect=["group"])
def test_actors_come_and_go_while_steps_go_on(group: Any, staleness: int) -> None:
    scale = start_scale(2, most=5, namespace=f"scaled{staleness}")
    rollouts = Rollouts(group, config(staleness), studies_of, first=0, restored={}, scale=scale)
    rollouts.publish(weights(0))
    numbers = []
    for step in range(STEPS):
        assert whole(rollouts.batch(step).trajectories, step)
        rollouts.publish(weights(step + 1))
        wanted = {1: 4, 3: 1}.get(step)
        if wanted is not None:
            ray.get(scale.scale.remote(wanted), timeout=30)
            deadline = time.monotonic() + 60
            while not (status := ray.get(scale.status.remote(), timeout=30)).settled:
                assert time.monotonic() < deadline, status
                rollouts.poll()
            numbers.append(len(pids(group)))
    assert numbers == [4, 1]


def test_the_command_scales_a_run_and_says_what_it_may_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    scale = start_scale(2, most=5, namespace="commanded")
    ray.get(scale.report.remote(serving=3, ending=0), timeout=30)
    _scale(scale, 3)
    assert str(_watch(scale, 3, timeout_s=10)) == "3 of 3 rollout actors serve"
    with pytest.raises(RewardSetupError, match=r"6 rollout actors: 1 to 5 of them have work"):
        _scale(scale, 6)
    _scale(scale, 4)
    with pytest.raises(RewardError, match=r"waited 0 s: 3 of 4 rollout actors serve; the others stay wanted"):
        _watch(scale, 4, timeout_s=0)
    assert capsys.readouterr().out == "3 of 4 rollout actors serve\n"


@pytest.mark.parametrize("group", [1], indirect=True)
def test_what_a_checkpoint_brings_is_not_asked_for_again(group: Any) -> None:
    cfg = config(1)
    before = Rollouts(group, cfg, studies_of, first=0, restored={})
    before.publish(weights(0))
    before.batch(0)
    while before.under_way:
        before.poll()
    (kept,) = before.finished().values()
    part = [replace(one, text="kept") for one in kept if one.study_id in ("s2", "s4")]
    after = Rollouts(group, cfg, studies_of, first=1, restored={1: part})
    after.publish(weights(1))
    assert after.finished() == {1: part}
    batch = after.batch(1)
    assert whole(batch.trajectories, 1)
    assert {one.study_id for one in batch.trajectories if one.text == "kept"} == {"s2", "s4"}


@pytest.mark.parametrize("group", [1], indirect=True)
def test_a_checkpoint_takes_no_study_along_of_which_a_sample_has_failed(group: Any) -> None:
    made = [Trajectory("s2", 0, 0, 1, *_no_tokens(), "stop", ""), Trajectory("s4", 0, 0, 1, *_no_tokens(), "stop", "")]
    failed = Trajectory("s2", 1, 0, 1, *_no_tokens(), "stop", "", failed="reward: away")
    rollouts = Rollouts(group, config(1), studies_of, first=1, restored={1: [*made, failed]})
    assert [one.study_id for one in rollouts.finished()[1]] == ["s4"]


def _no_tokens() -> tuple[Any, Any, Any]:
    return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32)


@pytest.mark.parametrize("group", [0], indirect=True)
def test_nothing_is_sampled_before_rl_goes_on(group: Any) -> None:
    rollouts = Rollouts(group, config(0), studies_of, first=0, restored={})
    rollouts.publish(weights(0))
    rollouts.generate(["a"], evidence=True)
    assert rollouts.busy_shares(0.1) == {"rollout": 0, "reward": 0}  # of evaluations no step's share is told
    assert not rollouts.under_way
    assert rollouts.finished() == {}


def test_a_call_of_the_warm_start_lasts_seconds_whatever_a_step_takes() -> None:
    assert steps_within(10.0, 0.1) == WARM_START_CHUNK
    assert steps_within(10.0, 3.0) == 3
    assert steps_within(10.0, 60.0) == 1
