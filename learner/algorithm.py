"""The RL algorithm on RLlib: GRPO with vLLM rollout actors and a learner of DeepSpeed ranks.

Contract: runs in the driver and holds no model. Synchronous: every step samples with the weights that the step before
published. A step is a pure function of the config, the weights and its number, so a resumed run needs no more state.
A rollout actor that dies is replaced, and its work given out again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from actors.runner import VLLMEnvRunner
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from configs.schema import Config
from learner.checkpoints import RunState, config_hash, read_state, write_checkpoint
from learner.group import DeepSpeedLearnerGroup, create_ranks, find_ranks
from learner.rank import INITIAL_POLICY, WARM_START
from learner.sampler import studies_for_step
from reward_server.directory import RewardAccess
from rrg.data import load_studies
from rrg.errors import UserError

Progress = Callable[[int, int, Mapping[str, float]], None]
# Steps of the warm start that one call to the ranks does: progress is shown between calls.
WARM_START_CHUNK = 10
# Studies of one request when reports are written for evaluation.
GENERATE_CHUNK = 128
# A piece of rollout work that was lost so often points at a cause that a new actor does not mend.
MAX_ATTEMPTS = 3


class ReportRLConfig(AlgorithmConfig):  # type: ignore[misc]
    """RLlib's config around ours (`env_config["config"]`), with the rollout actors and fault tolerance set from it."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or ReportRL)

    def report(self, cfg: Config, run_dir: Path, rewards: RewardAccess) -> ReportRLConfig:
        """Everything from our config; returns self."""
        rollout = cfg.rollout
        self.env_runners(
            env_runner_cls=VLLMEnvRunner,
            num_env_runners=rollout.num_actors,
            num_cpus_per_env_runner=1,
            num_gpus_per_env_runner=rollout.gpus_per_actor,
            create_local_env_runner=False,
            max_requests_in_flight_per_env_runner=1,
        )
        self.environment(
            env_config={
                "config": cfg,
                "run_dir": str(run_dir),
                "policy_dir": str(run_dir / INITIAL_POLICY),
                "rewards": rewards,
            }
        )
        # RLlib's defaults wait 60 s before a restart and block the loop 30 s at a probe.
        self.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1,
            env_runner_health_probe_timeout_s=0.05,
        )
        return self

    def get_multi_rl_module_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        return MultiRLModuleSpec(rl_module_specs={})

    def get_default_learner_class(self) -> Any:
        return TorchLearner  # RLlib asks; `build_learner_group` never makes one.

    def build_learner_group(self, **kwargs: Any) -> DeepSpeedLearnerGroup:
        """The ranks that `ReportRL.setup` has started before."""
        cfg: Config = self.env_config["config"]
        return DeepSpeedLearnerGroup(cfg, find_ranks(cfg, Path(self.env_config["run_dir"])))


