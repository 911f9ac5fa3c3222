"""The rollout actors as the driver sees them: steps go in, batches of trajectories come out.

Contract: the driver's thread does all of it, in `poll`. A step's batch is in the order of its studies, whichever actors
served it and however often some were replaced; which step may start when is decided by `learner.pipeline`. With
`rollout.max_staleness` = 0 every request keeps to its weights; above that requests are live, and the actors are offered
new weights as soon as there are any. Every wait ends with a ProcessError that says what was waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from configs.schema import Config
from learner.fleet import Fleet
from learner.pipeline import EVALUATION, Limits, Pipeline, Work, deal, startable

# Studies of one request when reports are written for evaluation.
GENERATE_CHUNK = 128
# What one look at the actors waits for answers.
_POLL_S = 0.05

Batches = Mapping[int, Sequence[Trajectory]]
Answer = tuple[list[Trajectory], dict[str, float]]


@dataclass(frozen=True)
class Batch:
    """What a step learns from; the most that one of its requests waited for rewards and for weights (s)."""

    trajectories: list[Trajectory]
    reward_wait_s: float
    sync_s: float


def slots(cfg: Config) -> int:
    """Requests at one actor at once: with two, reports of one are written while rewards of the other are awaited."""
    return 1 if cfg.rollout.max_staleness == 0 else 2


class Rollouts:
    """Drives `group` (RLlib's `EnvRunnerGroup`); `studies_of` gives the studies of a step.

    `scale`: the run's `actors.scale.RolloutScale`; None where the number of actors is fixed. `restored` are
    trajectories of steps to come that a checkpoint brought: their studies are not asked for again. `after_loss` is
    called whenever an actor was lost with work, and may raise: what it died of may be the end of the run.
    """

    def __init__(
        self,
        group: Any,
        cfg: Config,
        studies_of: Callable[[int], Sequence[str]],
        *,
        first: int,
        restored: Batches,
        scale: Any = None,
        after_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._after_loss = after_loss
        self._group, self._cfg, self._studies_of = group, cfg, studies_of
        self._fleet = Fleet(group, cfg.rollout.num_actors, scale)
        self._started = first
        self._restored = {step: list(trajectories) for step, trajectories in restored.items()}
        rollout = cfg.rollout
        # An actor that waits for scores is not late: it gives them up by itself.
        timeout_s = rollout.timeout_s + cfg.reward.timeout_s
        self._pipeline: Pipeline[Answer] = Pipeline(Limits(slots(cfg), timeout_s, rollout.start_timeout_s))
        self._requests: dict[Work, SampleRequest] = {}
        self._weights: WeightsRef | None = None
        self._going_on = False  # before, there are evaluations alone, and maybe nothing else will come
        self._busy: dict[int, dict[str, float]] = {}

    def publish(self, weights: WeightsRef) -> None:
        """Samples with these weights from now on. Once RL goes on, steps that may start with them do."""
        self._weights = weights
        if self._live and self._going_on:
            self._group.foreach_env_runner_async("offer", tag="offer", kwargs={"weights": weights})
            self._start_steps(weights.version)

    def batch(self, step: int) -> Batch:
        """The trajectories of the step that is learnt next, those of a study in a row; waits for them."""
        self._going_on = True
        self._start_steps(step)
        answers = self._wait(step)
        trajectories = self._restored.pop(step, []) + [one for samples, _ in answers for one in samples]
        place = {study: index for index, study in enumerate(self._studies_of(step))}
        return Batch(
            sorted(trajectories, key=lambda one: place[one.study_id]),
            reward_wait_s=max((metrics["reward_wait_s"] for _, metrics in answers), default=0.0),
            sync_s=max((metrics["sync_s"] for _, metrics in answers), default=0.0),
        )

    def generate(self, study_ids: Sequence[str], *, evidence: bool) -> list[Trajectory]:
        """The greedy report of every study by the newest weights, in order, without scores; before waiting rollouts."""
        chunks = [study_ids[i : i + GENERATE_CHUNK] for i in range(0, len(study_ids), GENERATE_CHUNK)]
        self._add(EVALUATION, [self._evaluation(chunk, evidence) for chunk in chunks])
        return [one for samples, _ in self._wait(EVALUATION) for one in samples]

    @property
    def under_way(self) -> bool:
        """Whether `poll` has anything to look after."""
        return self._pipeline.under_way

    def poll(self) -> None:
        """Gives out work, takes answers, brings back actors that died; returns within a moment."""
        fleet = self._fleet
        fleet.follow(self._pipeline.busy)
        self._take_back()
        for runner, work in self._pipeline.assign(fleet.healthy, time.monotonic(), fleet.leaving):
            self._send(runner, work)
        if self._live:
            self._group.fetch_ready_async_reqs(tags="offer", timeout_seconds=0.0)
        answers = self._group.fetch_ready_async_reqs(tags="sample", timeout_seconds=_POLL_S)
        for runner, (work, answer) in answers:
            self._pipeline.finish(runner, work, answer)
            del self._requests[work]
            if work.step != EVALUATION:  # a validation is no part of the steps around it
                self._count(runner, answer[1])
        self.restore()
        self._pipeline.check(time.monotonic())

    def restore(self) -> list[int]:
        """Looks whether actors that died are back. They need no state: weights come with every request."""
        # Their work first: of an actor that is back it would look as if it still were there.
        self._take_back()
        return self._fleet.restore()

    def _take_back(self) -> None:
        if self._pipeline.take_back(self._fleet.healthy):
            self._after_loss()

    def finished(self) -> dict[int, list[Trajectory]]:
        """Trajectories by step that nothing has been learnt from yet: what a checkpoint takes along.

        A study with one that has failed is left out: it is asked for again, when the reward servers may be back.
        """
        found = {step: list(trajectories) for step, trajectories in self._restored.items()}
        for work, (trajectories, _) in self._pipeline.finished().items():
            found.setdefault(work.step, []).extend(trajectories)
        return {step: _of_whole_studies(trajectories) for step, trajectories in found.items()}

    def busy_shares(self, wall_s: float) -> dict[str, float]:
        """Mean share of `wall_s` in which an actor's engine worked, and the largest in which an actor had scores
        outstanding, by the answers since the last call. A request of a step counts when it is answered."""
        actors = self._busy.values()
        engine = sum(one["busy_s"] for one in actors) / self._fleet.wanted
        reward = max((one["reward_busy_s"] for one in actors), default=0.0)
        self._busy = {}
        return {name: min(1.0, busy / wall_s) for name, busy in (("rollout", engine), ("reward", reward))}

    @property
    def _live(self) -> bool:
        return self._cfg.rollout.max_staleness > 0

    def _start_steps(self, version: int) -> None:
        rollout = self._cfg.rollout
        for step in startable(self._started, version, rollout.max_staleness, self._cfg.learner.rl.steps):
            self._started = step + 1
            there = {trajectory.study_id for trajectory in self._restored.get(step, ())}
            wanted = [study for study in self._studies_of(step) if study not in there]
            self._add(step, [self._request(step, part) for part in deal(wanted, self._fleet.wanted)])

    def _request(self, step: int, studies: Sequence[str]) -> SampleRequest:
        assert self._weights is not None, "publish comes first"
        return SampleRequest(
            step=step,
            seed=self._cfg.seed,
            study_ids=tuple(studies),
            samples_per_study=self._cfg.rollout.samples_per_study,
            weights=self._weights,
            greedy_baseline=self._cfg.learner.rl.advantage == "scst",
            live=self._live,
        )

    def _evaluation(self, studies: Sequence[str], evidence: bool) -> SampleRequest:
        return replace(
            self._request(EVALUATION, studies),
            samples_per_study=1,
            greedy=True,
            greedy_baseline=False,
            score=False,
            evidence=evidence,
            live=False,
        )

    def _add(self, step: int, requests: Sequence[SampleRequest]) -> None:
        self._requests |= zip(self._pipeline.add(step, len(requests)), requests, strict=True)

    def _wait(self, step: int) -> list[Answer]:
        while not self._pipeline.complete(step):
            self.poll()
        return self._pipeline.take(step)

    def _send(self, runner: int, work: Work) -> None:
        # Waiting work begins with the weights of now: older ones would only add to its staleness.
        assert self._weights is not None
        request = replace(self._requests[work], weights=self._weights)
        sent = self._group.foreach_env_runner_async(
            _sample, tag="sample", kwargs={"work": work, "request": request}, remote_worker_ids=[runner]
        )
        assert sent == 1, f"RLlib did not pass {work} on to rollout actor {runner}"

    def _count(self, runner: int, metrics: Mapping[str, float]) -> None:
        busy = self._busy.setdefault(runner, {"busy_s": 0.0, "reward_busy_s": 0.0})
        for name in busy:
            busy[name] += metrics[name]


def _of_whole_studies(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    failed = {one.study_id for one in trajectories if one.failed is not None}
    return [one for one in trajectories if one.study_id not in failed]


async def _sample(runner: Any, *, work: Work, request: SampleRequest) -> tuple[Work, Answer]:
    """Runs in the actor: of two requests at one actor RLlib does not tell which was answered."""
    return work, await runner.sample_and_metrics(request=request)
