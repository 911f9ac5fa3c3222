"""`python -m reward_server weights fetch|check --weights DIR`.

Contract: exit status 0 if a server can start with the folder, 1 if not; what is missing is printed with how to get it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reward_server.errors import RewardSetupError
from reward_server.radcliq.weights_hint import no_folder

if TYPE_CHECKING:
    from reward_server.radcliq.weights_check import Finding


def add_weights_parser(parser: argparse.ArgumentParser) -> None:
    """Gives the command's parser its two actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--weights", type=Path, required=True, metavar="DIR", help="folder of the weights")
    common.add_argument(
        "--radgraph", default="radgraph", metavar="NAME", help="RadGraph archive that is needed (default: %(default)s)"
    )
    actions.add_parser("check", parents=[common], help="verify what is there and say what is missing")
    fetch = actions.add_parser("fetch", parents=[common], help="download what is missing, then check")
    fetch.add_argument(
        "--accept-terms",
        action="store_true",
        help="you have read the terms of CheXbert's and RadGraph's weights (docs/reward_weights.md)",
    )


def weights_main(args: argparse.Namespace) -> int:
    """Runs the action; RewardSetupError where the folder is not there or a download fails."""
    if args.action == "check" and not args.weights.is_dir():  # `check` says so, too, but its imports take half a minute
        raise RewardSetupError(no_folder(args.weights))
    from reward_server.radcliq.weights_check import check
    from reward_server.radcliq.weights_fetch import fetch, terms

    if args.action == "fetch":
        fetch(
            args.weights, args.radgraph, accept_terms=args.accept_terms, say=lambda text: print(text, file=sys.stderr)
        )
    findings = check(args.weights, args.radgraph)
    print(table(findings))
    if all(finding.state == "ok" for finding in findings):
        print(f"{args.weights} is complete")
        return 0
    if any(finding.state == "missing" and finding.part in ("chexbert.pth", args.radgraph) for finding in findings):
        print(terms(args.weights))
    return 1


def table(findings: Sequence[Finding]) -> str:
    """A line for every part with its hash; then what is wrong with those that are not ok."""
    width = max(len(finding.part) for finding in findings)
    lines = [f"{finding.state:9}  {finding.part:{width}}  {finding.sha256 or '-'}" for finding in findings]
    notes = [f"{finding.part}: {finding.note}" for finding in findings if finding.note]
    return "\n".join([f"{'state':9}  {'part':{width}}  sha256", *lines, *notes])
