"""How soon `actors.generate` gives a report, and how many a second it writes.

    python -m benchmarks.generate --checkpoint RUN [--rounds 3] [--large 200] [--json FILE]

Contract: every measurement is the command itself in a process of its own, timed from that process's start. The single
study and the folder are made-up X-rays as JPEGs of 2544 x 3056 pixels (`benchmarks.data`), which are decoded and go
through the backbone; the run's own test split has its features stored by the run. Medians over the rounds; shares are
of the writing thread's time: waiting for images (loaded in other threads), prompts (the extractor), the engine.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import originals

_TIMEOUT_S = 1800.0


def measure(checkpoint: Path, rounds: int, large: int) -> dict[str, Any]:
    """Seconds to the one report, and the summaries of the batches, a list of one a round each."""
    told: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "report_s": [], "own_test_split": [], "large": []}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "jpegs"
        paths = originals(folder, large)
        for index in range(rounds):
            said = _run(checkpoint, paths[0])[1]
            told["report_s"].append(float(re.findall(r"report came ([\d.]+) s", said)[0]))
            for name, what in (("own_test_split", "--own-data"), ("large", folder)):
                out = Path(made) / f"{name}{index}.jsonl"
                told[name].append(json.loads(_run(checkpoint, what, "--out", out, "--json")[0]))
    return told


def _run(checkpoint: Path, *arguments: object) -> tuple[str, str]:
    """stdout and stderr of the command."""
    command = [sys.executable, "-m", "actors.generate", "--checkpoint", str(checkpoint), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def _batch_line(name: str, rounds: Sequence[dict[str, Any]]) -> str:
    def median(*keys: str) -> float:
        values = [float(one[keys[0]] if len(keys) == 1 else one[keys[0]][keys[1]]) for one in rounds]
        return statistics.median(values)

    shares = ", ".join(f"{part} {median('shares', part):.0%}" for part in rounds[0]["shares"])
    rates = ", ".join(f"{one['studies_per_second']:.1f}" for one in rounds)
    return (
        f"{name}: {rounds[0]['written']} studies, {median('studies_per_second'):.1f} a second ({rates}); {shares}; "
        f"first batch {median('first_batch_s'):.1f} s after the start"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="run directory")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--large", type=int, default=200, help="JPEGs of 2544 x 3056 pixels (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every number")
    args = parser.parse_args()
    told = measure(args.checkpoint, args.rounds, args.large)
    listed = ", ".join(f"{seconds:.1f}" for seconds in told["report_s"])
    print(f"{told['cores']} cores")
    print(f"one study: report {statistics.median(told['report_s']):.1f} s after the start ({listed})")
    print(_batch_line("own test split", told["own_test_split"]))
    print(_batch_line("JPEGs of 2544 x 3056", told["large"]))
    if args.json is not None:
        args.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
