"""`python -m rrg.data sheet`: a contact sheet of rendered X-rays. `python -m rrg.data check`: is a data set usable?

Exit status: 0 fine, 1 `check` found bad records, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from configs.schema import DataConfig
from rrg.data.dataset import SOURCES, load_studies
from rrg.data.findings import FINDINGS
from rrg.data.sheet import draw_sheet, pick
from rrg.data.studyset import SPLITS, StudySet
from rrg.errors import UserError

# Problems shown by `check` unless --all.
_SHOWN = 20


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rrg.data", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="draw a contact sheet of rendered X-rays with captions and boxes")
    sheet.add_argument("--out", type=Path, default=Path("sheet.png"), help="PNG to write (default: %(default)s)")
    sheet.add_argument("--findings", nargs="*", default=[], metavar="CODE",
                       help=f"only studies with these findings; codes: {', '.join(FINDINGS)}")  # fmt: skip
    sheet.add_argument("--count", type=int, default=12, help="pictures (default: %(default)s)")
    sheet.add_argument("--columns", type=int, default=4)
    sheet.add_argument("--seed", type=int, default=0, help="which studies (default: %(default)s)")
    sheet.add_argument("--no-boxes", action="store_true", help="without the boxes of the abnormal regions")
    check = commands.add_parser("check", help="count a data set's studies and list its bad records")
    check.add_argument("--name", choices=SOURCES, required=True)
    check.add_argument("--root", help="folder with annotation.json and images/ (r2gen)")
    check.add_argument("--all", action="store_true", help=f"all problems instead of the first {_SHOWN}")
    for command in (sheet, check):
        command.add_argument("--cache-dir", default=".cache", help="rendered images (default: %(default)s)")
        command.add_argument("--workers", type=int, default=2)
    return parser


def _print_progress(name: str, done: int, total: int) -> None:
    print(f"\r{name}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _report(studies: StudySet, show_all: bool) -> int:
    """Prints what a set holds; 1 if it has bad records."""
    for split in SPLITS:
        chosen = studies.split(split)
        views = Counter(image.view for study in chosen for image in study.images)
        known = [study for study in chosen if study.findings is not None]
        words = sum(len(study.target.split()) for study in chosen) / max(len(chosen), 1)
        print(
            f"{split:5s} {len(chosen):6d} studies, {sum(s.abnormal for s in known)} abnormal, "
            f"{len(chosen) - len(known)} of unknown findings, images {dict(views)}, {words:.0f} words each"
        )
    counts = {split: Counter(f for s in studies.split(split) for f in s.findings or ()) for split in SPLITS}
    for finding in FINDINGS:
        print(f"  {finding:24s}" + "".join(f"{counts[split][finding]:6d}" for split in SPLITS))
    print(f"fingerprint {studies.fingerprint}; {len(studies.problems)} problems")
    for problem in studies.problems if show_all else studies.problems[:_SHOWN]:
        print(f"  {problem}")
    return 1 if studies.problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "check":
            cfg = DataConfig(name=args.name, root=args.root, cache_dir=args.cache_dir, workers=args.workers)
            return _report(load_studies(cfg, _print_progress), args.all)
        unknown = set(args.findings) - set(FINDINGS)
        if unknown:
            raise UserError(f"--findings: unknown {', '.join(sorted(unknown))}; known: {', '.join(FINDINGS)}")
        cfg = DataConfig(name="rendered_openi", cache_dir=args.cache_dir, workers=args.workers)
        studies = pick(list(load_studies(cfg, _print_progress)), frozenset(args.findings), args.count, args.seed)
        draw_sheet(studies, args.columns, boxes=not args.no_boxes).save(args.out)
        print(f"{len(studies)} studies on {args.out}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
