"""What a run says about itself at its end: `summary.json`, the table in the terminal, and which goals were reached.

Contract: the table shows nothing that is not in `summary.json`, and names its rows as the file does. The file is strict
JSON: an undefined measure is null. A goal that was not reached is said to be not reached, with the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.schema import Config, EvalConfig
from learner.evaluation.bootstrap import Interval
from learner.evaluation.controls import CONSTANT
from learner.evaluation.direction import arrow
from learner.evaluation.measures import Evaluation, Metric, compare
from learner.evaluation.numbers import fixed, spread
from learner.evaluation.regions import AUROC_GOAL, GROUPS, IOU_GOAL, RegionMeasures
from learner.evaluation.regiontable import print_regions

FINDING_F1_GOAL = 0.45
"""The least finding F1 of a warm start that is worth reinforcing: below, the policy hardly sees the image."""

ABOVE_ZERO = 0.0005
"""From here on a difference is not 0.000 when it is shown: less is rounding, and reaches no goal and misses none."""

Summary = dict[str, Any]
"""The content of `summary.json`; see `build_summary`."""

_REWARD_ROWS = ("reward", "reward_abnormal")
_CLINICAL_ROWS = ("finding_precision", "finding_recall", "finding_f1", "finding_f1_shuffled", "shuffle_gap")
_TEXT_ROWS = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "unique", "unique_share", "repetition", "words")
_DIGITS = {"unique": 0, "words": 1}
_POLICY_COLUMNS = 4  # metric, warm start, RL, difference
_GUTTER = 2  # characters between columns
_REGION_TITLES = {"regions": "after stage=regions", "sft": "warm start", "rl": "RL"}
_ORACLE = "nearest_findings"

RENDERED = "rendered_"
"""Loaders whose X-rays are drawn and not taken have names that start so."""


@dataclass(frozen=True)
class Goal:
    """Something that a run should reach, whether it did, and the numbers."""

    goal: str
    reached: bool
    detail: str


def build_summary(
    sft: Evaluation,
    rl: Evaluation | None,
    controls: Mapping[str, Evaluation],
    regions: Mapping[str, RegionMeasures | None],
    reward_backend: str,
    about: Mapping[str, Any],
    cfg: EvalConfig,
    seed: int,
) -> Summary:
    """The content of `summary.json`, all evaluations being of the same studies and seed; `rl` is None for a run that
    ends with the warm start, and so are then "rl" and "rl_minus_sft".

    {"sft" and "rl": {metric: value}, "controls": {name: {metric: value}},
    "rl_minus_sft": {metric: [difference, low, high]}, "regions": {"sft" and "rl": `measure_regions`, or None},
    "goals": [{goal, reached, detail}], "reward_backend", "studies", "finding_truth", "permutations", "bootstrap"} and
    `about`; metrics as in `Evaluation`.
    """
    gains = None if rl is None else compare(rl, sft, cfg, seed)
    found = warm_start_goals(sft)
    if rl is not None and gains is not None:
        constants = {name: controls[name] for name in CONSTANT if name in controls}
        found += rl_goals(gains, {name: compare(rl, one, cfg, seed)["reward"] for name, one in constants.items()})
    return {
        "sft": sft.metrics,
        "rl": None if rl is None else rl.metrics,
        "controls": {name: control.metrics for name, control in controls.items()},
        "rl_minus_sft": None if gains is None else {name: list(gain) for name, gain in gains.items()},
        "regions": dict(regions),
        "goals": [asdict(goal) for goal in [*found, *region_goals(regions)]],
        "reward_backend": reward_backend,
        "studies": len(sft.study_ids),
        "finding_truth": sft.finding_truth,
        "permutations": cfg.permutations,
        "bootstrap": cfg.bootstrap,
        **about,
    }


def about_run(cfg: Config, seconds: Mapping[str, float], peak_rss_gb: float) -> dict[str, Any]:
    """{"stage", "data" (loader), "images" ("rendered X-rays" or "X-rays"), "seconds": {phase: s}, "peak_rss_gb"}."""
    return {
        "stage": cfg.stage,
        "data": cfg.data.name,
        "images": "rendered X-rays" if cfg.data.name.startswith(RENDERED) else "X-rays",
        "seconds": dict(seconds),
        "peak_rss_gb": peak_rss_gb,
    }


def build_regions_summary(measures: RegionMeasures | None, about: Mapping[str, Any]) -> Summary:
    """`summary.json` of a run with stage=regions: {"regions": {"regions": `measure_regions`}, "goals"} and `about`."""
    regions = {"regions": measures}
    return {"regions": regions, "goals": [asdict(goal) for goal in region_goals(regions)], **about}


def warm_start_goals(sft: Evaluation) -> list[Goal]:
    """Whether the warm start sees the image at all."""
    gap = Interval(sft.statistics["shuffle_gap"].value, *_numbers(sft.metrics["shuffle_gap"])[1:])
    f1 = sft.statistics["finding_f1"].value
    return [
        Goal("warm start: shuffle gap above 0", gap.low >= ABOVE_ZERO, _spread(gap)),
        Goal(f"warm start: finding F1 at least {FINDING_F1_GOAL}", f1 >= FINDING_F1_GOAL, fixed(f1)),
    ]


def rl_goals(gains: Mapping[str, Interval], over_constants: Mapping[str, Interval]) -> list[Goal]:
    """What is asked of RL: `gains` over the warm start, `over_constants` its reward minus that of each constant control
    that was measured."""
    reward = gains["reward"]
    found = [Goal("RL: reward above the warm start's", reward.low >= ABOVE_ZERO, _spread(reward))]
    if over_constants:
        told = "; ".join(f"{_title(name)}: {_spread(over)}" for name, over in over_constants.items())
        above = all(over.value >= ABOVE_ZERO for over in over_constants.values())
        found.append(Goal("RL: reward above every constant control's", above, told))
    return [
        *found,
        _not_lower("finding_f1", "finding F1", gains),
        _not_lower("shuffle_gap", "shuffle gap", gains),
    ]


def region_goals(regions: Mapping[str, RegionMeasures | None]) -> list[Goal]:
    """What is asked of the last policy's regions on rendered X-rays, where the truth is known exactly."""
    measures = list(regions.values())[-1] if regions else None
    found: list[Goal] = []
    if measures is not None and measures["truth"]["boxes"] == "rendered":
        iou = {group: measures["groups"][group]["iou"] for group in GROUPS}
        reached = all(value is not None and value >= IOU_GOAL for value in iou.values())
        detail = ", ".join(f"{group} {_cell(value, 3)}" for group, value in iou.items())
        found.append(Goal(f"regions: box IoU at least {IOU_GOAL}", reached, detail))
    if measures is not None and measures["truth"]["labels"] == "rendered":
        auroc = {name: one["auroc"] for name, one in measures["regions"].items() if one["auroc"] is not None}
        if auroc:
            least = min(auroc, key=lambda name: auroc[name])
            detail = f"least of {len(auroc)} regions: {least} {auroc[least]:.3f}"
            found.append(
                Goal(f"regions: AUROC of significance at least {AUROC_GOAL}", auroc[least] >= AUROC_GOAL, detail)
            )
    return found


