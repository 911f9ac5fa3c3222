"""What every command does alike: a person's mistake is one line and status 2; with --debug, its traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from rrg.errors import UserError


def add_debug(parser: argparse.ArgumentParser) -> None:
    """The flag `--debug`."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error too")


def carry_out(command: Callable[[], int], *, debug: bool, mistakes: tuple[type[Exception], ...] = (UserError,)) -> int:
    """The exit status of `command`: its own; 2 for `mistakes` and for files that can't be read or written, 130 for
    Ctrl-C. With `debug` errors are raised instead."""
    try:
        return command()
    except BrokenPipeError:
        if debug:
            raise
        # Whoever read our output has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except mistakes as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if debug:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2
