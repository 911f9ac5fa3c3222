"""The Ray actor behind `reward_server.directory.RewardDirectory`: it owns a run's reward workers and watches them.

Contract: it keeps as many workers as the last `scale` asked for. One that dies is dropped at the next probe of its
health and comes back when Ray, or this actor, has started it again. One that is not wanted any more leaves the
addresses first, then finishes its requests, then ends. All methods answer at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from reward_server.aio_client import AsyncRewardClient
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scorer import Description
from reward_server.security import ClientSecurity
from reward_server.worker import Serving, WorkerOptions, create_worker

_PROBE_EVERY_S = 1.0
_PROBE_TIMEOUT_S = 3.0
# An actor that lives but does not serve for so many probes is started anew.
_MOST_MISSED_PROBES = 10
# Wait before another actor takes the place of one that could not load: a GPU may be full for a while.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 10.0, 300.0
# A worker that has to go: so long its clients have to read the new addresses, and its requests to end.
_NOTICE_S, _GRACE_S = 2.5, 30.0
_LOG = logging.getLogger(__name__)


class State(enum.Enum):
    """Of a worker."""

    WAITING = "waits for a place in the cluster"
    LOADING = "loads"
    SERVING = "serves"
    LOST = "does not answer"
    FAILED = "could not start"
    LEAVING = "finishes its requests"


@dataclass(frozen=True)
class WorkerStatus:
    """`error`: why the last start failed; `setup`: whether only a person can mend that; `pid`: on the worker's node."""

    name: str
    state: State
    address: str | None = None
    error: str | None = None
    setup: bool = False
    pid: int | None = None

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"{self.name} {self.state.value}{where}{f' ({self.error})' if self.error else ''}"


@dataclass(frozen=True)
class Status:
    """All workers, and how many are wanted; `description`: what they compute, known from the first that served."""

    wanted: int
    workers: tuple[WorkerStatus, ...]
    description: Description | None

    @property
    def addresses(self) -> list[str]:
        """Of the workers that serve."""
        return [w.address for w in self.workers if w.state is State.SERVING and w.address is not None]

    def lines(self) -> list[str]:
        """A line for each worker: its name, what it does, where, and why it failed."""
        return [str(worker) for worker in self.workers]

    def check(self) -> None:
        """Raises RewardSetupError if no waiting helps a worker."""
        for worker in self.workers:
            if worker.setup and worker.state is State.FAILED:
                raise RewardSetupError(str(worker))


class RewardDirectoryImpl:
    """The actor's class. Started again, it begins with the number of workers that it was created with."""

    def __init__(self, options: WorkerOptions, security: ClientSecurity, number: int) -> None:
        self._options = options
        self._security = security
        self._first: int | None = number
        self._created = 0
        self._kept: list[_Place] = []
        self._leaving: dict[asyncio.Task[None], _Place] = {}
        self._description: Description | None = None

    async def begin(self) -> None:
        """Creates the first workers; Ray calls no constructor in the event loop."""
        if self._first is not None:
            await self.scale(self._first)

    async def scale(self, number: int) -> None:
        """From now on so many workers; creates and drains without waiting."""
        if number < 0:
            raise ValueError(f"{number} workers")
        self._first = None
        while len(self._kept) < number:
            place = _Place(f"reward-{self._created}", self._options, self._security, self._accept)
            self._created += 1
            self._kept.append(place)
        while len(self._kept) > number:
            # Those that do not serve yet go first, then the youngest.
            idle = [place for place in self._kept if place.status.state is not State.SERVING]
            place = (idle or self._kept)[-1]
            self._kept.remove(place)
            task = asyncio.create_task(place.leave())
            self._leaving[task] = place
            task.add_done_callback(self._leaving.pop)

    async def status(self) -> Status:
        await self.begin()
        places = [*self._kept, *self._leaving.values()]
        return Status(len(self._kept), tuple(place.status for place in places), self._description)

    async def security(self) -> ClientSecurity:
        """How clients reach the workers."""
        return self._security

    def _accept(self, description: Description) -> None:
        """All workers must compute the same; RewardSetupError for one that does not."""
        self._description = self._description or description
        first = self._description
        if (description.backend, description.definition, description.models) != (
            first.backend,
            first.definition,
            first.models,
        ):
            raise RewardSetupError(
                "its weights are not those of the first worker: every node needs the same files in the weights folder"
            )


class _Place:
    """Keeps one worker running until it has to leave."""

    def __init__(
        self, name: str, options: WorkerOptions, security: ClientSecurity, accept: Callable[[Description], None]
    ) -> None:
        self._options, self._security, self._accept = options, security, accept
        self.status = WorkerStatus(name, State.WAITING)
        self._pid: int | None = None
        self._actor: Any = create_worker(options)
        self._task = asyncio.create_task(self._keep())

    async def leave(self) -> None:
        """Ends the worker; one that serves finishes its requests first, and clients turn to others before."""
        self._task.cancel()
        if self.status.state is State.SERVING:
            self._set(State.LEAVING, self.status.address)
            await asyncio.sleep(_NOTICE_S)
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):  # it died by itself
                await asyncio.wait_for(_result(self._actor.stop.remote(_GRACE_S)), _GRACE_S + 10)
        ray.kill(self._actor)

    async def _keep(self) -> None:
        retry_s, missed = _FIRST_RETRY_S, 0
        while True:
            try:
                served = await self._attend()
            except (ray.exceptions.RayError, RewardSetupError) as error:
                self._failed(error)
                ray.kill(self._actor)
                await asyncio.sleep(retry_s)
                retry_s = min(_LONGEST_RETRY_S, 2 * retry_s)
                self._actor = create_worker(self._options)
                continue
            retry_s, missed = _FIRST_RETRY_S, 0 if served else missed + 1
            if missed == _MOST_MISSED_PROBES:
                _LOG.error("%s lives but does not serve: starting it anew", self.status.name)
                ray.kill(self._actor, no_restart=False)
                missed = 0

    async def _attend(self) -> bool:
        """From the worker's start until it serves no longer; whether it ever did."""
        self._pid = None
        self._set(State.WAITING)
        self._pid = await self._actor.hello.remote()
        self._set(State.LOADING)
        serving: Serving = await self._actor.serve.remote()
        self._accept(serving.description)
        served = False
        async with AsyncRewardClient([serving.address], security=self._security) as probe:
            while await _serves(probe):
                served = True
                self._set(State.SERVING, serving.address)
                await asyncio.sleep(_PROBE_EVERY_S)
        self._set(State.LOST)
        return served

    def _failed(self, error: Exception) -> None:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        reason = str(cause).strip().partition("\n")[0]
        setup = isinstance(cause, RewardSetupError)
        self.status = WorkerStatus(
            self.status.name, State.FAILED, error=reason if setup else f"{type(cause).__name__}: {reason}", setup=setup
        )
        _LOG.error("%s could not start: %s", self.status.name, self.status.error)

    def _set(self, state: State, address: str | None = None) -> None:
        # The reason of a failure stays until the worker serves.
        error = (None, False) if state is State.SERVING else (self.status.error, self.status.setup)
        self.status = WorkerStatus(self.status.name, state, address, *error, self._pid)


async def _serves(probe: AsyncRewardClient) -> bool:
    try:
        await probe.wait_until_serving(_PROBE_TIMEOUT_S)
    except RewardError:
        return False
    return True


async def _result(reference: Any) -> None:
    await reference
