"""The clock of a simulation: processes that wait for each other, sleep, and compute on shared cores.

Contract: a process is a generator that yields what it waits for. `compute(seconds, threads)` takes `seconds` where
nothing else runs. Where more threads run than there are cores, all of them slow down alike (processor sharing: what
Linux does with threads of one priority). Things that happen at the same time happen in the order of their making, so a
simulation gives the same numbers every time. This is why it is no simpy: its resources are queues, and sharing would
have to be written on top of them; the loop itself is the smaller part.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Event:
    """Something that happens once."""

    __slots__ = ("_ready", "_waiting", "done")

    def __init__(self, ready: deque[Process]) -> None:
        self.done = False
        self._ready = ready
        self._waiting: list[Process] = []

    def happen(self) -> None:
        self.done = True
        self._ready.extend(self._waiting)
        self._waiting.clear()

    def wake(self, process: Process) -> None:
        """Goes on with the process once this has happened."""
        (self._ready if self.done else self._waiting).append(process)


Process = Generator[Event, None, None]


class Clock:
    """Time, and `cores` to compute on (without end: nobody slows anybody down)."""

    def __init__(self, cores: float = math.inf) -> None:
        self.now = 0.0
        self._cores = cores
        self._ready: deque[Process] = deque()
        self._order = itertools.count()
        self._sleeping: list[tuple[float, int, Event]] = []
        # Seconds that a task would have had on free cores: the same for all tasks, so the order of their ends is too.
        self._progress = 0.0
        self._computing: list[tuple[float, int, Event, float]] = []
        self._threads = 0.0

    def event(self) -> Event:
        return Event(self._ready)

    def start(self, process: Process) -> None:
        self._ready.append(process)

    def sleep(self, seconds: float) -> Event:
        """Takes no core."""
        event = self.event()
        heapq.heappush(self._sleeping, (self.now + seconds, next(self._order), event))
        return event

    def compute(self, seconds: float, threads: float) -> Event:
        """Takes `threads` cores, or its share of them."""
        event = self.event()
        heapq.heappush(self._computing, (self._progress + seconds, next(self._order), event, threads))
        self._threads += threads
        return event

    def run(self, until: Event) -> None:
        """Lets time pass until this has happened. Raises RuntimeError where it never will."""
        while not until.done:
            if self._ready:
                process = self._ready.popleft()
                event = next(process, None)
                if event is not None:
                    event.wake(process)
                continue
            speed = min(1.0, self._cores / self._threads) if self._computing else 1.0
            woken = self._sleeping[0][0] if self._sleeping else math.inf
            computed = self.now + (self._computing[0][0] - self._progress) / speed if self._computing else math.inf
            if math.isinf(min(woken, computed)):
                raise RuntimeError("every process waits for another one")
            if woken <= computed:
                self._progress += (woken - self.now) * speed
                self.now, _, event = heapq.heappop(self._sleeping)
            else:
                self.now = computed
                self._progress, _, event, threads = heapq.heappop(self._computing)
                self._threads -= threads
            event.happen()


class Mailbox(Generic[T]):
    """A queue that one process takes from."""

    def __init__(self, clock: Clock) -> None:
        self.items: deque[T] = deque()
        self._clock = clock
        self._filled = clock.event()

    def put(self, item: T) -> None:
        self.items.append(item)
        self._filled.happen()

    def take(self) -> Generator[Event, None, T]:
        """The oldest item; waits for one."""
        while not self.items:
            self._filled = self._clock.event()
            yield self._filled
        return self.items.popleft()
