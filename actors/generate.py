"""`python -m actors.generate`: the report of an X-ray, with what was seen in its regions; or of many, in a batch.

Contract: stdout has results alone, stderr progress, notes and errors. A batch appends to `--out` and goes on where it
was killed (`actors.reportfile`). Exit status 0; 1 where some studies of a batch got no report; 2, with one line that
names the file, flag or field and the way out, for a person's mistake; 130 after Ctrl-C. For research: not for
diagnosis. torch is loaded only after flags and files were looked at.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from actors.checkpoint import Checkpoint, find_checkpoint
from actors.generate_arguments import check, is_batch, parser, views_of
from actors.reportfile import ReportFile, row_of
from actors.writer import BATCH, ReportWriter, Written, check_views, own_words
from configs.schema import DataConfig
from rrg.command import carry_out
from rrg.data.dataset import load_studies
from rrg.data.formats.fields import only_file
from rrg.data.formats.rexrank import write_predictions
from rrg.data.imagecache import batches
from rrg.data.imagefiles import check_images, studies_of_folder, study_of_files
from rrg.data.study import Split, Study
from rrg.errors import UserError
from rrg.model.drawing import draw_regions, significant
from rrg.progress import Show, output_console

_RESEARCH: Final = "For research: not for diagnosis."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(arguments)
    show = Show(output_console(stderr=True))
    status = carry_out(lambda: _run(args, show), debug=args.debug)
    if status == 130:
        print("stopped" + "; the same command goes on" * is_batch(args), file=sys.stderr)
    return status


def _run(args: argparse.Namespace, show: Show) -> int:
    check(args)
    checkpoint = find_checkpoint(Path(args.checkpoint), args.stage)
    if args.cache_dir is not None:
        checkpoint = replace(checkpoint, data=replace(checkpoint.data, cache_dir=args.cache_dir))
    show.line(f"checkpoint: {escape(checkpoint.name)}")
    if checkpoint.caution is not None and not args.own_data:
        show.line(checkpoint.caution)
    return _batch(args, checkpoint, show) if is_batch(args) else _one(args, checkpoint, show)


def _one(args: argparse.Namespace, checkpoint: Checkpoint, show: Show) -> int:
    """One study: its report, its regions, and the picture with their boxes."""
    told = {"indication": args.indication, "comparison": args.comparison}
    for name, text in told.items():
        if text is not None and name not in checkpoint.context:
            raise UserError(f"--{name}: this policy's prompt has no {name} (model.prompt.context of its run)")
    paths = [Path(path) for path in args.inputs]
    given = {name: text or "" for name, text in told.items()}
    study = study_of_files(paths, paths[0].name, views=views_of(args.views), **given)
    _check_images(study, checkpoint)
    with _writer(args, checkpoint, show) as writer:
        written = writer.write(study)
        if args.json:
            print(json.dumps(row_of(written, checkpoint), allow_nan=False), flush=True)
        else:
            _print(written)
        show.line(f"the report came {_since_start():.1f} s after the start, on {writer.device}. {_RESEARCH}")
    if args.boxes is not None:
        draw_regions(study, written.evidence).save(args.boxes)
        if not significant(written.evidence):
            show.line("no region is significant: no boxes")
    return 0


def _check_images(study: Study, checkpoint: Checkpoint) -> None:
    """A wrong file is told before the engine is built, which takes long. Raises UserError."""
    check_views(study, checkpoint)
    try:
        check_images(study)
    except (UserError, OSError) as error:
        raise UserError(own_words(study, error)) from error


def _batch(args: argparse.Namespace, checkpoint: Checkpoint, show: Show) -> int:
    """Many studies, into `--out`."""
    studies, data = _studies(args, checkpoint, show)
    if args.rexrank is not None and (data is None or data.name != "rexrank" or data.root is None):
        raise UserError("--rexrank: the studies are not a data set in ReXrank's format, whose ids its file has")
    failed = 0
    with ReportFile(Path(args.out), checkpoint, {study.id: study for study in studies}) as file:
        missing = [study for study in studies if study.id not in file.done]
        if len(missing) < len(studies):
            show.line(f"{escape(args.out)} holds {len(studies) - len(missing)} of the {len(studies)} reports")
        told: dict[str, object] = {"out": args.out, "studies": len(studies)}
        if missing:
            failed, measured = _write(args, checkpoint, missing, file, show)
            told |= measured
        if args.rexrank is not None and data is not None:
            write_predictions(Path(args.rexrank), only_file(Path(str(data.root)), "*.json"), file.reports())
    if args.json:
        print(json.dumps({**told, "failed": failed}))
    return 1 if failed else 0


def _studies(args: argparse.Namespace, checkpoint: Checkpoint, show: Show) -> tuple[list[Study], DataConfig | None]:
    """What to report, and the data set that it comes from, if it is one."""
    if args.inputs:
        found, others = studies_of_folder(Path(args.inputs[0]))
        if others:
            show.line(f"{others} files of {escape(args.inputs[0])} left out: no images by their names")
        return found[: args.limit], None
    if args.own_data and not checkpoint.of_run:
        raise UserError(f"--own-data: {args.checkpoint} lies in no run directory, whose config would name the data set")
    data = checkpoint.data if args.own_data else _named(args, checkpoint.data)
    with show.phase("data"):
        studies = load_studies(data, progress=show.advance)
    for reason, count in studies.skipped.items():
        show.line(f"{count} studies of the data set left out: {reason}")
    if studies.problems:
        show.line(f"{len(studies.problems)} bad records left out, the first: {escape(str(studies.problems[0]))}")
    split: Split = args.split or "test"
    chosen = studies.split(split)[: args.limit]
    if not chosen:
        raise UserError(f"the data set has no study in split {split}; choose another --split")
    return chosen, data


def _named(args: argparse.Namespace, run: DataConfig) -> DataConfig:
    """The data set of the flags, with the sections that the run's policy writes."""
    named = DataConfig(args.format, args.root, args.reports, cache_dir=run.cache_dir, target=run.target)
    return replace(named, without_findings=run.without_findings)


