"""The client of the reward server.

Contract: thread-safe. Every call ends within its deadline with all scores or with a RewardError that says which
servers it asked, what for, and why it failed; a failure is never a score. Servers that are away, full or stopping are
tried again by gRPC itself; several addresses take turns (round robin).
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import reward_pb2, reward_pb2_grpc
from reward_server.errors import RewardError
from reward_server.scorer import Description, ModelFile, Pair

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
_PAIRS_PER_REQUEST = 64
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Part:
    call: grpc.CallFuture[reward_pb2.ScoreResponse]
    pairs: int


class RewardClient:
    """Scores pairs on one or more reward servers.

    `addresses`: "host:port" each. `timeout_s`: deadline of a call, retries included. A context manager.
    """

    def __init__(self, addresses: Sequence[str], timeout_s: float = 60.0) -> None:
        if isinstance(addresses, str) or not addresses:
            raise RewardError(f"the client needs a list of addresses host:port, not {addresses!r}")
        self._timeout_s = timeout_s
        self._where = ", ".join(addresses)
        options = [
            ("grpc.service_config", json.dumps(_service_config())),
            ("grpc.max_receive_message_length", _MAX_BYTES),
            ("grpc.max_send_message_length", _MAX_BYTES),
            ("grpc.per_rpc_retry_buffer_size", _MAX_BYTES),  # larger requests would not be tried again
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.insecure_channel(_target(addresses), options=options)
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """The components of every (reference, hypothesis), in order; RewardError if any is missing at the deadline."""
        return self.submit(pairs).result()

    def submit(self, pairs: Sequence[Pair]) -> Future[list[dict[str, float]]]:
        """`score` without waiting: the future gives the scores or raises RewardError; it can't be cancelled."""
        result: Future[list[dict[str, float]]] = Future()
        result.set_running_or_notify_cancel()
        parts = [
            self._send(pairs[start : start + _PAIRS_PER_REQUEST]) for start in range(0, len(pairs), _PAIRS_PER_REQUEST)
        ]
        if not parts:
            result.set_result([])
            return result
        _Gather(parts, result, f"the scores of {len(pairs)} pairs from {self._where} (deadline {self._timeout_s:g} s)")
        return result

    def describe(self) -> Description:
        """What the server computes."""
        try:
            about = self._stub.Describe(reward_pb2.DescribeRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _error(f"the description of {self._where} (deadline {self._timeout_s:g} s)", error) from error
        return Description(
            backend=about.backend,
            definition=about.definition,
            formula=about.formula,
            components=tuple(about.components),
            models=tuple(ModelFile(model.name, model.sha256) for model in about.models),
            versions=dict(about.versions),
        )

    def wait_until_serving(self, timeout_s: float) -> None:
        """Returns when a server reports that it serves; RewardError after `timeout_s` seconds."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        deadline = time.monotonic() + timeout_s
        status = "no answer"
        while (left := deadline - time.monotonic()) > 0:
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=left, wait_for_ready=True)
            except grpc.RpcError as error:
                status = error.code().name
            else:
                status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        raise RewardError(f"waited {timeout_s:g} s for {self._where} to serve: {status}")

    def close(self) -> None:
        """Ends the connections; calls in flight fail."""
        self._channel.close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, pairs: Sequence[Pair]) -> _Part:
        request = reward_pb2.ScoreRequest(pairs=[reward_pb2.Pair(reference=a, hypothesis=b) for a, b in pairs])
        return _Part(self._stub.Score.future(request, timeout=self._timeout_s), len(pairs))


class _Gather:
    """Fills `result` when all calls have ended: with the scores, or with the first failure."""

    def __init__(self, parts: Sequence[_Part], result: Future[list[dict[str, float]]], waited_for: str) -> None:
        self._parts, self._result, self._waited_for = parts, result, waited_for
        self._lock = threading.Lock()
        self._left = len(parts)
        for part in parts:
            part.call.add_done_callback(self._done)

    def _done(self, _: grpc.Future[reward_pb2.ScoreResponse]) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        try:
            self._result.set_result(list(chain.from_iterable(map(_scores, self._parts))))
        except grpc.RpcError as error:
            self._result.set_exception(_error(self._waited_for, error))
        except grpc.FutureCancelledError:
            self._result.set_exception(RewardError(f"waited for {self._waited_for}: the client was closed"))
        except RewardError as error:
            self._result.set_exception(RewardError(f"waited for {self._waited_for}: {error}"))


def _scores(part: _Part) -> list[dict[str, float]]:
    scores = [dict(score.components) for score in part.call.result().scores]
    if len(scores) != part.pairs:
        raise RewardError(f"{len(scores)} scores came back for {part.pairs} pairs")
    if not all(math.isfinite(value) for score in scores for value in score.values()):
        raise RewardError("a score is not finite")
    return scores


def _error(waited_for: str, error: grpc.RpcError) -> RewardError:
    return RewardError(f"waited for {waited_for}: {error.code().name}: {error.details()}")


def _service_config() -> dict[str, object]:
    retry = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        # CANCELLED: what a stopping server says of calls that it never took up. Scoring twice does no harm.
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
    }
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": SERVICE},
        "methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": retry}],
    }


def _target(addresses: Sequence[str]) -> str:
    """gRPC's name of a fixed list of servers; host names are looked up once, now."""
    found = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise RewardError(f"{address!r} is not an address host:port")
        try:
            found.append(f"{socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4][0]}:{port}")
        except socket.gaierror as error:
            raise RewardError(f"the host of the reward server {address!r} is unknown: {error}") from error
    return "ipv4:" + ",".join(found)
