"""What `learner.evaluate` measures, by its flags: reports from a file or from a run's policy, and their studies.

Contract: raises `UserError` that names the file or flag for what can't be had. torch is loaded only where a policy
writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, DataConfig, ModelConfig
from learner.evaluation.predictions import Columns, Prediction, aligned, read_predictions
from learner.evaluation.studies import studies_of
from rrg.errors import UserError
from rrg.model.evidence import Evidence, read_evidence_file
from rrg.progress import Show

if TYPE_CHECKING:
    from rrg.data import StudySet
    from rrg.data.study import Split, Study


@dataclass(frozen=True)
class Inputs:
    """The reports to measure, and the data set behind them where it is known; of a run what was seen in the regions."""

    rows: list[Prediction]
    studies: list[Study] | None
    train: list[Study]
    configs: tuple[DataConfig, ModelConfig] | None
    notes: list[str]
    evidence: Mapping[str, Evidence] = field(default_factory=dict)


def run_config(args: argparse.Namespace) -> Config | None:
    """The config of --run (None without): what scores is the run's too, and set in `args`, unless flags say else."""
    config = None
    if args.run:
        from learner import generation

        config = generation.run_config(Path(args.run))
        if args.backend is None and args.reward_address is None:
            own = config.reward
            if own.address is not None and args.weights is not None:
                raise UserError(f"--weights: the run's reward servers have theirs ({own.address}); add --backend")
            args.backend, args.weights, args.radgraph = own.backend, args.weights or own.weights, own.radgraph
            args.idf = args.idf or own.idf
            args.reward_address, args.tls_ca = own.address, args.tls_ca or own.tls_ca
            args.tls_server_name = args.tls_server_name or own.tls_server_name
            args.token_file = args.token_file or own.token_file
            if own.address is not None:
                args.weights = None
    args.backend = args.backend or "embedded"
    return config


def read_inputs(args: argparse.Namespace, config: Config | None, show: Show) -> Inputs:
    """The predictions of a file, or of a run's policy, which writes what is not written yet."""
    if config is None:
        return _of_predictions(args, show)
    from learner.generation import evidence_file, generate_reports, policy_folder
    from rrg.data import load_studies

    split: Split = args.split or "test"
    policy = policy_folder(Path(args.run), args.checkpoint)
    with show.phase("data"):
        studies = load_studies(config.data, progress=show.advance)
    written_by = policy.parent.name if policy.name == "policy" else policy.name
    out = Path(args.out) if args.out else Path(args.run) / f"reports_{written_by}_{split}.jsonl"
    with show.phase("reports"):
        reports = generate_reports(config, policy, studies, split, out, show, args.limit)
    show.line(f"reports: {out}")
    rows = [Prediction(row["id"], row["reference"], row["hypothesis"]) for row in reports]
    found = studies_of(rows, studies, split)
    beside = evidence_file(out)
    evidence = read_evidence_file(beside) if beside.is_file() else {}
    return Inputs(rows, found, studies.split("train"), (config.data, config.model), _excluded(studies), evidence)


def _of_predictions(args: argparse.Namespace, show: Show) -> Inputs:
    rows = read_predictions(Path(args.predictions), Columns(*args.columns), args.section)
    if args.format is None:
        return Inputs(rows, None, [], None, [])
    from rrg.data import load_studies

    data = DataConfig(name=args.format, root=args.root, reports=args.reports)
    data.cache_dir = args.cache_dir or data.cache_dir
    if args.section == "impression":
        data = replace(data, without_findings="impression")
    split: Split = args.split or "test"
    with show.phase("data"):
        studies = load_studies(data, progress=show.advance)
    found = studies_of(rows, studies, split)
    notes = _excluded(studies)
    missing = len(studies.split(split)) - len(rows)
    if missing:
        notes.append(f"{missing} of the {len(studies.split(split))} studies of the split {split} have no prediction")
    return Inputs(rows, found, studies.split("train"), (data, ModelConfig()), notes)


def _excluded(studies: StudySet) -> list[str]:
    notes = [f"{count} studies of the data set left out: {reason}" for reason, count in studies.skipped.items()]
    problems = len(studies.problems)
    return [*notes, f"{problems} bad records of the data set left out"] if problems else notes


def read_baseline(args: argparse.Namespace) -> list[Prediction] | None:
    """The predictions of --baseline."""
    if args.baseline is None:
        return None
    return read_predictions(Path(args.baseline), Columns(*args.columns), args.section)


def align_baseline(
    args: argparse.Namespace, rows: Sequence[Prediction], found: Sequence[Prediction] | None
) -> list[Prediction] | None:
    """`found` in the order of `rows`."""
    if found is None:
        return None
    return aligned(rows, found, (args.predictions or "the run", args.baseline))