def write_summary(path: Path, summary: Summary) -> None:
    """Writes `summary.json`; raises ValueError for a number that JSON cannot hold (NaN, infinity)."""
    text = json.dumps(summary, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def print_summary(summary: Summary, console: Console) -> None:
    """Prints the table of reports if there is one (in two parts on a terminal of less than about 100 columns), that of
    the regions, the goals, the time and memory."""
    if "sft" in summary:
        header, rows = table_cells(summary)
        parts = [list(range(len(header)))]
        if sum(width + _GUTTER for width in _widths(header, rows)) > console.width:
            policies = _POLICY_COLUMNS if summary["rl"] is not None else 2
            parts = [parts[0][:policies], [0, *parts[0][policies:]]]
        tables = [_table(*_select(header, rows, part)) for part in parts]
        console.print(Text(table_title(summary), style="bold"), *tables, sep="\n")
    for name, measures in summary["regions"].items():
        if measures is not None:
            print_regions(measures, console, _REGION_TITLES[name])
    lines = [_goal_line(Goal(**goal)) for goal in summary["goals"]]
    seconds = ", ".join(f"{phase} {s:.0f} s" for phase, s in summary["seconds"].items())
    lines.append(Text(f"{seconds}; at most {summary['peak_rss_gb']:.1f} GB of memory"))
    console.print(*lines, sep="\n")


def markdown_table(summary: Summary) -> str:
    """The same table for a README, title, goals and all."""
    header, rows = table_cells(summary)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])
    done = {True: "reached", False: "**not reached**"}
    reached = "\n".join(f"- {done[goal['reached']]}: {goal['goal']}: {goal['detail']}" for goal in summary["goals"])
    return f"**{table_title(summary)}**\n\n{table}\n\n{reached}\n"


