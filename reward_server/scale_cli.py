"""`python -m reward_server scale`: sees and sets the number of reward workers of a Ray cluster, from any of its nodes.

Contract: prints every worker whenever its state changes, and ends when as many serve as were asked for, the others
have ended, and nothing is left to wait for.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from reward_server.cluster import add_cluster_arguments, connected
from reward_server.errors import RewardError
from reward_server.source_cli import whole_number

if TYPE_CHECKING:
    from reward_server.directory import RewardDirectory

_POLL_S = 0.5


def add_scale_parser(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scale_main`."""
    parser.add_argument("number", type=whole_number, nargs="?", metavar="N", help="workers from now on (default: look)")
    add_cluster_arguments(parser)


def scale_main(args: argparse.Namespace) -> int:
    """Scales and waits; RewardSetupError without a cluster or directory, RewardError when the time is over."""
    with connected(args.ray_address):
        from reward_server.directory import RewardDirectory

        directory = RewardDirectory.find(args.namespace)
        if args.number is not None:
            directory.scale(args.number)
        _watch(directory, args.number, args.timeout)
    return 0


def _watch(directory: RewardDirectory, number: int | None, timeout_s: float) -> None:
    """Prints every change until `number` workers serve and no other is left; None: prints what is there."""
    deadline = time.monotonic() + timeout_s
    shown: set[str] = set()
    while True:
        status = directory.status()
        lines = status.lines()
        for line in lines:
            if line not in shown:
                print(line, flush=True)
        shown = set(lines)
        serving = len(status.addresses)
        if number is None or serving == len(status.workers) == number:
            return print(f"{serving} of {status.wanted} reward workers serve in the namespace {directory.namespace}")
        if status.wanted != number:
            raise RewardError(f"someone else has asked for {status.wanted} reward workers meanwhile")
        status.check()
        if time.monotonic() > deadline:
            raise RewardError(
                f"waited {timeout_s:g} s: {serving} of {number} reward workers serve; the others stay wanted"
            )
        time.sleep(_POLL_S)
