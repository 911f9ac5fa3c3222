"""The rollout actor: RLlib's `EnvRunner` around a `RolloutWorker`.

Contract: the driver may import this module: vLLM and the model are imported where the actor is built. A request carries
the weights' reference, so a restarted actor needs no state; only refused weights (`WeightsError`) and a broken engine
(`EngineError`) leave an actor, and RLlib then replaces it.

It is an asyncio actor: its event loop is free at any time, for the next request, for newer weights (`offer`) and for
RLlib's pings. All work on the engine is done in one thread, request after request, and the rewards of a request are
awaited while the next one is written.

`config.env_config`: `config` (`Config`), `policy_dir` (a folder of `rrg.model.build.save_policy` in the run directory,
where an actor that ends by an error leaves it: `actors.errors`), and optionally
`rewards` (`RewardAccess`); without it only requests without scores are answered.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from ray.rllib.env.env_runner import EnvRunner

from actors.errors import EngineError, record_failure
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from configs.schema import Config

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from actors.rollout import RolloutWorker, Written
    from reward_server.directory import RewardAccess

_logger = logging.getLogger(__name__)


class VLLMEnvRunner(EnvRunner):  # type: ignore[misc]
    """One vLLM engine in one Ray actor; the environment is the set of studies and the reward server."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        """Builds data, policy and engine: 10-15 s on CPUs, most of it imports."""
        super().__init__(config=config, **kwargs)
        env = self.config.env_config
        self._cfg: Config = env["config"]
        self._rewards: RewardAccess | None = env.get("rewards")
        self._client = ExitStack()
        self._metrics: dict[str, float] = {}
        self._stopping = False
        self._run_dir = Path(env["policy_dir"]).parent
        # The engine is built in the thread that drives it: torch's and OpenMP's settings belong to a thread.
        self._engine_thread = ThreadPoolExecutor(1, "engine")
        self._waiting_threads = ThreadPoolExecutor(thread_name_prefix="rewards")
        try:
            self._worker = self._engine_thread.submit(_build, self._cfg, Path(env["policy_dir"])).result()
        except Exception:
            record_failure(self._run_dir)
            raise

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """RLlib's manager makes all calls through this; what `func` returns is awaited if it has to be.

        As in RLlib, an exception ends the actor, since it may be broken, and Ray starts another.
        """
        try:
            answer = func(self, *args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception:
            if self._stopping:
                raise
            _logger.exception("a call of the rollout actor failed; the actor ends")
            record_failure(self._run_dir)
            if self.config.restart_failed_env_runners:
                await asyncio.sleep(self.config.delay_between_env_runner_restarts_s)
            os._exit(1)  # not sys.exit, which would wait for the engine's thread

    async def sample(self, *, request: SampleRequest, **kwargs: Any) -> list[Trajectory]:
        """The trajectories of a request, by study, then sample (see `actors.rollout`)."""
        return (await self.sample_and_metrics(request=request))[0]

    async def sample_and_metrics(self, *, request: SampleRequest) -> tuple[list[Trajectory], dict[str, float]]:
        """`sample` with the metrics of the same request (fields of `actors.metrics.RolloutMetrics`).

        Several may be under way: their reports are written in the order in which they came.
        """
        loop = asyncio.get_running_loop()
        written = await loop.run_in_executor(self._engine_thread, self._write, request)
        trajectories, metrics = await loop.run_in_executor(self._waiting_threads, self._worker.settle, written)
        self._metrics = {name: float(value) for name, value in asdict(metrics).items()}
        return trajectories, dict(self._metrics)

    def offer(self, weights: WeightsRef) -> None:
        """Newer weights for live requests, the one under way included; returns at once, whatever runs."""
        self._worker.offer(weights)

    def get_metrics(self) -> dict[str, float]:
        """The metrics of the last request; empty before the first."""
        return dict(self._metrics)

    def assert_healthy(self) -> None:
        """Raise EngineError if this actor has to be replaced."""
        self._worker.engine.assert_healthy()

    def get_spaces(self) -> dict[str, tuple[gymnasium.Space[Any], gymnasium.Space[Any]]]:
        """RLlib asks for spaces; there is no environment that steps, so they carry nothing."""
        empty: gymnasium.Space[Any] = gymnasium.spaces.Discrete(1)
        return {"__env__": (empty, empty), "__env_single__": (empty, empty)}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The version in force; nothing has to be restored."""
        return {"version": self._worker.version}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore: weights come with every request."""

    async def stop(self) -> None:
        """Close the reward client and the engine; a request under way is cut off."""
        self._stopping = True
        self._worker.engine.abandon()
        self._client.close()
        await asyncio.get_running_loop().run_in_executor(self._engine_thread, self._worker.engine.close)

    def _write(self, request: SampleRequest) -> Written:
        if request.score and self._worker.rewards is None and self._rewards is not None:
            # Only now: engines and reward workers start at the same time.
            self._worker.rewards = self._client.enter_context(self._rewards.open())
        return self._worker.write(request)


def _build(cfg: Config, policy_dir: Path) -> RolloutWorker:
    from actors.rollout import RolloutWorker
    from rrg.data import load_studies

    _wait_for_folder(policy_dir, cfg.rollout.start_timeout_s)
    return RolloutWorker(cfg, policy_dir, load_studies(cfg.data), rewards=None)


def _wait_for_folder(folder: Path, timeout_s: float) -> None:
    """The learner writes the policy while this actor imports vLLM; it appears whole, by a rename.

    A learner that fails before leaves a file `<folder>.failed`.
    """
    if not folder.parent.is_dir():
        raise EngineError(f"{folder.parent} is not there: all nodes must share the run directory (output_dir)")
    deadline = time.monotonic() + timeout_s
    while not folder.is_dir():
        if folder.with_suffix(".failed").exists():
            raise EngineError(f"the learner failed before it could write {folder}")
        if time.monotonic() > deadline:
            raise EngineError(f"waited {timeout_s:g} s for the learner to write {folder}")
        time.sleep(0.1)
