"""Who may ask a reward server, and over which wire: TLS, mutual TLS, bearer tokens.

Contract: reports are patient data, so a server that other machines can reach has a certificate, or does not start. A
token is never sent over a plain connection to another machine. Secrets come from files, are never part of a `repr`, a
log line or an error, and are compared in constant time. Everything here can be pickled, to reach a run's actors.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from reward_server.errors import RewardSetupError

_LOG = logging.getLogger(__name__)
_SHORTEST_TOKEN = 16
# The name in the certificates that a run makes for its own workers, wherever these land.
_RUN_NAME = "reward.lmrrg.internal"
_RUN_DAYS = 90
# Probes carry no secrets, and what they learn is only that a server is there.
_OPEN_METHODS = "/grpc.health.v1.Health/"


@dataclass(frozen=True)
class ServerSecurity:
    """PEM files' content and the token that callers must send; all None: a plain server for this machine only."""

    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    client_ca: bytes | None = field(default=None, repr=False)  # mutual TLS: who vouches for clients
    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_files(
        cls,
        *,
        certificate: str | None = None,
        key: str | None = None,
        client_ca: str | None = None,
        token: str | None = None,
    ) -> ServerSecurity:
        """Reads the files; RewardSetupError where one can't be read or they do not belong together."""
        _check_pair(certificate, key)
        if client_ca and not certificate:
            raise RewardSetupError(
                "--tls-client-ca needs --tls-cert and --tls-key: client certificates are part of TLS"
            )
        if client_ca:
            _certificates(client_ca)
        return cls(_read(certificate), _read(key), _read(client_ca), _read_token(token))

    def credentials(self) -> grpc.ServerCredentials | None:
        """What a gRPC port is opened with; None: without TLS."""
        if self.certificate is None or self.key is None:
            return None
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.client_ca, require_client_auth=self.client_ca is not None
        )

    def check_host(self, host: str) -> None:
        """Raises RewardSetupError if other machines could reach `host` and there is no certificate."""
        if self.certificate is None and not is_loopback(host):
            raise RewardSetupError(
                f"--host {host}: other machines can reach it, and reports must not go over an open wire; give"
                " --tls-cert and --tls-key (and --token-file or --tls-client-ca, so that not everyone may ask), or use"
                " --host 127.0.0.1"
            )
        if self.client_ca is None and self.token is None and not is_loopback(host):
            _LOG.warning("everyone who reaches %s may ask: --token-file or --tls-client-ca decide who", host)


@dataclass(frozen=True)
class ClientSecurity:
    """What a client needs to know its servers and to be known; all None: plain connections."""

    ca: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    server_name: str | None = None  # the name in the servers' certificates, where it is not the host's

    @classmethod
    def from_files(
        cls,
        *,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        token: str | None = None,
        server_name: str | None = None,
    ) -> ClientSecurity:
        """Reads the files; RewardSetupError where one can't be read or they do not belong together."""
        _check_pair(certificate, key)
        if ca:
            _certificates(ca)
        return cls(_read(ca), _read(certificate), _read(key), _read_token(token), server_name)


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls without `authorization: Bearer TOKEN` as UNAUTHENTICATED; health checks pass without."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        given = b""
        for name, value in details.invocation_metadata or ():
            if name == "authorization":
                given = value.encode() if isinstance(value, str) else value
        handler = await continuation(details)
        allowed = hmac.compare_digest(given, self._expected) or details.method.startswith(_OPEN_METHODS)
        return handler if allowed or handler is None else _refusing()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: it could be anything


def ephemeral_security() -> tuple[ServerSecurity, ClientSecurity]:
    """A certificate and a token for the workers of one run, made here and valid for 90 days.

    The private key that signs them is thrown away: nothing else can be signed with it.
    """
    signer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("lmrrg run", signer, "lmrrg run", signer, authority=True)
    certificate = _certificate(_RUN_NAME, key, "lmrrg run", signer, authority=False)
    token = secrets.token_urlsafe(32)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    server = ServerSecurity(certificate.public_bytes(Encoding.PEM), private, None, token)
    return server, ClientSecurity(ca=authority.public_bytes(Encoding.PEM), token=token, server_name=_RUN_NAME)


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of nodes differ
        .not_valid_after(now + timedelta(days=_RUN_DAYS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return made.sign(signer, hashes.SHA256())


def _refusing() -> Any:
    """The handler of a refused call. A stream both ways, whatever was asked for: it ends before a message is read."""

    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "the call needs the server's token: `authorization: Bearer TOKEN`"
        )

    return grpc.stream_stream_rpc_method_handler(refuse)


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RewardSetupError(f"{path}: {error.strerror}") from error


def _read_token(path: str | None) -> str | None:
    content = _read(path)
    if path is None or content is None:
        return None
    token = content.decode("ascii", errors="replace").strip()
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise RewardSetupError(
            f"{path}: a token is one word of at least {_SHORTEST_TOKEN} ASCII characters; make one with:"
            " python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    _warn_if_open(path)
    return token


def _warn_if_open(path: str) -> None:
    if Path(path).stat().st_mode & 0o077:
        _LOG.warning("%s can be read by others on this machine; chmod 600 it", path)


def _check_pair(certificate: str | None, key: str | None) -> None:
    """A certificate and its key come together and belong together."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise RewardSetupError("--tls-cert and --tls-key belong together: give both")
    (first, *_) = _certificates(certificate)
    content = _read(key)
    try:
        private = load_pem_private_key(content or b"", password=None)
    except (ValueError, TypeError) as error:
        raise RewardSetupError(f"{key}: not an unencrypted private key in PEM form") from error
    plain = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*plain) != first.public_key().public_bytes(*plain):
        raise RewardSetupError(f"{key} is not the key of the certificate {certificate}")
    if first.not_valid_after_utc < datetime.now(UTC):
        raise RewardSetupError(f"{certificate} expired on {first.not_valid_after_utc:%Y-%m-%d}: put a new one there")
    _warn_if_open(key)


def _certificates(path: str) -> list[x509.Certificate]:
    content = _read(path) or b""
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise RewardSetupError(f"{path}: no certificate in PEM form") from error
