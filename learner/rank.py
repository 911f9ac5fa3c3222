"""One DeepSpeed rank of the learner, run as a Ray actor. All ranks get every call, with the same arguments.

Contract: the driver imports this module, so torch and DeepSpeed are imported where they are used; a rank does nothing
until `start`, and its process has the variables of `learner.environment`. A *phase* (the warm start's "regions" and
"policy", then "rl") begins from a saved policy with a fresh optimizer. Random numbers of a step depend on (seed, phase,
step, rank) only, so nothing of them needs to be saved, and a restored rank goes on bit for bit.
"""

from __future__ import annotations

import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.seeds import hashed_seed
from actors.trajectory import Trajectory, WeightsRef
from configs.schema import Config
from learner.checkpoints import Phase, read_state

if TYPE_CHECKING:
    from actors.nccl import Transfer
    from learner.engine import Meeting
    from learner.sft_data import RegionTargets
    from rrg.model.policy import PolicyInputs, ReportPolicy


# Folders in the run directory.
INITIAL_POLICY = "initial"
WARM_START = "warm_start"
_BETWEEN_STAGES = "between_stages"
_OTHER_RANKS = "of_other_ranks"
_MEETING = ".ranks"


@dataclass(frozen=True)
class RankInfo:
    """What a started rank tells the driver; `warm_start_total` are the steps of the stages that the run is to do."""

    warm_start_total: int
    parameters: int


