"""What a person sees of a run: one line of progress a phase, and the seconds that each phase took.

Contract: on a terminal a live bar, otherwise plain lines at most every few seconds. Shows numbers and names only,
never report text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S: Final = 5.0
_ENDLESS: Final = 220  # columns; of tables in a file or a pipe, which have no edge


def output_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for every table where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_ENDLESS)


class Show:
    """Progress of the phases on `console`; `seconds` holds the wall time of each finished or running one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_plain = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase; phases of the same name add up."""
        begun = time.monotonic()
        self.line(f"[bold]{name}[/bold] ...")
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        ) as bar:
            self._bar, self._tasks = bar if self.console.is_terminal else None, {}
            try:
                yield
            finally:
                self._bar = None
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
        self.line(f"[bold]{name}[/bold] took {self.seconds[name]:.1f} s")

    def advance(self, what: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` of `total` pieces of `what` within the running phase."""
        info = "  ".join(f"{key} {value:.3g}" for key, value in (metrics or {}).items())
        now = time.monotonic()
        if self._bar is not None:
            self._move(self._bar, what, done, total, info)
        elif done >= total or now - self._last_plain > PLAIN_INTERVAL_S:
            self._last_plain = now
            self.line(f"  {what} {done}/{total}  {info}".rstrip())

    def step(self, what: str, done: int, total: int, told: str) -> None:
        """As `advance`, for a piece that is worth a line that stays on a terminal too; `told` is rich's markup."""
        self.line(f"  {what} {done}/{total}  {told}")
        if self._bar is not None:
            self._move(self._bar, what, done, total, "")

    def _move(self, bar: Progress, what: str, done: int, total: int, info: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = bar.add_task(what, total=total, info=info)
        bar.update(self._tasks[what], completed=done, total=total, info=info)

    def plain(self, text: str) -> None:
        """A `line` of text that may hold brackets: an error, a path."""
        self.line(escape(text))

    def line(self, text: str) -> None:
        """A line that stays, with the seconds since the start in front; `text` is rich's markup."""
        self.console.print(
            f"[dim]{time.monotonic() - self._started:7.1f} s[/dim]  {text}", highlight=False, soft_wrap=True
        )
