"""The client: deadlines, dead servers, several servers, and errors that say what was waited for."""

from __future__ import annotations

import time

import pytest

from reward_server.client import RewardClient
from reward_server.errors import RewardError
from reward_server.scorer import Scorer
from tests.reward_server.conftest import RunningServer
from tests.reward_server.test_server import PAIR, Gate


def test_nobody_at_the_address_is_an_error_that_says_what_was_waited_for() -> None:
    with (
        RewardClient(["127.0.0.1:9"], timeout_s=2) as client,
        pytest.raises(RewardError, match=r"scores of 3 pairs from 127.0.0.1:9 \(deadline 2 s\)"),
    ):
        client.score([PAIR] * 3)


def test_the_deadline_ends_a_wait_for_a_stuck_server() -> None:
    gate = Gate()
    running = RunningServer(gate)
    start = time.monotonic()
    with (
        RewardClient([running.address], timeout_s=0.5) as client,
        pytest.raises(RewardError, match="DEADLINE_EXCEEDED"),
    ):
        client.score([PAIR])
    assert time.monotonic() - start < 5
    gate.open.set()
    running.stop()


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
    gates = Gate(), Gate()
    servers = [RunningServer(gate) for gate in gates]
    for gate in gates:
        gate.open.set()
    with RewardClient([server.address for server in servers], timeout_s=10) as client:
        deadline = time.monotonic() + 10
        while not all(gate.batches for gate in gates) and time.monotonic() < deadline:
            client.score([PAIR])
    assert all(gate.batches for gate in gates)
    for server in servers:
        server.stop()


def test_closing_the_client_fails_what_is_in_flight() -> None:
    gate = Gate()
    running = RunningServer(gate)
    client = RewardClient([running.address], timeout_s=20)
    future = client.submit([PAIR])
    assert gate.entered.wait(10)
    client.close()
    with pytest.raises(RewardError):
        future.result(10)
    gate.open.set()
    running.stop()


@pytest.mark.parametrize("addresses", [[], ["nohost"], ["127.0.0.1:x"], ["no-such-host.invalid:1"]])
def test_a_bad_address_is_refused_by_name(addresses: list[str]) -> None:
    with pytest.raises(RewardError, match=addresses[0] if addresses else "list of addresses"):
        RewardClient(addresses)
