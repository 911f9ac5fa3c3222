"""Does it learn? RL and what it has to be compared with, from the same warm starts, as one table.

`python -m benchmarks.learning --out DIR [--arms rl,more_sft,...] [--seeds 0,1,2] [OVERRIDE ...]`: runs `learner.main`
once an arm and seed, one after the other, in DIR/ARM-seedN, and then judges the reports of all finished runs alike
(`benchmarks.learning_table`). Finished runs are kept and begun ones resumed, so a killed call goes on where it was;
`--table` only judges. `OVERRIDE`s are given to every run. The arms:

- warm: the warm start, where every arm begins that says nothing else.
- rl: the default recipe.
- more_sft: the same wall-clock of more supervised training, the control that is often left out
  (learner.sft.epochs=N sets it by hand where other work disturbs the times).
- rl_after_more_sft: the default recipe from there. no_warm_start: RL on untrained weights.
- rloo, ppo, scst, ...: other algorithms, same samples. async1: `rollout.max_staleness=1`.
- no_kl, no_regions, natural_mix, no_penalties, no_positive_f1, no_clip: without one guard each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from omegaconf import DictConfig, OmegaConf

from benchmarks import learning_table
from learner.runs import ArmRun, seeds_of
from rrg.command import add_debug, carry_out
from rrg.errors import UserError
from rrg.progress import output_console

WARM: Final = "warm"
MORE_SFT: Final = "more_sft"
_EPOCHS: Final = "learner.sft.epochs="
_NO_SFT: Final = ("learner.sft.regions_epochs=0", "learner.sft.epochs=0")
# A cosine schedule that begins at the warm start's peak would first undo some of it.
_MORE_SFT_LR: Final = 3e-4
# Steps of stage "regions" take about so much of the time of those of stage "policy".
_REGIONS_COST: Final = 0.6


@dataclass(frozen=True)
class Arm:
    """`overrides` of a run; `start`: the arm whose policy, of the same seed, it begins at; `policy`: whose reports
    count."""

    overrides: tuple[str, ...] = ()
    start: str | None = WARM
    policy: str = "rl"


ARMS: Final[Mapping[str, Arm]] = {
    WARM: Arm(("stage=warm_start",), start=None, policy="sft"),
    "rl": Arm(_NO_SFT),
    MORE_SFT: Arm(("stage=warm_start", "learner.sft.regions_epochs=0", f"learner.sft.lr={_MORE_SFT_LR}"), policy="sft"),
    "rl_after_more_sft": Arm(_NO_SFT, start=MORE_SFT),
    "no_warm_start": Arm((*_NO_SFT, "learner.rl.stop.max_kl=null"), start=None),
    "rloo": Arm((*_NO_SFT, "learner.rl.advantage=rloo")),
    "dr_grpo": Arm((*_NO_SFT, "learner.rl.advantage=dr_grpo", "learner.rl.reduction=constant")),
    "ppo": Arm((*_NO_SFT, "learner.rl.advantage=ppo")),
    "scst": Arm((*_NO_SFT, "learner.rl.advantage=scst")),
    "async1": Arm((*_NO_SFT, "rollout.max_staleness=1")),
    "no_kl": Arm((*_NO_SFT, "learner.rl.kl.place=off")),
    "no_regions": Arm((*_NO_SFT, "learner.rl.region_weight=0")),
    "natural_mix": Arm((*_NO_SFT, "learner.rl.abnormal_fraction=0.63")),
    "no_penalties": Arm((*_NO_SFT, "reward.repetition_weight=0", "reward.length_weight=0")),
    "no_positive_f1": Arm((*_NO_SFT, "reward.positive_f1_weight=0")),
    "no_clip": Arm((*_NO_SFT, "reward.clip=null")),
}


class Run(ArmRun):
    """An arm of the comparison with one seed."""

    def sibling(self, arm: str) -> Run:
        """Another arm with the same seed."""
        return Run(arm, self.seed, self.folder.with_name(f"{arm}-seed{self.seed}"))

    def settings(self, overrides: Sequence[str]) -> list[str]:
        arm = ARMS[self.arm]
        own = [f"seed={self.seed}", f"output_dir={self.folder}"]
        if self.arm != WARM:
            # Every run to its end, also one that the automatic stop would end: it is to be judged, not spared.
            own += ["evaluation.controls=false", "learner.rl.stop.patience=null"]
        if arm.start is not None:
            own.append(f"start={_finished(self.sibling(arm.start)).folder}")
        if self.arm == MORE_SFT and not any(given.startswith(_EPOCHS) for given in overrides):
            own.append(f"{_EPOCHS}{_epochs_of_equal_time(self):.2f}")
        return [*overrides, *arm.overrides, *own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 where a run failed, 2 for a person's mistake."""
    args = _parser().parse_intermixed_args(arguments)
    return carry_out(lambda: _compare(args), debug=args.debug)


