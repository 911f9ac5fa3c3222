"""Dynamic batching: requests of many callers share the scorer's thread, a batch at a time.

Contract: every pair of a request is scored once and its outcome comes in order. A batch takes a slice of each waiting
request in turn, so a small request does not wait for a big one to end. A pair that the scorer fails on, or scores with
a value that is not finite, has an error as its outcome; the other pairs of its batch have their scores. What waits is
bounded in pairs and in characters; more is refused at once. Work of callers that went away is dropped, and takes no
room. A scorer that fails on everything, as with a GPU that is lost, is not asked again: that is no fault of the pairs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from reward_server.errors import PairError
from reward_server.metrics import Metrics
from reward_server.pairs import Answer, Score, score_each
from reward_server.scorer import Pair, Scorer

_LOG = logging.getLogger(__name__)


class QueueFullError(Exception):
    """More waits than the queue may hold."""


class StoppingError(Exception):
    """The batcher was closed before the request was scored."""


class BrokenError(Exception):
    """The scorer fails on everything."""


@dataclass(eq=False)
class _Job:
    pairs: Sequence[Pair]
    done: asyncio.Future[list[Answer]]
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    outcomes: list[Answer] = field(default_factory=list)

    def take(self, most: int) -> Sequence[Pair]:
        part = self.pairs[self.taken : self.taken + most]
        self.taken += len(part)
        return part

    @property
    def left(self) -> Sequence[Pair]:
        return self.pairs[self.taken :]


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
        self._jobs: deque[_Job] = deque()
        self._in_hand: list[_Job] = []
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
        if self._closed:
            raise self._closed
        if not pairs:
            return []
        characters = _characters(pairs)
        # A request may be larger than the whole queue; alone it is taken.
        if self._waiting and (
            self._waiting + len(pairs) > self._max_waiting or self._characters + characters > self._max_characters
        ):
            raise QueueFullError(f"{self._waiting} pairs wait; try again later, or ask another server")
        job = _Job(pairs, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._count(len(pairs), characters)
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
                await self._score_batch(batch)
            except BrokenError as error:
                _LOG.error("%s", error)
                self._closed = error
                self._end_all(error)
                self._on_broken()
                return

    def _next_batch(self) -> list[tuple[_Job, Sequence[Pair]]]:
        """Slices of the waiting jobs in turn, up to `max_batch` pairs; a job with more left queues up again."""
        batch: list[tuple[_Job, Sequence[Pair]]] = []
        room = self._max_batch
        while self._jobs and room:
            job = self._jobs.popleft()
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

    async def _score_batch(self, batch: Sequence[tuple[_Job, Sequence[Pair]]]) -> None:
        self._in_hand = [job for job, _ in batch]
        pairs = [pair for _, part in batch for pair in part]
        outcomes = iter(await asyncio.get_running_loop().run_in_executor(self._thread, self._score, pairs))
        for job, part in batch:
            job.outcomes += [next(outcomes) for _ in part]
            if len(job.outcomes) == len(job.pairs) and not job.done.done():
                job.done.set_result(job.outcomes)

    def _score(self, pairs: Sequence[Pair]) -> list[Answer]:
        """Runs in the scorer's thread. Raises BrokenError."""
        outcomes = score_each(self._timed, pairs)
        if all(isinstance(outcome, PairError) for outcome in outcomes):
            # Is it they or the scorer? The time makes a report that no cache holds.
            report = f"No pneumothorax. {time.time_ns()}"
            try:
                self._scorer.score([(report, report)])
            except Exception as error:
                raise BrokenError(f"the backend fails on every pair: {type(error).__name__}") from error
        return outcomes

    def _timed(self, pairs: Sequence[Pair]) -> list[Score]:
        started = time.monotonic()
        scores = self._scorer.score(pairs)
        self._metrics.batch_pairs.observe(len(pairs))
        self._metrics.score_seconds.observe(time.monotonic() - started)
        return scores

    def _drop(self, job: _Job) -> None:
        self._metrics.dropped.inc(len(job.left))
        self._count(-len(job.left), -_characters(job.left))

    def _end_all(self, error: Exception) -> None:
        for job in (*self._jobs, *self._in_hand):
            if not job.done.done():
                job.done.set_exception(error)

    def _count(self, pairs: int, characters: int) -> None:
        self._waiting += pairs
        self._characters += characters
        self._metrics.waiting.set(self._waiting)


def _characters(pairs: Sequence[Pair]) -> int:
    return sum(len(reference) + len(hypothesis) for reference, hypothesis in pairs)
