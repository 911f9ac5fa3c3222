"""The client of the reward server for asyncio; `reward_server.client` is the one for threads.

Contract: that of `RewardClient`, with coroutines, all in one event loop. A cancelled task cancels its calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import reward_pb2, reward_pb2_grpc
from reward_server import calls
from reward_server.calls import SERVICE, Checks, Endpoint, Step
from reward_server.errors import PairError, RewardError
from reward_server.explanation import Explanation
from reward_server.pairs import Answer, Score
from reward_server.questions import EXPLANATIONS, LABELS, SCORES, Question
from reward_server.scorer import Description, Labels, Pair

if TYPE_CHECKING:
    from reward_server.security import ClientSecurity

I = TypeVar("I")  # noqa: E741
V = TypeVar("V")
T = TypeVar("T")


class AsyncRewardClient:
    """Scores and explains pairs and labels texts on one or more reward servers; make it in the event loop that uses it.

    `addresses`: "host:port" each. `timeout_s`: deadline of a call, retries included. An asynchronous context manager.
    """

    def __init__(
        self, addresses: Sequence[str], timeout_s: float = 60.0, security: ClientSecurity | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._security = security
        self._checks = Checks()
        self._link = _Link(Endpoint(addresses, self._security))
        self._retiring: dict[_Link, asyncio.Task[None]] = {}
        self._closed = False

    async def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """The components of every (reference, hypothesis), in order; RewardError if any is missing at the deadline."""
        return SCORES.values_of(await self.score_each(pairs))

    async def score_each(self, pairs: Sequence[Pair]) -> list[Answer]:
        """Like `score`, with a PairError in the place of every pair that can't be scored."""
        return await self._answers(SCORES, pairs)

    async def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        """The graphs behind the graph component of every pair, and what of them agrees, in order; RewardError if any is
        missing at the deadline."""
        answers = await self._answers(EXPLANATIONS, pairs)
        return EXPLANATIONS.values_of(answers)

    async def label(self, texts: Sequence[str]) -> list[Labels]:
        """The classes of every text, in the order of `reward_server.text.labels.LABELS`: 0 blank, 1 positive,
        2 negative, 3 uncertain; RewardError if any is missing at the deadline."""
        answers = await self._answers(LABELS, texts)
        return LABELS.values_of(answers)

    async def _answers(self, question: Question[I, V], items: Sequence[I]) -> list[V | PairError]:
        deadline = time.monotonic() + self._timeout_s
        answers: list[V | PairError | None] = [None] * len(items)
        parts = list(question.split(items, answers))
        about = question.about(len(items))
        tasks = [asyncio.create_task(self._part(question, [items[i] for i in part], about, deadline)) for part in parts]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        for part, values in zip(parts, found, strict=True):
            for i, answer in zip(part, values, strict=True):
                answers[i] = answer
        return [answer for answer in answers if answer is not None]

    async def _part(
        self, question: Question[I, V], items: Sequence[I], waited_for: str, deadline: float
    ) -> list[V | PairError]:
        message = question.request(items)
        try:
            response = await self._ask(
                lambda link, left: getattr(link.stub, question.method)(
                    message, timeout=left, metadata=link.endpoint.metadata
                ),
                waited_for,
                deadline,
                len(items),
            )
        except _RefusedError as error:
            if len(items) == 1:
                return [PairError(str(error))]
            half = len(items) // 2
            return [
                *await self._part(question, items[:half], waited_for, deadline),
                *await self._part(question, items[half:], waited_for, deadline),
            ]
        try:
            return self._checks.answers(question, response, len(items))
        except RewardError as error:
            raise RewardError(f"waited for {self._about(waited_for)}: {error}") from error

    async def describe(self) -> Description:
        """What the servers compute; tried again like `score`."""
        about = await self._ask(
            lambda link, left: link.stub.Describe(
                reward_pb2.DescribeRequest(), timeout=left, metadata=link.endpoint.metadata
            ),
            "the description",
            time.monotonic() + self._timeout_s,
        )
        return self._checks.description(about)

    async def wait_until_serving(self, timeout_s: float) -> None:
        """Returns when a server reports that it serves; RewardError after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        status = "no answer"
        while (left := deadline - time.monotonic()) > 0:
            with self._held() as link:
                try:
                    answer = await link.health.Check(
                        health_pb2.HealthCheckRequest(service=SERVICE), timeout=left, metadata=link.endpoint.metadata
                    )
                except grpc.aio.AioRpcError as error:
                    status = link.endpoint.reason(error.code(), error.details())
                else:
                    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            await asyncio.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        raise RewardError(f"waited {timeout_s:g} s for {self._link.endpoint.where} to serve: {status}")

    async def update_addresses(self, addresses: Sequence[str]) -> None:
        """Ask these servers from now on. Calls in flight end where they are; one that fails there, or lasts longer than
        half the deadline, is repeated here."""
        endpoint = Endpoint(addresses, self._security)
        if self._closed or endpoint.addresses == self._link.endpoint.addresses:
            return
        old, self._link = self._link, _Link(endpoint)
        self._retiring[old] = asyncio.create_task(self._retire(old))

    async def _retire(self, link: _Link) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(link.idle.wait(), self._timeout_s / 2)
        await link.close()
        self._retiring.pop(link, None)

    async def close(self) -> None:
        """Ends the connections; calls in flight fail with RewardError."""
        self._closed = True
        retiring, self._retiring = self._retiring, {}
        for link, task in retiring.items():
            task.cancel()
            await link.close()
        await self._link.close()

    async def __aenter__(self) -> AsyncRewardClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self, send: Callable[[_Link, float], Awaitable[T]], waited_for: str, deadline: float, items: int = 1
    ) -> T:
        """The answer to a call, repeated until the deadline; _RefusedError if its items are refused."""
        for attempt in itertools.count():
            with self._held() as link:
                try:
                    return await send(link, max(0.0, deadline - time.monotonic()))
                except grpc.aio.AioRpcError as error:
                    code, details = error.code(), error.details() or ""
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not link.closed or (task and task.cancelling()):
                        raise
                    code, details = grpc.StatusCode.CANCELLED, "the channel was closed"
            if self._closed:
                raise RewardError(f"waited for {self._about(waited_for)}: the client was closed")
            step, pause = calls.next_step(code, details, items), calls.backoff_s(attempt)
            if step in (Step.HALVE, Step.PAIR_ERROR):
                raise _RefusedError(details)
            if step is Step.FAIL or time.monotonic() + pause > deadline:
                raise link.endpoint.failure(self._about(waited_for), code, details)
            await asyncio.sleep(pause)
        raise AssertionError("the loop above ends by itself")

    @contextlib.contextmanager
    def _held(self) -> Iterator[_Link]:
        """The link in use, for one call."""
        if self._closed:
            raise RewardError("the client was closed")
        link = self._link
        link.calls += 1
        link.idle.clear()
        try:
            yield link
        finally:
            link.calls -= 1
            if not link.calls:
                link.idle.set()

    def _about(self, what: str) -> str:
        return f"{what} from {self._link.endpoint.where} (deadline {self._timeout_s:g} s)"


class _RefusedError(Exception):
    """The server won't answer these items together, or this item at all."""


class _Link:
    """A channel to an endpoint; `idle` while it carries no call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        if endpoint.credentials is None:
            self._channel = grpc.aio.insecure_channel(endpoint.target, options=endpoint.options)
        else:
            self._channel = grpc.aio.secure_channel(endpoint.target, endpoint.credentials, options=endpoint.options)
        self.stub = reward_pb2_grpc.RewardServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.health = health_pb2_grpc.HealthStub(self._channel)
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.closed = False

    async def close(self) -> None:
        """Cancels its calls."""
        self.closed = True
        await self._channel.close(grace=None)
