"""What the phases of a job share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from learner.algorithm import ReportRL
from learner.stopping import Signals
from learner.tracking import Tracker
from reward_server.client import RewardClient
from rrg.data import StudySet
from rrg.progress import Show


@dataclass(frozen=True)
class Run:
    """A job whose processes have started."""

    cfg: Config
    folder: Path
    studies: StudySet
    algo: ReportRL
    client: RewardClient
    tracker: Tracker
    show: Show
    signals: Signals

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"