class DeepSpeedRank:
    """`run_dir` is shared by all ranks; policies pass from phase to phase through folders in it."""

    def __init__(self, config: Config, run_dir: str, rank: int, world_size: int) -> None:
        self._config = config
        self._run_dir = Path(run_dir)
        self._rank = rank
        self._world_size = world_size
        self._failure: Exception | None = None
        self._failure_mark = (self._run_dir / INITIAL_POLICY).with_suffix(".failed")

    def meeting(self) -> Meeting:
        """Where the ranks meet: in the run directory, which no other machine reaches, or, on a cluster, at rank 0's
        address and a port that is free now."""
        if self._config.cluster.address is None:
            self._run_dir.mkdir(parents=True, exist_ok=True)  # or the ranks would wait for it
            place = self._run_dir / _MEETING
            place.unlink(missing_ok=True)  # of an earlier run
            return place
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, int(probe.getsockname()[1])

    def start(self, meeting: Meeting) -> None:
        """Get ready for the warm start. Nobody waits for this call: `info` tells how it ended."""
        self._failure_mark.unlink(missing_ok=True)
        try:
            self._prepare(meeting)
        except Exception as error:
            self._failure = error
            self._failure_mark.touch()  # The rollout actors wait for the policy: it will not come.
            raise

    def info(self) -> RankInfo:
        """Answers when `start` is done; raises the error that it ended with."""
        if self._failure is not None:
            raise self._failure
        steps = self._schedule.regions_steps if self._config.stage == "regions" else len(self._schedule)
        return RankInfo(steps, self._parameters)

    def _prepare(self, meeting: Meeting) -> None:
        """Join the process group, load the studies, and build the policy or take it from `config.start`."""
        import torch

        from learner.engine import device_of, join_process_group
        from learner.initial import initial_policy, write_once
        from learner.publish_nccl import nccl_publisher
        from learner.sft import sft_schedule
        from rrg.data import load_studies
        from rrg.model.backbone import make_store

        config = self._config
        torch.set_num_threads(config.learner.threads)
        join_process_group(config.learner, meeting, rank=self._rank, world_size=self._world_size)
        self._device = device_of(config.learner)
        if config.rollout.weights == "nccl":
            self._nccl = nccl_publisher(config, self._device)
        self._studies = load_studies(config.data).studies
        self._store = make_store(config.data, config.model)
        train = [study for study in self._studies.values() if study.split == "train"]
        self._schedule = sft_schedule(config.learner.sft, train, config.seed)
        policy = initial_policy(config, [study.target for study in train], self._store)
        policy.check_room(config.rollout)
        self._parameters = sum(p.numel() for p in policy.parameters())
        if self._rank == 0:
            write_once(policy, self._run_dir / INITIAL_POLICY)
        self._open(policy, self._stage_after(0))

    # The warm start

    def begin_warm_start(self, checkpoint: str | None) -> None:
        """Go on from `save(checkpoint)`; without one, from where `start` has left off."""
        from rrg.model.build import load_policy

        if checkpoint is not None:
            folder = Path(checkpoint)
            policy = load_policy(folder / "policy")
            # The base of a LoRA policy is that of the initial one, which stays; a checkpoint is pruned some day.
            policy.llm.name_or_path = str(self._run_dir / INITIAL_POLICY / "llm")
            self._open(policy, self._stage_after(read_state(folder).step), checkpoint=folder)

    def warm_start_steps(self, first: int, count: int) -> list[dict[str, float]]:
        """Do steps [first, first + count) of the warm start's schedule; their metrics (means over the ranks)."""
        return [self._warm_start_step(index) for index in range(first, min(first + count, len(self._schedule)))]

    def _warm_start_step(self, index: int) -> dict[str, float]:
        from learner.engine import backward_sum, optimizer_step, reduce_over_ranks
        from learner.sft import SFTTotals, sft_loss, sft_micro_batches, sft_totals

        config, step = self._config, self._schedule[index]
        if step.first_of_stage and step.stage != self._phase:
            self._next_stage(step.stage)
        self._seed(index)
        self._policy.train()
        studies = [self._studies[name] for name in step.study_ids]
        batches = sft_micro_batches(
            self._policy, self._store, studies, config, step, rank=self._rank, world_size=self._world_size
        )
        mine = asdict(sft_totals(batches, config.learner.sft))
        totals = SFTTotals(**reduce_over_ranks(mine, "sum", self._device))
        sums: Counter[str] = Counter()
        for batch in batches:
            loss, metrics = sft_loss(self._engine, batch.to(self._device), step.stage, config.learner.sft, totals)
            backward_sum(self._engine, loss)
            sums.update(metrics)
        taken = optimizer_step(self._engine, step.lr)
        metrics = reduce_over_ranks(dict(sums), "sum", self._device)
        return {**metrics, **taken, "stage": float(step.stage == "policy")}

    def end_warm_start(self) -> None:
        """Save the policy where RL begins."""
        self.export_policy(str(self._run_dir / WARM_START))
        if self._rank == 0:
            shutil.rmtree(self._run_dir / _BETWEEN_STAGES, ignore_errors=True)

    def _stage_after(self, steps: int) -> Phase:
        """The stage that the policy is in when so many steps are done: that of the last one."""
        return self._schedule[max(0, steps - 1)].stage if len(self._schedule) else "policy"

    def _next_stage(self, stage: Phase) -> None:
        from rrg.model.build import load_policy

        between = self._run_dir / _BETWEEN_STAGES
        self.export_policy(str(between))
        policy = load_policy(between)
        policy.refresh_region_queries()
        self._open(policy, stage)

    # Reinforcement learning

    def begin_rl(self, checkpoint: str | None) -> None:
        """Start RL from the run's warm start with a fresh optimizer, or go on from `save(checkpoint)`.

        The warm start, frozen, is the KL's reference in both cases. It is a policy of its own also where only adapters
        are trained: the warm start has trained them too, so without them the policy would not be the reference.
        """
        from rrg.model.build import load_policy
        from rrg.model.value import ValueHead

        folder = None if checkpoint is None else Path(checkpoint)
        warm_start = self._run_dir / WARM_START
        policy = load_policy(warm_start if folder is None else folder / "policy")
        # The base of a LoRA policy is that of the warm start, which stays; a checkpoint is pruned some day.
        policy.llm.name_or_path = str(warm_start / "llm")
        if self._config.learner.rl.advantage == "ppo":
            policy.value_head = ValueHead(policy.hidden_size, self._config.seed)
        self._open(policy, "rl", checkpoint=folder)
        self._reference = load_policy(warm_start).requires_grad_(False).to(self._device)

    def rl_update(self, trajectories: Sequence[Trajectory], step: int, kl_coef: float) -> dict[str, float]:
        """RL step `step` on all trajectories (those of a study in a row); see `learner.update.rl_update`."""
        from learner.update import linear_warmup, rl_update

        rl = self._config.learner.rl
        self._seed(step)
        self._policy.eval()  # Dropout would tear the learner's log-probs from the rollout's.
        return rl_update(
            self._engine,
            self._reference,
            trajectories,
            load_inputs=self._inputs,
            load_targets=self._targets,
            config=self._config,
            rank=self._rank,
            world_size=self._world_size,
            step=step,
            lr=linear_warmup(step, rl.lr, rl.warmup_steps),
            kl_coef=kl_coef,
        )

    # Weights out, state out and in

    def export_weights(self, version: int) -> WeightsRef | None:
        """Publish the weights as `version` (rank 0; None from the others), as `rollout.weights` says."""
        from learner.publish import publish

        policy = self._whole.policy()
        if self._rank > 0:
            return None
        if self._config.rollout.weights == "nccl":
            return self._nccl.publish(policy, version)
        return publish(policy, version, self._config.model.llm.broadcast)

    def open_transfer(self, version: int, receiver: str, workers: int, timeout_s: float) -> Transfer:
        """Rank 0 alone, in a thread beside that of all other calls; see `learner.publish_nccl`."""
        return self._nccl.open(version, receiver, workers, timeout_s)

    def export_policy(self, folder: str) -> None:
        """Save the policy to `folder` (replaced as a whole); returns when every rank can read it."""
        import torch.distributed as dist

        from rrg.model.build import save_policy

        policy = self._whole.policy()
        if self._rank == 0:
            aside = Path(folder + ".tmp")
            shutil.rmtree(aside, ignore_errors=True)
            save_policy(policy, aside)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            policy.llm.name_or_path = str(Path(folder) / "llm")  # what the next one may link to
        dist.barrier()

    def save(self, folder: str) -> None:
        """Write `folder/deepspeed` (every rank; what is trained and its optimizer) and `folder/policy`; any phase."""
        from learner.restore import TAG

        self._engine.save_checkpoint(folder, tag=TAG, save_latest=False, exclude_frozen_parameters=True)
        llm = self._whole.plain.llm
        linked_to = llm.name_or_path
        self.export_policy(str(Path(folder) / "policy"))
        llm.name_or_path = linked_to  # `folder` gets another name, and is pruned some day

    def _open(self, policy: ReportPolicy, phase: Phase, checkpoint: Path | None = None) -> None:
        """Put `policy` under an engine that trains what `phase` trains: a fresh one, or as it was at `checkpoint`."""
        from learner.engine import ParameterGroup, make_engine
        from learner.gathered import Whole
        from learner.restore import load_engine, written_by
        from learner.sft import stage_parameters
        from rrg.model.precision import buffers_kept

        learner = self._config.learner
        self._policy = policy.to(self._device)
        self._whole = Whole(self._policy, pieces=learner.zero_stage == 3, rank=self._rank)
        self._phase = phase
        seeing, writing = stage_parameters(policy, "policy" if phase == "rl" else phase, self._config)
        scale = 1.0 if phase == "rl" else learner.sft.llm_lr_scale
        groups = [ParameterGroup(seeing), ParameterGroup(writing, scale)]
        if policy.value_head is not None:
            groups.append(ParameterGroup(list(policy.value_head.parameters()), learner.rl.value.lr_scale))
        writers = None if checkpoint is None else written_by(checkpoint)
        universal = writers is not None and writers != self._world_size
        with buffers_kept(self._policy):
            self._engine = make_engine(
                self._policy,
                groups,
                learner,
                weight_decay=0.0 if phase == "rl" else learner.sft.weight_decay,
                bf16=self._config.model.dtype == "bfloat16",
                universal=universal,
            )
        if checkpoint is not None:
            aside = self._run_dir / _OTHER_RANKS
            load_engine(self._engine, checkpoint, aside, rank=self._rank, universal=universal)

    def _inputs(self, study_ids: Sequence[str]) -> PolicyInputs:
        return self._policy.inputs([self._studies[name] for name in study_ids], self._store)

    def _targets(self, study_ids: Sequence[str]) -> RegionTargets:
        from learner.sft_data import region_targets

        policy, studies = self._policy, [self._studies[name] for name in study_ids]
        return region_targets(studies, policy.regions, policy.findings, self._store.grid)

    def _seed(self, step: int) -> None:
        import torch

        torch.manual_seed(step_seed(self._config.seed, self._phase, step, self._rank))


def step_seed(seed: int, phase: str, step: int, rank: int) -> int:
    """The seed of the random numbers (dropout) that a rank draws in one step."""
    return hashed_seed(f"{seed}/{phase}/{step}/{rank}".encode())