def table_title(summary: Summary) -> str:
    """How many studies, what the X-rays and the reward really are."""
    return f"{summary['studies']} held-out test studies, {summary['images']}, {summary['reward_backend']} reward"


def table_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The table as text: its column titles, and one row a metric (three for the shuffle gap, with its interval)."""
    titles = [_title(name) for name in summary["controls"]]
    rl, gains = summary["rl"], summary["rl_minus_sft"] or {}
    header = [f"{summary['images']}, {summary['reward_backend']} reward", "warm start"]
    header += [] if rl is None else ["RL", "RL - warm start [95 %]"]
    policies: list[Mapping[str, Metric]] = [summary["sft"], *([] if rl is None else [rl])]
    controls: list[Mapping[str, Metric]] = list(summary["controls"].values())
    rows: list[list[str]] = []

    def add(label: str, value_of: Callable[[Mapping[str, Metric]], Metric], gain: str = "", digits: int = 3) -> None:
        cells = [_cell(value_of(metrics), digits) for metrics in [*policies, *controls]]
        between = [] if rl is None else [gain]
        rows.append([label, *cells[: len(policies)], *between, *cells[len(policies) :]])

    for name in row_names(summary["sft"]):
        gain = gains.get(name)
        add(
            name + arrow(name),
            methodcaller("get", name),
            _spread(Interval(*gain)) if gain else "",
            _DIGITS.get(name, 3),
        )
        if name == "shuffle_gap":
            add("  95 % from", lambda metrics: _numbers(metrics["shuffle_gap"])[1])
            add("  95 % to", lambda metrics: _numbers(metrics["shuffle_gap"])[2])
    return [*header, *titles], rows


def _table(header: list[str], rows: list[list[str]]) -> Table:
    """A table as narrow as its numbers and the words of its titles allow; nothing of it is cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, (title, width) in enumerate(zip(header, _widths(header, rows), strict=True)):
        table.add_column(title, justify="right" if index else "left", width=width)
    for cells in rows:
        table.add_row(*cells)
    return table


def _widths(header: list[str], rows: list[list[str]]) -> list[int]:
    return [max(len(text) for text in [*cells, *title.split()]) for title, *cells in zip(header, *rows, strict=True)]


def _select(header: list[str], rows: list[list[str]], columns: list[int]) -> tuple[list[str], list[list[str]]]:
    return [header[index] for index in columns], [[cells[index] for index in columns] for cells in rows]


def row_names(metrics: Iterable[str]) -> list[str]:
    """The rows of the table of reports in their order: reward, its components, findings, text."""
    known = {*_REWARD_ROWS, *_CLINICAL_ROWS, *_TEXT_ROWS}
    components = [name for name in metrics if name not in known]
    return [*_REWARD_ROWS, *components, *_CLINICAL_ROWS, *_TEXT_ROWS]


def _not_lower(name: str, words: str, gains: Mapping[str, Interval]) -> Goal:
    """Judged by the measured values, as the interval of a small test set would excuse nearly every loss."""
    return Goal(f"RL: {words} not lower than the warm start's", gains[name].value > -ABOVE_ZERO, _spread(gains[name]))


def _goal_line(goal: Goal) -> Text:
    mark, style = ("reached    ", "green") if goal.reached else ("not reached", "bold yellow")
    return Text.assemble((mark, style), f"  {goal.goal}: {goal.detail}")


def _title(control: str) -> str:
    return control.replace("_", " ") + (" (oracle)" if control == _ORACLE else "")


def _numbers(metric: Metric) -> list[float]:
    if not isinstance(metric, list):
        raise TypeError(f"expected [value, low, high], got {metric!r}")
    return metric


def _cell(metric: Metric, digits: int) -> str:
    number = metric[0] if isinstance(metric, list) else metric
    return "-" if number is None else fixed(number, digits)


def _spread(interval: Interval) -> str:
    return spread(interval, sign="+")
