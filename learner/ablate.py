"""`python -m learner.ablate`: the warm start of LM-RRG without each of its parts, from one seed and budget, as a table.

Contract: runs `learner.main stage=warm_start` once an arm and seed, one after the other, each in a directory of its
own below --out. Started again after it was killed, it keeps the finished runs (those with a `summary.json`) and resumes
the one that was cut off, whose warm start begins again unless that was finished. A run that fails is reported while the
others go on. Ends with the table: terminal, `table.md`, `table.json`. Exit status 0; 1 where a run failed; 2 for a
person's mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from learner.evaluation.ablation import FULL, Report, cells, markdown, notes, read_arm, report
from learner.evaluation.tables import filled_table
from learner.runs import ArmRun, seeds_of
from rrg.command import add_debug, carry_out
from rrg.errors import UserError
from rrg.progress import output_console

ARMS: Final[Mapping[str, tuple[str, ...]]] = {
    FULL: (),
    "regions": ("model.regions=off",),
    "gate": ("model.gate=off",),
    "captioning": ("model.captioning=off",),
    "global": ("model.global_tokens=0",),
}
"""What each arm changes; it goes by the name of the part that it lacks."""

# What the arms differ in is not for the command line.
_OWN: Final = (
    "stage",
    "seed",
    "output_dir",
    "resume",
    "dry_run",
    *(texts[0].split("=")[0] for texts in ARMS.values() if texts),
)


class Run(ArmRun):
    """An ablation with one seed."""

    def settings(self, overrides: Sequence[str]) -> list[str]:
        own = ["stage=warm_start", f"seed={self.seed}", f"output_dir={self.folder}"]
        return [*overrides, *ARMS[self.arm], *own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_intermixed_args(arguments)
    return carry_out(lambda: _ablate(args), debug=args.debug)


def _ablate(args: argparse.Namespace) -> int:
    console = output_console()
    runs = plan(Path(args.out), _arms(args.arms), seeds_of(args.seeds), args.overrides)
    failed = [run for run in runs if not run.done(args.overrides, console)]
    made = tabulate(runs, args.bootstrap)
    _write(Path(args.out), made)
    _print(made, console)
    return 1 if failed else 0


def plan(out: Path, arms: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[Run]:
    """All runs, seed by seed. Raises UserError for overrides that the arms set themselves, or where `out` was begun
    with others: its runs could not be compared."""
    own = [text for text in overrides if text.lstrip("+").split("=")[0] in _OWN]
    if own:
        raise UserError(f"{own[0]}: learner.ablate sets {own[0].split('=')[0]} itself; leave it out")
    out.mkdir(parents=True, exist_ok=True)
    begun = out / "overrides.json"
    if begun.is_file() and json.loads(begun.read_text()) != list(overrides):
        raise UserError(f"{out} holds runs with other overrides ({begun}); give the same ones, or another --out")
    begun.write_text(json.dumps(list(overrides)) + "\n")
    return [Run(arm, seed, out.resolve() / f"{arm}-seed{seed}") for seed in seeds for arm in arms]


def tabulate(runs: Sequence[Run], bootstrap: int) -> Report:
    """The report of all arms whose every run is finished. Raises UserError where there is none."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    whole = {arm: read_arm([run.folder for run in of]) for arm, of in by_arm.items() if all(r.finished for r in of)}
    if not whole:
        raise UserError("no arm was finished; the logs beside the run directories say why")
    return report(whole, [run.name for run in runs if not run.finished], bootstrap, seed=0)


def _write(out: Path, made: Report) -> None:
    (out / "table.json").write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(made), encoding="utf-8")


def _print(made: Report, console: Console) -> None:
    header, rows = cells(made)
    console.print(filled_table(header, rows))
    for note in notes(made):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m learner.ablate", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--out", required=True, metavar="DIR", help="folder of the runs and the table")
    made.add_argument(
        "--arms", default=",".join(ARMS), metavar="NAMES", help="parts to leave out, and full (%(default)s)"
    )
    made.add_argument("--seeds", default="0", metavar="N[,N]", help="one run an arm and seed (%(default)s)")
    made.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="resamples (%(default)s)")
    add_debug(made)
    made.add_argument(
        "overrides", nargs="*", help="as learner.main takes them, for every run: data=... learner.sft...."
    )
    return made


def _arms(text: str) -> list[str]:
    arms = list(dict.fromkeys(name for name in text.split(",") if name))
    unknown = [name for name in arms if name not in ARMS]
    if unknown or not arms:
        raise UserError(f"--arms {text}: choose among {', '.join(ARMS)}")
    return arms


if __name__ == "__main__":
    sys.exit(main())
