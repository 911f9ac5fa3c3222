"""Services that show a run beside its own record (`learner.tracking`): one file each; off unless `tracking` names them.

Contract: a service gets the resolved config and the rows of metrics.jsonl; the reports of validations, which are
patient data, only with `tracking.reports=true`. A resumed run goes on in the same run of the service (its name there
is kept in `trackers.json`). A service that cannot be had when a run starts ends it with UserError; one that fails later
is left, and the run says so and goes on: metrics.jsonl holds everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from configs.schema import TrackingConfig
from learner.files import write_whole

Tell = Callable[[str], None]


class RemoteTracker(Protocol):
    """A run of a service. Every method may raise whatever the service's client raises."""

    @property
    def name(self) -> str:
        """Of the service, for people."""

    @property
    def run_id(self) -> str:
        """By which the service knows the run; to go on with it after a resume."""

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row, as `phase/metric` over the steps of its phase."""

    def reports(self, phase: str, step: int, path: Path) -> None:
        """The reports of a JSON lines file."""

    def close(self) -> None: ...


def open_trackers(cfg: TrackingConfig, config: Mapping[str, Any], run_dir: Path, tell: Tell) -> list[RemoteTracker]:
    """The services that `cfg` names, for the run in `run_dir`, whose resolved config is `config`.

    Raises UserError where one is not installed, not reachable, or wants a key that it does not have.
    """
    path = run_dir / "trackers.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    opened: list[RemoteTracker] = []
    if cfg.wandb != "off":
        from learner.trackers.wandb import WandbTracker

        opened.append(WandbTracker(cfg, config, run_dir, known.get("wandb")))
    if cfg.mlflow is not None:
        from learner.trackers.mlflow import MlflowTracker

        opened.append(MlflowTracker(cfg, config, run_dir, known.get("mlflow")))
    if opened:
        write_whole(path, json.dumps(known | {one.name: one.run_id for one in opened}, indent=2) + "\n")
    return [Guarded(one, tell) for one in opened]


class Guarded:
    """A tracker that the run can do without: after its first failure it is left."""

    def __init__(self, tracker: RemoteTracker, tell: Tell) -> None:
        self.name, self.run_id = tracker.name, tracker.run_id
        self._tracker: RemoteTracker | None = tracker
        self._tell = tell

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        self._try(lambda tracker: tracker.log(phase, step, metrics))

    def reports(self, phase: str, step: int, path: Path) -> None:
        self._try(lambda tracker: tracker.reports(phase, step, path))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())

    def _try(self, act: Callable[[RemoteTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as error:  # whatever a service's client raises
            self._tracker = None
            self._tell(f"{self.name} failed, the run goes on without it (metrics.jsonl has all): {error}")
