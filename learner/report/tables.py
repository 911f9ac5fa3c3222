"""The evaluation of a run as table cells: values with intervals, differences between its policies, and the controls.

Contract: values and intervals come from what single studies had (`learner.evaluation.finished`), resampled with the
config's seed and `evaluation.bootstrap`; what single studies do not tell is taken from `summary.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from learner.evaluation.bootstrap import Interval, Statistic, difference, draw_resamples, interval
from learner.evaluation.direction import arrow, direction
from learner.evaluation.finished import statistics_of
from learner.evaluation.numbers import fixed
from learner.report.data import PolicyRecord, RunRecord
from learner.summary import row_names

RESAMPLES: Final = 2000
_WHOLE: Final = {"unique": 0, "words": 1}


@dataclass(frozen=True)
class Cell:
    """One number with its interval (empty where none is known), and whether it is better (1) or worse (-1) than what
    it is measured against, beyond chance."""

    value: str
    spread: str = ""
    verdict: int = 0


@dataclass(frozen=True)
class Table:
    """Column titles, the first that of the rows' names, and the rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def evaluation_table(record: RunRecord) -> Table | None:
    """Policies, their difference and controls, a row a measure; None where nothing was evaluated."""
    policies = [policy for policy in record.policies if policy.per_study]
    if not policies:
        return None
    seed, known = int(record.config.get("seed", 0)), [statistics_of_policy(policy) for policy in policies]
    number = int(record.config.get("evaluation", {}).get("bootstrap", RESAMPLES))
    resamples = draw_resamples(len(policies[0].rows), number, seed)
    paired = len(policies) == 2 and [row.id for row in policies[0].rows] == [row.id for row in policies[1].rows]
    summary = record.summary or {}
    values = [summary.get(policy.name) or {} for policy in policies]
    controls: Mapping[str, Mapping[str, Any]] = summary.get("controls", {})
    rows = []
    for name in row_names(dict.fromkeys([*known[0], *values[0]])):
        cells = [_of_policy(name, one, value, resamples) for one, value in zip(known, values, strict=True)]
        if paired:
            cells.append(_difference(name, known[1], known[0], resamples))
        cells += [Cell(_text(name, _plain(control.get(name)))) for control in controls.values()]
        rows.append((name + arrow(name), tuple(cells)))
    between = ["RL - warm start"] if paired else []
    titles = [name.replace("_", " ") for name in controls]
    return Table(("measure", *(policy.title for policy in policies), *between, *titles), tuple(rows))


def statistics_of_policy(policy: PolicyRecord) -> dict[str, Statistic]:
    """What can be resampled of a policy's reports."""
    return statistics_of(policy.per_study, [(row.reference, row.hypothesis) for row in policy.rows])


def result_tables(result: Mapping[str, Any]) -> Iterator[tuple[str, Table, str]]:
    """(group, table, signature) of a result of `learner.evaluate --json`."""
    for group, entries in result["metrics"].items():
        some: Mapping[str, Any] = next(iter(entries.values()), {})
        controls, baseline = list(some.get("controls", {})), "baseline" in some
        header = ["measure", "value", *(["baseline", "difference", "p"] if baseline else [])]
        header += [name.replace("_", " ") for name in controls]
        rows = []
        for name, entry in entries.items():
            cells = [spread_cell(name, Interval(*_floats([entry["value"], entry["low"], entry["high"]])))]
            if baseline:
                over = entry["baseline"]
                cells += [Cell(_text(name, _plain(over["value"])))]
                cells += [gain_cell(name, Interval(*_floats(over["difference"]))), p_cell(_plain(over["p"]))]
            cells += [Cell(_text(name, _plain(entry["controls"][control]["value"]))) for control in controls]
            rows.append((name + arrow(name), tuple(cells)))
        yield group, Table((*header,), tuple(rows)), str(result["signatures"][group])


def spread_cell(name: str, found: Interval) -> Cell:
    """A value with its interval."""
    if not np.isfinite(found.value):
        return Cell("-")
    return Cell(_text(name, found.value), f"{_text(name, found.low)} to {_text(name, found.high)}")


def gain_cell(name: str, found: Interval) -> Cell:
    """A difference; it is better or worse where its interval leaves out 0."""
    if not np.isfinite(found.value):
        return Cell("-")
    sign = 1 if found.low > 0 else -1 if found.high < 0 else 0
    value, low, high = (fixed(number, sign="+") for number in found)
    return Cell(value, f"{low} to {high}", sign * direction(name))


def p_cell(p: float) -> Cell:
    return Cell("-" if not np.isfinite(p) else f"{p:.4f}")


def _of_policy(name: str, known: Mapping[str, Statistic], values: Mapping[str, Any], resamples: Any) -> Cell:
    if name in known:
        return spread_cell(name, interval(known[name], resamples))
    given = values.get(name)
    if isinstance(given, Sequence):
        return spread_cell(name, Interval(*_floats(given)))
    return Cell(_text(name, _plain(given)))


def _difference(name: str, later: Mapping[str, Statistic], first: Mapping[str, Statistic], resamples: Any) -> Cell:
    if name not in later or name not in first:
        return Cell("")
    return gain_cell(name, difference(later[name], first[name], resamples))


def _plain(metric: float | Sequence[float] | None) -> float:
    """A metric of a summary as one number, NaN where it is undefined."""
    value = metric[0] if isinstance(metric, Sequence) else metric
    return float("nan") if value is None else float(value)


def _floats(values: Sequence[float | None]) -> list[float]:
    return [_plain(value) for value in values]


def _text(name: str, value: float) -> str:
    return fixed(value, _WHOLE.get(name, 3)) if np.isfinite(value) else "-"
