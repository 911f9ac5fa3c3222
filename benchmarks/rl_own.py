"""Our side of `benchmarks.rl_step`: the synchronous step of a run, with Ray, vLLM and DeepSpeed.

Contract: one rollout actor and one learner rank in a Ray of their own, and nothing of them replaced: a step samples
with the weights that the step before published, asks the reward server while other samples still run, updates, and
publishes. Reports come from real (rendered) images: the extractor's work is part of the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors.env import rollout_env
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from benchmarks.rl_sides import PHASES, Setup, Step, Stopwatch
from configs.schema import Config
from learner.rank import DeepSpeedRank

_GETTING_READY_S = 300.0


class TimedRank(DeepSpeedRank):
    """A learner rank that tells where its time goes."""

    def watch(self) -> None:
        import torch
        from deepspeed import DeepSpeedEngine

        from rrg.model.extractor import RegionExtractor
        from rrg.model.policy import ReportPolicy

        self.watched = Stopwatch()
        self.watched.watch(ReportPolicy, "forward", lambda: "forward" if torch.is_grad_enabled() else "constants")
        self.watched.watch(
            RegionExtractor, "forward", lambda: f"extractor_{'forward' if torch.is_grad_enabled() else 'constants'}"
        )
        self.watched.watch(DeepSpeedEngine, "backward", "backward")
        self.watched.watch(DeepSpeedEngine, "step", "optimizer")

    def timings(self) -> dict[str, float]:
        return self.watched.take()

    def gemm(self) -> float:
        from benchmarks.model import gemm_flops_per_second

        return gemm_flops_per_second()


class TimedRollout:
    """The rollout actor without RLlib around it."""

    def __init__(self, config: Config, policy: str, address: str) -> None:
        from actors.rollout import RolloutWorker
        from reward_server.client import RewardClient
        from rrg.data import load_studies
        from rrg.model.policy import ReportPolicy

        self._watch = Stopwatch()
        self._watch.watch(ReportPolicy, "study_prompt", "images")
        client = RewardClient([address], config.reward.timeout_s)
        self._worker = RolloutWorker(config, Path(policy), load_studies(config.data), client)

    def collect(self, request: SampleRequest) -> tuple[list[Trajectory], dict[str, float]]:
        """The answer, and seconds: of weights, images, generate, and reward (waited for after the last sample)."""
        trajectories, metrics = self._worker.collect(request)
        images = self._watch.take()["images"]
        return trajectories, {
            "weights": metrics.sync_s,
            "images": images,
            "generate": metrics.rollout_s - images,
            "reward": metrics.reward_wait_s,
        }


class _Run:
    """The driver of both actors."""

    def __init__(self, setup: Setup) -> None:
        import ray

        from learner.group import DeepSpeedLearnerGroup, create_ranks

        self._ray, self._setup, cfg = ray, setup, setup.config
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 28,
            _system_config={"worker_niceness": 0},  # as its peer: Ray's default would let every other process go first
        )  # fmt: skip
        self._ranks = create_ranks(cfg, setup.run_dir, TimedRank)
        (self._rank,) = self._ranks.handles
        rollout = ray.remote(TimedRollout).options(runtime_env={"env_vars": rollout_env(cfg.rollout)})
        self._rollout = rollout.remote(cfg, str(setup.policy), setup.address)
        self._group = DeepSpeedLearnerGroup(cfg, self._ranks)
        self._group.wait()
        self._group.begin_rl(None)
        self._get(self._rank.watch.remote())
        self._weights: WeightsRef = self._group.publish(0)
        self._number = 0

    def gemm(self) -> float:
        speed: float = self._get(self._rank.gemm.remote())
        return speed

    def step(self) -> Step:
        cfg, number = self._setup.config, self._number
        studies = tuple(prompt.study_id for prompt in self._setup.prompts[number])
        request = SampleRequest(number, cfg.seed, studies, cfg.rollout.samples_per_study, self._weights)
        started = time.perf_counter()
        trajectories, rollout = self._get(self._rollout.collect.remote(request))
        self._group.rl_update(trajectories, number, cfg.learner.rl.kl.coef)
        updated = time.perf_counter()
        self._weights = self._group.publish(number + 1)
        ended = time.perf_counter()
        learner = self._get(self._rank.timings.remote())
        self._number += 1
        if failed := [t.failed for t in trajectories if t.failed is not None]:
            raise RuntimeError(f"{len(failed)} samples failed: {failed[0]}")
        return Step(
            seconds=ended - started,
            phases=_phases(ended - started, ended - updated, rollout, learner),
            parts={name: seconds for name, seconds in learner.items() if name.startswith("extractor_")},
            samples=len(trajectories),
            tokens=sum(len(t.token_ids) for t in trajectories),
            words=sum(len(t.text.split()) for t in trajectories) / len(trajectories),
        )

    def _get(self, call: Any) -> Any:
        return self._ray.get(call, timeout=_GETTING_READY_S)


def _phases(
    seconds: float, publish: float, rollout: Mapping[str, float], learner: Mapping[str, float]
) -> dict[str, float]:
    known = {
        **rollout,
        "weights": rollout["weights"] + publish,
        "constants": learner["constants"],
        "forward_backward": learner["forward"] + learner["backward"],
        "optimizer": learner["optimizer"],
    }
    assert set(known) == set(PHASES) - {"other"}
    return {**known, "other": seconds - sum(known.values())}


def run(pipe: Connection, setup: Setup) -> None:
    """The side's process."""
    import ray

    own = _Run(setup)
    pipe.send(own.gemm())
    while pipe.recv():
        pipe.send(own.step())
    pipe.send(own.gemm())
    ray.shutdown()
