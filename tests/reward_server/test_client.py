"""The client: deadlines, dead servers, several servers, and errors that say what was waited for."""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import grpc
import pytest

from protos import reward_pb2
from reward_server.calls import Endpoint
from reward_server.client import RewardClient
from reward_server.errors import PairError, RewardError
from reward_server.scorer import Scorer
from reward_server.security import ClientSecurity, ephemeral_security
from tests.reward_server.conftest import RunningServer
from tests.reward_server.scripted import Held, ScriptedServer, lengths, pairs_of, refusing, response, values

PAIR = ("No pneumothorax.", "There is no pneumothorax.")


def test_nobody_at_the_address_is_an_error_that_says_what_was_waited_for() -> None:
    with (
        RewardClient(["127.0.0.1:9"], timeout_s=2) as client,
        pytest.raises(RewardError, match=r"scores of 3 pairs from 127.0.0.1:9 \(deadline 2 s\)"),
    ):
        client.score([PAIR] * 3)


def test_the_deadline_ends_a_wait_for_a_stuck_server() -> None:
    held = Held()
    start = time.monotonic()
    with ScriptedServer(held) as server, RewardClient([server.address], timeout_s=0.5) as client:
        with pytest.raises(RewardError, match="DEADLINE_EXCEEDED"):
            client.score(pairs_of("abc"))
        assert time.monotonic() - start < 5
        held.open.set()


def test_waiting_for_a_server_that_never_comes_ends_in_time() -> None:
    with RewardClient(["127.0.0.1:9"]) as client, pytest.raises(RewardError, match=r"waited 0\.5 s for 127\.0\.0\.1:9"):
        client.wait_until_serving(0.5)


def test_a_server_that_comes_late_is_waited_for(scorer: Scorer) -> None:
    first = RunningServer(scorer)
    first.stop()
    with RewardClient([first.address], timeout_s=10) as client:
        future = client.submit([PAIR])
        time.sleep(0.3)
        second = RunningServer(scorer, port=first.port)
        client.wait_until_serving(10)
        assert future.result(10) == scorer.score([PAIR])
    second.stop()


def test_of_two_servers_one_may_go_without_an_error(scorer: Scorer) -> None:
    one, two = RunningServer(scorer), RunningServer(scorer)
    with RewardClient([one.address, two.address], timeout_s=20) as client:
        client.wait_until_serving(10)
        futures = [client.submit([PAIR]) for _ in range(20)]
        one.stop(grace_s=0)
        futures += [client.submit([PAIR]) for _ in range(20)]
        expected = scorer.score([PAIR])
        assert all(future.result(20) == expected for future in futures)
    two.stop()


def test_two_servers_share_the_work() -> None:
    with ScriptedServer() as one, ScriptedServer() as two, RewardClient([one.address, two.address]) as client:
        deadline = time.monotonic() + 10
        while not (one.requests and two.requests) and time.monotonic() < deadline:
            client.score(pairs_of("abc"))
        before = len(one.requests), len(two.requests)
        for _ in range(20):
            client.score(pairs_of("abc"))
        assert (len(one.requests), len(two.requests)) == (before[0] + 10, before[1] + 10)


def test_closing_the_client_fails_what_is_in_flight() -> None:
    held = Held()
    with ScriptedServer(held) as server:
        client = RewardClient([server.address], timeout_s=20)
        future = client.submit(pairs_of("abc"))
        assert held.entered.wait(10)
        client.close()
        with pytest.raises(RewardError, match="the client was closed"):
            future.result(10)
        held.open.set()


@pytest.mark.parametrize("addresses", [[], ["nohost"], ["127.0.0.1:x"], ["no-such-host.invalid:1"]])
def test_a_bad_address_is_refused_by_name(addresses: list[str]) -> None:
    with pytest.raises(RewardError, match=addresses[0] if addresses else "list of addresses"):
        RewardClient(addresses)


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_server_that_refuses_more_than_five_times_is_asked_on(code: grpc.StatusCode) -> None:
    with ScriptedServer(refusing(code, 8)) as server, RewardClient([server.address], timeout_s=30) as client:
        assert values(client.score(pairs_of("abc"))) == [3]
        assert len(server.requests) == 9


