"""Dynamic batching: requests of many callers share the scorer's thread, a batch at a time.

Contract: an item is a pair to score or to explain, or a text to label; a batch has one kind of them, and the scorer
does one thing at a time. Every item of a request is done once and its outcome comes in order. A batch takes a slice of
each waiting request in turn, so a small request does not wait for a big one to end. An item that the scorer fails on,
or a pair scored with a value that is not finite, has an error as its outcome; the others of its batch have theirs. What
waits is bounded in items and in characters; more is refused at once. Work of callers that went away is dropped, and
takes no room. A scorer that fails on everything, as with a GPU that is lost, is not asked again: that is no fault of
the items.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from reward_server.errors import PairError
from reward_server.explanation import Explained
from reward_server.metrics import Metrics
from reward_server.pairs import Answer, Labelled, Score, explain_each, label_each, score_each
from reward_server.scorer import Pair, Scorer

_LOG = logging.getLogger(__name__)

I = TypeVar("I", bound=Pair | str)  # noqa: E741
A = TypeVar("A")
_Work = Callable[[Sequence[I]], list[A | PairError]]


class QueueFullError(Exception):
    """More waits than the queue may hold."""


class StoppingError(Exception):
    """The batcher was closed before the request was scored."""


class BrokenError(Exception):
    """The scorer fails on everything."""


@dataclass(eq=False)
class _Job(Generic[I, A]):
    """`work` is what the scorer's thread does with slices of `items`."""

    work: _Work[I, A]
    items: Sequence[I]
    done: asyncio.Future[list[A | PairError]]
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    outcomes: list[A | PairError] = field(default_factory=list)

    def take(self, most: int) -> Sequence[I]:
        part = self.items[self.taken : self.taken + most]
        self.taken += len(part)
        return part

    @property
    def left(self) -> Sequence[I]:
        return self.items[self.taken :]


_Batch = list[tuple[_Job[Any, Any], Sequence[Any]]]  # slices of jobs with the same work


