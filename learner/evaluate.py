"""`python -m learner.evaluate`: how good reports are, from a predictions file or from a run's policy.

Contract: tables on stdout, progress and errors on stderr, every number in `--json`. Prints and writes no report text
but in the pages that `--worst` and `--pictures` ask for. Exit status 0; 1 where some pairs could not be scored; 2, with
one line that names the file, flag or field and the way out, for a person's mistake or a server that can't be had. torch
is loaded only where models score or write.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs.schema import Config, RewardConfig
from learner.evaluation.arguments import parser, scoring_options
from learner.evaluation.inputs import Inputs, align_baseline, read_baseline, read_inputs, run_config
from learner.evaluation.measures import CODED, finding_truth
from learner.evaluation.regions import measure_regions
from learner.evaluation.regiontable import print_regions
from learner.evaluation.result import Protocol, Result, build_result
from learner.evaluation.scoring import NO_BACKEND, Scoring, opened, require
from learner.evaluation.studies import CONTROLS, control_reports
from learner.evaluation.system import System, Task, measure
from learner.evaluation.tables import print_result
from learner.evaluation.worst import cases_of, telling_cases, worst_cases
from learner.report.cases import SUFFIXES, write_cases, write_worst
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scoring import plain_reward
from reward_server.spec import reward_from_components
from rrg.command import carry_out
from rrg.data.sections import clean
from rrg.errors import UserError
from rrg.progress import Show, output_console

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # read when torch is imported

SYSTEM = "system"
BASELINE = "baseline"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(arguments)
    show = Show(output_console(stderr=True))
    mistakes = (UserError, RewardSetupError, RewardError)
    return carry_out(lambda: run(args, show), debug=args.debug, mistakes=mistakes)


def run(args: argparse.Namespace, show: Show) -> int:
    """Reads or writes the reports, measures them, prints and writes what was asked for."""
    _check(args)
    config = run_config(args)
    # What could fail is tried before a run's policy writes for minutes.
    require(scoring_options(args))
    baseline = read_baseline(args)
    inputs = read_inputs(args, config, show)
    baseline = align_baseline(args, inputs.rows, baseline)
    names = [name for name in args.controls.split(",") if name]
    with show.phase("controls"):
        texts = [row.hypothesis for row in inputs.rows]
        if args.section != "findings":  # the studies' target is their findings section
            names = [name for name in names if name == "shuffled"]
        controls, notes = control_reports(
            names, texts, inputs.studies, inputs.train, inputs.configs, args.seed, show.advance
        )
    notes += [] if args.section == "findings" else ["controls of the data set: with --section findings only"]
    systems = {SYSTEM: texts}
    if baseline is not None:  # a file, also where the reports are a run's
        systems[BASELINE] = [clean(row.hypothesis) if args.run else row.hypothesis for row in baseline]
    task = _task(args, inputs)
    with show.phase("measures"), opened(scoring_options(args)) as scoring:
        reward = None if scoring is None else _reward(config, scoring)
        scored = None if reward is None else partial(reward_from_components, cfg=reward)
        measured = measure(task, systems | controls, scoring, scored, show.advance)
    reward_name = "of-the-run" if config is not None and reward is config.reward else "-composite"
    protocol = _protocol(args, inputs, scoring, reward_name)
    notes = [*inputs.notes, *notes, *_notes(args, measured, scoring)]
    rivals = {name: measured[name] for name in controls}
    regions = measure_regions(inputs.evidence, inputs.studies or [], inputs.train)
    result = {**build_result(measured[SYSTEM], measured.get(BASELINE), rivals, protocol, notes), "regions": regions}
    console = output_console()
    print_result(result, console)
    if args.regions and regions is not None:
        print_regions(regions, console, "of the policy")
    elif args.regions:
        console.print("Regions: this policy has none (model.regions=off)", highlight=False)
    _write(args, result, inputs, measured[SYSTEM])
    return 1 if any(system.failed for system in measured.values()) else 0


def _check(args: argparse.Namespace) -> None:
    """Before anything long starts: flags that would be ignored, and outputs that can't be written."""
    if args.run and (args.format or args.root):
        raise UserError("--format and --root are for --predictions: a run has its own data set")
    if args.predictions and (args.out or args.limit or args.rexrank):
        raise UserError("--out, --limit and --rexrank are for --run")
    if args.predictions and args.regions:
        raise UserError("--regions is for --run: predictions tell nothing of regions")
    if args.run and (args.verbatim or args.section != "findings"):
        raise UserError("--section and --verbatim are for --predictions: a run's reports are cleaned findings")
    if args.predictions and args.format is None and (args.reports or args.cache_dir):
        raise UserError("--reports and --cache-dir need --format and --root, the data set")
    if args.root and not args.format:
        raise UserError("--root needs --format, the data set's format")
    unknown = [name for name in args.controls.split(",") if name and name not in CONTROLS]
    if unknown:
        raise UserError(f"--controls: {unknown[0]!r} is none of {', '.join(CONTROLS)}")
    count, page = args.pictures or ("", None)
    outputs = {"--json": args.json, "--per-study": args.per_study, "--worst": args.worst, "--rexrank": args.rexrank}
    for flag, path in {**outputs, "--pictures": page}.items():
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"{flag} {path}: its folder does not exist")
    if page is not None and (not count.isdecimal() or int(count) < 1 or Path(page).suffix.lower() != ".html"):
        raise UserError(f"--pictures {count} {page}: must be a number of studies and a file that ends in .html")
    if args.worst and Path(args.worst).suffix.lower() not in SUFFIXES:
        raise UserError(f"--worst {args.worst}: must end in {' or '.join(SUFFIXES)}")
    if args.worst and args.worst.lower().endswith(".png") and args.predictions and args.format is None:
        raise UserError("--worst FILE.png needs --format and --root, the data set with the pictures; or take FILE.html")


