"""`python -m learner.compare RUN_A RUN_B ...`: runs side by side, as a table here and as one page.

Contract: the first run is what the others are measured against, on the test studies that all of them wrote about. The
page holds numbers and configs, no report text. Exit status 2, with one line that names the run or flag and the way out,
for runs that cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from learner.evaluation.tables import filled_table
from learner.report.comparison import bring_together, config_table, paired_tables, run_names
from learner.report.curves import compared_charts
from learner.report.data import POLICIES, read_run
from learner.report.page import write_page
from learner.report.tables import Table
from rrg.command import add_debug, carry_out
from rrg.errors import UserError
from rrg.progress import output_console


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(arguments)
    return carry_out(lambda: compare(args.runs, args.policy, args.out), debug=args.debug)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.compare", description="Compares runs of learner.main; the first is the baseline."
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directories, two or more")
    parser.add_argument(
        "--policy",
        choices=tuple(POLICIES),
        help="whose reports: sft (warm start) or rl; the last of each run if not given",
    )
    parser.add_argument("--out", metavar="FILE.html", type=Path, help="also write the page, with curves, there")
    add_debug(parser)
    return parser


def compare(folders: Sequence[Path], policy: str | None, out: Path | None) -> int:
    """Prints the tables; writes the page to `out`. Raises UserError for runs that cannot be compared."""
    if len(folders) < 2:
        raise UserError(f"{folders[0]} alone: name two runs or more")
    if out is not None and (out.suffix.lower() != ".html" or not out.resolve().parent.is_dir()):
        raise UserError(f"--out {out}: must end in .html, in a folder that exists")
    records = run_names([read_run(folder) for folder in folders])
    compared = bring_together(records, policy)
    config, tests = config_table(records), list(paired_tables(compared))
    console = output_console()
    for caption, table in [("Configs", config), *tests]:
        console.print(f"[bold]{escape(caption)}[/bold]", _terminal(table), sep="\n", highlight=False)
    for note in compared.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if out is None:
        return 0
    write_page(
        out,
        "compare.html",
        title=" and ".join(records) if len(records) == 2 else f"{len(records)} runs",
        about=f"{next(iter(records))} is what the others are measured against.",
        runs=[(name, str(record.folder.resolve())) for name, record in records.items()],
        notes=compared.notes,
        tests=tests,
        charts=compared_charts(records, compared.left_out),
        config=config,
    )
    console.print(f"page: {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _terminal(table: Table) -> object:
    rows = [
        [name, *(f"{cell.value} [{cell.spread}]" if cell.spread else cell.value for cell in cells)]
        for name, cells in table.rows
    ]
    return filled_table(table.header, rows)


if __name__ == "__main__":
    sys.exit(main())
