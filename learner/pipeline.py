"""When a step's rollouts may start, and which actor does which piece of them: plain bookkeeping, without Ray.

Contract: step s starts when at most `max_staleness` updates lie between its weights and the update that learns from it,
so no trajectory begins more than `max_staleness` versions before that update, and none is ever dropped for its age
(dropping would favour short reports). With 0 a step starts when the one before has been learnt from.
Work is done exactly once: what was at a runner that is lost goes back to the front of the queue, an answer is taken
from the runner that has the work. A piece goes to an actor whole: which samples share a batch must not depend on who
is healthy. Evaluations go before the rollouts that still wait.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rrg.errors import ProcessError

Answer = TypeVar("Answer")

# The `step` of work that belongs to no RL step: reports for an evaluation.
EVALUATION = -1
# Work that was lost so often points at a cause that a new actor does not mend.
MAX_ATTEMPTS = 3


@dataclass(frozen=True, order=True)
class Work:
    """Part `part` of the rollouts of RL step `step`."""

    step: int
    part: int


@dataclass(frozen=True)
class Limits:
    """`slots`: pieces at one actor at once; `timeout_s` for one piece, `start_timeout_s` for an actor to come back."""

    slots: int
    timeout_s: float
    start_timeout_s: float


@dataclass(frozen=True)
class _Place:
    runner: int
    deadline: float


def startable(started: int, version: int, max_staleness: int, steps: int) -> range:
    """The steps that may start now, when those before `started` have and the weights are of `version` (the number of
    updates so far)."""
    return range(started, max(started, min(steps, version + max_staleness + 1)))


class Pipeline(Generic[Answer]):
    """Work on its way from the queue over a runner to its answer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Work] = deque()
        self._places: dict[Work, _Place] = {}  # in order of assignment
        self._attempts: dict[Work, int] = {}
        self._answers: dict[Work, Answer] = {}
        self._parts: dict[int, int] = {}
        self._no_runner_since: float | None = None

    def add(self, step: int, parts: int) -> list[Work]:
        """Queues the `parts` pieces of a step; those of an evaluation at the front."""
        assert step not in self._parts, f"step {step} is under way"
        self._parts[step] = parts
        work = [Work(step, part) for part in range(parts)]
        if step == EVALUATION:
            self._waiting.extendleft(reversed(work))
        else:
            self._waiting.extend(work)
        return work

    def assign(self, runners: Collection[int], now: float, leaving: Collection[int] = ()) -> list[tuple[int, Work]]:
        """Who is to do what next, given the runners that are healthy; work at any other is taken back first. Those that
        are `leaving` get no more.

        Raises ProcessError for work that was lost `MAX_ATTEMPTS` times.
        """
        self.take_back(runners)
        if runners or not self._waiting:
            self._no_runner_since = None
        elif self._no_runner_since is None:
            self._no_runner_since = now
        at = Counter(place.runner for place in self._places.values())
        load = {runner: at[runner] for runner in sorted(runners) if runner not in leaving}
        assigned: list[tuple[int, Work]] = []
        while self._waiting and load:
            runner = min(load, key=lambda one: (load[one], one))
            if load[runner] >= self._limits.slots:
                break
            work = self._waiting.popleft()
            self._attempts[work] = self._attempts.get(work, 0) + 1
            if self._attempts[work] > MAX_ATTEMPTS:
                raise ProcessError(f"{work} was lost {MAX_ATTEMPTS} times, with the rollout actors that had it")
            load[runner] += 1
            # The runner does its pieces one after the other: this one may wait for those before.
            self._places[work] = _Place(runner, now + self._limits.timeout_s * load[runner])
            assigned.append((runner, work))
        return assigned

    def take_back(self, runners: Collection[int]) -> list[Work]:
        """Puts the work of all other runners back to the front of the queue; returns it."""
        lost = [work for work, place in self._places.items() if place.runner not in runners]
        for work in lost:
            del self._places[work]
        self._waiting.extendleft(reversed(lost))
        return lost

    def finish(self, runner: int, work: Work, answer: Answer) -> None:
        """Takes the answer of the runner that has the work."""
        assert self._places[work].runner == runner, f"{work} is not at runner {runner}"
        del self._places[work], self._attempts[work]
        self._answers[work] = answer

    def complete(self, step: int) -> bool:
        """Whether all of a step's work is done."""
        return step in self._parts and all(work in self._answers for work in self._work_of(step))

    def take(self, step: int) -> list[Answer]:
        """The answers of a complete step by part, which leave the pipeline."""
        answers = [self._answers.pop(work) for work in self._work_of(step)]
        del self._parts[step]
        return answers

    def finished(self) -> dict[Work, Answer]:
        """Answers of RL steps that have not been taken yet."""
        return {work: self._answers[work] for work in sorted(self._answers) if work.step != EVALUATION}

    @property
    def under_way(self) -> bool:
        """Whether there is work at a runner or waiting for one."""
        return bool(self._places or self._waiting)

    @property
    def busy(self) -> set[int]:
        """The runners that have work."""
        return {place.runner for place in self._places.values()}

    def check(self, now: float) -> None:
        """Raises ProcessError for work that takes too long, and where no runner comes back."""
        places = self._places.items()
        late = [f"{work} at rollout actor {place.runner}" for work, place in places if now > place.deadline]
        if late:
            raise ProcessError(
                f"waited {self._limits.timeout_s:g} s (rollout.timeout_s + reward.timeout_s) for {', '.join(late)}"
            )
        if self._no_runner_since is not None and now > self._no_runner_since + self._limits.start_timeout_s:
            raise ProcessError(
                f"waited {self._limits.start_timeout_s:g} s (rollout.start_timeout_s) for a rollout actor to come back"
            )

    def _work_of(self, step: int) -> Iterable[Work]:
        return (Work(step, part) for part in range(self._parts[step]))


def deal(studies: Sequence[str], parts: int) -> list[Sequence[str]]:
    """Splits into at most `parts` equal shares, each with its part of the abnormal studies that come first."""
    return [studies[part::parts] for part in range(min(parts, len(studies)))]
