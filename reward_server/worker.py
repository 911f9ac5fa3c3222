"""A Ray actor that hosts a reward server, and how a run starts some.

Contract: the only module here that imports Ray. Threads are set before torch is loaded. A worker that died comes back
by itself (`max_restarts`) on another port: ask for its address again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import ray

from reward_server.errors import RewardError


class RewardWorkerImpl:
    """The actor's class: loads the backend, then serves on a free port. Its methods answer while it scores."""

    def __init__(self, backend: str, threads: int, host: str | None) -> None:
        """`host`: the address to listen on; None: this node's own, for callers on other nodes."""
        _set_threads(threads)
        import torch

        from reward_server.backends import create_scorer
        from reward_server.scorer import ScorerOptions
        from reward_server.server import RewardServer

        torch.set_num_threads(threads)
        self._host = host or ray.util.get_node_ip_address()
        scorer = create_scorer(ScorerOptions(backend))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="reward-server", daemon=True).start()

        async def start() -> tuple[RewardServer, int]:
            server = RewardServer(scorer)
            return server, await server.start(self._host)

        self._server, self._port = asyncio.run_coroutine_threadsafe(start(), self._loop).result(timeout=60)

    def address(self) -> str:
        """host:port of the server; it serves already."""
        return f"{self._host}:{self._port}"

    def stop(self, grace_s: float = 5.0) -> None:
        """Ends gracefully: requests in hand get `grace_s` seconds."""
        asyncio.run_coroutine_threadsafe(self._server.stop(grace_s), self._loop).result(timeout=grace_s + 60)


RewardWorker = ray.remote(max_restarts=-1, max_task_retries=-1)(RewardWorkerImpl)


def start_workers(number: int, *, backend: str, threads: int, local: bool, num_cpus: float | None = None) -> list[Any]:
    """Creates actors without waiting for them; `local`: on the loopback interface only. `num_cpus`: CPUs that Ray books
    for each (default: its threads)."""
    host = "127.0.0.1" if local else None
    actor = RewardWorker.options(num_cpus=threads if num_cpus is None else num_cpus)
    return [actor.remote(backend, threads, host) for _ in range(number)]


def addresses(workers: Sequence[Any], timeout_s: float) -> list[str]:
    """Waits until all workers serve; RewardError after `timeout_s` seconds or if one can't start."""
    try:
        found: list[str] = ray.get([worker.address.remote() for worker in workers], timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise RewardError(f"waited {timeout_s:g} s for {len(workers)} reward workers to start") from error
    except ray.exceptions.RayActorError as error:
        raise RewardError(f"a reward worker did not start: {error}") from error
    return found


def _set_threads(threads: int) -> None:
    """OpenMP reads these once, when torch loads it. Spinning threads would take the cores of the others."""
    if "torch" in sys.modules:
        raise RewardError("torch was loaded before the reward worker could set its threads")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["GOMP_SPINCOUNT"] = "0"
