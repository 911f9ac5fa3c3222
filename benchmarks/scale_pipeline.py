"""A run of a config, simulated: rollout actors, reward workers and the learner over a number of RL steps.

Contract: `simulate(cfg, costs)` does what `learner.algorithm`, `learner.rollouts`, `actors.runner` and
`reward_server.batching` do, in simulated time. Which step may start, how its studies are dealt, how many requests an
actor has and who is given which are those modules' own functions. A request is written under continuous batching; the
reward of a study is asked for when its last report ends; clients take the reward workers in turns. Where steps overlap,
new weights are taken over in mid-request: here when a study's last report ends, in a run at the next token.
Not simulated: validations, checkpoints, failures, and the driver's own work.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.scale_clock import Clock, Event, Mailbox, Process
from configs.schema import Config
from learner.pipeline import Limits, Pipeline, Work, deal, startable
from learner.rollouts import slots
from rrg.data.regions import REGIONS

ROLES: Final = ("rollout", "learner", "reward")
_BATCH: Final = 64  # pairs, as reward_server.batching.Batcher

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """What each role's work takes (s) on free cores, and how many it can use (`*_threads`).

    Lengths of reports are log-normal and cut at rollout.max_new_tokens. An iteration of the engine with a sequences
    takes `iteration_s` + max(`weights_s`, a * `sequence_s`) + a * `cache_s`. A pair takes the reward worker
    `pair_sleep_s`, in which no core is needed, and `pair_s`. An update takes `update_s`, and `update_token_s` for each
    token of the rank that has the most.
    """

    prompt_tokens: float
    report_tokens: float
    report_sigma: float = 0.5
    sequences: int = 256
    iteration_s: float = 0.0
    weights_s: float = 0.0
    sequence_s: float = 0.0
    cache_s: float = 0.0
    prefill_token_s: float = 0.0
    pair_sleep_s: float = 0.0
    pair_s: float = 0.0
    update_s: float = 0.0
    update_token_s: float = 0.0
    publish_s: float = 0.0
    sync_s: float = 0.0
    rollout_threads: float = 1.0
    reward_threads: float = 1.0
    learner_threads: float = 1.0
    cores: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """Of the steps after the first ones. Staleness: versions between a token's weights and those of its update;
    `stalest`: the most by which a report's first weights lay behind."""

    step_s: float
    samples_per_s: float
    idle: dict[str, float]
    staleness: float
    stalest: int
    learnt: int


@dataclass(eq=False)
class _Request:
    """`version`: of the weights that it begins with; `unscored`: studies; `tokens`: by the version that gave them."""

    runner: int
    work: Work
    studies: int
    version: int
    unscored: int
    tokens: dict[int, int] = field(default_factory=dict)


class _Reports:
    """The reports of some studies, from what is left of each to their ends, under continuous batching."""

    def __init__(self, left: Ints, read: float, costs: Costs) -> None:
        """`left` [studies, samples]: tokens still to come; `read`: tokens that come before the first iteration."""
        self._left = left
        self._starts = _starts(left.ravel(), costs.sequences).reshape(left.shape)
        self._ends = self._starts + left
        changes = np.zeros(self._ends.max(initial=0) + 1, np.int64)
        np.add.at(changes, self._starts.ravel(), 1)
        np.subtract.at(changes, self._ends.ravel(), 1)
        active = np.cumsum(changes)[:-1]
        iteration = costs.iteration_s + np.maximum(costs.weights_s, active * costs.sequence_s) + active * costs.cache_s
        self._times: Floats = read * costs.prefill_token_s + np.concatenate([[0.0], np.cumsum(iteration)])

    @cached_property
    def finishes(self) -> list[tuple[float, int, int]]:
        """When each study's last report ends, in which iteration, and which study: in order."""
        last = self._ends.max(axis=1)
        return sorted((float(self._times[end]), int(end), study) for study, end in enumerate(last))

    def written(self, iteration: int) -> Ints:
        """Tokens of every report so far."""
        return np.clip(iteration - self._starts, 0, self._left)


