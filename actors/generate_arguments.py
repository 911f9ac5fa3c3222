"""The flags of `actors.generate`, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from actors.checkpoint import STAGES
from actors.writer import DEVICES
from rrg.command import add_debug
from rrg.data.dataset import SOURCES
from rrg.data.formats.fields import view_of
from rrg.data.study import View
from rrg.data.studyset import SPLITS
from rrg.errors import UserError

_ABOUT = """Writes the report of a chest X-ray, with what was seen in its regions; or of many, in a batch.
For research: not for diagnosis."""
_EXAMPLES = """
one study:   python -m actors.generate --checkpoint RUN frontal.png lateral.png --boxes boxes.png
a folder:    python -m actors.generate --checkpoint RUN FOLDER --out reports.jsonl
a data set:  python -m actors.generate --checkpoint RUN --format r2gen --root DIR --out reports.jsonl
the run's:   python -m actors.generate --checkpoint RUN --own-data --out reports.jsonl

In a folder each image is a study, and so is each sub-folder with all of its images. docs/generate.md has the rest."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m actors.generate",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("inputs", nargs="*", metavar="IMAGE", help="PNG, JPEG or DICOM files of one study; or one folder")
    made.add_argument("--checkpoint", required=True, metavar="RUN", help="run directory of learner.main, or a policy")
    made.add_argument("--stage", choices=STAGES, help="of a run (the best RL checkpoint, else latest, else warm_start)")
    made.add_argument("--device", choices=DEVICES, help="(the one that the installed vLLM is for)")
    made.add_argument("--cache-dir", metavar="DIR", help="rendered images and features (the run's data.cache_dir)")
    made.add_argument("--json", action="store_true", help="the result as one line of JSON")
    add_debug(made)
    one = made.add_argument_group("one study")
    one.add_argument("--views", metavar="V[,...]", help="frontal or lateral, one an image (see docs/generate.md)")
    one.add_argument("--indication", metavar="TEXT", help="why it was taken, where the policy's prompt tells that")
    one.add_argument("--comparison", metavar="TEXT", help="earlier examinations, where the policy's prompt tells that")
    one.add_argument("--boxes", metavar="FILE", help=".png of the X-ray with the boxes of its significant regions")
    many = made.add_argument_group("a batch")
    many.add_argument("--out", metavar="FILE", help="JSON lines, one a study; what is there already is kept")
    many.add_argument("--format", choices=SOURCES, help="report a data set of this format")
    many.add_argument("--root", metavar="DIR", help="where it lies")
    many.add_argument("--reports", metavar="PATH", help="MIMIC-CXR: folder or zip of the report texts (in --root)")
    many.add_argument("--own-data", action="store_true", help="report the run's own data set")
    many.add_argument("--split", choices=SPLITS, help="of the data set (test)")
    many.add_argument("--limit", type=_positive, metavar="N", help="only the first N studies")
    many.add_argument("--rexrank", metavar="FILE", help="of a data set in ReXrank's format: its predictions file")
    return made


def is_batch(args: argparse.Namespace) -> bool:
    """Whether it is about many studies."""
    return bool(args.format or args.own_data or (len(args.inputs) == 1 and Path(args.inputs[0]).is_dir()))


def views_of(text: str | None) -> list[View] | None:
    """The views of `--views`, as radiologists name them too (PA, AP, LL). Raises UserError for another word."""
    if text is None:
        return None
    views: list[View] = []
    for word in text.split(","):
        view = view_of(word)
        if view is None:
            raise UserError(f"--views {text}: {word!r} is neither frontal nor lateral")
        views.append(view)
    return views


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that contradict each other or would be ignored, and outputs that can't be written."""
    _check_source(args)
    flags = vars(args)
    batch = is_batch(args)
    misplaced = ("views", "indication", "comparison", "boxes") if batch else ("out", "limit", "rexrank")
    for flag in misplaced:
        if flags[flag] is not None:
            raise UserError(f"--{flag} is for {'the images of one study' if batch else 'a folder or a data set'}")
    if batch and args.out is None:
        raise UserError("a batch needs --out FILE.jsonl: where its reports go, and what it goes on with when killed")
    for flag in ("out", "boxes", "rexrank"):
        if flags[flag] is not None and not Path(flags[flag]).resolve().parent.is_dir():
            raise UserError(f"--{flag} {flags[flag]}: its folder does not exist")
    if args.boxes is not None and Path(args.boxes).suffix.lower() != ".png":
        raise UserError(f"--boxes {args.boxes}: must end in .png")


def _check_source(args: argparse.Namespace) -> None:
    given = [bool(args.inputs), args.format is not None, args.own_data]
    if sum(given) == 0:
        raise UserError("nothing to report: name image files or a folder, --format and --root, or --own-data")
    if sum(given) > 1:
        raise UserError("images or a folder, --format, --own-data: each says what to report; give one of them")
    if len(args.inputs) > 1 and any(Path(path).is_dir() for path in args.inputs):
        raise UserError("the images of one study, or one folder (a batch): not several folders, nor both")
    if args.format is None and (args.root or args.reports):
        raise UserError("--root and --reports need --format, the data set's format")
    if args.split is not None and args.inputs:
        raise UserError("--split is for data sets (--format or --own-data)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
