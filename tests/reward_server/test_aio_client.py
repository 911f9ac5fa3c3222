"""The client for asyncio: the same answers, errors and deadlines as the one for threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import pytest

from protos import reward_pb2
from reward_server.aio_client import AsyncRewardClient
from reward_server.errors import PairError, RewardError
from reward_server.scorer import Scorer
from tests.reward_server.conftest import RunningServer
from tests.reward_server.scripted import Held, ScriptedServer, lengths, pairs_of, refusing, response, values

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_it_scores_and_describes_like_the_scorer(server: RunningServer, scorer: Scorer) -> None:
    pairs = [("No effusion.", "There is no effusion."), ("Clear lungs.", "Left effusion.")] * 100

    async def ask() -> None:
        async with AsyncRewardClient([server.address], timeout_s=30) as client:
            await client.wait_until_serving(10)
            assert await client.score(pairs) == scorer.score(pairs)
            assert (await client.describe()).definition == scorer.description.definition
            assert await client.score([]) == []

    run(ask())


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_server_that_refuses_more_than_five_times_is_asked_on(code: grpc.StatusCode) -> None:
    async def ask() -> None:
        async with AsyncRewardClient([server.address], timeout_s=30) as client:
            assert values(await client.score(pairs_of("abc"))) == [3]

    with ScriptedServer(refusing(code, 6)) as server:
        run(ask())
        assert len(server.requests) == 7


def test_the_deadline_ends_retries_and_waits_for_a_stuck_server() -> None:
    def stuck(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        time.sleep(3)
        return lengths(request)

    async def ask(address: str) -> None:
        async with AsyncRewardClient([address], timeout_s=1) as client:
            await client.score(pairs_of("abc"))

    with pytest.raises(RewardError, match=r"scores of 1 pairs from 127.0.0.1:9 \(deadline 1 s\): UNAVAILABLE"):
        run(ask("127.0.0.1:9"))
    with ScriptedServer(stuck) as server, pytest.raises(RewardError, match="DEADLINE_EXCEEDED"):
        run(ask(server.address))


def test_pairs_that_cannot_be_scored_are_errors_in_their_places() -> None:
    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        if any(pair.hypothesis == "bad" for pair in request.pairs):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hypothesis: bad")
        return lengths(request)

    async def ask() -> None:
        async with AsyncRewardClient([server.address], timeout_s=20) as client:
            answers = await client.score_each(pairs_of(*("x" * i for i in range(100)), "bad", "\ud800"))
            assert [answer["value"] for answer in answers[:100] if not isinstance(answer, PairError)] == [*range(100)]
            assert [str(answer)[:24] for answer in answers[100:]] == ["hypothesis: bad", "hypothesis: not valid Un"]
            with pytest.raises(RewardError, match="1 of 2 pairs have no score; pair 1: hypothesis: bad"):
                await client.score(pairs_of("a", "bad"))

    with ScriptedServer(answer) as server:
        run(ask())


def test_wrong_answers_and_other_models_are_errors() -> None:
    async def ask() -> None:
        async with AsyncRewardClient([server.address], timeout_s=10) as client:
            await client.score(pairs_of("a"))
            with pytest.raises(RewardError, match=r"scores of 2 pairs .*1 scores came back for 2 pairs"):
                await client.score(pairs_of("a", "b"))
            await client.update_addresses([other.address])
            with pytest.raises(RewardError, match="servers differ"):
                await client.score(pairs_of("a"))

    with (
        ScriptedServer(lambda request, context: response([1.0])) as server,
        ScriptedServer(lambda request, context: response([1.0], sha256="bb")) as other,
    ):
        run(ask())


def test_addresses_change_under_load_without_an_error() -> None:
    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        time.sleep(0.05)
        return lengths(request)

    async def ask() -> None:
        async with AsyncRewardClient([one.address], timeout_s=20) as client:
            tasks = []
            for turn in range(30):
                tasks.append(asyncio.create_task(client.score(pairs_of(*("x" * i for i in range(100))))))
                await asyncio.sleep(0.02)
                await client.update_addresses([(one, two)[turn % 2].address])
            assert all(values(scores) == [*range(100)] for scores in await asyncio.gather(*tasks))
            await asyncio.sleep(0.1)
            assert not client._retiring

    with ScriptedServer(answer) as one, ScriptedServer(answer) as two:
        run(ask())
        assert one.requests
        assert two.requests


def test_a_call_that_hangs_at_an_old_address_is_repeated_at_the_new_one() -> None:
    held = Held()

    async def ask() -> None:
        async with AsyncRewardClient([old.address], timeout_s=4) as client:
            task = asyncio.create_task(client.score(pairs_of("abc")))
            await asyncio.sleep(0.3)
            await client.update_addresses([new.address])
            assert values(await task) == [3]
        held.open.set()

    with ScriptedServer(held) as old, ScriptedServer() as new:
        run(ask())
        assert new.requests == [1]


def test_closing_fails_what_is_in_flight_and_cancelling_cancels_it() -> None:
    def slow(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        time.sleep(1)
        return lengths(request)

    async def ask() -> None:
        client = AsyncRewardClient([server.address], timeout_s=20)
        cancelled = asyncio.create_task(client.score(pairs_of("a")))
        closed = asyncio.create_task(client.score(pairs_of("a")))
        await asyncio.sleep(0.3)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await client.close()
        with pytest.raises(RewardError, match="the client was closed"):
            await closed
        with pytest.raises(RewardError, match="the client was closed"):
            await client.score(pairs_of("a"))

    with ScriptedServer(slow) as server:
        run(ask())
