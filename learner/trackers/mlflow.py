"""MLflow (`tracking.mlflow`, the address of its server).

Its own environment variables hold the secrets: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from configs.schema import TrackingConfig
from rrg.errors import UserError

# A server that is away may hold a step up for so long, once; MLflow's own limits add up to minutes.
_LIMITS: Final = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_PARAMETER_LENGTH: Final = 6000


class MlflowTracker:
    """One request a row."""

    def __init__(self, cfg: TrackingConfig, config: Mapping[str, Any], run_dir: Path, run_id: str | None) -> None:
        for limit, value in _LIMITS.items():
            os.environ.setdefault(limit, value)
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError("tracking.mlflow: MLflow is not installed: pip install mlflow-skinny") from error
        self._metric = Metric
        try:
            self._client = MlflowClient(tracking_uri=cfg.mlflow)
            if run_id is not None:
                self._run_id: str = self._client.get_run(run_id).info.run_id
                self._client.update_run(run_id, status="RUNNING")
                return
            experiment = self._client.get_experiment_by_name(cfg.project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(cfg.project)
            self._run_id = self._client.create_run(number, run_name=run_dir.name).info.run_id
            params = [Param(name, str(value)[:_PARAMETER_LENGTH]) for name, value in _flat(config)]
            for start in range(0, len(params), 100):  # at most so many a request
                self._client.log_batch(self._run_id, params=params[start : start + 100])
        except MlflowException as error:
            raise UserError(f"tracking.mlflow={cfg.mlflow}: {error}") from error

    @property
    def run_id(self) -> str:
        return self._run_id

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        made = [self._metric(f"{phase}/{name}", value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=made)

    def reports(self, phase: str, step: int, path: Path) -> None:
        self._client.log_artifact(self._run_id, str(path), phase)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
