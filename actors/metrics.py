"""What a rollout actor's work costs in time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RolloutMetrics:
    """What one request cost. Seconds add up over an actor's requests, also where one is written while the rewards of
    another are awaited.

    `sync_s`: taking over weights; `rollout_s`: the rest of writing; `busy_s`: both, the engine's work. `reward_wait_s`:
    waiting for rewards after writing. `reward_busy_s`: some score was outstanding, since the actor's last answer.
    `started`, `written`, `ended`: when the engine began and ended this request, and when its scores were there, on the
    host's monotonic clock. `updates`: weights taken over in mid-request.
    """

    sync_s: float
    rollout_s: float
    busy_s: float
    reward_wait_s: float
    reward_busy_s: float
    started: float
    written: float
    ended: float
    samples: int
    failed: int
    tokens: int
    updates: int


class Outstanding:
    """The seconds in which some answer was outstanding; answers come in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._since = 0.0
        self._seconds = 0.0

    def watch(self, answer: Future[Any]) -> None:
        """Counts this answer as outstanding until it is there."""
        with self._lock:
            self._count_on()
            self._count += 1
        answer.add_done_callback(self._leave)

    def take(self) -> float:
        """The seconds since the last `take`."""
        with self._lock:
            self._count_on()
            seconds, self._seconds = self._seconds, 0.0
            return seconds

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._count_on()
            self._count -= 1

    def _count_on(self) -> None:
        now = time.monotonic()
        self._seconds += now - self._since if self._count else 0.0
        self._since = now
