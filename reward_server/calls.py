"""What the two clients share: addresses, channel options, checks of answers, and what follows an error.

Contract: no connection is made here. An answer is taken only if it has a value for every item, as the question reads
it, and is from the same backend, definition and models as every answer before.
"""

from __future__ import annotations

import enum
import ipaddress
import json
import random
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc

from protos import reward_pb2
from reward_server.errors import PairError, RewardChangedError, RewardError
from reward_server.questions import MESSAGE_BYTES, Question
from reward_server.scorer import Description, ModelFile

if TYPE_CHECKING:
    from reward_server.security import ClientSecurity

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name

Response = reward_pb2.ScoreResponse | reward_pb2.LabelResponse | reward_pb2.ExplainResponse
I = TypeVar("I")  # noqa: E741
V = TypeVar("V")

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 2.0


class Endpoint:
    """Where the servers are and how they are spoken to; RewardError if an address can't be used."""

    def __init__(self, addresses: Sequence[str], security: ClientSecurity | None) -> None:
        if isinstance(addresses, str) or not addresses:
            raise RewardError(f"the client needs a list of addresses host:port, not {addresses!r}")
        self.addresses = tuple(addresses)
        self.where = ", ".join(addresses)
        self.target = _target(addresses)
        self.credentials = _credentials(security)
        name, token = (security.server_name, security.token) if security else (None, None)
        if self.credentials and len(addresses) > 1 and not name:
            raise RewardError(
                f"TLS to several addresses ({self.where}) needs a name that all their certificates carry: give "
                "ClientSecurity(server_name=...), or --tls-server-name"
            )
        if token and not self.credentials:
            _check_all_local(addresses)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.options: list[tuple[str, str | int]] = [
            ("grpc.service_config", json.dumps(_service_config())),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            # A server that comes back is found soon; gRPC would wait up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # A machine that vanished without a word is noticed while calls wait for it.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.enable_http_proxy", 0),
        ]
        if name:
            self.options.append(("grpc.ssl_target_name_override", name))

    def failure(self, waited_for: str, code: grpc.StatusCode, details: str | None) -> RewardError:
        """The error of a caller that got no answer from here."""
        if code is grpc.StatusCode.UNAUTHENTICATED:
            refused = "do not take this token" if self.metadata else "want a token, and none was given"
            return RewardError(
                f"the servers at {self.where} {refused} ({code.name}: {details}): give theirs by --token-file FILE "
                "(in a run reward.token_file, in Python ClientSecurity(token=...))"
            )
        return RewardError(f"waited for {waited_for}: {self.reason(code, details)}")

    def reason(self, code: grpc.StatusCode, details: str | None) -> str:
        """Why a call got no answer from here."""
        # All that a server with TLS does about a client without is to hang up.
        hung_up = self.credentials is None and "Socket closed" in (details or "")
        return f"{code.name}: {details}{' (do the servers want TLS? --tls-ca FILE)' if hung_up else ''}"


def _credentials(security: ClientSecurity | None) -> grpc.ChannelCredentials | None:
    """None: without TLS."""
    if security is None or (security.ca is None and security.certificate is None):
        return None
    return grpc.ssl_channel_credentials(security.ca, security.key, security.certificate)


def _check_all_local(addresses: Sequence[str]) -> None:
    from reward_server.security import is_loopback  # loads cryptography

    for address in addresses:
        if not is_loopback(_host_and_port(address)[0]):
            raise RewardError(f"a token is never sent to another machine ({address}) without TLS: give its CA as well")


def _target(addresses: Sequence[str]) -> str:
    """gRPC's name of the servers. A single host name is looked up again by gRPC when connections fail; several: now."""
    parts = [_host_and_port(address) for address in addresses]
    if len(parts) == 1 and not _is_number(parts[0][0]):
        _lookup(*parts[0], socket.AF_UNSPEC)  # to name an unknown host at once
        return f"dns:///{addresses[0]}"
    v6 = ":" in parts[0][0]
    found = [_lookup(host, port, socket.AF_INET6 if v6 else socket.AF_INET) for host, port in parts]
    if v6:
        return "ipv6:" + ",".join(f"[{ip}]:{port}" for ip, (_, port) in zip(found, parts, strict=True))
    return "ipv4:" + ",".join(f"{ip}:{port}" for ip, (_, port) in zip(found, parts, strict=True))


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or (":" in host and not host.startswith("[")):
        raise RewardError(f"{address!r} is not an address host:port")
    return host.strip("[]"), int(port)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _lookup(host: str, port: int, family: socket.AddressFamily) -> str:
    try:
        return str(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise RewardError(f"the host of the reward server '{host}:{port}' is unknown: {error}") from error


def _service_config() -> dict[str, object]:
    # No retry policy: gRPC stops after five attempts and hides their reasons. `next_step` is ours.
    return {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE}}


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """What computed an answer."""

    backend: str
    definition: str
    models: tuple[ModelFile, ...]

    def __str__(self) -> str:
        models = ", ".join(f"{model.name} {model.sha256[:12]}" for model in self.models)
        return f"{self.backend} {self.definition} ({models or 'no models'})"


class Checks:
    """The checks of all answers that one client gets. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._origin: _Origin | None = None

    def answers(self, question: Question[I, V], response: Response, items: int) -> list[V | PairError]:
        """What the response says of every item; RewardError if it is incomplete, impossible, or of another origin."""
        self._check_origin(response.backend, response.definition, response.models)
        answers = question.read(response)
        if len(answers) != items:
            raise RewardError(f"{len(answers)} {question.value}s came back for {items} {question.item}s")
        return answers

    def description(self, about: reward_pb2.DescribeResponse) -> Description:
        """What the server says of itself; RewardError if earlier answers came from something else."""
        self._check_origin(about.backend, about.definition, about.models)
        return Description(
            backend=about.backend,
            definition=about.definition,
            formula=about.formula,
            components=tuple(about.components),
            models=tuple(ModelFile(model.name, model.sha256) for model in about.models),
            versions=dict(about.versions),
        )

    def _check_origin(self, backend: str, definition: str, models: Sequence[reward_pb2.Model]) -> None:
        origin = _Origin(backend, definition, tuple(ModelFile(model.name, model.sha256) for model in models))
        with self._lock:
            first = self._origin = self._origin or origin
        if origin != first:
            raise RewardChangedError(
                f"the servers differ, so their scores must not be mixed: first {first} answered, now {origin}"
            )


# --- errors -----------------------------------------------------------------------------------------------------------

# CANCELLED: what a stopping server says of calls that it never took up. Scoring twice does no harm.
_TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)


class Step(enum.Enum):
    """What to do about a call that failed."""

    AGAIN = "send it again after `backoff_s`"
    HALVE = "send its items in two calls"
    PAIR_ERROR = "its only item is refused: the other items of the caller go on"
    FAIL = "all items of the caller fail"


def next_step(code: grpc.StatusCode, details: str, items: int) -> Step:
    """A refused request is halved until the refused item stands alone, or until the server's limits are kept."""
    too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
    if code is grpc.StatusCode.INVALID_ARGUMENT or too_large:
        return Step.HALVE if items > 1 else Step.PAIR_ERROR
    return Step.AGAIN if code in _TRY_AGAIN else Step.FAIL


def backoff_s(attempt: int) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: doubled each time, up to 2 s, and each client at random."""
    return random.uniform(0.5, 1.0) * min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(attempt, 10))
