"""What a run directory holds, as typed records.

Contract: reads files only; what is missing is not made up: it is None or empty, and `RunRecord.missing` says so in
words. A run of an earlier version can be read: of its config only what the present one knows is used, the rest named.
A file that cannot be read is a UserError with its name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.load import read_saved
from configs.schema import DataConfig, RewardConfig
from learner.evaluation.bootstrap import Array
from learner.evaluation.predictions import Prediction, read_predictions
from rrg.errors import UserError
from rrg.model.evidence import Evidence, read_evidence_file

Row = Mapping[str, float]
Section = TypeVar("Section", DataConfig, RewardConfig)

POLICIES: Final = {"sft": "warm start", "rl": "RL"}
"""The policies whose reports a run keeps, by the names of their files, and as people call them."""


@dataclass(frozen=True)
class PolicyRecord:
    """What one policy wrote for the test studies: `rows` as in its file, the values of `per_study` [studies] in the
    same order, the evidence by study id."""

    name: str
    rows: list[Prediction]
    per_study: dict[str, Array]
    evidence: Mapping[str, Evidence]

    @property
    def title(self) -> str:
        return POLICIES[self.name]


@dataclass(frozen=True)
class RunRecord:
    """A run directory. `config` is config.yaml as plain data, `metrics` the rows of metrics.jsonl by phase, `policies`
    those that were evaluated, in the order of training."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, list[Row]]
    summary: Mapping[str, Any] | None
    stopped: str | None
    policies: list[PolicyRecord]
    missing: list[str]

    @property
    def last(self) -> PolicyRecord | None:
        """The policy that was trained longest."""
        return self.policies[-1] if self.policies else None


def read_run(folder: Path) -> RunRecord:
    """Raises UserError where `folder` is no run directory, or a file in it cannot be read."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the directory of a run of learner.main")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run directory: it has no config.yaml; name one that learner.main wrote")
    metrics, summary = _metrics(folder / "metrics.jsonl"), _json(folder / "summary.json")
    policies = [policy for name in POLICIES if (policy := _policy(folder, name)) is not None]
    stopped = _json(folder / "stopped.json")
    return RunRecord(
        folder,
        _config(folder / "config.yaml"),
        metrics,
        summary,
        None if stopped is None else str(stopped["reason"]),
        policies,
        list(_missing(metrics, summary, policies)),
    )


def section(record: RunRecord, name: str, kind: type[Section]) -> tuple[Section, list[str]]:
    """A group of the run's config, and the names of its fields that the present version does not know.

    Raises UserError where the rest is not a `kind`.
    """
    given = record.config.get(name, {})
    known = {one.name for one in fields(kind)}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), {k: v for k, v in given.items() if k in known})
        found = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{record.folder}/config.yaml: {name}: {str(error).splitlines()[0]}") from error
    assert isinstance(found, kind)
    return found, sorted(f"{name}.{key}" for key in given if key not in known)


def _missing(metrics: Mapping[str, list[Row]], summary: object | None, policies: list[PolicyRecord]) -> Iterator[str]:
    if not metrics:
        yield "metrics.jsonl: no step was recorded, so there are no curves"
    if summary is None:
        yield "summary.json: the run has not come to its end, so there are no goals, controls and phase times"
    if not policies:
        yield "samples_sft.jsonl, samples_rl.jsonl: no policy was evaluated, so there are no measures and no studies"
    for policy in policies:
        if not policy.per_study:
            yield f"per_study_{policy.name}.csv: the measures of single studies, so no intervals, bars, best and worst"
        if not policy.evidence:
            yield f"evidence_{policy.name}.jsonl: what was seen in the regions, so no boxes and region sentences"


def _policy(folder: Path, name: str) -> PolicyRecord | None:
    samples = folder / f"samples_{name}.jsonl"
    if not samples.is_file():
        return None
    rows = read_predictions(samples)
    per_study = _per_study(folder / f"per_study_{name}.csv", [row.id for row in rows])
    evidence = folder / f"evidence_{name}.jsonl"
    try:
        seen = read_evidence_file(evidence) if evidence.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{evidence}: not an evidence file of a run ({error}); remove it or restore it") from error
    return PolicyRecord(name, rows, per_study, {key: one for key, one in seen.items() if one})


def _per_study(path: Path, ids: list[str]) -> dict[str, Array]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if [row.get("id") for row in rows] != ids:
        raise UserError(f"{path}: its studies are not those of the samples beside it; remove one of the two")
    names = [name for name in (rows[0] if rows else {}) if name != "id"]
    try:
        return {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a cell is not a number ({error}); restore or remove the file") from error


def _metrics(path: Path) -> dict[str, list[Row]]:
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    found: dict[str, list[Row]] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):  # half a line: the run goes on
        try:
            row = json.loads(line)
            found.setdefault(row.pop("phase"), []).append(row)
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: not a row of metrics ({error}); restore or remove it") from error
    return found


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore or remove the file") from error
    assert isinstance(found, dict)
    return found


def _config(path: Path) -> Mapping[str, Any]:
    found = OmegaConf.to_container(read_saved(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
