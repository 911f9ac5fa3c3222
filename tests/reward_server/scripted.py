"""A real gRPC server whose answers a test writes, for what a healthy reward server never says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos import reward_pb2, reward_pb2_grpc
from reward_server.calls import SERVICE
from reward_server.scorer import Pair
from reward_server.security import ServerSecurity

Answer = Callable[[reward_pb2.ScoreRequest, grpc.ServicerContext], reward_pb2.ScoreResponse]
LabelAnswer = Callable[[reward_pb2.LabelRequest, grpc.ServicerContext], reward_pb2.LabelResponse]


def response(
    values: Sequence[float], *, definition: str = "scripted-v1", sha256: str = "aa"
) -> reward_pb2.ScoreResponse:
    """Scores with one component, `value`."""
    return reward_pb2.ScoreResponse(
        scores=[reward_pb2.PairScore(components={"value": value}) for value in values],
        backend="scripted",
        definition="scripted-v1",
        models=[reward_pb2.Model(name="model", sha256=sha256)],
    )


def lengths(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext | None = None) -> reward_pb2.ScoreResponse:
    """A pair's value is the length of its hypothesis."""
    return response([len(pair.hypothesis) for pair in request.pairs])


def classes_of(text: str) -> tuple[int, ...]:
    """A text's labels, so that they depend on it."""
    return tuple((len(text) + i) % 4 for i in range(14))


def labels(request: reward_pb2.LabelRequest, context: grpc.ServicerContext | None = None) -> reward_pb2.LabelResponse:
    """Every text's `classes_of`."""
    return reward_pb2.LabelResponse(
        labels=[reward_pb2.TextLabels(classes=classes_of(text)) for text in request.texts],
        backend="scripted",
        definition="scripted-v1",
        models=[reward_pb2.Model(name="model", sha256="aa")],
    )


class ScriptedServer(reward_pb2_grpc.RewardServiceServicer):
    """Serves on loopback; `requests` counts the pairs or texts of every request in the order they came."""

    def __init__(
        self,
        answer: Answer = lengths,
        *,
        label: LabelAnswer = labels,
        port: int = 0,
        message_bytes: int = 64 * 2**20,
        security: ServerSecurity | None = None,
    ) -> None:
        self._answer, self._label = answer, label
        self._token = security.token if security else None
        self._lock = threading.Lock()
        self.requests: list[int] = []
        self._server = grpc.server(
            ThreadPoolExecutor(16),
            options=[("grpc.max_receive_message_length", message_bytes), ("grpc.so_reuseport", 0)],
        )
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self, self._server)
        state = health.HealthServicer()
        state.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(state, self._server)
        credentials = security.credentials() if security else None
        if credentials:
            self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        else:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def Score(  # noqa: N802
        self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        self._check_token(context)
        with self._lock:
            self.requests.append(len(request.pairs))
        return self._answer(request, context)

    def Label(  # noqa: N802
        self, request: reward_pb2.LabelRequest, context: grpc.ServicerContext
    ) -> reward_pb2.LabelResponse:
        self._check_token(context)
        with self._lock:
            self.requests.append(len(request.texts))
        return self._label(request, context)

    def Describe(  # noqa: N802
        self, request: reward_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> reward_pb2.DescribeResponse:
        self._check_token(context)
        return reward_pb2.DescribeResponse(
            backend="scripted",
            definition="scripted-v1",
            components=["value"],
            models=[reward_pb2.Model(name="model", sha256="aa")],
        )

    def _check_token(self, context: grpc.ServicerContext) -> None:
        given = dict(context.invocation_metadata()).get("authorization")
        if self._token and given != f"Bearer {self._token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait(10)


def refusing(code: grpc.StatusCode, times: int, details: str = "not now") -> Answer:
    """Refuses the first requests, then answers `lengths`."""
    left = [times]
    lock = threading.Lock()

    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        with lock:
            left[0] -= 1
            refuse = left[0] >= 0
        if refuse:
            context.abort(code, details)
        return lengths(request)

    return answer


class Held:
    """An answer that holds every request until `open` is set; `entered` says that one has come."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()

    def __call__(self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        self.entered.set()
        self.open.wait(30)
        return lengths(request)


def pairs_of(*hypotheses: str) -> list[Pair]:
    """Pairs with the same reference."""
    return [("reference", hypothesis) for hypothesis in hypotheses]


def values(scores: list[dict[str, float]]) -> list[float]:
    """What `lengths` gave."""
    return [score["value"] for score in scores]
