"""The service `lmrrg.reward.v1.RewardService`: what is answered to whom.

Contract: a request is answered whole, or refused with its reason: INVALID_ARGUMENT names the field, RESOURCE_EXHAUSTED
says that the queue is full (try again later), UNAVAILABLE that the server is not ready, stops or has lost its backend
(ask another). Within an answer each pair has its scores or graphs, each text its labels, or an error of its own.
Report text is never logged above DEBUG or part of an error.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from protos import reward_pb2, reward_pb2_grpc
from reward_server.batching import Batcher, BrokenError, QueueFullError, StoppingError
from reward_server.errors import PairError
from reward_server.explanation import Entity, Explained, Relation
from reward_server.logs import fields
from reward_server.metrics import Metrics
from reward_server.pairs import Answer, Labelled
from reward_server.scorer import Description, Pair

_LOADING = "the server is loading its weights"
_LOG = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
R = TypeVar("R", reward_pb2.ScoreResponse, reward_pb2.LabelResponse, reward_pb2.ExplainResponse)
_ScoreContext = grpc.aio.ServicerContext[reward_pb2.ScoreRequest, reward_pb2.ScoreResponse]
_LabelContext = grpc.aio.ServicerContext[reward_pb2.LabelRequest, reward_pb2.LabelResponse]
_ExplainContext = grpc.aio.ServicerContext[reward_pb2.ExplainRequest, reward_pb2.ExplainResponse]
_DescribeContext = grpc.aio.ServicerContext[reward_pb2.DescribeRequest, reward_pb2.DescribeResponse]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for (more pairs: INVALID_ARGUMENT; a longer report: an error of its pair; a message too
    large for gRPC: RESOURCE_EXHAUSTED), and what may wait (RESOURCE_EXHAUSTED). A text to label counts as a pair."""

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


class _RefusedError(Exception):
    """The request is refused as a whole."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class RewardService(reward_pb2_grpc.RewardServiceServicer):
    """Checks requests and hands them to the batcher."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._numbers = itertools.count(1)
        self.ready: Ready | None = None

    async def Score(  # noqa: N802 (names of the service)
        self, request: reward_pb2.ScoreRequest, context: _ScoreContext
    ) -> reward_pb2.ScoreResponse:
        return await self._counted("Score", self._scores(request), len(request.pairs), context)

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[reward_pb2.ScoreRequest], context: _ScoreContext
    ) -> AsyncIterator[reward_pb2.ScoreResponse]:
        async for request in request_iterator:
            yield await self._counted("ScoreStream", self._scores(request), len(request.pairs), context)

    async def Label(  # noqa: N802
        self, request: reward_pb2.LabelRequest, context: _LabelContext
    ) -> reward_pb2.LabelResponse:
        return await self._counted("Label", self._labels(request), len(request.texts), context)

    async def Explain(  # noqa: N802
        self, request: reward_pb2.ExplainRequest, context: _ExplainContext
    ) -> reward_pb2.ExplainResponse:
        return await self._counted("Explain", self._explanations(request), len(request.pairs), context)

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
        self, method: str, answering: Awaitable[R], items: int, context: grpc.aio.ServicerContext[Any, Any]
    ) -> R:
        """The answer; the log and the metrics are told how it ended."""
        started = time.monotonic()
        status = grpc.StatusCode.UNKNOWN.name  # unless it ends otherwise
        errors = 0
        try:
            answer = await answering
            status = grpc.StatusCode.OK.name
            errors = self._count_outcomes(answer)
            return answer
        except _RefusedError as refused:
            status = refused.code.name
            await context.abort(refused.code, refused.reason)
            raise AssertionError from refused  # abort has raised
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._metrics.requests.labels(method, status).inc()
            name = "texts" if method == "Label" else "pairs"
            about = {"request": next(self._numbers), name: items, "errors": errors, "status": status}
            _LOG.info("request", extra=fields(**about, seconds=round(time.monotonic() - started, 4)))

    def _count_outcomes(
        self, answer: reward_pb2.ScoreResponse | reward_pb2.LabelResponse | reward_pb2.ExplainResponse
    ) -> int:
        """Counts the answer's pairs or texts in the metrics; returns how many are errors."""
        if isinstance(answer, reward_pb2.ScoreResponse):
            counter, done, failed = self._metrics.pairs, "scored", [bool(one.error) for one in answer.scores]
        elif isinstance(answer, reward_pb2.ExplainResponse):
            counter, done, failed = self._metrics.pairs, "explained", [bool(one.error) for one in answer.explanations]
        else:
            counter, done, failed = self._metrics.texts, "labelled", [bool(one.error) for one in answer.labels]
        errors = sum(failed)
        counter.labels("error").inc(errors)
        counter.labels(done).inc(len(failed) - errors)
        return errors

    async def _scores(self, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        ready = self._get_ready()
        about = ready.description
        self._check_count("pairs", len(request.pairs))
        for i, component in enumerate(request.components):
            if component not in about.components:
                reason = f"components[{i}]: {component!r} is not one of {', '.join(about.components)}"
                raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, reason)
        outcomes = await _outcomes(ready.batcher.score, *self._checked(request.pairs))
        wanted = request.components or about.components
        return reward_pb2.ScoreResponse(
            scores=[_score_message(outcome, wanted) for outcome in outcomes],
            backend=about.backend,
            definition=about.definition,
            models=ready.models,
        )

    async def _explanations(self, request: reward_pb2.ExplainRequest) -> reward_pb2.ExplainResponse:
        ready = self._get_ready()
        self._check_count("pairs", len(request.pairs))
        outcomes = await _outcomes(ready.batcher.explain, *self._checked(request.pairs))
        return reward_pb2.ExplainResponse(
            explanations=[_explanation_message(outcome) for outcome in outcomes],
            backend=ready.description.backend,
            definition=ready.description.definition,
            models=ready.models,
        )

    async def _labels(self, request: reward_pb2.LabelRequest) -> reward_pb2.LabelResponse:
        ready = self._get_ready()
        self._check_count("texts", len(request.texts))
        bad = [self._too_long(text=text) for text in request.texts]
        outcomes = await _outcomes(ready.batcher.label, request.texts, bad)
        return reward_pb2.LabelResponse(
            labels=[_label_message(outcome) for outcome in outcomes],
            backend=ready.description.backend,
            definition=ready.description.definition,
            models=ready.models,
        )

    def _get_ready(self) -> Ready:
        if self.ready is None:
            raise _RefusedError(grpc.StatusCode.UNAVAILABLE, _LOADING)
        return self.ready

    def _check_count(self, name: str, count: int) -> None:
        if count > self._limits.pairs:
            reason = f"{name}: {count} in one request, the limit is {self._limits.pairs}"
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, reason)

    def _checked(self, pairs: Sequence[reward_pb2.Pair]) -> tuple[list[Pair], list[PairError | None]]:
        """The pairs, and what is wrong with each."""
        bad = [self._too_long(reference=pair.reference, hypothesis=pair.hypothesis) for pair in pairs]
        return [(pair.reference, pair.hypothesis) for pair in pairs], bad

    def _too_long(self, **texts: str) -> PairError | None:
        for name, text in texts.items():
            if len(text) > self._limits.characters:
                return PairError(f"{name}: {len(text)} characters, the limit is {self._limits.characters}")
        return None


