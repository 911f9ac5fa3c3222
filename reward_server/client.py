"""The client of the reward server, for threads. For asyncio: `reward_server.aio_client`.

Contract: thread-safe. Every call ends within its deadline: with an answer for every pair or text, in order, or with a
RewardError that says which servers it asked, what for, and why it failed; a failure is never a score. Servers that are
away, full or stopping are asked again, or others in their place, until the deadline. Several addresses take turns.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from protos import reward_pb2
from reward_server import calls
from reward_server.calls import SERVICE, Checks, Endpoint, Step
from reward_server.errors import PairError, RewardError
from reward_server.explanation import Explanation
from reward_server.links import Link, Links, Timer
from reward_server.pairs import Answer, Score
from reward_server.questions import EXPLANATIONS, LABELS, SCORES, Question
from reward_server.scorer import Description, Labels, Pair

if TYPE_CHECKING:
    from reward_server.security import ClientSecurity

I = TypeVar("I")  # noqa: E741
V = TypeVar("V")


class RewardClient:
    """Scores and explains pairs and labels texts on one or more reward servers.

    `addresses`: "host:port" each. `timeout_s`: deadline of a call, retries included. A context manager.
    """

    def __init__(
        self, addresses: Sequence[str], timeout_s: float = 60.0, security: ClientSecurity | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._security = security
        self._checks = Checks()
        self._timer = Timer()
        self._links = Links(Endpoint(addresses, self._security), self._timer)

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """The components of every (reference, hypothesis), in order; RewardError if any is missing at the deadline."""
        return self.submit(pairs).result()

    def score_each(self, pairs: Sequence[Pair]) -> list[Answer]:
        """Like `score`, with a PairError in the place of every pair that can't be scored."""
        return self.submit_each(pairs).result()

    def submit(self, pairs: Sequence[Pair]) -> Future[list[Score]]:
        """`score` without waiting: the future gives the scores or raises RewardError; it can't be cancelled."""
        scores: Future[list[Score]] = Future()
        scores.set_running_or_notify_cancel()

        def finish(answers: Future[list[Answer]]) -> None:
            try:
                scores.set_result(SCORES.values_of(answers.result()))
            except RewardError as error:
                scores.set_exception(error)

        self.submit_each(pairs).add_done_callback(finish)
        return scores

    def submit_each(self, pairs: Sequence[Pair]) -> Future[list[Answer]]:
        """`score_each` without waiting."""
        return self._submit(SCORES, pairs)

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        """The graphs behind the graph component of every pair, and what of them agrees, in order; RewardError if any is
        missing at the deadline."""
        return EXPLANATIONS.values_of(self._submit(EXPLANATIONS, pairs).result())

    def label(self, texts: Sequence[str]) -> list[Labels]:
        """The classes of every text, in the order of `reward_server.text.labels.LABELS`: 0 blank, 1 positive,
        2 negative, 3 uncertain; RewardError if any is missing at the deadline."""
        return LABELS.values_of(self._submit(LABELS, texts).result())

    def _submit(self, question: Question[I, V], items: Sequence[I]) -> Future[list[V | PairError]]:
        job = _Job(self._links, self._timer, self._checks, question, items, self._timeout_s)
        job.start()
        return job.answers

    def describe(self) -> Description:
        """What the servers compute; tried again like `score`."""
        deadline = time.monotonic() + self._timeout_s
        for attempt in itertools.count():
            with self._links.held() as link:
                waited_for = f"the description of {link.endpoint.where} (deadline {self._timeout_s:g} s)"
                try:
                    about = link.stub.Describe(
                        reward_pb2.DescribeRequest(),
                        timeout=max(0.0, deadline - time.monotonic()),
                        metadata=link.endpoint.metadata,
                    )
                    return self._checks.description(about)
                except grpc.RpcError as error:
                    pause = calls.backoff_s(attempt)
                    again = calls.next_step(error.code(), error.details() or "", 1) is Step.AGAIN
                    if not again or time.monotonic() + pause > deadline:
                        raise link.endpoint.failure(waited_for, error.code(), error.details()) from error
            time.sleep(pause)
        raise AssertionError("the loop above ends by itself")

    def wait_until_serving(self, timeout_s: float) -> None:
        """Returns when a server reports that it serves; RewardError after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        status = "no answer"
        while (left := deadline - time.monotonic()) > 0:
            with self._links.held() as link:
                try:
                    answer = link.health.Check(
                        health_pb2.HealthCheckRequest(service=SERVICE), timeout=left, metadata=link.endpoint.metadata
                    )
                except grpc.RpcError as error:
                    status = link.endpoint.reason(error.code(), error.details())
                else:
                    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        raise RewardError(f"waited {timeout_s:g} s for {self._links.where} to serve: {status}")

    def update_addresses(self, addresses: Sequence[str]) -> None:
        """Ask these servers from now on. Calls in flight end where they are; one that fails there, or lasts longer than
        half the deadline, is repeated here."""
        self._links.replace(Endpoint(addresses, self._security), self._timeout_s / 2)

    def close(self) -> None:
        """Ends the connections; calls in flight fail with RewardError."""
        self._links.close()
        self._timer.close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Job(Generic[I, V]):
    """The items of one caller on their way. `answers` is done once, in a thread of gRPC or of the timer."""

    def __init__(
        self,
        links: Links,
        timer: Timer,
        checks: Checks,
        question: Question[I, V],
        items: Sequence[I],
        timeout_s: float,
    ) -> None:
        self.answers: Future[list[V | PairError]] = Future()
        self.answers.set_running_or_notify_cancel()
        self._links, self._timer, self._checks = links, timer, checks
        self._question, self._items, self._timeout_s = question, list(items), timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._found: list[V | PairError | None] = [None] * len(items)
        self._lock = threading.Lock()
        self._parts_left = 0
        self._ended = False
        self._calls: set[grpc.Future[Any]] = set()

    def start(self) -> None:
        """Sends all requests, without waiting for answers."""
        parts = list(self._question.split(self._items, self._found))
        self._parts_left = len(parts)
        for part in parts:
            self._send(part, 0)
        if not parts:
            self._end([answer for answer in self._found if answer is not None])

    def _send(self, part: Sequence[int], attempt: int) -> None:
        if self._ended:
            return
        link = self._links.acquire()
        if link is None:
            return self._end(RewardError(f"waited for {self._waited_for}: the client was closed"))
        try:
            call = getattr(link.stub, self._question.method).future(
                self._question.request([self._items[i] for i in part]),
                timeout=max(0.0, self._deadline - time.monotonic()),
                metadata=link.endpoint.metadata,
            )
        except ValueError:  # what gRPC raises if the channel was closed in this moment
            self._links.release(link)
            return self._end(RewardError(f"waited for {self._waited_for}: the client was closed"))
        with self._lock:
            self._calls.add(call)
        call.add_done_callback(partial(self._done, link, part, attempt))

    def _done(self, link: Link, part: Sequence[int], attempt: int, call: grpc.CallFuture[Any]) -> None:
        self._links.release(link)
        with self._lock:
            self._calls.discard(call)
            if self._ended:
                return
        if call.code() is not grpc.StatusCode.OK:
            return self._failed(link.endpoint, part, attempt, call.code(), call.details() or "")
        try:
            answers = self._checks.answers(self._question, call.result(), len(part))
        except RewardError as error:
            return self._end(RewardError(f"waited for {self._waited_for}: {error}"))
        self._fill(part, answers)

    def _failed(
        self, endpoint: Endpoint, part: Sequence[int], attempt: int, code: grpc.StatusCode, details: str
    ) -> None:
        step = calls.next_step(code, details, len(part))
        if step is Step.PAIR_ERROR:
            self._fill(part, [PairError(details)])
        elif step is Step.HALVE:
            with self._lock:
                self._parts_left += 1
            half = len(part) // 2
            self._send(part[:half], 0)
            self._send(part[half:], 0)
        elif step is Step.AGAIN and time.monotonic() + (pause := calls.backoff_s(attempt)) < self._deadline:
            self._timer.after(pause, partial(self._send, part, attempt + 1))
        else:
            self._end(endpoint.failure(self._waited_for, code, details))

    def _fill(self, part: Sequence[int], answers: Sequence[V | PairError]) -> None:
        with self._lock:
            for i, answer in zip(part, answers, strict=True):
                self._found[i] = answer
            self._parts_left -= 1
            if self._parts_left:
                return
        self._end([answer for answer in self._found if answer is not None])

    def _end(self, outcome: list[V | PairError] | RewardError) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            left = list(self._calls)
        for call in left:
            call.cancel()
        if isinstance(outcome, RewardError):
            self.answers.set_exception(outcome)
        else:
            self.answers.set_result(outcome)

    @property
    def _waited_for(self) -> str:
        asked = self._question.about(len(self._items))
        return f"{asked} from {self._links.where} (deadline {self._timeout_s:g} s)"
