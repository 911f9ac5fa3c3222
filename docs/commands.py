"""`python docs/commands.py`: the --help of every command as a Markdown page, which `docs/reference/commands.md` is.

Contract: the commands are asked for their help as a user would, 100 columns wide; one that fails raises. A test
compares the page (`make reference` writes it). Not part of the package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

COMMANDS: Final = (
    "learner.main",
    "learner.evaluate",
    "learner.report",
    "learner.compare",
    "learner.ablate",
    "actors.generate",
    "actors.scale",
    "actors.ui",
    "reward_server",
    "reward_server serve",
    "reward_server score",
    "reward_server ui",
    "reward_server describe",
    "reward_server gallery",
    "reward_server weights",
    "reward_server weights fetch",
    "reward_server weights check",
    "reward_server scale",
    "rrg.data",
    "rrg.data check",
    "rrg.data convert",
    "rrg.data prepare",
    "rrg.data sheet",
    "rrg.model.export",
)
_HEAD: Final = """# Every command

What `--help` says, written here by `make reference`. All need the environment of `make setup`
(`. .venv/bin/activate`). A mistake of the user ends with one line that names the file, field or flag, and exit
status 2; `learner.main` has more of them ([faults](../faults.md)). The fields that `learner.main` takes have
[a page of their own](config.md).
"""


def page() -> str:
    """The whole page, ending with a new line."""
    sections = (f"## `python -m {command}`\n\n```text\n{help_of(command)}```\n" for command in COMMANDS)
    return "\n".join([_HEAD, *sections])


def help_of(command: str) -> str:
    """What `python -m COMMAND --help` prints. Raises CalledProcessError where it fails."""
    asked = subprocess.run(
        [sys.executable, "-m", *command.split(), "--help"],
        env={name: value for name, value in os.environ.items() if name != "LMRRG_CACHE"} | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return "\n".join(line.rstrip() for line in asked.stdout.strip().splitlines()) + "\n"


if __name__ == "__main__":
    print(page(), end="")
