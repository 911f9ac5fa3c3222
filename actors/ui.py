"""`python -m actors.ui`: a page for this machine: X-rays to a policy's reports, and two reports to their scores.

Contract: as `reward_server.page.serving`. The second tab is there where --backend or --address says what scores. Exit
status as `actors.generate`: 2, with one line, for a person's mistake; 130 after Ctrl-C. torch is loaded only after
flags and files were looked at.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actors.checkpoint import STAGES, Checkpoint, find_checkpoint
from actors.writer import ReportWriter
from reward_server.errors import RewardError, RewardSetupError
from reward_server.page.page_cli import TIMEOUT_S
from reward_server.page.serving import PORT, OneThread, TookTooLongError, check_port, page, serve_page
from reward_server.source_cli import add_source_arguments, check_source, opened_source, port
from rrg.command import add_debug, carry_out
from rrg.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

_START_S: Final = 600.0  # to load a policy and build its engine


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until interrupted; returns the exit status."""
    args = _parser().parse_args(arguments)
    mistakes = (UserError, RewardError, RewardSetupError, TookTooLongError)
    return carry_out(lambda: _serve(args), debug=args.debug, mistakes=mistakes)


def _serve(args: argparse.Namespace) -> int:
    check_source(args)
    if args.threads is not None:
        raise UserError("--threads: the policy's engine sets the threads of this process (rollout.threads of its run)")
    checkpoint = find_checkpoint(Path(args.checkpoint), args.stage)
    check_port(args.port)
    with page(args.timeout) as (blocks, thread), _opened_writer(checkpoint, thread) as writer:
        _fill(blocks, thread, writer, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m actors.ui",
        description="A page for this machine: X-rays to reports, reports to scores. For research, not for diagnosis.",
        epilog="Only the tab of the policy is shown without --backend and --address. docs/ui.md has the rest.",
    )
    made.add_argument("--checkpoint", required=True, metavar="RUN", help="run directory of learner.main, or a policy")
    made.add_argument("--stage", choices=STAGES, help="of a run (the best RL checkpoint, else latest, else warm_start)")
    made.add_argument("--port", type=port, default=PORT, help="0 picks a free one (default: %(default)s)")
    add_debug(made)
    add_source_arguments(made.add_argument_group("the tab of two reports"))
    made.set_defaults(timeout=TIMEOUT_S)
    return made


def _fill(blocks: gr.Blocks, thread: OneThread, writer: ReportWriter, args: argparse.Namespace) -> None:
    """Both tabs, then serves them."""
    import gradio as gr

    from actors.page import Reporting, report_tab
    from reward_server.page.compare import Comparison, compare_tab

    scored = args.backend is not None or args.address is not None
    with opened_source(args) if scored else nullcontext() as source:
        with blocks, gr.Tabs():
            with gr.Tab("X-ray to report"):
                report_tab(Reporting(writer, thread))
            if source is not None:
                with gr.Tab("Two reports"):
                    compare_tab(Comparison(source, thread))
        serve_page(blocks, args.port)


@contextmanager
def _opened_writer(checkpoint: Checkpoint, thread: OneThread) -> Iterator[ReportWriter]:
    """Made, used and closed in the page's thread; what its libraries tell of their own loading is left out."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    print(f"checkpoint: {checkpoint.name}; loading takes a while", file=sys.stderr, flush=True)
    writer = thread.run(lambda: ReportWriter(checkpoint), _START_S)
    try:
        yield writer
    finally:
        thread.run(writer.close)


if __name__ == "__main__":
    sys.exit(main())