def _starts(lengths: Ints, most: int) -> Ints:
    """The iteration in which each sequence starts when at most so many run and the next one takes a free place."""
    starts = np.zeros(len(lengths), np.int64)
    free = sorted(lengths[:most].tolist())
    for i, length in enumerate(lengths[most:].tolist(), start=most):
        starts[i] = free[0]
        heapq.heapreplace(free, free[0] + length)
    return starts


def visual_tokens(cfg: Config) -> int:
    """Of a prompt: one a region, and the global ones."""
    return (len(REGIONS) if cfg.model.regions else 0) + cfg.model.global_tokens


def simulate(cfg: Config, costs: Costs, *, steps: int = 8, warm_up: int = 3, seed: int = 0) -> Outcome:
    """`steps` RL steps of the config; those after `warm_up` count."""
    assert 0 < warm_up < steps
    run = _Run(cfg, costs, steps, seed)
    run.simulate()
    wall = run.ends[-1] - run.ends[warm_up - 1]
    counts = {"rollout": cfg.rollout.num_actors, "learner": 1, "reward": cfg.reward.num_workers}
    busy = {role: (run.busy_at[-1][role] - run.busy_at[warm_up - 1][role]) / wall / counts[role] for role in ROLES}
    ages = run.ages[warm_up:]
    return Outcome(
        step_s=wall / (steps - warm_up),
        samples_per_s=run.samples * (steps - warm_up) / wall,
        idle={role: max(0.0, 1.0 - share) for role, share in busy.items()},
        staleness=float(np.mean([mean for mean, _ in ages])),
        stalest=max(most for _, most in ages),
        learnt=run.learnt,
    )


