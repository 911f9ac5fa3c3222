"""Whatever comes over the wire or stands in a report: the server answers or refuses, and goes on."""

from __future__ import annotations

import math
import os
import random
import socket
from collections.abc import Iterator

import grpc
import pytest

from protos import reward_pb2, reward_pb2_grpc
from reward_server.client import RewardClient
from reward_server.errors import RewardError
from reward_server.scorer import ScorerOptions
from reward_server.selfcheck import load_scorer
from reward_server.server import SERVICE
from reward_server.service import Limits
from tests.reward_server.conftest import RunningServer
from tests.reward_server.radcliq.conftest import mini_weights

__all__ = ["mini_weights"]

LIMIT = 3000  # characters of a report: no random text needs more
GOOD = ("No pneumothorax.", "There is no pneumothorax.")
ANSWERS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNKNOWN,  # gRPC itself, for bytes that are no message
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
ALPHABETS = (
    "abc .,;:-/()!?\n\t",
    "\x00\x01\x1f\x7f\x80\u00a0\u200b\u200d\ufeff\u2028\u202e",
    "éßøλЖ漢字かな한עربी",
    "🫁👍🏽🇩🇪e\u0301\u0300\u0489",
    "\ud7ff\ue000\uffff\U00010000\U0010ffff",
    "<s></s><mask>[CLS][SEP][PAD]##",
    "\\n\"'`{}%$#@0123456789",
)


@pytest.fixture(scope="module", params=["embedded", "published"])
def fuzzed(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    weights = str(request.getfixturevalue("mini_weights")) if request.param == "published" else None
    running = RunningServer(load_scorer(ScorerOptions(request.param, weights=weights)), Limits(characters=LIMIT))
    yield running
    running.stop()


def still_answers(server: RunningServer) -> None:
    with RewardClient([server.address], timeout_s=60) as client:
        (score,) = client.score([GOOD])
    assert all(math.isfinite(value) for value in score.values())


def test_bytes_that_are_no_request_are_refused(fuzzed: RunningServer) -> None:
    draw = random.Random(1)
    valid = reward_pb2.ScoreRequest(pairs=[reward_pb2.Pair(reference=a, hypothesis=b) for a, b in [GOOD] * 3])
    whole = valid.SerializeToString()
    broken = [draw.randbytes(draw.randint(1, 200)) for _ in range(60)]
    broken += [whole[: draw.randint(1, len(whole) - 1)] for _ in range(20)]
    for _ in range(40):
        changed = bytearray(whole)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        broken.append(bytes(changed))
    broken.append(b"\x0a\x06\x0a\x04\xff\xfe\x80\xc3")  # a reference that is not UTF-8
    with grpc.insecure_channel(fuzzed.address) as channel:
        for method in ("Score", "Describe", "Nothing"):
            call = channel.unary_unary(f"/{SERVICE}/{method}")  # bytes in, bytes out
            for message in broken:
                code = call.future(message, timeout=60).code()  # OK: some are a valid request by chance
                assert code in ANSWERS, (method, code)
    still_answers(fuzzed)


def test_a_peer_that_does_not_speak_grpc_harms_nobody(fuzzed: RunningServer) -> None:
    for words in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(512)):
        with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=10) as peer:
            peer.sendall(words)
    still_answers(fuzzed)


def test_any_text_has_finite_scores(fuzzed: RunningServer) -> None:
    draw = random.Random(2)
    texts = []
    for _ in range(120):
        alphabet = draw.choice(ALPHABETS) + (draw.choice(ALPHABETS) if draw.random() < 0.5 else "")
        texts.append("".join(draw.choices(alphabet, k=int(draw.triangular(0, 300, 1)))))
    texts += [
        "x" * LIMIT,
        "," * LIMIT,
        "no " * (LIMIT // 3),
        "\n" * LIMIT,
        "\U0001fac1" * LIMIT,
        "e\u0301" * (LIMIT // 2),
    ]
    pairs = list(zip(texts, draw.sample(texts, len(texts)), strict=True))
    with RewardClient([fuzzed.address], timeout_s=300) as client:
        scores = client.score(pairs)
        assert client.score(pairs[::-1]) == scores[::-1]
    assert len(scores) == len(pairs)


def test_words_of_a_megabyte_are_refused_pair_by_pair(fuzzed: RunningServer) -> None:
    with RewardClient([fuzzed.address], timeout_s=60) as client:
        outcomes = client.score_each([("x" * 2**20, "y"), GOOD, ("", "漢" * 2**20)])
    assert [isinstance(outcome, RewardError) for outcome in outcomes] == [True, False, True]


def test_text_that_no_wire_carries_fails_its_own_pair(fuzzed: RunningServer) -> None:
    """Half of a surrogate pair is a Python string, but not UTF-8."""
    with RewardClient([fuzzed.address], timeout_s=60) as client:
        outcomes = client.score_each([GOOD, ("half \ud83e of a character", "x")])
    assert isinstance(outcomes[0], dict)
    assert isinstance(outcomes[1], RewardError)
    still_answers(fuzzed)


def test_ten_thousand_pairs_come_back_in_order(fuzzed: RunningServer) -> None:
    texts = [f"{i} mm nodule." for i in range(50)]
    pairs = [(texts[i % 50], texts[(i * 7) % 50]) for i in range(10_000)]
    with RewardClient([fuzzed.address], timeout_s=300) as client:
        scores = client.score(pairs)
        some = dict(zip(pairs[:50], client.score(pairs[:50]), strict=True))
    assert len(scores) == 10_000
    for pair, score in zip(pairs, scores, strict=True):
        if pair in some:
            assert score == some[pair]


def test_too_many_pairs_in_a_request_are_refused_whole(fuzzed: RunningServer) -> None:
    request = reward_pb2.ScoreRequest(pairs=[reward_pb2.Pair()] * 10_000)
    with grpc.insecure_channel(fuzzed.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Score(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    still_answers(fuzzed)