class ReportRL(Algorithm):  # type: ignore[misc]
    """Warm start, RL steps, greedy reports; `learner.job` drives it."""

    learner_group: DeepSpeedLearnerGroup

    def setup(self, config: AlgorithmConfig) -> None:
        """Starts ranks and rollout actors together, then waits once."""
        self._cfg: Config = config.env_config["config"]
        self._run_dir = Path(config.env_config["run_dir"])
        self._train = load_studies(self._cfg.data).split("train")
        self._weights: WeightsRef | None = None
        self.rl_step = 0
        self.step_metrics: dict[str, float] = {}
        # Before the rollout actors: those wait for the policy that rank 0 writes.
        # Kept: the handles that `find_ranks` gives do not keep an actor alive.
        self._ranks = create_ranks(self._cfg, self._run_dir)
        try:
            super().setup(config)
        except IndexError as error:
            # RLlib found no actor that answers. If a rank failed, that is why (the actors wait for its policy).
            DeepSpeedLearnerGroup(self._cfg, self._ranks).wait()
            raise RuntimeError("no rollout actor started; the reason stands in the logs of Ray's workers") from error
        self.learner_group.wait()

    @property
    def warm_started(self) -> bool:
        """Whether the run directory holds the finished warm start."""
        return (self._run_dir / WARM_START).is_dir()

    def warm_start(self, progress: Progress) -> None:
        """Supervised fine-tuning, reported in small steps; ends with `run_dir/warm_start`."""
        total = self.learner_group.warm_start_total
        for first in range(0, total, WARM_START_CHUNK):
            for offset, metrics in enumerate(
                self.learner_group.warm_start_steps(first, min(WARM_START_CHUNK, total - first))
            ):
                progress(first + offset + 1, total, metrics)
        self.learner_group.end_warm_start()

    def begin_rl(self, checkpoint: Path | None = None) -> None:
        """Begins at the warm start, or goes on from a checkpoint, and publishes the weights.

        Raises:
            UserError: the checkpoint was made with settings that give other numbers, or another number of ranks.
        """
        if checkpoint is not None:
            state = read_state(checkpoint)
            if state.config_hash != config_hash(self._cfg):
                raise UserError(f"{checkpoint} was made with another configuration; resume with that of its run")
            if state.world_size != len(self.learner_group):
                raise UserError(f"{checkpoint} is of {state.world_size} learner ranks: set learner.num_ranks to that")
            self.rl_step = state.step
        self.learner_group.begin_rl(checkpoint)
        self._weights = self.learner_group.publish(self.rl_step)

    def training_step(self) -> None:
        """One RL step: choose studies, sample and score reports, learn, publish the weights."""
        started = time.perf_counter()
        studies = self._choose_studies()
        requests = [self._request(part) for part in _deal(studies, self._cfg.rollout.num_actors)]
        trajectories, waited = self._collect(requests)
        sampled = time.perf_counter()
        metrics = self.learner_group.rl_update(trajectories, self.rl_step)
        updated = time.perf_counter()
        self.rl_step += 1
        self._weights = self.learner_group.publish(self.rl_step)
        self.step_metrics = metrics | {
            "seconds_rollout": sampled - started - waited["reward_wait_s"],
            "seconds_reward_wait": waited["reward_wait_s"],
            "seconds_update": updated - sampled,
            "seconds_sync": time.perf_counter() - updated + waited["sync_s"],
        }
        self.metrics.log_dict(self.step_metrics, key="report_rl", window=1)

    def generate(self, study_ids: Sequence[str], *, evidence: bool = False) -> list[Trajectory]:
        """The most likely report of every study (greedy decoding), in their order, without scores; with `evidence`,
        what was seen in its regions too."""
        chunks = [study_ids[i : i + GENERATE_CHUNK] for i in range(0, len(study_ids), GENERATE_CHUNK)]
        return self._collect([self._request(chunk, greedy=True, evidence=evidence) for chunk in chunks])[0]

    def save_run(self, folder: Path) -> Path:
        """A checkpoint of the current RL step below `folder`."""
        state = RunState("rl", self.rl_step, self.rl_step, len(self.learner_group), config_hash(self._cfg))
        return write_checkpoint(folder, state, self.learner_group.save, keep=self._cfg.learner.rl.keep_checkpoints)

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Restarted actors need no state: the weights come with every request."""
        restored: list[int] = env_runner_group.probe_unhealthy_env_runners()
        return restored

    def _choose_studies(self) -> tuple[str, ...]:
        rl = self._cfg.learner.rl
        return studies_for_step(
            self._train,
            seed=self._cfg.seed,
            step=self.rl_step,
            count=rl.studies_per_step,
            abnormal_fraction=rl.abnormal_fraction,
        )

    def _request(self, studies: Sequence[str], *, greedy: bool = False, evidence: bool = False) -> SampleRequest:
        assert self._weights is not None, "begin_rl comes first"
        return SampleRequest(
            step=self.rl_step,
            seed=self._cfg.seed,
            study_ids=tuple(studies),
            samples_per_study=1 if greedy else self._cfg.rollout.samples_per_study,
            weights=self._weights,
            greedy=greedy,
            score=not greedy,
            evidence=evidence,
        )

    def _collect(self, requests: Sequence[SampleRequest]) -> tuple[list[Trajectory], dict[str, float]]:
        """The trajectories of all requests, in their order whichever actor served them; the slowest actor's waits.

        A request always goes to an actor whole: which samples share a batch must not depend on who is healthy.
        """
        group = self.env_runner_group
        waiting = deque(range(len(requests)))
        attempts = [0] * len(requests)
        busy: dict[int, int] = {}
        done: dict[int, tuple[list[Trajectory], dict[str, float]]] = {}
        deadline = time.monotonic() + self._cfg.rollout.timeout_s * max(
            1, len(requests) // self._cfg.rollout.num_actors
        )
        while len(done) < len(requests):
            healthy = set(group.healthy_env_runner_ids())
            for runner in [runner for runner in busy if runner not in healthy]:
                waiting.appendleft(busy.pop(runner))
            for runner in sorted(healthy - busy.keys()):
                if not waiting:
                    break
                index = waiting.popleft()
                attempts[index] += 1
                if attempts[index] > MAX_ATTEMPTS:
                    raise RuntimeError(f"a rollout request failed {MAX_ATTEMPTS} times; see the rollout actors' logs")
                group.foreach_env_runner_async(
                    "sample_and_metrics",
                    tag="sample",
                    kwargs={"request": requests[index]},
                    remote_worker_ids=[runner],
                )
                busy[runner] = index
            for runner, answer in group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.05):
                done[busy.pop(runner)] = answer
            if len(healthy) < self._cfg.rollout.num_actors:
                self.restore_env_runners(group)
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for rollouts of {len(requests) - len(done)} requests (rollout.timeout_s)")
        trajectories = [sample for index in range(len(requests)) for sample in done[index][0]]
        waits = {
            name: max((metrics[name] for _, metrics in done.values()), default=0.0)
            for name in ("reward_wait_s", "sync_s")
        }
        return trajectories, waits


def _deal(studies: Sequence[str], parts: int) -> list[Sequence[str]]:
    """Splits into `parts` equal shares, each with its part of the abnormal studies that come first."""
    return [studies[part::parts] for part in range(parts)]