async def _outcomes(
    work: Callable[[Sequence[I]], Awaitable[list[A | PairError]]], items: Sequence[I], bad: Sequence[PairError | None]
) -> list[A | PairError]:
    """What became of all items, in order: `bad` ones have their error, the batcher works on the others."""
    try:
        done = iter(await work([item for item, error in zip(items, bad, strict=True) if error is None]))
    except QueueFullError as error:
        raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
    except (StoppingError, BrokenError) as error:
        raise _RefusedError(grpc.StatusCode.UNAVAILABLE, str(error)) from error
    return [next(done) if error is None else error for error in bad]


def _score_message(outcome: Answer, wanted: Sequence[str]) -> reward_pb2.PairScore:
    if isinstance(outcome, PairError):
        return reward_pb2.PairScore(error=str(outcome))
    return reward_pb2.PairScore(components={name: outcome[name] for name in wanted})


def _label_message(outcome: Labelled) -> reward_pb2.TextLabels:
    if isinstance(outcome, PairError):
        return reward_pb2.TextLabels(error=str(outcome))
    return reward_pb2.TextLabels(classes=outcome)


def _explanation_message(outcome: Explained) -> reward_pb2.PairExplanation:
    if isinstance(outcome, PairError):
        return reward_pb2.PairExplanation(error=str(outcome))
    return reward_pb2.PairExplanation(
        reference=map(_entity_message, outcome.reference), hypothesis=map(_entity_message, outcome.hypothesis)
    )


def _entity_message(entity: Entity) -> reward_pb2.Entity:
    return reward_pb2.Entity(
        name=entity.name,
        label=entity.label,
        start=entity.start,
        end=entity.end,
        credit=entity.credit,
        counterpart=entity.counterpart,
        relations=map(_relation_message, entity.relations),
    )


def _relation_message(relation: Relation) -> reward_pb2.Relation:
    return reward_pb2.Relation(
        kind=relation.kind, target=relation.target, target_label=relation.target_label, credit=relation.credit
    )
