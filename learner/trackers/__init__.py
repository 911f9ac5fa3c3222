"""Services that show a run beside its own record (`learner.tracking`): one file each; off unless `tracking` names them.

Contract: a service gets the resolved config and every row of metrics.jsonl once; the reports of validations, which are
patient data, only with `tracking.reports=true`. A resumed run goes on in the same run of the service: `trackers.json`
has its id and, by phase, the last step that the service took; what it lacks is sent first. A service that cannot be had
when a run starts ends it with UserError; one that fails later is left, and the run says so and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from configs.schema import TrackingConfig
from learner.files import write_whole

Tell = Callable[[str], None]


class RemoteTracker(Protocol):
    """A run of a service. Every method may raise whatever the service's client raises."""

    @property
    def run_id(self) -> str:
        """By which the service knows the run; to go on with it after a resume."""

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row, as `phase/metric` over the steps of its phase."""

    def reports(self, phase: str, step: int, path: Path) -> None:
        """The reports of a JSON lines file."""

    def close(self, *, failed: bool) -> None:
        """The run has ended, as it should or not."""


@dataclass
class _Known:
    """What `trackers.json` has of a service: its id of the run, and the last step of each phase that it took."""

    run_id: str
    sent: dict[str, int] = field(default_factory=dict)


class _Memory:
    """`trackers.json`."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "trackers.json"
        read = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self.services = {name: _Known(**known) for name, known in read.items()}

    def write(self) -> None:
        known = {name: asdict(one) for name, one in self.services.items()}
        write_whole(self._path, json.dumps(known, indent=2) + "\n")


def open_trackers(cfg: TrackingConfig, config: Mapping[str, Any], run_dir: Path, tell: Tell) -> list[Service]:
    """The services that `cfg` names, for the run in `run_dir`, whose resolved config is `config`.

    Raises UserError where one is not installed, not reachable, or wants a key that it does not have.
    """
    memory = _Memory(run_dir)
    opened: list[Service] = []

    def open_one(name: str, tracker: Callable[[TrackingConfig, Mapping[str, Any], Path, str | None], Any]) -> None:
        known = memory.services.get(name)
        made = tracker(cfg, config, run_dir, None if known is None else known.run_id)
        if known is None or known.run_id != made.run_id:
            memory.services[name] = _Known(made.run_id)
            memory.write()
        opened.append(Service(name, made, memory, tell))

    try:
        if cfg.wandb != "off":
            from learner.trackers.wandb import WandbTracker

            open_one("wandb", WandbTracker)
        if cfg.mlflow is not None:
            from learner.trackers.mlflow import MlflowTracker

            open_one("mlflow", MlflowTracker)
    except BaseException:
        for service in opened:
            service.close(failed=True)
        raise
    return opened


class Service:
    """A tracker that gets every row once, and that the run can do without: after its first failure it is left."""

    def __init__(self, name: str, tracker: RemoteTracker, memory: _Memory, tell: Tell) -> None:
        self._name, self._memory, self._tell = name, memory, tell
        self._tracker: RemoteTracker | None = tracker
        self._sent = memory.services[name].sent

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the row, unless the service has it: a resumed run does steps again."""
        if step > self._sent.get(phase, -1) and self._try(lambda tracker: tracker.log(phase, step, metrics)):
            self._sent[phase] = step
            self._memory.write()

    def reports(self, phase: str, step: int, path: Path) -> None:
        self._try(lambda tracker: tracker.reports(phase, step, path))

    def close(self, *, failed: bool) -> None:
        self._try(lambda tracker: tracker.close(failed=failed))

    def _try(self, act: Callable[[RemoteTracker], None]) -> bool:
        if self._tracker is None:
            return False
        try:
            act(self._tracker)
        except Exception as error:  # whatever a service's client raises
            self._tracker = None
            self._tell(
                f"{self._name} failed, the run goes on without it: {error}; metrics.jsonl has all, and a resume sends "
                "what is missing"
            )
            return False
        return True
