"""Rollout actors that find no place are the autoscaler's demand: it adds nodes for them and no others.

The cluster is that of `tests/reward_server/test_autoscaler.py`, where the same is shown for reward workers.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.scale import start_scale
from configs.schema import ClusterConfig
from learner.algorithm import ReportRLConfig
from learner.rollouts import Rollouts
from tests.learner.test_rollouts import QuickRunner, config, studies_of, weights, whole
from tests.reward_server.test_autoscaler import cluster, nodes  # noqa: F401  (a fixture)
from tests.reward_server.test_directory import until

START_S = 120


def test_the_autoscaler_adds_nodes_for_rollout_actors_only_and_takes_them_back(
    cluster: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    cfg = config(0)
    cfg = replace(cfg, rollout=replace(cfg.rollout, num_actors=1), cluster=ClusterConfig(rollout_nodes="own"))
    settings = ReportRLConfig().report(cfg, tmp_path, rewards=None)  # type: ignore[arg-type]
    settings.env_runners(env_runner_cls=QuickRunner)
    group = EnvRunnerGroup(config=settings, default_policy_class=None, local_env_runner=False)
    scale = start_scale(1, most=5, namespace="rollouts")
    rollouts = Rollouts(group, cfg, studies_of, first=0, restored={}, scale=scale)
    for step, number in enumerate((1, 3, 1)):
        ray.get(scale.scale.remote(number), timeout=30)
        deadline = time.monotonic() + START_S
        while not (status := ray.get(scale.status.remote(), timeout=30)).settled:
            assert time.monotonic() < deadline, status
            rollouts.poll()
        until(lambda wanted=number: nodes("rollout") == wanted)
        assert nodes("reward") == 0
        rollouts.publish(weights(step))
        assert whole(rollouts.batch(step).trajectories, step)
    group.stop()
