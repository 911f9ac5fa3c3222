"""Who is let in, over real sockets with real certificates."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import reward_pb2, reward_pb2_grpc
from reward_server.aio_client import AsyncRewardClient
from reward_server.client import RewardClient
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scorer import Scorer
from reward_server.security import ClientSecurity, ServerSecurity, ephemeral_security, is_loopback
from reward_server.server import SERVICE, RewardServer
from tests.reward_server.conftest import RunningServer

PAIR = ("No pneumothorax.", "There is no pneumothorax.")


@pytest.fixture(scope="module")
def run_security() -> tuple[ServerSecurity, ClientSecurity]:
    return ephemeral_security()


@pytest.fixture(scope="module")
def secured(scorer: Scorer, run_security: tuple[ServerSecurity, ClientSecurity]) -> Iterator[RunningServer]:
    running = RunningServer(scorer, security=run_security[0])
    yield running
    running.stop()


@pytest.fixture
def files(run_security: tuple[ServerSecurity, ClientSecurity], tmp_path: Path) -> dict[str, str]:
    server, client = run_security
    contents = {"cert": server.certificate, "key": server.key, "ca": client.ca, "token": str(server.token).encode()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content or b"")
        (tmp_path / name).chmod(0o600)
    return {name: str(tmp_path / name) for name in contents}


def test_a_client_with_the_certificate_and_the_token_is_served(
    secured: RunningServer, run_security: tuple[ServerSecurity, ClientSecurity], scorer: Scorer
) -> None:
    with RewardClient([secured.address], timeout_s=20, security=run_security[1]) as client:
        client.wait_until_serving(20)
        assert client.score([PAIR]) == scorer.score([PAIR])
        assert client.describe() == scorer.description


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, "want a token, and none was given"),
        ("", "want a token, and none was given"),
        ("x" * 43, "do not take this token"),
    ],
)
def test_a_client_with_another_token_or_none_is_refused_at_once_and_told_which(
    secured: RunningServer, run_security: tuple[ServerSecurity, ClientSecurity], token: str | None, reason: str
) -> None:
    wrong = replace(run_security[1], token=token)
    said = f"^the servers at {secured.address} {reason} .UNAUTHENTICATED: .*--token-file FILE"

    async def ask() -> None:
        async with AsyncRewardClient([secured.address], timeout_s=20, security=wrong) as client:
            await client.score([PAIR])

    with RewardClient([secured.address], timeout_s=20, security=wrong) as client:
        for call in (lambda: client.score([PAIR]), client.describe, lambda: asyncio.run(ask())):
            with pytest.raises(RewardError, match=said):
                call()


def test_a_client_without_tls_that_is_hung_up_on_is_asked_about_tls(secured: RunningServer) -> None:
    async def wait() -> None:
        async with AsyncRewardClient([secured.address]) as client:
            await client.wait_until_serving(1)

    with RewardClient([secured.address], timeout_s=1) as client:
        for call in (client.describe, lambda: client.wait_until_serving(1), lambda: asyncio.run(wait())):
            with pytest.raises(RewardError, match=r"Socket closed .do the servers want TLS.*--tls-ca"):
                call()
    with RewardClient(["127.0.0.1:9"], timeout_s=1) as client, pytest.raises(RewardError) as caught:
        client.describe()
    assert "TLS" not in str(caught.value)


def test_a_stream_without_the_token_is_refused_and_health_is_open_to_probes(
    secured: RunningServer, run_security: tuple[ServerSecurity, ClientSecurity]
) -> None:
    trust = grpc.ssl_channel_credentials(run_security[1].ca)
    name = [("grpc.ssl_target_name_override", str(run_security[1].server_name))]
    with grpc.secure_channel(secured.address, trust, name) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(iter([reward_pb2.ScoreRequest()])))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("other", ["plain", "another run's"])
def test_a_client_that_does_not_know_the_certificate_gets_nothing(secured: RunningServer, other: str) -> None:
    security = ClientSecurity() if other == "plain" else ephemeral_security()[1]
    with RewardClient([secured.address], timeout_s=2, security=security) as client, pytest.raises(RewardError):
        client.score([PAIR])


def test_mutual_tls_lets_in_only_clients_with_a_certificate(scorer: Scorer) -> None:
    server, client = ephemeral_security()
    theirs, _ = ephemeral_security()
    # The run's own authority vouches for servers; here it vouches for clients too.
    mutual = replace(server, client_ca=client.ca, token=None)
    running = RunningServer(scorer, security=mutual)
    try:
        known = replace(client, certificate=server.certificate, key=server.key, token=None)
        with RewardClient([running.address], timeout_s=20, security=known) as allowed:
            assert len(allowed.score([PAIR])) == 1
        for stranger in (
            replace(client, token=None),
            replace(client, certificate=theirs.certificate, key=theirs.key, token=None),
        ):
            with RewardClient([running.address], timeout_s=2, security=stranger) as refused, pytest.raises(RewardError):
                refused.score([PAIR])
    finally:
        running.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "reward.hospital.example"])
def test_an_address_that_others_can_reach_needs_a_certificate(host: str) -> None:
    async def start() -> None:
        await RewardServer(security=ServerSecurity(token="t" * 20)).start(host)

    with pytest.raises(RewardSetupError, match="--tls-cert"):
        asyncio.run(start())


def test_loopback_is_known_by_its_addresses_only() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "::", "localhost.example")))


def test_secrets_are_read_from_files(
    files: dict[str, str], run_security: tuple[ServerSecurity, ClientSecurity]
) -> None:
    server = ServerSecurity.from_files(certificate=files["cert"], key=files["key"], token=files["token"])
    assert server == run_security[0]
    client = ClientSecurity.from_files(ca=files["ca"], token=files["token"], server_name=run_security[1].server_name)
    assert client == run_security[1]


def test_a_token_file_that_others_can_read_is_warned_of(
    files: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(files["token"]).chmod(0o644)
    with caplog.at_level(logging.WARNING):
        ServerSecurity.from_files(token=files["token"])
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"certificate": "cert"}, "--tls-cert and --tls-key belong together"),
        ({"certificate": "cert", "key": "ca"}, "not an unencrypted private key"),
        ({"certificate": "token", "key": "key"}, "no certificate in PEM form"),
        ({"certificate": "cert", "key": "other"}, "is not the key of the certificate"),
        ({"client_ca": "ca"}, "needs --tls-cert"),
        ({"token": "short"}, "at least 16"),
        ({"token": "words"}, "one word"),
        ({"token": "absent"}, "No such file"),
        ({"certificate": "absent", "key": "key"}, "absent: No such file"),
    ],
)
def test_files_that_cannot_work_are_named(files: dict[str, str], given: dict[str, str], reason: str) -> None:
    folder = Path(files["cert"]).parent
    (folder / "short").write_text("abc")
    (folder / "words").write_text("several words of a sentence")
    (folder / "other").write_bytes(ephemeral_security()[0].key or b"")
    with pytest.raises(RewardSetupError, match=reason):
        ServerSecurity.from_files(**{name: str(folder / file) for name, file in given.items()})


def test_secrets_are_in_no_repr_and_survive_a_pickle(run_security: tuple[ServerSecurity, ClientSecurity]) -> None:
    for security in run_security:
        assert str(security.token) not in repr(security)
        assert "PRIVATE KEY" not in repr(security)
        assert pickle.loads(pickle.dumps(security)) == security


def test_the_certificates_of_a_run_are_its_own_and_only_sign_what_they_are_for(
    run_security: tuple[ServerSecurity, ClientSecurity],
) -> None:
    other = ephemeral_security()
    assert other[0].token != run_security[0].token
    certificate = x509.load_pem_x509_certificate(run_security[0].certificate or b"")
    authority = x509.load_pem_x509_certificate(run_security[1].ca or b"")
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_caller_without_the_proto_file_can_ask_through_reflection(
    secured: RunningServer, run_security: tuple[ServerSecurity, ClientSecurity]
) -> None:
    """As grpcurl does: list the services, get the file of one and what it imports, make the messages, call."""
    trust = grpc.ssl_channel_credentials(run_security[1].ca)
    name = [("grpc.ssl_target_name_override", str(run_security[1].server_name))]
    token = [("authorization", f"Bearer {run_security[1].token}")]

    def ask(channel: grpc.Channel, question: reflection_pb2.ServerReflectionRequest) -> Any:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        return next(stub.ServerReflectionInfo(iter([question]), metadata=token, timeout=10))

    with grpc.secure_channel(secured.address, trust, name) as channel:
        listed = ask(channel, reflection_pb2.ServerReflectionRequest(list_services=""))
        assert SERVICE in {service.name for service in listed.list_services_response.service}
        found = ask(channel, reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        pool = descriptor_pool.DescriptorPool()
        for file in found.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(file)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("Score")
        question = message_factory.GetMessageClass(method.input_type)()
        question.pairs.add(reference=PAIR[0], hypothesis=PAIR[1])
        reply = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{SERVICE}/Score",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        answer = call(question, metadata=token, timeout=10)
        assert set(answer.scores[0].components) >= {"bleu2", "embedded"}
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_call_without_the_token_is_refused_before_it_sends_anything(
    secured: RunningServer, run_security: tuple[ServerSecurity, ClientSecurity]
) -> None:
    """A stranger can neither hold a call open nor make the server read a large message."""
    trust = grpc.ssl_channel_credentials(run_security[1].ca)
    name = [("grpc.ssl_target_name_override", str(run_security[1].server_name))]
    ended = threading.Event()

    def silent() -> Iterator[bytes]:
        ended.wait(20)
        yield from ()

    with grpc.secure_channel(secured.address, trust, name) as channel:
        for method in ("Score", "Label", "Describe", "ScoreStream"):
            call = channel.stream_stream(f"/{SERVICE}/{method}")(silent(), timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        ended.set()


def test_an_expired_certificate_is_named_at_the_start(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now - timedelta(days=2))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "cert").write_bytes(made.public_bytes(Encoding.PEM))
    (tmp_path / "key").write_bytes(private)
    with pytest.raises(RewardSetupError, match=f"cert expired on {now - timedelta(days=2):%Y-%m-%d}"):
        ServerSecurity.from_files(certificate=str(tmp_path / "cert"), key=str(tmp_path / "key"))
