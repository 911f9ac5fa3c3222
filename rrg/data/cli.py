"""`python -m rrg.data`: is a data set usable (`check`), other formats (`convert`), images decoded ahead of training
(`prepare`), contact sheets (`sheet`).

Exit status: 0 fine, 1 something is wrong with the data, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from configs.schema import DataConfig
from rrg.command import add_debug, carry_out
from rrg.data.checks import check_studies, readable
from rrg.data.convert import TARGETS, convert
from rrg.data.dataset import RENDERED, SOURCES, load_studies, prepare, read_studies
from rrg.data.findings import FINDINGS
from rrg.data.formats import FORMATS
from rrg.data.imagecache import ImageCache
from rrg.data.prepare import prepare_images
from rrg.data.printing import print_progress, print_report
from rrg.data.sheet import draw_sheet, pick
from rrg.data.study import Study
from rrg.data.studyset import SPLITS, Problem, ProblemLog
from rrg.errors import UserError

# Problems of a kind that are printed unless --all.
_SHOWN = 20
_ABOUT = "Data sets of chest X-rays with reports: check, convert, prepare, look at."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rrg.data", description=_ABOUT)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="count what a data set holds and list what is wrong with it")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the whole report")
    check.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet of random studies (PNG)")
    check.add_argument("--all", action="store_true", help=f"print all problems instead of the first {_SHOWN} of a kind")
    check.add_argument("--strict", action="store_true", help="stop at the first bad record")
    check.add_argument("--no-decode", action="store_true", help="read the images' headers only")
    converting = commands.add_parser("convert", help="write a data set in another format")
    converting.add_argument("--to", required=True, choices=TARGETS)
    converting.add_argument("--out", type=Path, required=True, help="new folder to write")
    converting.add_argument("--images", choices=("link", "copy", "none"), default="link",
                            help="how the images come to images/ (default: %(default)s)")  # fmt: skip
    preparing = commands.add_parser("prepare", help="decode and resize all images ahead of training")
    preparing.add_argument("--size", type=int, default=224,
                           help="as data.image_size, or the backbone's own (default: %(default)s)")  # fmt: skip
    preparing.add_argument("--ray-address", metavar="ADDRESS", help="decode on a Ray cluster (auto, HOST:PORT, local)")
    sheet = commands.add_parser("sheet", help="draw a contact sheet with captions and boxes")
    sheet.add_argument("--out", type=Path, default=Path("sheet.png"), help="PNG to write (default: %(default)s)")
    sheet.add_argument("--findings", nargs="*", default=[], metavar="CODE",
                       help=f"only studies with these findings; codes: {', '.join(FINDINGS)}")  # fmt: skip
    sheet.add_argument("--no-boxes", action="store_true", help="without boxes")
    for command in (check, converting, preparing, sheet):
        add_debug(command)
        _add_source(command, required=command is not sheet)
    for command in (check, sheet):
        command.add_argument("--count", type=int, default=12, help="pictures on the sheet (default: %(default)s)")
        command.add_argument("--columns", type=int, default=4, help="of the sheet (default: %(default)s)")
        command.add_argument("--seed", type=int, default=0, help="which studies (default: %(default)s)")
    return parser


def _add_source(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument("--format", "--name", dest="format", choices=SOURCES, required=required, default=RENDERED)
    command.add_argument("--root", metavar="DIR", help="folder of the data set (or the file, of formats of one file)")
    command.add_argument("--reports", metavar="PATH", help="MIMIC-CXR: folder or zip of the report texts")
    command.add_argument("--imagenome", metavar="DIR", help="MIMIC-CXR: folder of Chest ImaGenome")
    cache = DataConfig().cache_dir
    command.add_argument("--cache-dir", default=cache, help="$LMRRG_CACHE or .cache (now: %(default)s)")
    command.add_argument("--workers", type=int, default=2, help="default: %(default)s")


def _config(args: argparse.Namespace) -> DataConfig:
    return DataConfig(
        name=args.format, root=args.root, reports=args.reports, imagenome=args.imagenome, cache_dir=args.cache_dir,
        workers=args.workers, strict=getattr(args, "strict", False),
    )  # fmt: skip


def _studies(args: argparse.Namespace, log: ProblemLog) -> Iterator[Study]:
    """The studies as they stand in the files. Raises `UserError` for wrong flags before the first."""
    cfg = _config(args)
    if args.format != RENDERED:
        return read_studies(cfg, log)
    rendered = load_studies(cfg, print_progress)
    log.problems.extend(rendered.problems)
    return iter(rendered)


def _check(args: argparse.Namespace) -> int:
    log = ProblemLog(args.strict)
    sample: list[Study] = []
    studies = _sampled(_studies(args, log), args.count if args.sheet else 0, args.seed, sample)
    report = check_studies(studies, log, not args.no_decode, args.workers)
    print_report(report, None if args.all else _SHOWN)
    if args.json:
        args.json.write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.sheet:
        usable = [study for study in sample if study.images and readable(study.images[:1])]
        ready = list(prepare(usable, dict.fromkeys(SPLITS), "impression", "findings", ProblemLog()))
        if ready:
            draw_sheet(ready, args.columns).save(args.sheet)
        print(f"{len(ready)} studies on {args.sheet}" if ready else "no study for a contact sheet")
    return 0 if report.ok else 1


def _sampled(studies: Iterable[Study], count: int, seed: int, sample: list[Study]) -> Iterator[Study]:
    """Passes `studies` on, and leaves `count` random ones in `sample` (a reservoir)."""
    rng = random.Random(seed)
    for index, study in enumerate(studies):
        if len(sample) < count:
            sample.append(study)
        elif (slot := rng.randint(0, index)) < count:
            sample[slot] = study
        yield study


def _convert(args: argparse.Namespace) -> int:
    log = ProblemLog()
    written = convert(_studies(args, log), args.to, args.out, args.images)
    print(f"{written} studies in {args.out}")
    _show_skipped(log)
    return _show_problems(log.problems) if written else 1


def _prepare(args: argparse.Namespace) -> int:
    log = ProblemLog()
    cache = ImageCache(Path(args.cache_dir), args.size)
    paths = chain.from_iterable((image.path for image in study.images) for study in _studies(args, log))
    done = prepare_images(cache, paths, args.workers, args.ray_address, print_progress)
    print(f"{done.stored} images stored, {done.present} were there, {len(done.failed)} can't be read: {cache.folder}")
    _show_skipped(log)
    return _show_problems([*log.problems, *(Problem(str(path), "image", reason) for path, reason in done.failed)])


def _show_skipped(log: ProblemLog) -> None:
    for reason, count in log.skipped.items():
        print(f"left out: {count}: {reason}")


def _show_problems(problems: list[Problem]) -> int:
    for problem in problems[:_SHOWN]:
        print(f"  {problem}")
    if len(problems) > _SHOWN:
        print(f"  and {len(problems) - _SHOWN} more; `check --all` lists them")
    return 1 if problems else 0


def _sheet(args: argparse.Namespace) -> int:
    unknown = set(args.findings) - set(FINDINGS)
    if unknown:
        raise UserError(f"--findings: unknown {', '.join(sorted(unknown))}; known: {', '.join(FINDINGS)}")
    studies = [study for study in load_studies(_config(args), print_progress) if study.images]
    chosen = pick(studies, frozenset(args.findings), args.count, args.seed)
    draw_sheet(chosen, args.columns, boxes=not args.no_boxes).save(args.out)
    print(f"{len(chosen)} studies on {args.out}")
    return 0


def _check_use(args: argparse.Namespace) -> None:
    """Raises `UserError` for flags that don't fit together."""
    if args.format != RENDERED and args.root is None:
        raise UserError(f"--format {args.format} needs --root DIR; formats with files of yours: {', '.join(FORMATS)}")
    if args.format != "mimic_cxr" and (args.reports or args.imagenome):
        raise UserError("--reports and --imagenome are for --format mimic_cxr")
    for flag in ("workers", "count", "columns", "size"):
        if getattr(args, flag, 1) < 1:
            raise UserError(f"--{flag} must be at least 1")
    # Before hours of reading, not after.
    for flag in ("json", "sheet", "out"):
        if path := getattr(args, flag, None):
            path.parent.mkdir(parents=True, exist_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    return carry_out(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    _check_use(args)
    commands = {"check": _check, "convert": _convert, "prepare": _prepare, "sheet": _sheet}
    return commands[args.command](args)
