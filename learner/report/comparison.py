"""Runs side by side: what their configs differ in, and paired tests on the test studies that they share.

Contract: pure functions of run records. The first run is what the others are measured against. Differences are paired
by study, over the same bootstrap resamples, with p of a paired permutation test beside them
(`learner.evaluation.bootstrap`); nothing is corrected for the number of comparisons. Rewards that were computed
otherwise are not compared, and the notes say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from learner.evaluation.bootstrap import (
    Statistic,
    difference,
    draw_resamples,
    draw_swaps,
    interval,
    permutation_p,
)
from learner.evaluation.direction import arrow
from learner.evaluation.finished import components_of, statistics_of
from learner.report.data import POLICIES, PolicyRecord, RunRecord
from learner.report.tables import RESAMPLES, Cell, Table, gain_cell, p_cell, spread_cell
from learner.summary import row_names
from rrg.data.sections import clean
from rrg.errors import UserError

SEED: Final = 0
SAMPLED: Final = "reward_mean"
"""The reward of the samples that are learnt from: a curve, not a measure of test studies."""
_OF_THE_REWARD: Final = ("reward", "reward_abnormal", "abnormal_reward", "shuffle_gap", SAMPLED)
# Where a run runs and how it is watched is no difference in what it learns.
_PLACES: Final = ("output_dir", "resume", "dry_run", "debug")
_MODELS: Final = ("backend", "radgraph", "idf", "dtype")
_SETTINGS: Final = (
    "composite", "clip", "component_weights", "repetition_weight", "length_weight", "positive_f1_weight",
)  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """`policies` by run, brought to the same studies in the same order; `left_out` are measures that mean different
    things in these runs."""

    policies: Mapping[str, PolicyRecord]
    left_out: frozenset[str]
    notes: list[str]


def run_names(records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """The runs by the shortest ends of their paths that tell them apart. Raises UserError for a run that is named
    twice."""
    paths = [record.folder.resolve().parts for record in records]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{'/'.join(path[-2:])}: named twice; a run is compared with other runs")
    depth = next(n for n in range(1, 1 + max(map(len, paths))) if len({path[-n:] for path in paths}) == len(paths))
    return {"/".join(path[-depth:]): record for path, record in zip(paths, records, strict=True)}


def bring_together(records: Mapping[str, RunRecord], policy: str | None) -> Compared:
    """The runs' `policy` ("sft", "rl", or None for the last of each) on the studies that all of them have.

    Raises UserError where a run lacks it or its measures of single studies, where fewer than two studies are shared,
    or where they have different references.
    """
    chosen = {name: _policy(record, policy) for name, record in records.items()}
    first = next(iter(chosen.values()))
    shared = set.intersection(*({row.id for row in one.rows} for one in chosen.values()))
    if len(shared) < 2:
        raise UserError(f"{' and '.join(records)} share {len(shared)} test studies: paired tests need the same ones")
    order = [row.id for row in first.rows if row.id in shared]
    same = {name: _restricted(one, order) for name, one in chosen.items()}
    for name, one in same.items():
        for row, other in zip(next(iter(same.values())).rows, one.rows, strict=True):
            if clean(row.reference) != clean(other.reference):
                raise UserError(f"{name}: study {row.id!r} has another reference than in {next(iter(records))}")
    told = ", ".join(f"{name}: {one.title}" for name, one in chosen.items())
    notes = [f"Policies: {told}. 95 % intervals of {RESAMPLES} resamples, paired by study, seed {SEED}."]
    left_out = set()
    if any(len(one.rows) != len(order) for one in chosen.values()):
        left_out.add("shuffle_gap")
        notes.append(
            f"{len(order)} studies are in all runs; the shuffle gap is left out, for it depends on all studies"
        )
    elif len({record.config.get("seed") for record in records.values()}) > 1:
        notes.append(
            "Seeds differ, so the shuffle gaps are of other exchanges of reports: some of their difference is chance"
        )
    if len({_reward_of(record, (*_MODELS, *_SETTINGS)) for record in records.values()}) > 1:
        left_out |= {*_OF_THE_REWARD}
        notes.append("The rewards are computed otherwise (config: reward): reward and shuffle gap are left out")
    if len({_reward_of(record, _MODELS) for record in records.values()}) > 1:
        left_out |= {*_OF_THE_REWARD, *(name for one in same.values() for name in _component_columns(one))}
        notes.append("The reward backends or their models differ: the components are left out")
    if len({_reward_of(record, ("relative_to_constant",)) for record in records.values()}) > 1:
        left_out.add(SAMPLED)
        notes.append("reward.relative_to_constant differs: the curve of the samples' reward is left out")
    return Compared(same, frozenset(left_out), notes)


def paired_tables(compared: Compared) -> Iterator[tuple[str, Table]]:
    """(caption, table) for each run but the first: both values, difference and p, a row a measure."""
    known = {
        name: statistics_of(one.per_study, [(row.reference, row.hypothesis) for row in one.rows])
        for name, one in compared.policies.items()
    }
    (first, base), *others = known.items()
    studies = len(compared.policies[first].rows)
    resamples, swaps = draw_resamples(studies, RESAMPLES, SEED), draw_swaps(studies, RESAMPLES, SEED)

    def cells(name: str, one: Mapping[str, Statistic]) -> tuple[Cell, ...]:
        values = [spread_cell(name, interval(system[name], resamples)) for system in (base, one)]
        gain = gain_cell(name, difference(one[name], base[name], resamples))
        return (*values, gain, p_cell(permutation_p(one[name], base[name], swaps)))

    for other, one in others:
        names = [name for name in row_names(base) if name in one and name in base and name not in compared.left_out]
        rows = tuple((name + arrow(name), cells(name, one)) for name in names)
        yield f"{other} against {first}, {studies} studies", Table(("measure", first, other, "difference", "p"), rows)


def config_table(records: Mapping[str, RunRecord]) -> Table:
    """The fields whose values differ, a column a run."""
    flat = [dict(_flat(record.config)) for record in records.values()]
    names = [name for name in dict.fromkeys(key for one in flat for key in one) if name not in _PLACES]
    differing = [name for name in names if len({_shown(one.get(name, _ABSENT)) for one in flat}) > 1]
    rows = tuple((name, tuple(Cell(_shown(one.get(name, _ABSENT))) for one in flat)) for name in differing)
    return Table(("field", *records), rows)


_ABSENT: Final = object()


def _shown(value: object) -> str:
    return "(not there)" if value is _ABSENT else json.dumps(value, default=str)


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _policy(record: RunRecord, wanted: str | None) -> PolicyRecord:
    found = {one.name: one for one in record.policies}
    if wanted is not None and wanted not in found:
        raise UserError(f"{record.folder}: it has no reports of the {POLICIES[wanted]} policy (samples_{wanted}.jsonl)")
    one = record.last if wanted is None else found[wanted]
    if one is None:
        raise UserError(f"{record.folder}: no policy was evaluated (no samples_*.jsonl): there is nothing to compare")
    if not one.per_study:
        raise UserError(f"{record.folder}: per_study_{one.name}.csv is missing: paired tests need it")
    return one


def _restricted(policy: PolicyRecord, order: Sequence[str]) -> PolicyRecord:
    """The policy's record on the studies of `order`."""
    places = {row.id: index for index, row in enumerate(policy.rows)}
    kept = [places[name] for name in order]
    per_study = {name: values[kept] for name, values in policy.per_study.items()}
    return PolicyRecord(policy.name, [policy.rows[index] for index in kept], per_study, policy.evidence)


def _reward_of(record: RunRecord, fields: Sequence[str]) -> str:
    reward = record.config.get("reward", {})
    return json.dumps([reward.get(name) for name in fields], default=str)


def _component_columns(policy: PolicyRecord) -> Iterator[str]:
    for name in components_of(policy.per_study):
        yield from (name, f"reward_{name}")
