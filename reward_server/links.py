"""The channels of the threaded client: one in use, and those before it until their calls have ended.

Contract: thread-safe; a link given by `acquire` stays open until it is released, unless all is closed.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import grpc
from grpc_health.v1 import health_pb2_grpc

from protos import reward_pb2_grpc
from reward_server.calls import Endpoint
from reward_server.errors import RewardError


@dataclass(eq=False)
class Link:
    """A channel to an endpoint, and how many calls it carries."""

    endpoint: Endpoint
    channel: grpc.Channel
    stub: reward_pb2_grpc.RewardServiceStub
    health: health_pb2_grpc.HealthStub
    calls: int = 0
    retired: bool = False


def _link(endpoint: Endpoint) -> Link:
    if endpoint.credentials is None:
        channel = grpc.insecure_channel(endpoint.target, options=endpoint.options)
    else:
        channel = grpc.secure_channel(endpoint.target, endpoint.credentials, options=endpoint.options)
    return Link(
        endpoint,
        channel,
        reward_pb2_grpc.RewardServiceStub(channel),  # type: ignore[no-untyped-call]
        health_pb2_grpc.HealthStub(channel),
    )


class Links:
    """The channel in use, and those before it until their calls have ended."""

    def __init__(self, endpoint: Endpoint, timer: Timer) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._current = _link(endpoint)
        self._closed = False
        self._all = {self._current}

    @property
    def where(self) -> str:
        """The addresses in use, for messages."""
        return self._current.endpoint.where

    def acquire(self) -> Link | None:
        """The link for a new call, which must `release` it; None once closed."""
        with self._lock:
            if self._closed:
                return None
            self._current.calls += 1
            return self._current

    def release(self, link: Link) -> None:
        """Gives back what `acquire` gave."""
        with self._lock:
            link.calls -= 1
        self._drop_if_idle(link)

    @contextmanager
    def held(self) -> Iterator[Link]:
        """A link for a call that is waited for; RewardError once closed."""
        link = self.acquire()
        if link is None:
            raise RewardError("the client was closed")
        try:
            yield link
        finally:
            self.release(link)

    def replace(self, endpoint: Endpoint, grace_s: float) -> None:
        """New calls go to this endpoint; those on the old one are cancelled after `grace_s` seconds."""
        with self._lock:
            old = self._current
            if self._closed or endpoint.addresses == old.endpoint.addresses:
                return
            old.retired = True
            self._current = _link(endpoint)
            self._all.add(self._current)
        self._drop_if_idle(old)
        self._timer.after(grace_s, partial(self._drop, old))

    def close(self) -> None:
        """Closes all channels; their calls end as cancelled."""
        with self._lock:
            self._closed = True
            links, self._all = self._all, set()
        for link in links:
            link.channel.close()

    def _drop_if_idle(self, link: Link) -> None:
        if link.retired and not link.calls:
            # Not here: this may be a thread of the channel, which `close` waits for.
            self._timer.after(0.0, partial(self._drop, link))

    def _drop(self, link: Link) -> None:
        with self._lock:
            if link not in self._all:
                return
            self._all.remove(link)
        link.channel.close()


class Timer:
    """Runs functions later, in one thread of its own, which starts with the first; after `close` at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, seconds: float, function: Callable[[], object]) -> None:
        """Runs the function in so many seconds."""
        with self._changed:
            heapq.heappush(self._waiting, (time.monotonic() + seconds, next(self._number), function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reward-client", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """What waits is run now; the thread ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while (function := self._next()) is not None:
            function()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            while True:
                now = time.monotonic()
                if self._waiting and (self._closed or self._waiting[0][0] <= now):
                    return heapq.heappop(self._waiting)[2]
                if self._closed:
                    self._thread = None
                    return None
                self._changed.wait(self._waiting[0][0] - now if self._waiting else None)
