"""The service `lmrrg.reward.v1.RewardService`: what is answered to whom.

Contract: a request is answered whole, or refused with its reason: INVALID_ARGUMENT names the field, RESOURCE_EXHAUSTED
says that the queue is full (try again later), UNAVAILABLE that the server is not ready, stops or has lost its backend
(ask another). Within an answer each pair has its scores or an error of its own. Report text is never logged above DEBUG
or part of an error.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from protos import reward_pb2, reward_pb2_grpc
from reward_server.batching import Batcher, BrokenError, QueueFullError, StoppingError
from reward_server.errors import PairError
from reward_server.logs import fields
from reward_server.metrics import Metrics
from reward_server.pairs import Answer
from reward_server.scorer import Description, Pair

_LOADING = "the server is loading its weights"
_LOG = logging.getLogger(__name__)

_ScoreContext = grpc.aio.ServicerContext[reward_pb2.ScoreRequest, reward_pb2.ScoreResponse]
_DescribeContext = grpc.aio.ServicerContext[reward_pb2.DescribeRequest, reward_pb2.DescribeResponse]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for (more pairs: INVALID_ARGUMENT; a longer report: an error of its pair; a message too
    large for gRPC: RESOURCE_EXHAUSTED), and what may wait (RESOURCE_EXHAUSTED)."""

    pairs: int = 1024
    characters: int = 16_000  # of one report: 2,000 words have about 14,000
    message_bytes: int = 64 * 2**20
    waiting_pairs: int = 8192
    waiting_characters: int = 64 * 2**20


@dataclass(frozen=True)
class Ready:
    """What a server has once its scorer is loaded."""

    description: Description
    batcher: Batcher
    models: tuple[reward_pb2.Model, ...]


class RewardService(reward_pb2_grpc.RewardServiceServicer):
    """Checks requests and hands them to the batcher."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._numbers = itertools.count(1)
        self.ready: Ready | None = None

    async def Score(  # noqa: N802 (names of the service)
        self, request: reward_pb2.ScoreRequest, context: _ScoreContext
    ) -> reward_pb2.ScoreResponse:
        return await self._counted("Score", request, context)

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[reward_pb2.ScoreRequest], context: _ScoreContext
    ) -> AsyncIterator[reward_pb2.ScoreResponse]:
        async for request in request_iterator:
            yield await self._counted("ScoreStream", request, context)

    async def Describe(  # noqa: N802
        self, request: reward_pb2.DescribeRequest, context: _DescribeContext
    ) -> reward_pb2.DescribeResponse:
        if self.ready is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _LOADING)
            raise AssertionError  # abort has raised
        about = self.ready.description
        return reward_pb2.DescribeResponse(
            backend=about.backend,
            definition=about.definition,
            formula=about.formula,
            components=about.components,
            models=self.ready.models,
            versions=about.versions,
            max_pairs_per_request=self._limits.pairs,
            max_characters_per_report=self._limits.characters,
        )

    async def _counted(
        self, method: str, request: reward_pb2.ScoreRequest, context: _ScoreContext
    ) -> reward_pb2.ScoreResponse:
        """Scores, and says in the log and the metrics how it ended."""
        started = time.monotonic()
        status = grpc.StatusCode.UNKNOWN.name  # unless it ends otherwise
        errors = 0
        try:
            code, answer = await self._answer(request)
            status = code.name
            if isinstance(answer, str):
                await context.abort(code, answer)
                raise AssertionError  # abort has raised
            errors = sum(bool(score.error) for score in answer.scores)
            self._metrics.pairs.labels("error").inc(errors)
            self._metrics.pairs.labels("scored").inc(len(answer.scores) - errors)
            return answer
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._metrics.requests.labels(method, status).inc()
            about = {"request": next(self._numbers), "pairs": len(request.pairs), "errors": errors, "status": status}
            _LOG.info("request", extra=fields(**about, seconds=round(time.monotonic() - started, 4)))

    async def _answer(self, request: reward_pb2.ScoreRequest) -> tuple[grpc.StatusCode, reward_pb2.ScoreResponse | str]:
        """OK and the answer, or another status and the reason."""
        if self.ready is None:
            return grpc.StatusCode.UNAVAILABLE, _LOADING
        problem = self._problem(request, self.ready.description)
        if problem is not None:
            return grpc.StatusCode.INVALID_ARGUMENT, problem
        outcomes: list[Answer | None] = [self._too_long(pair) for pair in request.pairs]
        pairs: Sequence[Pair] = [
            (pair.reference, pair.hypothesis) for pair, bad in zip(request.pairs, outcomes, strict=True) if bad is None
        ]
        try:
            scored = iter(await self.ready.batcher.score(pairs))
        except QueueFullError as error:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except (StoppingError, BrokenError) as error:
            return grpc.StatusCode.UNAVAILABLE, str(error)
        wanted = request.components or self.ready.description.components
        return grpc.StatusCode.OK, reward_pb2.ScoreResponse(
            scores=[_message(next(scored) if bad is None else bad, wanted) for bad in outcomes],
            backend=self.ready.description.backend,
            definition=self.ready.description.definition,
            models=self.ready.models,
        )

    def _problem(self, request: reward_pb2.ScoreRequest, about: Description) -> str | None:
        """What is wrong with a whole request, by the name of its field, or None."""
        if len(request.pairs) > self._limits.pairs:
            return f"pairs: {len(request.pairs)} in one request, the limit is {self._limits.pairs}"
        for i, component in enumerate(request.components):
            if component not in about.components:
                return f"components[{i}]: {component!r} is not one of {', '.join(about.components)}"
        return None

    def _too_long(self, pair: reward_pb2.Pair) -> PairError | None:
        for name, text in (("reference", pair.reference), ("hypothesis", pair.hypothesis)):
            if len(text) > self._limits.characters:
                return PairError(f"{name}: {len(text)} characters, the limit is {self._limits.characters}")
        return None


def _message(outcome: Answer, wanted: Sequence[str]) -> reward_pb2.PairScore:
    if isinstance(outcome, PairError):
        return reward_pb2.PairScore(error=str(outcome))
    return reward_pb2.PairScore(components={name: outcome[name] for name in wanted})