def _compare(args: argparse.Namespace) -> int:
    console = output_console()
    runs = plan(Path(args.out), args.arms.split(","), seeds_of(args.seeds))
    failed = [] if args.table else [run for run in runs if not run.done(args.overrides, console)]
    finished = [run for run in runs if run.finished]
    if not finished:
        raise UserError(f"{args.out}: no run was finished; the logs beside the run directories say why")
    judged = [(run.arm, run.seed, run.folder, ARMS[run.arm].policy) for run in finished]
    learning_table.write(Path(args.out), judged, console)
    return 1 if failed else 0


def plan(out: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """All runs, in an order in which each finds what it builds on. Raises UserError for an unknown arm."""
    unknown = [name for name in arms if name not in ARMS]
    if unknown:
        raise UserError(f"--arms: {', '.join(unknown)} is none of {', '.join(ARMS)}")
    out.mkdir(parents=True, exist_ok=True)
    order = list(ARMS)
    chosen = sorted(dict.fromkeys(arms), key=order.index)
    return [Run(arm, seed, out.resolve() / f"{arm}-seed{seed}") for arm in chosen for seed in seeds]


def _finished(run: Run) -> Run:
    if not run.finished:
        raise UserError(f"{run.folder} is not a finished run: run the arm {run.arm!r} with seed {run.seed} first")
    return run


def _epochs_of_equal_time(run: Run) -> float:
    """Epochs of stage "policy" that take as long as the RL steps, by the speed of the warm start; both of the seed that
    other work on the machine disturbed least. The table has the seconds that the phases really took.
    """
    warm, rl = run.sibling(WARM), run.sibling("rl")
    config = OmegaConf.load(_finished(warm).folder / "config.yaml")
    assert isinstance(config, DictConfig)
    sft = config.learner.sft
    epoch_s = min(map(_sft_seconds, _seeds_of(warm))) / (sft.epochs + _REGIONS_COST * sft.regions_epochs)
    return float(max(0.1, min(map(_rl_seconds, _seeds_of(_finished(rl)))) / epoch_s))


def _seeds_of(run: Run) -> list[Path]:
    """The folders of all finished runs of the arm."""
    return [path.parent for path in run.folder.parent.glob(f"{run.arm}-seed*/summary.json")]


def _sft_seconds(folder: Path) -> float:
    # Of a resumed run the last part alone: then the control gets more epochs than it should, never fewer.
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return float(summary["seconds"]["warm start"])


def _rl_seconds(folder: Path) -> float:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return float(sum(row["seconds_step"] for row in rows if row["phase"] == "rl"))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=(__doc__ or "").split("\n")[0])
    add_debug(made)
    made.add_argument("--out", required=True, metavar="DIR", help="folder of the runs and the table")
    made.add_argument("--arms", default="warm,rl,more_sft,no_warm_start", metavar="NAMES", help="(%(default)s)")
    made.add_argument("--seeds", default="0,1,2", metavar="N[,N]", help="one run an arm and seed (%(default)s)")
    made.add_argument("--table", action="store_true", help="run nothing, only judge what is finished")
    made.add_argument("overrides", nargs="*", help="as learner.main takes them, for every run")
    return made


if __name__ == "__main__":
    sys.exit(main())
