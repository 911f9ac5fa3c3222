"""A real scorer, a real server on a free port of loopback, and real reports, each made once a session."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from reward_server.backends import create_scorer
from reward_server.client import RewardClient
from reward_server.metrics import Metrics
from reward_server.scorer import Scorer, ScorerOptions
from reward_server.security import ServerSecurity
from reward_server.server import RewardServer
from reward_server.service import Limits
from rrg.data.formats.openi import OpeniRecord, find_archive, read_records
from rrg.data.studyset import ProblemLog


class RunningServer:
    """A reward server whose event loop runs in a thread of the test process."""

    def __init__(
        self,
        scorer: Scorer,
        limits: Limits | None = None,
        port: int = 0,
        security: ServerSecurity | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

        async def start() -> tuple[RewardServer, int]:
            server = RewardServer(limits=limits, security=security, metrics=metrics)
            bound = await server.start("127.0.0.1", port)
            await server.serve(scorer)
            return server, bound

        self.server, self.port = asyncio.run_coroutine_threadsafe(start(), self.loop).result(30)
        self.address = f"127.0.0.1:{self.port}"

    def stop(self, grace_s: float = 5.0) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(grace_s), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture(scope="session")
def scorer() -> Scorer:
    return create_scorer(ScorerOptions("embedded"))


@pytest.fixture(scope="session")
def server(scorer: Scorer) -> Iterator[RunningServer]:
    running = RunningServer(scorer)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[RewardClient]:
    with RewardClient([server.address], timeout_s=30) as made:
        yield made


@pytest.fixture(scope="session")
def records() -> list[OpeniRecord]:
    """The Open-i records that have a findings section and MeSH codes."""
    found = read_records(find_archive(), ProblemLog(strict=True))
    return [r for _, r in sorted(found.items()) if r.sections["findings"] and r.indexed]
