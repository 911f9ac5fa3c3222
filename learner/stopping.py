"""How a run is ended from outside: SIGTERM, SIGINT and SIGHUP (a lost terminal) finish what can be finished, save, and
end within a minute. Under `nohup` a lost terminal ends nothing.

Contract: the first signal lets the step under way end (`GRACE_S`), which is then saved; where nothing is to be saved,
or the step takes longer, the run ends at once and its newest checkpoint stays. A line on stderr says at once which of
them it is. The second signal ends the process without another word. The main thread alone is interrupted, by
KeyboardInterrupt: the one exception that Ray passes on out of its waits. `Signals` makes an `Interrupted` of it at its
end. Where the interpreter drops the exception (in `__del__`, in callbacks around a fork) it is raised again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

GRACE_S = 40.0
"""What a step under way may still take."""
SAVE_S = 52.0
"""When a checkpoint has to be written, since the signal."""
LIMIT_S = 58.0
"""When the process is gone, whatever hangs."""
AGAIN_S = 0.5
"""How long after an exception that was dropped the next one is raised."""


class Interrupted(BaseException):
    """A signal has ended the run; `status` is the process's exit status, as shells count it."""

    def __init__(self, signum: int, what_stays: str) -> None:
        super().__init__(f"{_name(signum)}: {what_stays}")
        self.signum, self.what_stays = signum, what_stays
        self.status = 128 + signum


class Signals:
    """While it is entered, those signals end the run as the module says. For the main thread."""

    def __init__(self, grace_s: float = GRACE_S, save_s: float = SAVE_S, limit_s: float = LIMIT_S) -> None:
        self._grace_s, self._save_s, self._limit_s = grace_s, save_s, limit_s
        self._before: dict[int, Any] = {}
        self._signum: int | None = None
        self._since = 0.0
        self._finishing = False
        self._stays = "nothing was under way that could be saved"

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._signum is not None and isinstance(error, KeyboardInterrupt):
            raise Interrupted(self._signum, self._stays) from None

    def install(self) -> None:
        """Takes the signals; call it again after `ray.init`, which takes SIGTERM for itself."""
        asked = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            asked.append(signal.SIGHUP)
        for signum, handler in (*((one, self._asked) for one in asked), (signal.SIGALRM, _end)):
            before = signal.signal(signum, handler)
            self._before.setdefault(signum, before)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Within the block a signal waits for `leave_if_asked`, `grace_s` at most; outside it acts at once."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def leave_if_asked(self, save: Callable[[], Path]) -> None:
        """At a place where the run can be saved: after a signal saves it and ends the run."""
        if self._signum is None:
            return
        self._stays = "the checkpoint could not be written in time; the one before stays"
        signal.setitimer(signal.ITIMER_REAL, max(1.0, self._since + self._save_s - time.monotonic()), AGAIN_S)
        saved = save()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._stays = f"the step under way was finished and saved: {saved}"
        raise KeyboardInterrupt

    def _asked(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._signum, self._since = signum, time.monotonic()
        # The last resort, should anything hang on the way out.
        last = threading.Timer(self._limit_s, self._give_up)
        last.daemon = True
        last.start()
        if not self._finishing:
            _say(f"{_name(signum)}: ending; once more kills")
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
            raise KeyboardInterrupt
        _say(f"{_name(signum)}: finishing the step, then saving; once more kills")
        self._stays = f"the step under way did not end within {self._grace_s:g} s; the newest checkpoint stays"
        signal.setitimer(signal.ITIMER_REAL, self._grace_s, AGAIN_S)

    def _give_up(self) -> None:
        assert self._signum is not None
        _say(f"{_name(self._signum)}: did not end within {self._limit_s:g} s, killed; the newest checkpoint stays")
        os._exit(128 + self._signum)


def _end(signum: int, frame: FrameType | None) -> None:
    # What cleans up on the exception's way out is left alone.
    if not _on_its_way(sys.exception()):
        raise KeyboardInterrupt


def _on_its_way(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, KeyboardInterrupt) or _on_its_way(error.__context__))


def _say(text: str) -> None:
    # Unbuffered: a signal may come amid a write of `sys.stderr`, which can't be entered twice.
    os.write(2, f"{text}\n".encode())


def _name(signum: int) -> str:
    return signal.Signals(signum).name