class _Run:
    """`ends`: of every step; `busy_at`: seconds of each role's members together until then; `ages`: of every step's
    tokens the mean, and the most of a report's first weights."""

    def __init__(self, cfg: Config, costs: Costs, steps: int, seed: int) -> None:
        self._cfg, self._costs, self._steps, self._seed = cfg, costs, steps, seed
        self._clock = Clock(costs.cores)
        self._pipeline: Pipeline[_Request] = Pipeline(Limits(slots(cfg), math.inf, math.inf))
        self._live = cfg.rollout.max_staleness > 0
        self._version, self._started = 0, 0
        self._studies: dict[Work, int] = {}
        self._answered = self._clock.event()
        self._inboxes = [Mailbox[_Request](self._clock) for _ in range(cfg.rollout.num_actors)]
        self._queues = [Mailbox[_Request](self._clock) for _ in range(cfg.reward.num_workers)]
        self._busy = dict.fromkeys(ROLES, 0.0)
        self.samples = cfg.learner.rl.studies_per_step * cfg.rollout.samples_per_study
        self.learnt = 0
        self.ends: list[float] = []
        self.busy_at: list[dict[str, float]] = []
        self.ages: list[tuple[float, int]] = []

    def simulate(self) -> None:
        finished = self._clock.event()
        for runner in range(len(self._inboxes)):
            self._clock.start(self._actor(runner))
        for queue in self._queues:
            self._clock.start(self._reward_worker(queue))
        self._clock.start(self._driver(finished))
        self._clock.run(finished)

    def _driver(self, finished: Event) -> Process:
        costs = self._costs
        for step in range(self._steps):
            self._start_steps(step)
            while not self._pipeline.complete(step):
                self._answered = self._clock.event()
                yield self._answered
            requests = self._pipeline.take(step)
            self.ages.append(_age(requests, step))
            tokens = sum(sum(request.tokens.values()) for request in requests)
            update_s = costs.update_s + costs.update_token_s * self._largest_share(tokens)
            yield from self._work("learner", update_s + costs.publish_s, costs.learner_threads)
            self.learnt += sum(request.studies for request in requests) * self._cfg.rollout.samples_per_study
            self._version = step + 1
            if self._live:
                self._start_steps(self._version)
            self.ends.append(self._clock.now)
            self.busy_at.append(dict(self._busy))
        finished.happen()

    def _start_steps(self, version: int) -> None:
        for step in startable(self._started, version, self._cfg.rollout.max_staleness, self._steps):
            self._started = step + 1
            studies = [str(index) for index in range(self._cfg.learner.rl.studies_per_step)]
            parts = deal(studies, self._cfg.rollout.num_actors)
            self._studies |= zip(self._pipeline.add(step, len(parts)), map(len, parts), strict=True)
        self._assign()

    def _assign(self) -> None:
        if not self._studies:  # nothing waits
            return
        for runner, work in self._pipeline.assign(range(len(self._inboxes)), self._clock.now):
            studies = self._studies.pop(work)
            self._inboxes[runner].put(_Request(runner, work, studies, self._version, studies))

    def _actor(self, runner: int) -> Process:
        """The engine's thread: request after request, without waiting for their rewards."""
        served = -1
        turn = runner
        while True:
            request = yield from self._inboxes[runner].take()
            request.version = self._version if self._live else request.version
            left = self._lengths(request)
            read = request.studies * self._costs.prompt_tokens
            newest = request.version
            while left.size:
                if served != newest:
                    served = newest
                    yield from self._work("rollout", self._costs.sync_s, self._costs.rollout_threads)
                reports = _Reports(left, read, self._costs)
                now, iteration, done = 0.0, 0, 0
                while done < len(left) and not (self._live and self._version > served and done):
                    finish, iteration, _ = reports.finishes[done]
                    yield from self._work("rollout", finish - now, self._costs.rollout_threads)
                    self._queues[turn % len(self._queues)].put(request)
                    now, done, turn = finish, done + 1, turn + 1
                written = reports.written(iteration)
                request.tokens[served] = request.tokens.get(served, 0) + int(written.sum())
                on = [study for _, _, study in reports.finishes[done:]]
                left = (left - written)[on]
                read = len(on) * self._costs.prompt_tokens + float(written[on].sum())
                newest = self._version if self._live else newest

    def _reward_worker(self, queue: Mailbox[_Request]) -> Process:
        """A batch at a time. An item is the reports of one study."""
        pairs, costs = self._cfg.rollout.samples_per_study, self._costs
        while True:
            batch = [(yield from queue.take())]
            while queue.items and (len(batch) + 1) * pairs <= _BATCH:
                batch.append(queue.items.popleft())
            started = self._clock.now
            if costs.pair_sleep_s:
                yield self._clock.sleep(costs.pair_sleep_s * pairs * len(batch))
            yield self._clock.compute(costs.pair_s * pairs * len(batch), costs.reward_threads)
            self._busy["reward"] += self._clock.now - started
            for request in batch:
                request.unscored -= 1
                if not request.unscored:
                    self._answer(request)

    def _answer(self, request: _Request) -> None:
        """All reports are written and scored."""
        self._pipeline.finish(request.runner, request.work, request)
        self._assign()
        self._answered.happen()

    def _work(self, role: str, seconds: float, threads: float) -> Process:
        started = self._clock.now
        yield self._clock.compute(seconds, threads)
        self._busy[role] += self._clock.now - started

    def _lengths(self, request: _Request) -> Ints:
        """The lengths of a request's reports [studies, samples]: those of a step and part, whoever writes them."""
        costs = self._costs
        rng = np.random.default_rng((self._seed, request.work.step, request.work.part))
        mean = math.log(costs.report_tokens) - costs.report_sigma**2 / 2
        drawn = rng.lognormal(mean, costs.report_sigma, (request.studies, self._cfg.rollout.samples_per_study))
        return np.clip(np.rint(drawn), 1, self._cfg.rollout.max_new_tokens).astype(np.int64)

    def _largest_share(self, tokens: int) -> float:
        """Tokens of the rank that has the most, as `learner.batching.study_rounds` deals them: studies whole, if they
        are no more than a rank's even share."""
        rl, ranks = self._cfg.learner.rl, self._cfg.learner.num_ranks
        samples = self._cfg.rollout.samples_per_study
        together = min(samples, -(-self.samples // (rl.minibatches * ranks)))
        pieces = rl.studies_per_step * -(-samples // together)
        rounds = -(-pieces // (rl.minibatches * ranks)) * rl.minibatches
        return rounds * (self._costs.prompt_tokens + tokens / pieces)


def _age(requests: Sequence[_Request], step: int) -> tuple[float, int]:
    """The mean age of their tokens in versions, and the most that the weights lay behind with which one began."""
    tokens = [(step - version, count) for request in requests for version, count in request.tokens.items()]
    ages, counts = np.transpose(tokens)
    return float(np.average(ages, weights=counts)), max(step - request.version for request in requests)
