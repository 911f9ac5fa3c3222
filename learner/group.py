"""The learner's ranks seen from the driver: RLlib's `LearnerGroup`, made of DeepSpeed actors.

Contract: every call goes to all ranks with the same arguments and waits for all of them, up to a time-out that names
the ranks it waited for. A rank that fails ends the wait at once: the others would hang in a collective call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.trajectory import Trajectory, WeightsRef
from configs.schema import Config
from learner.environment import WEIGHTS_THREAD, process_environment
from learner.placement import demands
from learner.rank import DeepSpeedRank, RankInfo
from rrg.errors import ProcessError, UserError

# One rank that dies takes the others along, out of their collective calls: how long all are listened to (s).
_LAST_WORDS_S = 2.0


class LearnerError(ProcessError):
    """A rank failed or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """The handles of all ranks in order, and the place that Ray holds for them."""

    handles: list[ActorHandle]
    place: PlacementGroup


def create_ranks(cfg: Config, run_dir: Path, kind: type[DeepSpeedRank] = DeepSpeedRank) -> Ranks:
    """Start all ranks without waiting for any, on as few nodes as Ray can; they live as long as their handles."""
    number = cfg.learner.num_ranks
    (demand,) = (one for one in demands(cfg, ray.cluster_resources()) if one.role == "learner")
    place = placement_group([dict(demand.resources)] * number, strategy="PACK", name=_place_name(run_dir))
    # Beside its other calls, which may train, rank 0 answers actors that ask for weights.
    threads = {WEIGHTS_THREAD: 1} if cfg.rollout.weights == "nccl" else {}
    actor = ray.remote(concurrency_groups=threads)(kind) if threads else ray.remote(kind)
    ranks = []
    for rank in range(number):
        options = actor.options(
            name=_name(run_dir, rank),
            runtime_env={"env_vars": process_environment(cfg.learner)},
            num_cpus=demand.resources["CPU"],
            num_gpus=demand.resources.get("GPU", 0.0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=rank),
        )
        ranks.append(options.remote(cfg, str(run_dir), rank, number))
    meeting = ranks[0].meeting.remote()
    for rank in ranks:
        rank.start.remote(meeting)
    return Ranks(ranks, place)


def find_ranks(cfg: Config, run_dir: Path) -> Ranks:
    """The ranks that `create_ranks` started for this run; these handles do not keep them alive."""
    handles = [ray.get_actor(_name(run_dir, rank)) for rank in range(cfg.learner.num_ranks)]
    return Ranks(handles, get_placement_group(_place_name(run_dir)))


def _name(run_dir: Path, rank: int) -> str:
    return f"learner rank {rank} of {run_dir}"


def _place_name(run_dir: Path) -> str:
    return f"learner of {run_dir}"


