"""`python -m learner.evaluate`: how good reports are, from a predictions file or from a run's policy.

Contract: tables on stdout, progress and errors on stderr, every number in `--json`. Prints and writes no report text
but in the page that `--worst` asks for. Exit status 0; 1 where some pairs could not be scored; 2, with one line that
names the file, flag or field and the way out, for a person's mistake or a server that can't be had. torch is loaded
only where models score or write.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from configs.schema import Config, DataConfig, ModelConfig, RewardConfig
from learner.evaluation.arguments import parser, scoring_options
from learner.evaluation.measures import CODED
from learner.evaluation.predictions import Columns, Prediction, aligned, read_predictions
from learner.evaluation.result import Protocol, Result, build_result
from learner.evaluation.scoring import NO_BACKEND, Scoring, opened
from learner.evaluation.studies import CONTROLS, control_reports, finding_truth, studies_of
from learner.evaluation.system import System, Task, measure
from learner.evaluation.tables import print_result
from learner.evaluation.worst import SUFFIXES, worst_cases, write_worst
from learner.progress import Show
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scoring import plain_reward
from reward_server.spec import reward_from_components
from rrg.errors import UserError

if TYPE_CHECKING:
    from rrg.data import StudySet
    from rrg.data.study import Split, Study

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # read when torch is imported

SYSTEM = "system"
BASELINE = "baseline"


@dataclass(frozen=True)
class Inputs:
    """The reports to measure, and the data set behind them where it is known."""

    rows: list[Prediction]
    studies: list[Study] | None
    train: list[Study]
    configs: tuple[DataConfig, ModelConfig] | None
    notes: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(arguments)
    show = Show(Console(stderr=True))
    try:
        return run(args, show)
    except (UserError, RewardSetupError, RewardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(args: argparse.Namespace, show: Show) -> int:
    """Reads or writes the reports, measures them, prints and writes what was asked for."""
    _check(args)
    config = _run_config(args)
    inputs = _inputs(args, config, show)
    baseline = _baseline(args, inputs.rows)
    names = [name for name in args.controls.split(",") if name]
    with show.phase("controls"):
        texts = [row.hypothesis for row in inputs.rows]
        if args.section != "findings":  # the studies' target is their findings section
            names = [name for name in names if name == "shuffled"]
        controls, notes = control_reports(
            names, texts, inputs.studies, inputs.train, inputs.configs, args.seed, show.advance
        )
    notes += [] if args.section == "findings" else ["controls of the data set: with --section findings only"]
    systems = {SYSTEM: texts, **({} if baseline is None else {BASELINE: [row.hypothesis for row in baseline]})}
    task = _task(args, inputs)
    with show.phase("measures"), opened(scoring_options(args)) as scoring:
        reward = None if scoring is None else _reward(config, scoring)
        scored = None if reward is None else partial(reward_from_components, cfg=reward)
        measured = measure(task, systems | controls, scoring, scored, show.advance)
    reward_name = "of-the-run" if config is not None and reward is config.reward else "-composite"
    protocol = _protocol(args, inputs, scoring, reward_name)
    notes = [*inputs.notes, *notes, *_notes(args, measured, scoring)]
    rivals = {name: measured[name] for name in controls}
    result = build_result(measured[SYSTEM], measured.get(BASELINE), rivals, protocol, notes)
    print_result(result, _stdout())
    _write(args, result, inputs, measured[SYSTEM])
    return 1 if any(system.failed for system in measured.values()) else 0


def _check(args: argparse.Namespace) -> None:
    """Before anything long starts: flags that would be ignored, and outputs that can't be written."""
    if args.run and (args.format or args.root):
        raise UserError("--format and --root are for --predictions: a run has its own data set")
    if args.predictions and (args.out or args.limit or args.rexrank):
        raise UserError("--out, --limit and --rexrank are for --run")
    if args.run and (args.verbatim or args.section != "findings"):
        raise UserError("--section and --verbatim are for --predictions: a run's reports are cleaned findings")
    if args.predictions and args.format is None and (args.reports or args.cache_dir):
        raise UserError("--reports and --cache-dir need --format and --root, the data set")
    if args.root and not args.format:
        raise UserError("--root needs --format, the data set's format")
    unknown = [name for name in args.controls.split(",") if name and name not in CONTROLS]
    if unknown:
        raise UserError(f"--controls: {unknown[0]!r} is none of {', '.join(CONTROLS)}")
    for flag in ("json", "per_study", "worst", "rexrank"):
        path = getattr(args, flag)
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"--{flag.replace('_', '-')} {path}: its folder does not exist")
    if args.worst and Path(args.worst).suffix.lower() not in SUFFIXES:
        raise UserError(f"--worst {args.worst}: must end in {' or '.join(SUFFIXES)}")
    if args.worst and args.worst.lower().endswith(".png") and args.predictions and args.format is None:
        raise UserError("--worst FILE.png needs --format and --root, the data set with the pictures; or take FILE.html")


