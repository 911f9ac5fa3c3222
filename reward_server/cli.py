"""The command line of the reward server: serve, score a file of pairs, describe.

Contract: exit status 0, or 2 with one line on stderr that names the file, line, field or flag and the way out.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import IO, Any, Protocol

from reward_server.backends import BACKENDS, create_scorer
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scorer import Description, Pair, ScorerOptions

Line = tuple[dict[str, Any], Pair]  # all fields of an input line, and its pair
_BATCH = 256


class _Source(Protocol):
    """An in-process scorer or a client."""

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    args = _parser().parse_args(arguments)
    # Before torch is loaded: it reads them once.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        if args.command == "serve":
            from reward_server.server import serve

            asyncio.run(serve(args.backend, args.host, args.port))
        elif args.command == "describe":
            print(json.dumps(dataclasses.asdict(_describe(args)), indent=2))
        else:
            print(f"scored {_score(args)} pairs", file=sys.stderr)
    except (RewardError, RewardSetupError) as error:
        print(f"reward_server {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def read_pairs(lines: Iterable[str], name: str) -> Iterator[Line]:
    """Parses JSON lines with the strings `reference` and `hypothesis`; RewardSetupError names the file and line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise RewardSetupError(f"{name}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(fields, dict):
            raise RewardSetupError(f"{name}, line {number}: must be an object with `reference` and `hypothesis`")
        for field in ("reference", "hypothesis"):
            if not isinstance(fields.get(field), str):
                raise RewardSetupError(f"{name}, line {number}: the field `{field}` must be a string")
        yield fields, (fields["reference"], fields["hypothesis"])


def write_scores(lines: Iterable[Line], source: _Source, target: IO[str]) -> int:
    """Scores in batches and writes a JSON line for each: the other fields of the input, and `components`."""
    lines = iter(lines)
    count = 0
    while batch := list(islice(lines, _BATCH)):
        scores = source.score([pair for _, pair in batch])
        for (fields, _), components in zip(batch, scores, strict=True):
            kept = {name: value for name, value in fields.items() if name not in ("reference", "hypothesis")}
            target.write(json.dumps({**kept, "components": components}) + "\n")
        target.flush()
        count += len(batch)
    return count


def _score(args: argparse.Namespace) -> int:
    with _opened(args.input, "r") as source, _scorer(args) as scorer, _opened(args.output, "w") as target:
        try:
            return write_scores(read_pairs(source, args.input), scorer, target)
        except UnicodeDecodeError as error:
            raise RewardSetupError(f"{args.input}: not UTF-8 text") from error


def _opened(path: str, mode: str) -> AbstractContextManager[IO[str]]:
    if path == "-":
        return nullcontext(sys.stdin if mode == "r" else sys.stdout)
    try:
        return open(path, mode, encoding="utf-8")
    except OSError as error:
        raise RewardSetupError(f"{path}: {error.strerror}") from error


def _scorer(args: argparse.Namespace) -> AbstractContextManager[_Source]:
    if args.address:
        from reward_server.client import RewardClient

        return RewardClient(args.address.split(","), timeout_s=args.timeout)
    return nullcontext(create_scorer(ScorerOptions(args.backend)))


def _describe(args: argparse.Namespace) -> Description:
    if args.address:
        from reward_server.client import RewardClient

        with RewardClient(args.address.split(","), timeout_s=args.timeout) as client:
            return client.describe()
    return create_scorer(ScorerOptions(args.backend)).description


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reward_server", description="Scores generated radiology reports.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--backend", choices=BACKENDS, default="embedded", help="what scores (default: %(default)s)")
    common.add_argument("--threads", type=int, default=1, help="torch threads of the scorer (default: %(default)s)")
    asks = argparse.ArgumentParser(add_help=False)
    asks.add_argument("--address", help="host:port[,host:port...] of running servers; without it this process scores")
    asks.add_argument(
        "--timeout", type=float, default=60.0, help="deadline of a request in seconds (default: %(default)s)"
    )

    serve = commands.add_parser("serve", parents=[common], help="serve over gRPC until interrupted")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    serve.add_argument("--port", type=int, default=50051, help="0 picks a free one (default: %(default)s)")
    score = commands.add_parser("score", parents=[common, asks], help="score a file of pairs")
    score.add_argument("--input", required=True, help="JSON lines with `reference` and `hypothesis`; - for stdin")
    score.add_argument("--output", required=True, help="JSON lines with `components`; - for stdout")
    commands.add_parser("describe", parents=[common, asks], help="print what is computed and with which models")
    return parser