def _task(args: argparse.Namespace, inputs: Inputs) -> Task:
    findings: list[frozenset[str] | None] = [None] * len(inputs.rows)
    if inputs.studies is not None:  # read from the findings section, they say nothing of another one
        findings = [s.findings if args.section == "findings" or s.source in CODED else None for s in inputs.studies]
    return Task(
        ids=tuple(row.id for row in inputs.rows),
        references=tuple(row.reference for row in inputs.rows),
        findings=tuple(findings),
        verbatim=args.verbatim,
        prepared=args.run is not None,
        meteor=not args.no_meteor,
    )


def _reward(config: Config | None, scoring: Scoring) -> RewardConfig:
    """The run's training reward where its backend scores, else -composite without penalties."""
    about = scoring.description
    own = config is not None and config.reward.backend == about.backend
    return config.reward if config is not None and own else plain_reward(about)


def _protocol(args: argparse.Namespace, inputs: Inputs, scoring: Scoring | None, reward_name: str) -> Protocol:
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
    cases = cases_of(inputs.rows, inputs.studies, system.per_study, inputs.evidence)
    if args.worst:
        by = "reward" if "reward" in system.per_study else "rougeL"
        write_worst(Path(args.worst), worst_cases(cases, by, args.worst_count), by)
    if args.pictures:
        shown = telling_cases(cases, int(args.pictures[0]))
        write_cases(Path(args.pictures[1]), shown, f"{len(shown)} studies, most significant regions first")


def _write_rexrank(path: Path, inputs: Inputs) -> None:
    assert inputs.configs is not None
    data = inputs.configs[0]
    if data.name != "rexrank" or data.root is None:
        raise UserError(f"--rexrank: the run's data set is {data.name}, not rexrank: ReXrank's file has other ids")
    from rrg.data.formats.fields import only_file
    from rrg.data.formats.rexrank import write_predictions

    write_predictions(path, only_file(Path(data.root), "*.json"), {row.id: row.hypothesis for row in inputs.rows})


if __name__ == "__main__":
    sys.exit(main())