def _run_config(args: argparse.Namespace) -> Config | None:
    """The run's config; without flags, what scores is the run's too."""
    config = None
    if args.run:
        from learner.generation import run_config

        config = run_config(Path(args.run))
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


def _inputs(args: argparse.Namespace, config: Config | None, show: Show) -> Inputs:
    if config is None:
        return _of_predictions(args, show)
    from learner.generation import generate_reports, policy_folder
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
    return Inputs(rows, found, studies.split("train"), (config.data, config.model), _excluded(studies))


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


def _baseline(args: argparse.Namespace, rows: Sequence[Prediction]) -> list[Prediction] | None:
    if args.baseline is None:
        return None
    found = read_predictions(Path(args.baseline), Columns(*args.columns), args.section)
    return aligned(rows, found, (args.predictions or "the run", args.baseline))


def _task(args: argparse.Namespace, inputs: Inputs) -> Task:
    findings: list[frozenset[str] | None] = [None] * len(inputs.rows)
    if inputs.studies is not None:  # read from the findings section, they say nothing of another one
        findings = [s.findings if args.section == "findings" or s.source in CODED else None for s in inputs.studies]
    return Task(
        ids=tuple(row.id for row in inputs.rows),
        references=tuple(row.reference for row in inputs.rows),
        findings=tuple(findings),
        verbatim=args.verbatim,
        meteor=not args.no_meteor,
    )


def _reward(config: Config | None, scoring: Scoring) -> RewardConfig:
    """The run's training reward where its backend scores, else -composite without penalties."""
    about = scoring.description
    own = config is not None and config.reward.backend == about.backend
    return config.reward if config is not None and own else plain_reward(about)


def _protocol(
    args: argparse.Namespace, inputs: Inputs, scoring: Scoring | None, reward_name: str
) -> Protocol:
    known = inputs.configs is not None
    instead = inputs.configs is not None and inputs.configs[0].without_findings == "impression"
    return Protocol(
        section="findings-or-impression" if instead and args.section == "findings" else args.section,
        split=args.split or ("test" if known else "unknown"),
        studies=len(inputs.rows),
        verbatim=args.verbatim,
        finding_truth=finding_truth(inputs.studies or []),
        reward=reward_name,
        bootstrap=args.bootstrap,
        seed=args.seed,
        description=None if scoring is None else scoring.description,
    )


def _notes(args: argparse.Namespace, measured: dict[str, System], scoring: Scoring | None) -> list[str]:
    from learner.evaluation.nlg import NO_JAVA

    notes = []
    if args.backend == NO_BACKEND and args.reward_address is None:
        notes.append("no reward, no labels: --backend none")
    if "meteor" not in measured[SYSTEM].statistics["text"]:
        notes.append("METEOR: left out (--no-meteor)" if args.no_meteor else NO_JAVA)
    if scoring is not None and scoring.description.backend == "embedded":
        notes.append("the backend embedded is rules and a small encoder: not RadCliQ, RadGraph or CheXbert")
    for name, system in measured.items():
        if system.failed:
            notes.append(f"{name}: {system.failed} studies have no score, the first because: {system.failure}")
    return notes


def _write(args: argparse.Namespace, result: Result, inputs: Inputs, system: System) -> None:
    if args.json:
        text = json.dumps(result, indent=2, allow_nan=False)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    if args.per_study:
        with open(args.per_study, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", *system.per_study])
            columns = [values.tolist() for values in system.per_study.values()]
            for row, *values in zip(inputs.rows, *columns, strict=True):
                writer.writerow([row.id, *("" if value != value else value for value in values)])  # NaN: no score
    if args.rexrank and inputs.configs is not None:
        _write_rexrank(Path(args.rexrank), inputs)
    if args.worst:
        by = "reward" if "reward" in system.per_study else "rougeL"
        cases = worst_cases(inputs.rows, inputs.studies, system.per_study, by, args.worst_count)
        write_worst(Path(args.worst), cases, by)


def _write_rexrank(path: Path, inputs: Inputs) -> None:
    assert inputs.configs is not None
    data = inputs.configs[0]
    if data.name != "rexrank" or data.root is None:
        raise UserError(f"--rexrank: the run's data set is {data.name}, not rexrank: ReXrank's file has other ids")
    from rrg.data.formats.fields import only_file
    from rrg.data.formats.rexrank import write_predictions

    write_predictions(path, only_file(Path(data.root), "*.json"), {row.id: row.hypothesis for row in inputs.rows})


def _stdout() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)  # a file or a pipe has no edge


if __name__ == "__main__":
    sys.exit(main())
