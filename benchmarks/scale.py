"""How a run scales: samples a second, hours and GPU-hours for a number of GPUs, simulated from data sheets.

`python -m benchmarks.scale [OVERRIDE ...] [--gpu h100] [--gpus 8 16 ...] [--staleness 0 1 2] [--grow] [--price P]
[--set NAME=VALUE ...]`: a table of the best split of the GPUs between rollout actors, learner ranks and reward workers,
which a search over simulated runs (`benchmarks.scale_pipeline`) of the config finds; the default config is
`+exp=mimic_grpo model=llama2_7b`. Every assumption is printed with the table. Nothing of it is measured on a GPU.
`python -m benchmarks.scale [OVERRIDE ...] --validate DIR --start RUN_DIR [--settings ACTORS,WORKERS,STALENESS ...]`:
the simulation against real runs on this machine (`benchmarks.scale_validate`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.scale_hardware import GPUS, Assumed, Gpu, Llm, costs, fits, llm_of
from benchmarks.scale_pipeline import ROLES, Outcome, simulate
from benchmarks.scale_validate import PREDICTED, validate
from configs.load import compose_config
from configs.schema import Config
from learner.evaluation.tables import filled_table, markdown_table
from rrg.command import add_debug, carry_out
from rrg.errors import UserError
from rrg.progress import output_console

_DEFAULT: Final = ("+exp=mimic_grpo", "model=llama2_7b", "rollout.kv_cache_mib=49152")
# What the config needs to be complete, and the simulation does not read.
_UNREAD: Final = ("data.root=-", "reward.weights=-")
_GPUS: Final = (8, 16, 32, 64, 128, 256, 512)
_STEPS: Final = 2000
_BASE_GPUS: Final = 8
# Shares of the learner and the reward where the search begins: the best of them.
_STARTS: Final = ((1 / 3, 1 / 3), (1 / 2, 1 / 8), (1 / 4, 1 / 8), (1 / 4, 1 / 4), (1 / 8, 1 / 2), (1 / 8, 1 / 8))
_HEADER: Final = (
    "GPUs", "k", "rollout + learner + reward", "studies a step", "s a step", "samples/s", "idle: rollout", "learner",
    "reward", "age, versions", "hours an epoch", f"hours {_STEPS} steps", "GPU-hours an epoch",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Split:
    """GPUs of each role."""

    rollout: int
    learner: int
    reward: int

    def moved(self, count: int) -> Iterator[Split]:
        """The splits that move so many GPUs from one role to another; every role keeps one."""
        for source in ROLES:
            for target in ROLES:
                gpus = asdict(self)
                gpus[source] -= count
                gpus[target] += count
                if source != target and gpus[source] > 0:
                    yield Split(**gpus)


@dataclass(frozen=True)
class Row:
    """The best split for a number of GPUs and a bound of the staleness; None where none fits."""

    gpus: int
    staleness: int
    studies: int
    split: Split | None
    outcome: Outcome | None


def best_split(gpus: int, speed: Callable[[Split], float]) -> tuple[Split, float]:
    """The fastest split that a pattern search finds: moves between two roles, of ever fewer GPUs, while one is better.

    `speed` may be 0 for splits that cannot be. It is not convex (studies are dealt whole), so what is found may be a
    few per cent from the best; for up to `_BASE_GPUS` every split is tried. Above 64 GPUs it moves whole 64ths of them.
    """
    known: dict[Split, float] = {}

    def tried(split: Split) -> float:
        if split not in known:
            known[split] = speed(split)
        return known[split]

    for reward in range(1, gpus - 1) if gpus <= _BASE_GPUS else ():
        for learner in range(1, gpus - reward):
            tried(Split(gpus - learner - reward, learner, reward))
    best = max((_shared(gpus, *shares) for shares in _STARTS), key=tried)
    count, least = max(1, gpus // 8), max(1, gpus // 64)
    while count >= least:
        better = max(best.moved(count), key=tried, default=best)
        if tried(better) > tried(best):
            best = better
        else:
            count //= 2
    best = max(known, key=lambda split: (known[split], split))
    return best, known[best]


def _shared(gpus: int, learner: float, reward: float) -> Split:
    ranks, workers = max(1, int(gpus * learner)), max(1, int(gpus * reward))
    return Split(gpus - ranks - workers, ranks, workers)


def with_split(cfg: Config, split: Split) -> Config:
    """The config with the processes of this split."""
    actors = int(split.rollout // cfg.rollout.gpus_per_actor)
    return replace(
        cfg,
        rollout=replace(cfg.rollout, num_actors=actors),
        learner=replace(cfg.learner, num_ranks=split.learner),
        reward=replace(cfg.reward, num_workers=split.reward),
    )


def row(cfg: Config, gpu: Gpu, llm: Llm, assumed: Assumed, gpus: int) -> Row:
    """The best that this config does on so many GPUs."""
    outcomes: dict[Split, Outcome] = {}

    def speed(split: Split) -> float:
        tried = with_split(cfg, split)
        if tried.rollout.num_actors < 1 or not fits(tried, gpu, llm):
            return 0.0
        outcomes[split] = simulate(tried, costs(tried, gpu, llm, assumed))
        return outcomes[split].samples_per_s

    split, found = best_split(gpus, speed)
    studies, staleness = cfg.learner.rl.studies_per_step, cfg.rollout.max_staleness
    return Row(gpus, staleness, studies, split, outcomes[split]) if found else Row(gpus, staleness, studies, None, None)


def table(rows: Sequence[Row], assumed: Assumed, price: float | None) -> tuple[list[str], list[list[str]]]:
    """The header and cells; with a price of a GPU-hour, what an epoch costs."""
    header = [*_HEADER, *([] if price is None else [f"an epoch at {price:g} a GPU-hour"])]
    cells = []
    for one in rows:
        start = [str(one.gpus), str(one.staleness)]
        if one.split is None or one.outcome is None:
            cells.append([*start, "does not fit", *[""] * (len(header) - 3)])
            continue
        found = one.outcome
        epoch_h = assumed.studies / one.studies * found.step_s / 3600
        cells.append([
            *start,
            f"{one.split.rollout} + {one.split.learner} + {one.split.reward}",
            str(one.studies),
            f"{found.step_s:.2f}",
            f"{found.samples_per_s:.0f}",
            *(f"{100 * found.idle[role]:.0f} %" for role in ROLES),
            f"{found.staleness:.2f} (<= {found.stalest})",
            f"{epoch_h:.2f}",
            f"{_STEPS * found.step_s / 3600:.1f}",
            f"{one.gpus * epoch_h:.0f}",
            *([] if price is None else [f"{one.gpus * epoch_h * price:.0f}"]),
        ])  # fmt: skip
    return header, cells


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    return carry_out(lambda: _scale(args), debug=args.debug)


def _scale(args: argparse.Namespace) -> int:
    console = output_console()
    if args.validate is not None:
        return validate(args.validate, args.start, args.settings, args.overrides, console)
    _print(args, console)
    return 0


def _print(args: argparse.Namespace, console: Console) -> None:
    cfg = compose_config([*_DEFAULT, *_UNREAD, *args.overrides])
    gpu, llm, assumed = GPUS[args.gpu], llm_of(cfg), _assumed(args.set)
    rl, rollout = cfg.learner.rl, cfg.rollout
    rows = []
    for gpus in args.gpus:
        for staleness in args.staleness:
            studies = rl.studies_per_step * gpus // _BASE_GPUS if args.grow else rl.studies_per_step
            learner = replace(cfg.learner, rl=replace(rl, studies_per_step=studies))
            tried = replace(cfg, learner=learner, rollout=replace(rollout, max_staleness=staleness))
            rows.append(row(tried, gpu, llm, assumed, gpus))
    header, cells = table(rows, assumed, args.price)
    console.print(
        "Simulated from data sheets and the assumptions below; nothing of it is measured on a GPU.", style="bold"
    )
    console.print(filled_table(header, cells))
    facts: dict[str, Any] = {f"{args.gpu}.{name}": value for name, value in asdict(gpu).items()} | asdict(assumed)
    facts |= {f"llm.{name}": value for name, value in asdict(llm).items()}
    facts |= {"llm": cfg.model.llm.path, "train": cfg.model.llm.train, "broadcast": cfg.model.llm.broadcast}
    facts |= {"samples_per_study": rollout.samples_per_study, "minibatches": rl.minibatches}
    facts |= {"kv_cache_mib": rollout.kv_cache_mib, "max_new_tokens": rollout.max_new_tokens}
    for name, value in facts.items():
        console.print(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}", markup=False)
    if args.json is not None:
        made = {"facts": facts, "rows": [asdict(one) for one in rows], "table": markdown_table(header, cells)}
        args.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def _assumed(settings: Sequence[str]) -> Assumed:
    """Raises UserError for a name that there is not, or a value that is no number."""
    names = {name: type(value) for name, value in asdict(Assumed()).items()}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            changes[name] = names[name](value)
        except (KeyError, ValueError) as error:
            raise UserError(f"--set {setting}: it takes NAME=NUMBER with one of {', '.join(names)}") from error
    return replace(Assumed(), **changes)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0])
    add_debug(made)
    made.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="data sheet (%(default)s)")
    made.add_argument("--gpus", type=int, nargs="+", default=_GPUS, metavar="N", help="(%(default)s)")
    made.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], metavar="K", help="rollout.max_staleness")
    made.add_argument(
        "--grow", action="store_true", help=f"learner.rl.studies_per_step grows with the GPUs beyond {_BASE_GPUS}"
    )
    made.add_argument("--price", type=float, metavar="P", help="of a GPU-hour: adds what an epoch costs")
    made.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes assumptions")
    made.add_argument("--json", type=Path, metavar="FILE", help="writes rows, facts and the table in Markdown too")
    made.add_argument("--validate", type=Path, metavar="DIR", help="compare with real runs here, kept in this folder")
    made.add_argument("--start", type=Path, metavar="RUN_DIR", help="for --validate: warm start of the real runs")
    made.add_argument("--settings", nargs="+", default=PREDICTED, metavar="A,W,K", help="for --validate (%(default)s)")
    made.add_argument("overrides", nargs="*", help="as learner.main takes them; before the flags")
    return made


if __name__ == "__main__":
    sys.exit(main())
