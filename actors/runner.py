"""The rollout actor: RLlib's `EnvRunner` around a `RolloutWorker`.

Contract: the driver may import this module: vLLM and the model are imported where the actor is built. A request carries
the weights' reference, so a restarted actor needs no state; only refused weights (`WeightsError`) and a broken engine
(`EngineError`) leave an actor, and RLlib then replaces it.

`config.env_config`: `config` (`Config`), `policy_dir` (a folder of `rrg.model.build.save_policy`), and optionally
`rewards` (`RewardAccess`); without it only requests without scores are answered.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from ray.rllib.env.env_runner import EnvRunner

from actors.errors import EngineError
from actors.trajectory import SampleRequest, Trajectory
from configs.schema import Config

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from actors.rollout import RolloutWorker
    from reward_server.directory import RewardAccess


class VLLMEnvRunner(EnvRunner):  # type: ignore[misc]
    """One vLLM engine in one Ray actor; the environment is the set of studies and the reward server."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        """Builds data, policy and engine: 10-15 s on CPUs, most of it imports."""
        super().__init__(config=config, **kwargs)
        from actors.rollout import RolloutWorker
        from rrg.data import load_studies

        env = self.config.env_config
        self._cfg: Config = env["config"]
        _wait_for_folder(Path(env["policy_dir"]), self._cfg.rollout.start_timeout_s)
        self._rewards: RewardAccess | None = env.get("rewards")
        self._client = ExitStack()
        self._metrics: dict[str, float] = {}
        self._worker: RolloutWorker = RolloutWorker(
            self._cfg, Path(env["policy_dir"]), load_studies(self._cfg.data), rewards=None
        )

    def sample(self, *, request: SampleRequest, **kwargs: Any) -> list[Trajectory]:
        """The trajectories of a request, by study, then sample (see `actors.rollout`)."""
        if request.score and self._worker.rewards is None and self._rewards is not None:
            # Only now: engines and reward workers start at the same time.
            self._worker.rewards = self._client.enter_context(self._rewards.open())
        trajectories, metrics = self._worker.collect(request)
        self._metrics = {name: float(value) for name, value in asdict(metrics).items()}
        return trajectories

    def sample_and_metrics(self, *, request: SampleRequest) -> tuple[list[Trajectory], dict[str, float]]:
        """`sample` with the metrics of the same request, for asynchronous calls."""
        return self.sample(request=request), self.get_metrics()

    def get_metrics(self) -> dict[str, float]:
        """Fields of `actors.rollout.RolloutMetrics` for the last request; empty before the first."""
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

    def stop(self) -> None:
        """Close the reward client and the engine."""
        self._client.close()
        self._worker.engine.close()


def _wait_for_folder(folder: Path, timeout_s: float) -> None:
    """The learner writes the policy while this actor imports vLLM; it appears whole, by a rename.

    A learner that fails before leaves a file `<folder>.failed`.
    """
    deadline = time.monotonic() + timeout_s
    while not folder.is_dir():
        if folder.with_suffix(".failed").exists():
            raise EngineError(f"the learner failed before it could write {folder}")
        if time.monotonic() > deadline:
            raise EngineError(f"waited {timeout_s:g} s for the learner to write {folder}")
        time.sleep(0.1)
