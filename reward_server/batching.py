"""Dynamic batching: requests of many callers share the scorer's thread, a batch at a time.

Contract: every pair of a request is scored once and its answer comes in order. A batch takes a slice of each waiting
request in turn, so a small request does not wait for a big one to end. At most `max_waiting` pairs wait; more are
refused at once. Requests whose callers went away are dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from reward_server.scorer import Pair, Scorer


class QueueFullError(Exception):
    """More pairs wait than the queue may hold."""


class StoppingError(Exception):
    """The batcher was closed before the request was scored."""


class BadScoreError(Exception):
    """A backend gave a value that is not finite."""


@dataclass(eq=False)
class _Job:
    pairs: Sequence[Pair]
    done: asyncio.Future[list[dict[str, float]]]
    taken: int = 0
    scores: list[dict[str, float]] = field(default_factory=list)


class Batcher:
    """Runs a scorer in one thread of its own; call its methods from one event loop."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        window_s: float = 0.002,
        max_batch: int = 64,
        max_slice: int = 16,
        max_waiting: int = 8192,
    ) -> None:
        self._scorer = scorer
        self._window_s = window_s
        self._max_batch, self._max_slice, self._max_waiting = max_batch, max_slice, max_waiting
        self._jobs: deque[_Job] = deque()
        self._in_hand: list[_Job] = []
        self._closed = False
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the batching task in the running event loop."""
        self._loop_task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends all that still waits with StoppingError and lets the scorer finish its batch."""
        self._closed = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for job in (*self._jobs, *self._in_hand):
            if not job.done.done():
                job.done.set_exception(StoppingError("the server is stopping"))
        await asyncio.to_thread(self._thread.shutdown)

    async def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """The scores of all pairs, in order. Raises QueueFullError, StoppingError, or what the scorer raised."""
        if self._closed:
            raise StoppingError("the server is stopping")
        if not pairs:
            return []
        if self._waiting + len(pairs) > self._max_waiting:
            raise QueueFullError(f"{self._waiting} pairs wait and the queue holds {self._max_waiting}")
        job = _Job(pairs, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._waiting += len(pairs)
        self._arrived.set()
        return await job.done

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self._waiting < self._max_batch:
                await asyncio.sleep(self._window_s)
            batch = self._next_batch()
            if not self._jobs:
                self._arrived.clear()
            if batch:
                await self._score_batch(batch)

    def _next_batch(self) -> list[tuple[_Job, Sequence[Pair]]]:
        """Slices of the waiting jobs in turn, up to `max_batch` pairs; a job with more left queues up again."""
        batch: list[tuple[_Job, Sequence[Pair]]] = []
        room = self._max_batch
        while self._jobs and room:
            job = self._jobs.popleft()
            left = len(job.pairs) - job.taken
            if job.done.done():
                self._waiting -= left
                continue
            size = min(left, room, self._max_slice)
            batch.append((job, job.pairs[job.taken : job.taken + size]))
            job.taken += size
            room -= size
            self._waiting -= size
            if size < left:
                self._jobs.append(job)
        return batch

    async def _score_batch(self, batch: Sequence[tuple[_Job, Sequence[Pair]]]) -> None:
        self._in_hand = [job for job, _ in batch]
        pairs = [pair for _, part in batch for pair in part]
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, pairs)
        except Exception as error:
            # The callers of this batch get the error; the server lives on for the others.
            for job, _ in batch:
                if not job.done.done():
                    job.done.set_exception(error)
            return
        answers = iter(scores)
        for job, part in batch:
            job.scores += [next(answers) for _ in part]
            if len(job.scores) == len(job.pairs) and not job.done.done():
                job.done.set_result(job.scores)

    def _score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        scores = self._scorer.score(pairs)
        for components in scores:
            for name, value in components.items():
                if not math.isfinite(value):
                    raise BadScoreError(f"the component {name} of a pair is {value}")
        return scores