def test_retries_end_at_the_deadline_with_the_last_reason() -> None:
    full = refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, 10**6, "the queue is full")
    start = time.monotonic()
    with (
        ScriptedServer(full) as server,
        RewardClient([server.address], timeout_s=2.5) as client,
        pytest.raises(RewardError, match=r"1 pairs from .* \(deadline 2.5 s\): RESOURCE_EXHAUSTED: the queue is full"),
    ):
        client.score(pairs_of("abc"))
    assert time.monotonic() - start < 3.5
    assert 3 < len(server.requests) < 12


def test_other_failures_are_not_repeated() -> None:
    with (
        ScriptedServer(refusing(grpc.StatusCode.INTERNAL, 1, "broken")) as server,
        RewardClient([server.address], timeout_s=10) as client,
    ):
        with pytest.raises(RewardError, match="INTERNAL: broken"):
            client.score(pairs_of("abc"))
        assert server.requests == [1]


def test_the_description_waits_for_a_server_that_comes_late() -> None:
    with ScriptedServer() as first:
        pass
    with RewardClient([first.address], timeout_s=20) as client, ThreadPoolExecutor(1) as thread:
        described = thread.submit(client.describe)
        time.sleep(2.5)  # gRPC alone gives up after 1.5 s
        with ScriptedServer(port=first.port):
            assert described.result(20).backend == "scripted"


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_pair_that_cannot_be_scored_is_an_error_in_its_place() -> None:
    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        scored = lengths(request)
        for pair, score in zip(request.pairs, scored.scores, strict=True):
            if pair.hypothesis == "bad":
                score.Clear()
                score.error = "too bad"
        return scored

    pairs = [*pairs_of("a", "bad", "\ud800 lone", "abc"), ("r", None)]
    with ScriptedServer(answer) as server, RewardClient([server.address], timeout_s=10) as client:
        one, bad, surrogate, three, nothing = client.score_each(pairs)  # type: ignore[arg-type]
        assert (one, three) == ({"value": 1}, {"value": 3})
        assert isinstance(bad, PairError)
        assert str(bad) == "too bad"
        assert "lone surrogate at character 0" in str(surrogate)
        assert "hypothesis: must be a string, not NoneType" in str(nothing)
        with pytest.raises(RewardError, match="1 of 2 pairs have no score; pair 1: too bad"):
            client.score(pairs_of("a", "bad"))
        assert client.score_each(pairs_of("\ud800"))
        assert client.score([]) == client.score_each([]) == []


def test_a_request_that_is_refused_is_halved_until_the_bad_pair_stands_alone() -> None:
    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        if len(request.pairs) > 16:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "pairs: too many")
        if any(pair.hypothesis == "bad" for pair in request.pairs):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hypothesis: bad")
        return lengths(request)

    pairs = pairs_of(*("x" * (i % 7) for i in range(50)), "bad", *("x" * i for i in range(100)))
    with ScriptedServer(answer) as server, RewardClient([server.address], timeout_s=20) as client:
        answers = client.score_each(pairs)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, PairError)] == [50]
    assert str(answers[50]) == "hypothesis: bad"
    assert all(isinstance(a, PairError) or a["value"] == len(p[1]) for a, p in zip(answers, pairs, strict=True))


def test_a_message_that_is_too_large_for_the_server_is_halved() -> None:
    pairs = pairs_of(*(str(i) * 1000 for i in range(10)), "long" * 100_000)
    with (
        ScriptedServer(message_bytes=5000) as server,
        RewardClient([server.address], timeout_s=20) as client,
    ):
        *scores, error = client.score_each(pairs)
    assert [score["value"] for score in scores] == [1000] * 10  # type: ignore[call-overload, index]
    assert isinstance(error, PairError)


def test_a_large_request_is_sent_in_parts_and_keeps_the_order() -> None:
    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        time.sleep(random.random() / 10)
        return lengths(request)

    pairs = pairs_of(*("x" * (i % 500) for i in range(3000)))
    with (
        ScriptedServer(answer) as one,
        ScriptedServer(answer) as two,
        RewardClient([one.address, two.address], timeout_s=30) as client,
    ):
        assert values(client.score(pairs)) == [len(hypothesis) for _, hypothesis in pairs]
        assert sum(one.requests) + sum(two.requests) == 3000
        # The first requests may all go to the server that was connected to first.
        assert values(client.score(pairs)) == [len(hypothesis) for _, hypothesis in pairs]
    assert min(sum(one.requests), sum(two.requests)) > 1000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response([1.0]), "1 scores came back for 2 pairs"),
        (response([1.0, math.nan]), "not finite: value is nan"),
        (response([1.0, math.inf]), "not finite: value is inf"),
        (
            reward_pb2.ScoreResponse(scores=[reward_pb2.PairScore(), reward_pb2.PairScore()]),
            "different components",
        ),
        (
            reward_pb2.ScoreResponse(
                scores=[reward_pb2.PairScore(components={"a": 1}), reward_pb2.PairScore(components={"b": 1})]
            ),
            "different components",
        ),
    ],
)
def test_a_wrong_answer_is_an_error(answer: reward_pb2.ScoreResponse, reason: str) -> None:
    with (
        ScriptedServer(lambda request, context: answer) as server,
        RewardClient([server.address], timeout_s=10) as client,
        pytest.raises(RewardError, match=f"scores of 2 pairs .*{reason}"),
    ):
        client.score(pairs_of("a", "b"))


