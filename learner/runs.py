"""Runs of `learner.main` that are compared with each other: an arm and a seed each, every one a process of its own.

Contract: a run is finished when it has a `summary.json`. A finished one is not run again, and one that was begun is
resumed with the config that it has. Its log stands beside its folder.
"""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rrg.errors import UserError


@dataclass(frozen=True)
class ArmRun(ABC):
    """One arm with one seed, in `folder`."""

    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    @abstractmethod
    def settings(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a new run, those of the command line and its own. Raises UserError where it cannot begin."""

    def command(self, overrides: Sequence[str]) -> list[str]:
        """What to run."""
        main = [sys.executable, "-m", "learner.main"]
        if (self.folder / "config.yaml").is_file():
            return [*main, f"resume={self.folder}"]
        return [*main, *self.settings(overrides)]

    def done(self, overrides: Sequence[str], console: Console) -> bool:
        """Runs what is not finished; whether it is then."""
        if self.finished:
            console.print(f"{self.name}: finished before", highlight=False)
            return True
        command = self.command(overrides)
        log = self.folder.with_name(self.name + ".log")
        console.print(f"{self.name}: running, log {log}", highlight=False, soft_wrap=True)
        with log.open("a", encoding="utf-8") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if not self.finished:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
            told = f"{self.name}: failed with status {status}: {last}"
            console.print(told, highlight=False, markup=False, soft_wrap=True)
        return self.finished


def seeds_of(text: str) -> list[int]:
    """The seeds of `--seeds`. Raises UserError where they are no numbers."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UserError(f"--seeds {text}: must be whole numbers, separated by commas") from error
