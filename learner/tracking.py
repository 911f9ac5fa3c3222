"""The record of a run's numbers: `metrics.jsonl` (always) and TensorBoard event files, and its peak memory.

Contract: one row a step, `{"phase", "step", metric: number}`; rows of steps that a resumed run will do again are
dropped first, so that no step stands there twice. Numbers only, never report text. Services (`learner.trackers`) get
every row once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
from tensorboardX import SummaryWriter

from learner.files import write_whole
from learner.trackers import Service

# In their order; validations stand between the steps of RL.
PHASES = {"warm_start": 0, "rl": 1, "validation": 1, "evaluation": 2}
# What the automatic stops go by; a warm start of many steps need not be held in memory.
JUDGED = ("rl", "validation")

Row = Mapping[str, float]


class Tracker:
    """Appends rows to what `run_dir` holds up to `keep` = (phase, step); the rest of it is dropped."""

    def __init__(self, run_dir: Path, keep: tuple[str, int], services: Sequence[Service] = ()) -> None:
        self._services = services
        self._path = run_dir / "metrics.jsonl"
        self._rows: dict[str, list[Row]] = {phase: [] for phase in JUDGED}
        if self._path.exists():
            text = self._path.read_text()
            whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a line
            kept = [line for line in whole.splitlines() if _before(json.loads(line), keep)]
            write_whole(self._path, "".join(line + "\n" for line in kept))
            for row in map(json.loads, kept):
                self._remember(phase := row.pop("phase"), row)
                self._send(phase, row["step"], {name: value for name, value in row.items() if name != "step"})
        self._file = self._path.open("a")
        # One a phase: TensorBoard may hide the later steps of all that stands in one folder with those done again.
        self._boards = {
            phase: SummaryWriter(str(run_dir / "tensorboard" / phase), purge_step=_done_again(phase, keep))
            for phase in PHASES
        }

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one row, to the disk at once."""
        self._file.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
        self._file.flush()
        self._remember(phase, {"step": step, **metrics})
        for name, value in metrics.items():
            self._boards[phase].add_scalar(f"{phase}/{name}", value, step)
        self._send(phase, step, metrics)

    def reports(self, phase: str, step: int, path: Path) -> None:
        """Reports (a file of JSON lines) for the services: patient data, only where the config asks for it."""
        for service in self._services:
            service.reports(phase, step, path)

    def rows(self, phase: str) -> Sequence[Row]:
        """All rows of a phase of `JUDGED` in their order, those before a resume too: `{"step", metric: number}`."""
        return self._rows[phase]

    def close(self, *, failed: bool = False) -> None:
        """`failed`: the run did not come to its end."""
        self._file.close()
        for board in self._boards.values():
            board.close()
        for service in self._services:
            service.close(failed=failed)

    def _send(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        for service in self._services:
            service.log(phase, step, metrics)

    def _remember(self, phase: str, row: Row) -> None:
        if phase in JUDGED:
            self._rows[phase].append(row)


def _done_again(phase: str, at: tuple[str, int]) -> int | None:
    """The first step of a phase that is done again after a resume at `at`; None: none is."""
    order, limit = PHASES[phase], PHASES[at[0]]
    return None if order < limit else at[1] + 1 if order == limit else 0


def _before(row: Mapping[str, object], at: tuple[str, int]) -> bool:
    phase, step = row["phase"], row["step"]
    assert isinstance(phase, str)
    assert isinstance(step, int)
    order, limit = PHASES[phase], PHASES[at[0]]
    return order < limit or (order == limit and step <= at[1])


class PeakMemory:
    """Samples the memory of this process and all of its descendants (proportional set size, GB) while it is open."""

    def __init__(self, every_s: float = 3.0) -> None:
        self.peak_gb = 0.0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            me = psutil.Process()
            self.peak_gb = max(self.peak_gb, sum(_pss(p) for p in [me, *me.children(recursive=True)]) / 1e9)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0  # It ended between the listing and the reading.
