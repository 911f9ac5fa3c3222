"""How to get the weights of the `published` backend, in words; imports nothing heavy."""

from __future__ import annotations

import shlex
from pathlib import Path


def fetch_command(root: Path, *, accept_terms: bool = False) -> str:
    """The whole command that downloads what is missing in the folder."""
    terms = " --accept-terms" if accept_terms else ""
    return f"python -m reward_server weights fetch --weights {shlex.quote(str(root))}{terms}"


def no_folder(root: Path) -> str:
    """What is said where the folder is not there."""
    return f"the weights folder {root} does not exist: {how_to_get(root)}"


def how_to_get(root: Path) -> str:
    """The way out for a part that is missing."""
    return f"run `{fetch_command(root)}` (docs/reward_weights.md)"
