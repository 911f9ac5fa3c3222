"""`python -m learner.report RUN`: writes `report.html` into a run directory, of this version or an earlier one.

Contract: reads the run's data set for the X-rays (the same that the run read; `--no-pictures` goes without). Exit
status 2, with one line that names the file or folder and the way out, where it cannot be written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema import DataConfig
from learner.report.build import write_report
from learner.report.data import RunRecord, read_run, section
from rrg.command import add_debug, carry_out
from rrg.data import load_studies
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.progress import Show, output_console


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(arguments)
    return carry_out(lambda: _write(args), debug=args.debug)


def _write(args: argparse.Namespace) -> int:
    record = read_run(args.run)
    result = None if args.evaluation is None else _result(args.evaluation)
    studies, notes = ([], ["X-rays: left out (--no-pictures)"]) if args.no_pictures else _studies(record)
    path = write_report(record, studies, notes, result)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB; holds report text: keep it where the data set may lie)")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m learner.report", description="Writes RUN/report.html.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a run of learner.main")
    parser.add_argument("--no-pictures", action="store_true", help="leave the X-rays out; the data set is not read")
    parser.add_argument(
        "--evaluation", metavar="FILE.json", type=Path, help="also show what learner.evaluate --json wrote"
    )
    add_debug(parser)
    return parser


def _studies(record: RunRecord) -> tuple[list[Study], list[str]]:
    """The test studies that the run wrote about, and what of its config is not known here."""
    if record.last is None:
        return [], []
    data, unknown = section(record, "data", DataConfig)
    try:
        studies = load_studies(data, progress=Show(output_console(stderr=True)).advance)
    except UserError as error:
        raise UserError(f"{error} (the run's data set has the X-rays; --no-pictures goes without)") from error
    notes = [f"config.yaml: fields of another version, left out: {', '.join(unknown)}"] if unknown else []
    return studies.split("test"), notes


def _result(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["metrics"], found["signatures"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--evaluation {path}: not what learner.evaluate --json writes ({error})") from error
    return found


if __name__ == "__main__":
    sys.exit(main())