class Batcher:
    """Runs a scorer in one thread of its own; call its methods from one event loop."""

    def __init__(
        self,
        scorer: Scorer,
        metrics: Metrics,
        *,
        window_s: float = 0.002,
        max_batch: int = 64,
        max_slice: int = 16,
        max_waiting: int = 8192,
        max_waiting_characters: int = 64 * 2**20,
        on_broken: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_broken` is called once, in the event loop, when the scorer turns out to fail on everything."""
        self._scorer, self._metrics, self._on_broken = scorer, metrics, on_broken
        self._window_s = window_s
        self._max_batch, self._max_slice = max_batch, max_slice
        self._max_waiting, self._max_characters = max_waiting, max_waiting_characters
        self._jobs: deque[_Job[Any, Any]] = deque()
        self._in_hand: list[_Job[Any, Any]] = []
        self._closed: StoppingError | BrokenError | None = None
        self._waiting, self._characters = 0, 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the batching task in the running event loop."""
        self._loop_task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends all that still waits with StoppingError and lets the scorer finish its batch."""
        self._closed = self._closed or StoppingError("the server is stopping")
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._end_all(self._closed)
        await asyncio.to_thread(self._thread.shutdown)

    async def score(self, pairs: Sequence[Pair]) -> list[Answer]:
        """The outcome of all pairs, in order. Raises QueueFullError, StoppingError or BrokenError."""
        return await self._queue(self._score, pairs)

    async def explain(self, pairs: Sequence[Pair]) -> list[Explained]:
        """The explanation of all pairs; waits, is bounded and fails like `score`."""
        return await self._queue(self._explain, pairs)

    async def label(self, texts: Sequence[str]) -> list[Labelled]:
        """The labels of all texts; waits, is bounded and fails like `score`."""
        return await self._queue(self._label, texts)

    async def _queue(self, work: _Work[I, A], items: Sequence[I]) -> list[A | PairError]:
        if self._closed:
            raise self._closed
        if not items:
            return []
        characters = _characters(items)
        # A request may be larger than the whole queue; alone it is taken.
        if self._waiting and (
            self._waiting + len(items) > self._max_waiting or self._characters + characters > self._max_characters
        ):
            raise QueueFullError(f"{self._waiting} pairs wait; try again later, or ask another server")
        job: _Job[I, A] = _Job(work, items, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._count(len(items), characters)
        self._arrived.set()
        try:
            return await job.done
        except asyncio.CancelledError:  # the caller went away
            if job in self._jobs:  # else no part of it waits
                self._jobs.remove(job)
                self._drop(job)
            raise

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self._waiting < self._max_batch:
                await asyncio.sleep(self._window_s)
            batch = self._next_batch()
            if not self._jobs:
                self._arrived.clear()
            if not batch:
                continue
            try:
                await self._work_on(batch)
            except Exception as error:
                # Whatever it is: without this loop every caller would wait for its deadline. Only its kind is told.
                broken = error if isinstance(error, BrokenError) else BrokenError(f"the server: {type(error).__name__}")
                _LOG.error("%s", broken)
                self._closed = broken
                self._end_all(broken)
                self._on_broken()
                return

    def _next_batch(self) -> _Batch:
        """Slices of the waiting jobs in turn, up to `max_batch` items; a job with more left queues up again.

        The first job says what work it is; those with other work keep their places.
        """
        batch: _Batch = []
        room = self._max_batch
        while room and (job := self._next_job(batch)) is not None:
            self._jobs.remove(job)
            if job.done.done():  # its caller went away in this moment
                self._drop(job)
                continue
            if not job.taken:
                self._metrics.queue_seconds.observe(time.monotonic() - job.arrived)
            part = job.take(min(room, self._max_slice))
            batch.append((job, part))
            room -= len(part)
            self._count(-len(part), -_characters(part))
            if job.left:
                self._jobs.append(job)
        return batch

    def _next_job(self, batch: _Batch) -> _Job[Any, Any] | None:
        return next((job for job in self._jobs if not batch or job.work == batch[0][0].work), None)

    async def _work_on(self, batch: _Batch) -> None:
        self._in_hand = [job for job, _ in batch]
        work = self._in_hand[0].work
        items = [item for _, part in batch for item in part]
        outcomes = iter(await asyncio.get_running_loop().run_in_executor(self._thread, work, items))
        for job, part in batch:
            job.outcomes += [next(outcomes) for _ in part]
            if len(job.outcomes) == len(job.items) and not job.done.done():
                job.done.set_result(job.outcomes)

    def _score(self, pairs: Sequence[Pair]) -> list[Answer]:
        """Runs in the scorer's thread. Raises BrokenError."""
        outcomes = score_each(self._timed, pairs)
        self._check_scorer(outcomes)
        return outcomes

    def _explain(self, pairs: Sequence[Pair]) -> list[Explained]:
        """Runs in the scorer's thread. Raises BrokenError. A scorer that can't explain fails on the pairs alone."""
        outcomes = explain_each(lambda part: self._scorer.explain(part), pairs)
        self._check_scorer(outcomes)
        return outcomes

    def _label(self, texts: Sequence[str]) -> list[Labelled]:
        """Runs in the scorer's thread. Raises BrokenError."""
        outcomes = label_each(lambda part: self._scorer.label(part), texts)
        self._check_scorer(outcomes)
        return outcomes

    def _check_scorer(self, outcomes: Sequence[object]) -> None:
        if all(isinstance(outcome, PairError) for outcome in outcomes):
            # Is it they or the scorer? The time makes a report that no cache holds.
            report = f"No pneumothorax. {time.time_ns()}"
            try:
                self._scorer.score([(report, report)])
            except Exception as error:
                raise BrokenError(f"the backend fails on every pair: {type(error).__name__}") from error

    def _timed(self, pairs: Sequence[Pair]) -> list[Score]:
        started = time.monotonic()
        scores = self._scorer.score(pairs)
        self._metrics.batch_pairs.observe(len(pairs))
        self._metrics.score_seconds.observe(time.monotonic() - started)
        return scores

    def _drop(self, job: _Job[Any, Any]) -> None:
        self._metrics.dropped.inc(len(job.left))
        self._count(-len(job.left), -_characters(job.left))

    def _end_all(self, error: Exception) -> None:
        for job in (*self._jobs, *self._in_hand):
            if not job.done.done():
                job.done.set_exception(error)

    def _count(self, items: int, characters: int) -> None:
        self._waiting += items
        self._characters += characters
        self._metrics.waiting.set(self._waiting)


def _characters(items: Sequence[Pair | str]) -> int:
    return sum(len(item) if isinstance(item, str) else len(item[0]) + len(item[1]) for item in items)
