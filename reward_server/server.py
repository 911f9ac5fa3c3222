"""The gRPC server: `lmrrg.reward.v1.RewardService` with health checks and reflection.

Contract: answers are complete or an error with its reason, never partial and never made up: INVALID_ARGUMENT names
the field, RESOURCE_EXHAUSTED says that the queue is full (try again later), UNAVAILABLE that the server stops (ask
another), INTERNAL gives the kind of a scorer's failure. Report text is never logged above DEBUG and never part of an
error.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import reward_pb2, reward_pb2_grpc
from reward_server.backends import create_scorer
from reward_server.batching import Batcher, QueueFullError, StoppingError
from reward_server.errors import RewardSetupError
from reward_server.scorer import Pair, Scorer, ScorerOptions

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
_LAME_DUCK_S = 0.2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; more is INVALID_ARGUMENT (a message too large for gRPC: RESOURCE_EXHAUSTED)."""

    pairs: int = 1024
    characters: int = 10_000  # of one report
    message_bytes: int = 64 * 2**20
    waiting_pairs: int = 8192


class RewardService(reward_pb2_grpc.RewardServiceServicer):
    """Checks requests and hands them to the batcher."""

    def __init__(self, scorer: Scorer, batcher: Batcher, limits: Limits) -> None:
        self._description = scorer.description
        self._batcher = batcher
        self._limits = limits

    async def Score(  # noqa: N802 (names of the service)
        self,
        request: reward_pb2.ScoreRequest,
        context: grpc.aio.ServicerContext[reward_pb2.ScoreRequest, reward_pb2.ScoreResponse],
    ) -> reward_pb2.ScoreResponse:
        return await self._score(request, context)

    async def ScoreStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[reward_pb2.ScoreRequest],
        context: grpc.aio.ServicerContext[reward_pb2.ScoreRequest, reward_pb2.ScoreResponse],
    ) -> AsyncIterator[reward_pb2.ScoreResponse]:
        async for request in request_iterator:
            yield await self._score(request, context)

    async def Describe(  # noqa: N802
        self,
        request: reward_pb2.DescribeRequest,
        context: grpc.aio.ServicerContext[reward_pb2.DescribeRequest, reward_pb2.DescribeResponse],
    ) -> reward_pb2.DescribeResponse:
        about = self._description
        return reward_pb2.DescribeResponse(
            backend=about.backend,
            definition=about.definition,
            formula=about.formula,
            components=about.components,
            models=[reward_pb2.Model(name=model.name, sha256=model.sha256) for model in about.models],
            versions=about.versions,
            max_pairs_per_request=self._limits.pairs,
            max_characters_per_report=self._limits.characters,
        )

    async def _score(
        self,
        request: reward_pb2.ScoreRequest,
        context: grpc.aio.ServicerContext[reward_pb2.ScoreRequest, reward_pb2.ScoreResponse],
    ) -> reward_pb2.ScoreResponse:
        problem = self._problem(request)
        if problem is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        pairs: Sequence[Pair] = [(pair.reference, pair.hypothesis) for pair in request.pairs]
        try:
            scores = await self._batcher.score(pairs)
        except QueueFullError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except StoppingError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except Exception as error:
            # The message may quote a report: only its kind leaves the process.
            _LOG.error("scoring %d pairs failed: %s", len(pairs), type(error).__name__)
            _LOG.debug("the failure", exc_info=error)
            await context.abort(grpc.StatusCode.INTERNAL, f"the backend failed on this batch: {type(error).__name__}")
        wanted = request.components or self._description.components
        return reward_pb2.ScoreResponse(
            scores=[reward_pb2.PairScore(components={name: score[name] for name in wanted}) for score in scores],
            backend=self._description.backend,
            definition=self._description.definition,
        )

    def _problem(self, request: reward_pb2.ScoreRequest) -> str | None:
        """What is wrong with a request, by the name of its field, or None."""
        if len(request.pairs) > self._limits.pairs:
            return f"pairs: {len(request.pairs)} in one request, the limit is {self._limits.pairs}"
        for i, pair in enumerate(request.pairs):
            for name, text in (("reference", pair.reference), ("hypothesis", pair.hypothesis)):
                if len(text) > self._limits.characters:
                    return f"pairs[{i}].{name}: {len(text)} characters, the limit is {self._limits.characters}"
        for i, component in enumerate(request.components):
            if component not in self._description.components:
                return f"components[{i}]: {component!r} is not one of {', '.join(self._description.components)}"
        return None


class RewardServer:
    """A server with its batcher and health; `await start()` once, then `await stop()`, in one event loop."""

    def __init__(self, scorer: Scorer, *, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._batcher = Batcher(scorer, max_waiting=self._limits.waiting_pairs)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        size = self._limits.message_bytes
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),  # a port in use is an error
            ]
        )
        reward_pb2_grpc.add_RewardServiceServicer_to_server(  # type: ignore[no-untyped-call]
            RewardService(scorer, self._batcher, self._limits), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens and serves; port 0 picks a free one. Returns the port; RewardSetupError if it can't be had."""
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise RewardSetupError(
                f"can't listen on {host}:{port}: in use, or not an address of this machine"
            ) from error
        self._batcher.start()
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, grace_s: float = 10.0) -> None:
        """Tells health checkers, takes no new requests, and gives those in hand `grace_s` seconds to end."""
        await self._health.enter_graceful_shutdown()
        # Clients that watch the health turn to other servers now: what they still send in this moment is served.
        await asyncio.sleep(min(_LAME_DUCK_S, grace_s))
        stopped = asyncio.create_task(self._server.stop(grace_s + 1.0))
        await asyncio.wait([stopped], timeout=grace_s)
        # Whoever is left is told UNAVAILABLE, so that its client asks another server; gRPC alone would say CANCELLED.
        await self._batcher.close()
        await stopped


async def serve(backend: str, host: str = "127.0.0.1", port: int = 50051, *, limits: Limits | None = None) -> None:
    """Loads a backend and serves it until SIGINT or SIGTERM; prints the address when it is ready."""
    scorer = await asyncio.to_thread(create_scorer, ScorerOptions(backend))
    server = RewardServer(scorer, limits=limits)
    bound = await server.start(host, port)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"serving the {backend} reward ({scorer.description.definition}) on {host}:{bound}", flush=True)
    await stopped.wait()
    await server.stop()
