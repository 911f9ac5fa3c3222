"""What can go wrong in a rollout actor, and how its run gets to know. Importable without torch.

Contract: an actor that ends by an error leaves it in the run directory: Ray tells the driver that it ended, not why.
"""

from __future__ import annotations

import os
import socket
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

FAILURES: Final = "rollout_failed.txt"
"""The file of a run directory with the errors that ended rollout actors, the last one at its end."""


class EngineError(RuntimeError):
    """The engine cannot go on; its owner has to replace it."""


class PromptError(ValueError):
    """A prompt that would harm the engine or not fit; nothing of it was used."""


class WeightsError(RuntimeError):
    """A version of the weights that is incomplete, not finite or not what its publisher computed."""


def record_failure(run_dir: Path) -> None:
    """Adds the exception that is being handled to the run's file."""
    head = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, process {os.getpid()} of {socket.gethostname()}"
    with suppress(OSError), (run_dir / FAILURES).open("a", encoding="utf-8") as file:  # the disk may be what failed
        file.write(f"{head}\n{traceback.format_exc()}\n")


def last_failure(run_dir: Path) -> str | None:
    """What ended the last rollout actor that told, in a line; None where none has told anything."""
    file = run_dir / FAILURES
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), None)
