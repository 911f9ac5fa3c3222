"""The gRPC server: `reward_server.service` with health checks, reflection, security and metrics.

Contract: health is SERVING only between a passed self-check and the stop, or until the backend fails on everything. A
call without the token, where one is asked for, is UNAUTHENTICATED; health checks need none, for probes and the clients'
own `round_robin` carry none. A stop ends the requests in hand first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import reward_pb2, reward_pb2_grpc
from reward_server.batching import Batcher
from reward_server.errors import RewardError, RewardSetupError
from reward_server.logs import fields, logged
from reward_server.metrics import Metrics
from reward_server.scorer import Scorer, ScorerOptions
from reward_server.security import ServerSecurity, TokenCheck
from reward_server.selfcheck import load_scorer
from reward_server.service import Limits, Ready, RewardService

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
_LAME_DUCK_S = 0.2
# Connections are renewed now and then (calls in flight end first), so that clients find servers that came later.
_CONNECTION_AGE_MS = 10 * 60_000
# Clients may ask that often whether the server is still there. The server does not ask back: many clients would take
# that for an attack and hang up. Deadlines end the work of a client that vanished.
_FASTEST_PING_MS = 10_000
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """What `serve` needs; port 0 picks a free one, no `metrics_port`: no metrics over HTTP."""

    scorer: ScorerOptions
    host: str = "127.0.0.1"
    port: int = 50051
    limits: Limits = field(default_factory=Limits)
    security: ServerSecurity = field(default_factory=ServerSecurity)
    metrics_port: int | None = None
    log_format: str = "text"
    metrics_host: str = "127.0.0.1"


class RewardServer:
    """A server with its batcher and health, in one event loop: `start`, then `serve` a scorer, then `stop`."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        security: ServerSecurity | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._limits, self._security = limits or Limits(), security or ServerSecurity()
        self._metrics = metrics or Metrics()
        self._broken = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._service = RewardService(self._limits, self._metrics)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        size = self._limits.message_bytes
        self._server = grpc.aio.server(
            interceptors=[TokenCheck(self._security.token)] if self._security.token else [],
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),  # a port in use is an error
                ("grpc.max_connection_age_ms", _CONNECTION_AGE_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", _FASTEST_PING_MS),
                # A client that has nothing to ask for a while (a long warm start) is not hung up on.
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self._service, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens, NOT_SERVING so far; port 0 picks a free one. Returns the port.

        Raises RewardSetupError if the port can't be had, or other machines could reach it without TLS.
        """
        self._security.check_host(host)
        _check_free(host, port)
        credentials = self._security.credentials()
        address = f"[{host}]:{port}" if ":" in host.strip("[]") and not host.startswith("[") else f"{host}:{port}"
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise RewardSetupError(f"can't listen on {address}: choose another --port, or 0 for a free one") from error
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        return bound

    async def serve(self, scorer: Scorer) -> None:
        """Serves the scorer, which passed its self-check (`reward_server.selfcheck.load_scorer`)."""
        batcher = Batcher(
            scorer,
            self._metrics,
            max_waiting=self._limits.waiting_pairs,
            max_waiting_characters=self._limits.waiting_characters,
            on_broken=self._broken.set,
        )
        batcher.start()
        self._metrics.watch(scorer.statistics)
        about = scorer.description
        models = tuple(reward_pb2.Model(name=model.name, sha256=model.sha256) for model in about.models)
        self._service.ready = Ready(about, batcher, models)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._watch = asyncio.create_task(self.broken())

    async def broken(self) -> None:
        """Returns when the backend has failed on everything: clients are told, and only a new process helps."""
        await self._broken.wait()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Tells health checkers, takes no new requests, and gives those in hand `grace_s` seconds to end."""
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        # Clients that watch the health turn to other servers now: what they still send in this moment is served.
        await asyncio.sleep(min(_LAME_DUCK_S, grace_s))
        stopped = asyncio.create_task(self._server.stop(grace_s + 1.0))
        await asyncio.wait([stopped], timeout=grace_s)
        # Whoever is left is told UNAVAILABLE, so that its client asks another server; gRPC alone would say CANCELLED.
        if self._service.ready is not None:
            await self._service.ready.batcher.close()
        await stopped

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _check_free(host: str, port: int) -> None:
    """Raises RewardSetupError where nothing can listen there: gRPC would print lines of its own and not say why."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended are no matter
            probe.bind(place)
    except OSError as error:
        flag = "--port, or 0 for a free one" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise RewardSetupError(f"can't listen on {host}:{port}: {error.strerror}; choose another {flag}") from error


async def serve(options: ServeOptions) -> None:
    """Loads a backend and serves it until SIGINT or SIGTERM; prints the address when it is ready."""
    metrics = Metrics()
    server = RewardServer(limits=options.limits, security=options.security, metrics=metrics)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(logged(options.log_format))
        stack.push_async_callback(server.stop)
        bound = await server.start(options.host, options.port)
        if options.metrics_port is not None:
            stack.callback(metrics.serve(options.metrics_port, options.metrics_host))
        scorer = await asyncio.to_thread(load_scorer, options.scorer)
        if stopped.is_set():
            return
        await server.serve(scorer)
        about = scorer.description
        _LOG.info("serving", extra=fields(backend=about.backend, definition=about.definition))
        print(f"serving the {about.backend} reward ({about.definition}) on {options.host}:{bound}", flush=True)
        ends = [asyncio.create_task(wait) for wait in (stopped.wait(), server.broken())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        _LOG.info("stopping")
        if not stopped.is_set():
            raise RewardError("the backend fails on every pair (see the log): start the server again")