def _write(
    args: argparse.Namespace, checkpoint: Checkpoint, studies: Sequence[Study], file: ReportFile, show: Show
) -> tuple[int, dict[str, object]]:
    """Writes what is missing; how many failed, and how fast it went."""
    written = failed = 0
    first = 0.0
    with _writer(args, checkpoint, show) as writer, show.phase("reports"):
        begun = time.monotonic()
        for group in batches(writer.write_all(studies), BATCH):
            file.append(group)
            first = first or _since_start()
            for one in group:
                if one.failed is not None:
                    failed += 1
                    show.line(escape(f"no report of {one.study.id}: {one.failed}"))
            written += len(group)
            show.advance("studies", written, len(studies))
        seconds = time.monotonic() - begun
    shares = {name: share / seconds for name, share in writer.seconds.items()}
    spent = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    reports = "1 report" if written - failed == 1 else f"{written - failed} reports"
    without = f", {failed} without one," if failed else ""
    show.line(
        f"{reports}{without} in {seconds:.1f} s on {writer.device}: {written / seconds:.1f} studies a second "
        f"({spent}); the first {min(BATCH, written)} were there {first:.1f} s after the start. {_RESEARCH}"
    )
    measured = {"written": written - failed, "seconds": seconds, "studies_per_second": written / seconds}
    return failed, {**measured, "first_batch_s": first, "shares": shares, "device": writer.device}


def _writer(args: argparse.Namespace, checkpoint: Checkpoint, show: Show) -> ReportWriter:
    """The writer; what its libraries tell of their own settings and loading is left out."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    with show.phase("engine"):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        return ReportWriter(checkpoint, args.device)


def _since_start() -> float:
    """Seconds since this process began, Python's own start and all imports included."""
    return time.time() - psutil.Process().create_time()


def _print(written: Written) -> None:
    """The report and its significant regions, coloured as on the picture."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(written.report))
    if written.cut:
        console.print(Text("[cut: the longest report that the policy's run allowed]", style="dim"))
    for one, colour in significant(written.evidence):
        findings = ", ".join(f"{name} {share:.2f}" for name, share in one.findings.items())
        box = "" if one.box is None else "box " + " ".join(f"{corner:.2f}" for corner in one.box)
        facts = "  ".join(part for part in (f"{one.significance:.2f}", findings, box) if part)
        console.print(Text.assemble("\n", (one.region, colour), "  ", facts))
        if one.sentence is not None:
            console.print(Text("  " + one.sentence, style=colour))


if __name__ == "__main__":
    sys.exit(main())