class DeepSpeedLearnerGroup(LearnerGroup):  # type: ignore[misc]
    """Drives ranks that have been started; `wait` waits once until all of them are ready."""

    def __init__(self, cfg: Config, ranks: Ranks) -> None:
        # RLlib's own constructor would build its torch learners: it is not called on purpose.
        self._timeout_s = cfg.learner.timeout_s
        self._start_timeout_s = cfg.cluster.start_timeout_s
        self.ranks = ranks.handles
        self._place = ranks.place
        self._info: RankInfo | None = None
        self._is_shut_down = False  # read by RLlib's __del__

    def wait(self) -> RankInfo:
        """Wait until every rank has built its policy."""
        if self._info is None:
            self._info = gather([rank.info.remote() for rank in self.ranks], "start", self._start_timeout_s)[0]
        return self._info

    @property
    def warm_start_total(self) -> int:
        """Steps of the warm start's schedule."""
        return self.wait().warm_start_total

    def begin_warm_start(self, checkpoint: Path | None) -> None:
        """Begin at the first step, or go on from a checkpoint that `save` wrote in the warm start."""
        self._all("begin_warm_start", None if checkpoint is None else str(checkpoint))

    def warm_start_steps(self, first: int, count: int) -> list[dict[str, float]]:
        """Do steps [first, first + count) of the warm start; their metrics."""
        metrics: list[dict[str, float]] = self._all("warm_start_steps", first, count)[0]
        return metrics

    def end_warm_start(self) -> None:
        """Save the policy as the run directory's `warm_start`."""
        self._all("end_warm_start")

    def begin_rl(self, checkpoint: Path | None) -> None:
        """Begin at the run's warm start, or go on from a checkpoint."""
        self._all("begin_rl", None if checkpoint is None else str(checkpoint))

    def rl_update(self, trajectories: Sequence[Trajectory], step: int, kl_coef: float) -> dict[str, float]:
        """One RL step on trajectories that are in a fixed order, those of a study in a row; its metrics."""
        return self.rl_update_async(trajectories, step, kl_coef).result()

    def rl_update_async(self, trajectories: Sequence[Trajectory], step: int, kl_coef: float) -> Pending:
        """`rl_update`, not waited for. No other call to the ranks may come before its end."""
        arguments = (ray.put(list(trajectories)), step, kl_coef)
        return Pending([rank.rl_update.remote(*arguments) for rank in self.ranks], "rl_update", self._timeout_s)

    def publish(self, version: int) -> WeightsRef:
        """Put the current weights where every actor can fetch them."""
        weights: WeightsRef = self._all("export_weights", version)[0]
        return weights

    def raise_if_dead(self) -> None:
        """Raises LearnerError with the ranks that have died; those that are busy are not waited for."""
        calls = [rank.info.remote() for rank in self.ranks]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=_LAST_WORDS_S)
        if dead := _problems(calls, ready):
            raise LearnerError("; ".join(dead))

    def save(self, folder: Path) -> None:
        """Write what a checkpoint holds of the ranks into `folder`."""
        self._all("save", str(folder))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return gather(calls, method, self._timeout_s)

    # What RLlib's Algorithm asks of a learner group

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def is_local(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.ranks)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing passes through the driver: checkpoints are folders, weights are published."""
        return {"learner": {}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set; see `begin_rl`."""

    def shutdown(self) -> None:
        """End the ranks; those still in a collective call too."""
        if ray.is_initialized():  # Else they are gone already, and a call would start another Ray.
            for rank in self.ranks:
                ray.kill(rank)
            remove_placement_group(self._place)
        self._is_shut_down = True


class Pending:
    """A call to all ranks that is under way; its time-out runs from now on."""

    def __init__(self, calls: Sequence[ray.ObjectRef], what: str, timeout_s: float) -> None:
        self._calls = list(calls)
        self._what = what
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def done(self) -> bool:
        """Whether `result` would not wait: all have answered, one has failed, or the time is over."""
        ready, waiting = ray.wait(self._calls, num_returns=len(self._calls), timeout=0)
        return not waiting or time.monotonic() >= self._deadline or any(_failed(call) for call in ready)

    def result(self) -> dict[str, float]:
        """Rank 0's answer, waited for. Raises what `gather` does."""
        answer: dict[str, float] = gather(self._calls, self._what, self._timeout_s, self._deadline)[0]
        return answer


def _failed(call: ray.ObjectRef) -> bool:
    try:
        ray.get(call)
    except RayError:
        return True
    return False


def gather(calls: Sequence[ray.ObjectRef], what: str, timeout_s: float, deadline: float | None = None) -> list[Any]:
    """The answers of all ranks to `calls` (one a rank, in order of rank); `deadline` where the time already runs.

    Raises LearnerError when a rank fails, or when some have not answered within `timeout_s`: it says of each what
    became of it, since one that hangs makes those fail that wait for it. A rank's UserError is raised as it is.
    """
    pending = list(calls)
    deadline = time.monotonic() + timeout_s if deadline is None else deadline
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        if _failure(ready[0]) is not None:
            _, pending = ray.wait(list(calls), num_returns=len(calls), timeout=_LAST_WORDS_S)
            break
    else:
        answers: list[Any] = ray.get(list(calls))
        return answers
    problems = _problems(calls, [call for call in calls if call not in pending])
    if pending:
        silent = ", ".join(str(rank) for rank, call in enumerate(calls) if call in pending)
        problems.append(f"no answer from learner rank {silent} within {timeout_s + time.monotonic() - deadline:.3g} s")
    raise LearnerError(f"{what}: {'; '.join(problems)}")


def _problems(calls: Sequence[ray.ObjectRef], ended: Sequence[ray.ObjectRef]) -> list[str]:
    """What went wrong at each rank whose call has `ended`; `calls` are one a rank, in order of rank."""
    failures = {rank: _failure(call) for rank, call in enumerate(calls) if call in ended}
    return [f"learner rank {rank} {failure}" for rank, failure in failures.items() if failure is not None]


def _failure(call: ray.ObjectRef) -> str | None:
    """What went wrong with a call that has ended; raises a rank's UserError."""
    try:
        ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        return f"failed: {error.cause!r}"
    except RayError as error:
        return f"died: {str(error).partition(chr(10))[0]}"
    return None