def test_answers_of_different_models_are_never_mixed() -> None:
    def other(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        return response([1.0] * len(request.pairs), sha256="bb")

    with (
        ScriptedServer() as one,
        ScriptedServer(other) as two,
        RewardClient([one.address], timeout_s=10) as client,
    ):
        client.score(pairs_of("a"))
        client.update_addresses([two.address])
        with pytest.raises(RewardError, match=r"servers differ.*first scripted scripted-v1 \(model aa\).*\(model bb\)"):
            client.score(pairs_of("a"))
    with (
        ScriptedServer() as one,
        ScriptedServer(other) as two,
        RewardClient([one.address, two.address], timeout_s=10) as client,
    ):
        client.wait_until_serving(10)
        futures = [client.submit(pairs_of(*"a" * 500)) for _ in range(20)]
        with pytest.raises(RewardError, match="servers differ"):
            [future.result(10) for future in futures]


# --- other addresses --------------------------------------------------------------------------------------------------


def test_addresses_change_under_load_without_an_error() -> None:
    def answer(request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        time.sleep(0.05)
        return lengths(request)

    pairs = pairs_of(*("x" * i for i in range(100)))
    with ExitStack() as stack:
        servers = [stack.enter_context(ScriptedServer(answer)) for _ in range(3)]
        client = stack.enter_context(RewardClient([servers[0].address], timeout_s=20))
        futures = []
        for turn in range(30):
            futures.append(client.submit(pairs))
            client.update_addresses([servers[turn % 3].address, servers[(turn + 1) % 3].address])
            time.sleep(0.02)
        assert all(values(future.result(20)) == list(range(100)) for future in futures)


def test_a_call_in_flight_ends_on_the_old_server_and_its_channel_is_closed_then() -> None:
    held = Held()
    with ScriptedServer(held) as old, ScriptedServer() as new, RewardClient([old.address], timeout_s=20) as client:
        future = client.submit(pairs_of("abc"))
        assert held.entered.wait(10)
        client.update_addresses([new.address])
        assert values(client.score(pairs_of("ab"))) == [2]
        assert not future.done()
        held.open.set()
        assert values(future.result(10)) == [3]
        assert old.requests == new.requests == [1]
        deadline = time.monotonic() + 10
        while len(client._links._all) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(client._links._all) == 1


def test_a_call_that_hangs_at_an_old_address_is_repeated_at_the_new_one() -> None:
    held = Held()
    with ScriptedServer(held) as old, ScriptedServer() as new, RewardClient([old.address], timeout_s=4) as client:
        future = client.submit(pairs_of("abc"))
        assert held.entered.wait(10)
        client.update_addresses([new.address])
        assert values(future.result(10)) == [3]
        assert new.requests == [1]
        held.open.set()


def test_a_call_to_a_server_that_is_gone_goes_on_at_the_new_address() -> None:
    with ScriptedServer() as server, RewardClient(["127.0.0.1:9"], timeout_s=20) as client:
        future = client.submit(pairs_of("abc"))
        time.sleep(0.2)
        client.update_addresses([server.address])
        assert values(future.result(20)) == [3]


def test_a_bad_list_of_addresses_changes_nothing() -> None:
    with ScriptedServer() as server, RewardClient([server.address], timeout_s=10) as client:
        for bad in ([], ["nohost"], ["no-such-host.invalid:1"]):
            with pytest.raises(RewardError):
                client.update_addresses(bad)
        assert values(client.score(pairs_of("abc"))) == [3]


def test_a_closed_client_says_so() -> None:
    client = RewardClient(["127.0.0.1:9"], timeout_s=10)
    waiting = client.submit(pairs_of("abc"))
    client.close()
    for future in (waiting, client.submit(pairs_of("abc"))):
        with pytest.raises(RewardError, match="the client was closed"):
            future.result(5)
    with pytest.raises(RewardError, match="closed"):
        client.describe()
    client.close()


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["127.0.0.1:5"], "ipv4:127.0.0.1:5"),
        (["127.0.0.1:5", "127.0.0.2:6"], "ipv4:127.0.0.1:5,127.0.0.2:6"),
        (["[::1]:5", "[::1]:6"], "ipv6:[::1]:5,[::1]:6"),
        (["localhost:5"], "dns:///localhost:5"),
        (["localhost:5", "127.0.0.1:6"], "ipv4:127.0.0.1:5,127.0.0.1:6"),
    ],
)
def test_addresses_become_a_target_of_grpc(addresses: list[str], target: str) -> None:
    assert Endpoint(addresses, None).target == target


