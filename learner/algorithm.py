"""The RL algorithm on RLlib: policy gradients with vLLM rollout actors and a learner of DeepSpeed ranks.

Contract: runs in the driver and holds no model. A step learns from the reports that its studies were given, then
publishes the weights. With `rollout.max_staleness` = 0 reports are sampled with the weights that the step before
published: a step is a pure function of the config, the weights, the KL coefficient and its number, and a resumed run
goes on bit for bit. Above that, reports of later steps are written while a step is learnt (`learner.pipeline` says
which), and go on with new weights in mid-report. A rollout actor that dies is replaced, and its work given out again.
The end of any step, and of any chunk of the warm start, is a place to save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from actors.runner import VLLMEnvRunner
from actors.scale import start_scale
from actors.trajectory import Trajectory
from configs.schema import Config
from learner.checkpoints import Best, Phase, RunState, config_hash, read_state, write_checkpoint
from learner.group import DeepSpeedLearnerGroup, create_ranks, find_ranks
from learner.inflight import read_inflight, write_inflight
from learner.objectives.kl import adapt_kl
from learner.placement import own_resource
from learner.plan import namespace_of
from learner.rank import INITIAL_POLICY, WARM_START
from learner.rollouts import Rollouts, slots
from learner.sampler import studies_for_step
from reward_server.directory import RewardAccess
from rrg.data import load_studies
from rrg.errors import ProcessError, UserError

Progress = Callable[[int, int, Mapping[str, float]], None]
# Steps of the warm start that one call to the ranks does at most, and how long it may take (s): progress is shown
# between calls, and a signal waits for the end of one.
WARM_START_CHUNK = 10
WARM_START_CHUNK_S = 10.0
# How long actors that are asked to end may take (s), before they are killed.
STOP_S = 5.0


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
            custom_resources_per_env_runner=own_resource(cfg.cluster, "rollout", ray.cluster_resources()),
            create_local_env_runner=False,
            max_requests_in_flight_per_env_runner=slots(cfg),
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
        self.rl_step = 0
        self.step_metrics: dict[str, float] = {}
        # What is subtracted from the rewards of a study's reports.
        self.reward_offsets: Mapping[str, float] = {}
        self._phase: Phase = "regions"
        self._warm_step = 0
        self._kl_coef = self._cfg.learner.rl.kl.coef
        self._best: Best | None = None
        # Before the rollout actors: those wait for the policy that rank 0 writes.
        # Kept: the handles that `find_ranks` gives do not keep an actor alive.
        self._ranks = create_ranks(self._cfg, self._run_dir)
        most = self._cfg.learner.rl.studies_per_step
        self._scale = start_scale(self._cfg.rollout.num_actors, most, namespace_of(self._cfg, self._run_dir))
        try:
            super().setup(config)
        except IndexError as error:
            # RLlib found no actor that answers. If a rank failed, that is why (the actors wait for its policy).
            DeepSpeedLearnerGroup(self._cfg, self._ranks).wait()
            raise ProcessError("no rollout actor started") from error
        self.learner_group.wait()

    @property
    def rollout_actors(self) -> str:
        """How many serve of how many there are: those that start or restart do not."""
        group = self.env_runner_group
        return f"{group.num_healthy_remote_env_runners()} of {group.num_remote_env_runners()} serve"

    @property
    def warm_started(self) -> bool:
        """Whether the run directory holds the finished warm start."""
        return (self._run_dir / WARM_START).is_dir()

    def warm_start(self, progress: Progress, checkpoint: Path | None, boundary: Callable[[bool], None]) -> None:
        """Supervised fine-tuning, from a checkpoint of it if there is one; ends with `run_dir/warm_start`.

        `progress` is told of every step. `boundary` is called after every chunk of steps, where `save_run` may be used,
        with whether a checkpoint is due.

        Raises:
            UserError: the checkpoint was made with settings that give other numbers.
        """
        if checkpoint is not None:
            state = self._resumable(checkpoint)
            self._phase, self._warm_step = state.phase, state.step
        self.learner_group.begin_warm_start(checkpoint)
        total, every = self.learner_group.warm_start_total, self._cfg.learner.sft.checkpoint_every
        chunk = 1
        while self._warm_step < total:
            first, started = self._warm_step, time.perf_counter()
            until_due = every - first % every if every else total
            steps = self.learner_group.warm_start_steps(first, min(chunk, total - first, until_due))
            chunk = steps_within(WARM_START_CHUNK_S, (time.perf_counter() - started) / len(steps))
            self._warm_step += len(steps)
            self._phase = "policy" if steps[-1]["stage"] else "regions"
            for done, metrics in enumerate(steps, start=first + 1):
                progress(done, total, metrics)
            boundary(every > 0 and self._warm_step % every == 0)
        self.learner_group.end_warm_start()

    def begin_rl(self, checkpoint: Path | None = None) -> None:
        """Begins at the warm start, or goes on from a checkpoint of RL, and publishes the weights.

        Raises:
            UserError: the checkpoint was made with settings that give other numbers.
        """
        restored: dict[int, list[Trajectory]] = {}
        if checkpoint is not None:
            state = self._resumable(checkpoint)
            self.rl_step, self._kl_coef, self._best = state.step, state.kl_coef, state.best
            restored = read_inflight(checkpoint)
        self.learner_group.begin_rl(checkpoint)
        self._phase = "rl"
        self._rollouts = Rollouts(
            self.env_runner_group,
            self._cfg,
            self._studies_of,
            first=self.rl_step,
            restored=restored,
            scale=self._scale,
            # With a rank's node the weights are lost that it has published, and so the actors that ask for them.
            after_loss=self.learner_group.raise_if_dead,
        )
        self._publish()

    def training_step(self) -> None:
        """One RL step: take the reports of its studies, learn from them, publish the weights."""
        started = time.perf_counter()
        batch = self._rollouts.batch(self.rl_step)
        sampled = time.perf_counter()
        trajectories = self._relative(batch.trajectories)
        update = self.learner_group.rl_update_async(trajectories, self.rl_step, self._kl_coef)
        while self._rollouts.under_way and not update.done():
            self._rollouts.poll()
        metrics = update.result()
        updated = time.perf_counter()
        self.rl_step += 1
        self._adapt_kl(metrics)
        self._publish()
        ended = time.perf_counter()
        wall = ended - started
        busy = self._rollouts.busy_shares(wall) | {"learner": (ended - sampled) / wall}
        self.step_metrics = metrics | {
            "seconds_rollout": max(0.0, sampled - started - batch.reward_wait_s),
            "seconds_reward_wait": min(sampled - started, batch.reward_wait_s),
            "seconds_update": updated - sampled,
            "seconds_sync": ended - updated + batch.sync_s,
            "seconds_step": wall,
            "samples_per_second": len(trajectories) / wall,
            **{f"idle_{role}": 1.0 - share for role, share in busy.items()},
        }
        self.metrics.log_dict(self.step_metrics, key="report_rl", window=1)

    def generate(self, study_ids: Sequence[str], *, evidence: bool = False) -> list[Trajectory]:
        """The most likely report of every study (greedy decoding), in their order, without scores; with `evidence`,
        what was seen in its regions too."""
        return self._rollouts.generate(study_ids, evidence=evidence)

    def save_run(self, folder: Path, best: Best | None = None) -> Path:
        """A checkpoint of the current step below `folder`; `best` where its validation is the best so far: then it is
        kept until there is a better one."""
        self._best = best or self._best
        state = RunState(
            phase=self._phase,
            step=self.rl_step if self._phase == "rl" else self._warm_step,
            weight_version=self.rl_step,
            world_size=len(self.learner_group),
            config_hash=config_hash(self._cfg),
            kl_coef=self._kl_coef,
            best=self._best,
        )
        return write_checkpoint(folder, state, self._write, keep=self._cfg.learner.rl.keep_checkpoints)

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """RLlib asks between steps; before RL begins there is no work that could have been lost."""
        return self._rollouts.restore()

    def cleanup(self) -> None:
        """Ends ranks and rollout actors, whatever they do; RLlib's own would wait for them without end."""
        self.learner_group.shutdown()
        self.env_runner_group.foreach_env_runner(
            lambda runner: runner.stop(), local_env_runner=False, timeout_seconds=STOP_S
        )
        self.env_runner_group._worker_manager.clear()  # kills them; there is no public way

    def _write(self, folder: Path) -> None:
        self.learner_group.save(folder)
        if self._phase == "rl":
            write_inflight(folder, self._rollouts.finished())

    def _resumable(self, checkpoint: Path) -> RunState:
        state = read_state(checkpoint)
        if state.config_hash != config_hash(self._cfg):
            raise UserError(f"{checkpoint} was made with another configuration; resume with that of its run")
        return state

    def _publish(self) -> None:
        self._rollouts.publish(self.learner_group.publish(self.rl_step))

    def _studies_of(self, step: int) -> tuple[str, ...]:
        rl = self._cfg.learner.rl
        return studies_for_step(
            self._train,
            seed=self._cfg.seed,
            step=step,
            count=rl.studies_per_step,
            abnormal_fraction=rl.abnormal_fraction,
        )

    def _relative(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """The rewards relative to those offsets; what a checkpoint takes along keeps the rewards as they were."""
        return [replace(one, reward=one.reward - self.reward_offsets.get(one.study_id, 0.0)) for one in trajectories]

    def _adapt_kl(self, metrics: Mapping[str, float]) -> None:
        rl = self._cfg.learner.rl
        if rl.kl.target is not None and "kl_k3" in metrics:  # a step of which every sample failed has no KL
            episodes = rl.studies_per_step * self._cfg.rollout.samples_per_study
            self._kl_coef = adapt_kl(self._kl_coef, metrics["kl_k3"], rl.kl.target, rl.kl.horizon, episodes)


def steps_within(limit_s: float, step_s: float) -> int:
    """Steps of the warm start for the next call, when one takes `step_s`: at least one, at most `WARM_START_CHUNK`."""
    return max(1, min(WARM_START_CHUNK, int(limit_s / step_s)))
