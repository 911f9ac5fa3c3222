"""How far a long scoring is, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from reward_server.scoring import Summary
from reward_server.tables import Rows

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_EVERY_S = 10.0


class PlainProgress:
    """A line every ten seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_EVERY_S

    def show(self, rows: Rows, summary: Summary) -> None:
        """Call it after every batch."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_EVERY_S
        share = "" if rows.fraction is None else f" ({rows.fraction:.0%} of the input)"
        print(f"{summary.pairs} pairs{share}, {summary.pairs_per_s:.1f} pairs/s", file=sys.stderr, flush=True)

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class BarProgress(PlainProgress):
    """A bar of the input read, with pairs and pairs/s."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("loading", total=None)

    def show(self, rows: Rows, summary: Summary) -> None:
        text = f"{summary.pairs} pairs, {summary.pairs_per_s:.1f} pairs/s, {summary.failed} failed"
        self._progress.update(
            self._task, completed=rows.fraction, total=None if rows.fraction is None else 1.0, description=text
        )

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def progress() -> PlainProgress:
    """The one that fits stderr."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()
