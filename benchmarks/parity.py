"""How far `published` is from the packages that RadCliQ comes from (`reference`), component by component.

    python -m benchmarks.parity [--weights DIR] [--pairs N]

Contract: prints a Markdown table of the largest differences over nasty and realistic pairs, and fails (status 1) if one
is above 1e-5. Without --weights it writes small random ones. The packages are slow: pairs of very long reports are left
out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoints import write_checkpoints
from benchmarks.reports import nasty_pairs, varied_pairs
from reward_server.backends import create_scorer
from reward_server.errors import RewardSetupError
from reward_server.scorer import ScorerOptions

TOLERANCE = 1e-5
_LONGEST = 5000  # characters


def differences(weights: Path, pairs: int) -> tuple[int, dict[str, float]]:
    """The number of pairs, and the largest difference of every component."""
    asked = [pair for pair in (*nasty_pairs(), *varied_pairs(pairs)) if max(map(len, pair)) <= _LONGEST]
    ours, theirs = (
        create_scorer(ScorerOptions(backend, weights=str(weights))).score(asked)
        for backend in ("published", "reference")
    )
    return len(asked), {
        name: max(abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True)) for name in theirs[0]
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pairs", type=int, default=100, help="realistic pairs (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or Path(folder)
        if args.weights is None:
            write_checkpoints(weights, "mini")
        try:
            number, found = differences(weights, args.pairs)
        except RewardSetupError as error:
            parser.error(str(error))
    print(f"| component | largest difference over {number} pairs |\n|---|---|")
    for name, difference in found.items():
        print(f"| `{name}` | {difference:.1e} |")
    return int(max(found.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