def test_a_host_name_is_an_address() -> None:
    with ScriptedServer() as server, RewardClient([f"localhost:{server.port}"], timeout_s=10) as client:
        client.wait_until_serving(10)
        assert values(client.score(pairs_of("abc"))) == [3]


def test_many_threads_share_a_client() -> None:
    with (
        ScriptedServer() as server,
        RewardClient([server.address], timeout_s=30) as client,
        ThreadPoolExecutor(32) as threads,
    ):
        done = list(threads.map(lambda n: values(client.score(pairs_of(*("x" * n for _ in range(70))))), range(200)))
    assert done == [[n] * 70 for n in range(200)]


# --- security ---------------------------------------------------------------------------------------------------------


def test_a_client_with_the_certificates_and_the_token_is_served_by_several_servers() -> None:
    theirs, ours = ephemeral_security()
    with (
        ScriptedServer(security=theirs) as one,
        ScriptedServer(security=theirs) as two,
        RewardClient([one.address, two.address], timeout_s=10, security=ours) as client,
    ):
        client.wait_until_serving(10)
        assert client.describe().backend == "scripted"
        assert values(client.score(pairs_of(*("x" * i for i in range(200))))) == [*range(200)]
        client.update_addresses([two.address])
        assert values(client.score(pairs_of("abc"))) == [3]


def test_mutual_tls_needs_a_certificate_of_the_client() -> None:
    theirs, ours = ephemeral_security()
    theirs = replace(theirs, client_ca=ours.ca, token=None)
    known = replace(ours, certificate=theirs.certificate, key=theirs.key)
    with ScriptedServer(security=theirs) as server:
        with RewardClient([server.address], timeout_s=10, security=known) as client:
            assert values(client.score(pairs_of("abc"))) == [3]
        with (
            RewardClient([server.address], timeout_s=1, security=ours) as client,
            pytest.raises(RewardError, match="UNAVAILABLE"),
        ):
            client.score(pairs_of("abc"))


@pytest.mark.parametrize("case", ["no token", "wrong token", "plain", "other authority"])
def test_a_client_that_is_not_known_or_does_not_know_the_server_is_refused(case: str) -> None:
    theirs, ours = ephemeral_security()
    security = {
        "no token": replace(ours, token=None),
        "wrong token": replace(ours, token="wrong"),
        "plain": None,
        "other authority": ephemeral_security()[1],
    }[case]
    reason = "UNAUTHENTICATED: no token" if "token" in case else "UNAVAILABLE"
    with ScriptedServer(security=theirs) as server:
        with (
            RewardClient([server.address], timeout_s=1, security=security) as client,
            pytest.raises(RewardError, match=reason) as caught,
        ):
            client.score(pairs_of("abc"))
        assert not server.requests
    assert str(ours.token) not in str(caught.value)


def test_what_would_not_be_safe_is_refused_at_once() -> None:
    _, ours = ephemeral_security()
    with pytest.raises(RewardError, match=r"TLS to several addresses .* needs a name .* --tls-server-name"):
        RewardClient(["127.0.0.1:1", "127.0.0.1:2"], security=replace(ours, server_name=None))
    with pytest.raises(RewardError, match=r"never sent to another machine \(192.0.2.1:1\) without TLS"):
        RewardClient(["192.0.2.1:1"], security=ClientSecurity(token="t" * 20))
    RewardClient(["127.0.0.1:1"], security=ClientSecurity(token="t" * 20)).close()
