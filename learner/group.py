"""The learner's ranks seen from the driver: RLlib's `LearnerGroup`, made of DeepSpeed actors.

Contract: every call goes to all ranks with the same arguments and waits for all of them, up to a time-out that names
the ranks it waited for. A rank that fails ends the wait at once: the others would hang in a collective call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup

from actors.trajectory import Trajectory, WeightsRef
from configs.schema import Config
from learner.checkpoints import Phase
from learner.rank import DeepSpeedRank, RankInfo
from rrg.errors import UserError


class LearnerError(RuntimeError):
    """A rank failed or did not answer in time."""


class DeepSpeedLearnerGroup(LearnerGroup):  # type: ignore[misc]
    """Creating the group starts the ranks without waiting for them; `wait_started` waits once."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        # RLlib's own constructor would build its torch learners: it is not called on purpose.
        self._timeout_s = config.learner.timeout_s
        self._start_timeout_s = config.cluster.start_timeout_s
        self._is_shut_down = False
        count = config.learner.num_ranks
        actor = ray.remote(
            num_cpus=1, num_gpus=config.learner.gpus_per_rank, runtime_env={"env_vars": _environment(config)}
        )(DeepSpeedRank)
        self._ranks = [actor.remote(config, str(run_dir), rank, count) for rank in range(count)]
        address = self._ranks[0].address.remote()
        self._starting = [rank.start.remote(address) for rank in self._ranks]

    def wait_started(self) -> RankInfo:
        """Wait until every rank has built its policy."""
        info: RankInfo = gather(self._starting, "start", self._start_timeout_s)[0]
        return info

    def warm_start_steps(self, first: int, count: int) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = self._all("warm_start_steps", first, count)[0]
        return metrics

    def begin_rl(self, warm_start: Path) -> None:
        self._all("begin_rl", str(warm_start))

    def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:  # type: ignore[override]
        """One RL step on trajectories that are in a fixed order, those of a study in a row."""
        shared = ray.put(list(trajectories))
        metrics: dict[str, float] = self._all("update", shared, step)[0]
        return metrics

    def publish(self, version: int) -> WeightsRef:
        """Put the current weights where every actor can fetch them."""
        weights: WeightsRef = self._all("export_weights", version)[0]
        return weights

    def export_policy(self, folder: Path) -> None:
        self._all("export_policy", str(folder))

    def save(self, folder: Path) -> None:
        self._all("save", str(folder))

    def restore(self, folder: Path, phase: Phase, warm_start: Path) -> None:
        self._all("restore", str(folder), phase, str(warm_start))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(rank, method).remote(*arguments) for rank in self._ranks]
        return gather(calls, method, self._timeout_s)

    # What RLlib's Algorithm asks of a learner group

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def is_local(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self._ranks)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing passes through the driver: checkpoints are folders, weights are published."""
        return {"learner": {}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set; see `restore`."""

    def shutdown(self) -> None:
        """End the ranks; those still in a collective call too."""
        for rank in self._ranks:
            ray.kill(rank)
        self._is_shut_down = True


def gather(calls: Sequence[ray.ObjectRef], what: str, timeout_s: float) -> list[Any]:
    """The answers of all ranks to `calls` (one a rank, in order of rank).

    Raises LearnerError when a rank fails, or when some have not answered within `timeout_s`; a rank's UserError is
    raised as it is.
    """
    rank_of = {call: rank for rank, call in enumerate(calls)}
    pending = list(calls)
    deadline = time.monotonic() + timeout_s
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = ", ".join(str(rank_of[call]) for call in pending)
            raise LearnerError(f"{what}: no answer from learner rank {missing} within {timeout_s:g} s")
        try:
            ray.get(ready[0])
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise LearnerError(f"{what}: learner rank {rank_of[ready[0]]} failed: {error.cause!r}") from error
        except RayError as error:
            raise LearnerError(f"{what}: learner rank {rank_of[ready[0]]} died: {error}") from error
    answers: list[Any] = ray.get(list(calls))
    return answers


def _environment(config: Config) -> dict[str, str]:
    from learner.environment import process_environment

    return process_environment(config.learner)
