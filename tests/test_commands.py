"""Every command tells what it does, and what a person did wrong in one line; with --debug, where it was found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "learner.evaluate": ["--run", "nowhere"],
    "learner.ablate": ["--out", "unused", "--arms", "nothing"],
    "actors.scale": ["--ray-address", "127.0.0.1:1"],
    "reward_server": [
        "score",
        "--backend",
        "published",
        "--weights",
        "nowhere",
        "--input",
        "no.jsonl",
        "--output",
        "no.csv",
    ],
    "actors.ui": ["--checkpoint", "nowhere"],
    "actors.generate": ["--checkpoint", "nowhere", "no.png"],
    "learner.report": ["nowhere"],
    "learner.compare": ["nowhere", "elsewhere"],
    "rrg.data": ["check", "--format", "r2gen"],
    "rrg.model.export": ["nowhere", "unused"],
    "benchmarks.learning": ["--out", "unused", "--arms", "nothing"],
    "benchmarks.scale": ["--set", "nothing=1"],
}


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", module, *arguments]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["learner.main", *COMMANDS])
def test_help_says_what_a_command_does(module: str) -> None:
    shown = run(module, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"python -m {module}" in shown.stdout


@pytest.mark.parametrize(("module", "arguments"), COMMANDS.items(), ids=list(COMMANDS))
def test_a_mistake_is_one_line_and_with_debug_a_traceback(module: str, arguments: list[str]) -> None:
    plain = run(module, *arguments)
    assert plain.returncode == 2
    assert len(plain.stderr.splitlines()) == 1, plain.stderr
    # Of reward_server the flag belongs to its commands.
    debugged = run(module, *arguments, "--debug")
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr
    assert debugged.stderr.splitlines()[-1].endswith(plain.stderr.split(": ", 1)[1].strip())
