"""From measured systems to one result: values with intervals, what tells the system from controls, deltas, signatures.

Contract: the result is plain data, written as strict JSON by `--json`; the tables show nothing that is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from learner.evaluation import nlg
from learner.evaluation.bootstrap import (
    Array,
    Interval,
    Statistic,
    difference,
    draw_resamples,
    draw_swaps,
    interval,
    permutation_p,
)
from learner.evaluation.direction import direction
from learner.evaluation.system import GROUPS, System
from reward_server.scorer import Description

VERSION: Final = 1
_ROUNDING: Final = 1e-9  # what sums in another order may differ by
Result = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What the numbers depend on beside the texts; every table's signature is made of it."""

    section: str
    split: str
    studies: int
    verbatim: bool
    finding_truth: str
    reward: str
    bootstrap: int
    seed: int
    description: Description | None

    def signature(self, group: str) -> str:
        """One line that pins the protocol of a group's table, after sacreBLEU's."""
        parts = ["lmrrg.eval", f"v:{VERSION}", *self._of_group(group)]
        parts += [f"section:{self.section}", f"split:{self.split}", f"n:{self.studies}"]
        return "|".join([*parts, f"boot:{self.bootstrap}", f"seed:{self.seed}"])

    def _of_group(self, group: str) -> list[str]:
        clean = ["tok:whitespace", "case:lower", "text:r2gen-clean"]
        if group == "text":
            return [*clean, f"nlg:pycocoevalcap-{nlg.package_version()}"]
        if group == "findings":
            return [*clean, f"truth:{self.finding_truth}"]
        assert self.description is not None
        models = "+".join(model.sha256[:8] for model in self.description.models) or "none"
        seen = ["text:verbatim"] if self.verbatim else ["case:lower", "text:r2gen-clean"]
        about = [*seen, f"backend:{self.description.backend}", f"models:{models}"]
        return [*about, "uncertain:pos+neg"] if group == "labels" else [*about, f"reward:{self.reward}"]


def build_result(
    system: System, baseline: System | None, controls: Mapping[str, System], protocol: Protocol, notes: Sequence[str]
) -> Result:
    """The whole result.

    {"version", "studies", "protocol", "notes", "failed", "backend": {name, definition, formula, models}, "signatures":
    {group: line}, "metrics": {group: {name: {"value", "low", "high", "better" ("higher", "lower" or null), "baseline":
    {"value", "difference": [value, low, high], "p"}, "controls": {name: {"value", "difference", "told"}},
    "not_told_from": [controls]}}}}; undefined numbers are null.
    `told`: the difference is in the better direction and its interval leaves out 0; null where there is no direction.
    """
    resamples = draw_resamples(protocol.studies, protocol.bootstrap, protocol.seed)
    swaps = draw_swaps(protocol.studies, protocol.bootstrap, protocol.seed)
    groups = [group for group in GROUPS if group in system.statistics]
    metrics: dict[str, dict[str, Any]] = {}
    for group in groups:
        rivals = {name: control.statistics[group] for name, control in controls.items()}
        others = {} if baseline is None else baseline.statistics[group]
        metrics[group] = {
            name: _entry(name, statistic, others.get(name), _named(rivals, name), resamples, swaps)
            for name, statistic in system.statistics[group].items()
        }
    return {
        "version": VERSION,
        "studies": protocol.studies,
        "protocol": _protocol(protocol),
        "backend": _backend(protocol.description),
        "failed": system.failed,
        "notes": [*notes, *system.notes],
        "signatures": {group: protocol.signature(group) for group in groups},
        "metrics": metrics,
    }


def _named(rivals: Mapping[str, Mapping[str, Statistic]], name: str) -> dict[str, Statistic]:
    return {control: statistics[name] for control, statistics in rivals.items()}


def _entry(
    name: str,
    statistic: Statistic,
    baseline: Statistic | None,
    controls: Mapping[str, Statistic],
    resamples: Array,
    swaps: Array,
) -> dict[str, Any]:
    way = direction(name)
    value, low, high = _numbers(interval(statistic, resamples))
    entry: dict[str, Any] = {"value": value, "low": low, "high": high}
    entry["better"] = {1: "higher", -1: "lower", 0: None}[way]
    if baseline is not None:
        entry["baseline"] = {
            "value": _number(baseline.value),
            "difference": _numbers(difference(statistic, baseline, resamples)),
            "p": _number(permutation_p(statistic, baseline, swaps)),
        }
    if controls:
        entry["controls"] = {control: _against(statistic, other, way, resamples) for control, other in controls.items()}
        entry["not_told_from"] = [control for control, found in entry["controls"].items() if found["told"] is False]
    return entry


def _against(statistic: Statistic, control: Statistic, way: int, resamples: Array) -> dict[str, Any]:
    over = difference(statistic, control, resamples)
    clear = over.low > _ROUNDING if way > 0 else over.high < -_ROUNDING
    told = clear if way and np.isfinite(over.value) else None
    return {"value": _number(control.value), "difference": _numbers(over), "told": told}


def _numbers(found: Interval) -> list[float | None]:
    return [_number(value) for value in found]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _protocol(protocol: Protocol) -> dict[str, Any]:
    names = ("section", "split", "verbatim", "finding_truth", "reward", "bootstrap", "seed")
    return {name: getattr(protocol, name) for name in names}


def _backend(about: Description | None) -> dict[str, Any] | None:
    if about is None:
        return None
    models = [{"name": model.name, "sha256": model.sha256} for model in about.models]
    return {"name": about.backend, "definition": about.definition, "formula": about.formula, "models": models}
