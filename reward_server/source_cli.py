"""What scores, as flags of a command: a backend in this process or servers.

Contract: what would be ignored is refused. A source is opened with what it needs and nothing else loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reward_server.backends import BACKENDS
from reward_server.errors import RewardSetupError
from reward_server.radcliq.weights_hint import no_folder
from reward_server.scorer import ScorerOptions
from reward_server.threads import set_threads

if TYPE_CHECKING:
    from reward_server.scoring import Source
    from reward_server.security import ClientSecurity


_WAIT_S: Final = 10.0


def add_backend_arguments(parser: argparse._ActionsContainer, *, required: bool) -> None:
    parser.add_argument("--backend", choices=BACKENDS, required=required, help="what scores, in this process")
    parser.add_argument("--weights", metavar="DIR", help="folder of the weights (see the command `weights`)")
    parser.add_argument(
        "--radgraph", default="radgraph", metavar="NAME", help="RadGraph archive in DIR (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="torch device, as cuda:0 (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the encoders; others than float32 drift a little and need a GPU (default: %(default)s)",
    )
    parser.add_argument("--idf", metavar="FILE", help="corpus of BERTScore's idf, a report a line (default: no idf)")
    parser.add_argument("--threads", type=positive, metavar="N", help="torch threads (default: all cores)")


def add_source_arguments(parser: argparse._ActionsContainer) -> None:
    add_backend_arguments(parser, required=False)
    parser.add_argument("--address", metavar="HOST:PORT[,...]", help="ask these servers instead of a backend here")
    parser.add_argument(
        "--wait", type=float, default=_WAIT_S, metavar="S", help="seconds for a server to be ready (%(default)g)"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for a request (%(default)g)")
    parser.add_argument("--tls-ca", metavar="FILE", help="certificates that vouch for the servers (PEM)")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate of this client, for mutual TLS (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="key of this client's certificate (PEM)")
    parser.add_argument("--tls-server-name", metavar="NAME", help="name in the servers' certificates (default: host)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token that the servers ask for")


def whole_number(text: str) -> int:
    """0, 1, 2, ..."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """1, 2, 3, ..."""
    if (value := whole_number(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def port(text: str) -> int:
    """Of TCP; 0 picks a free one."""
    if (value := whole_number(text)) >= 2**16:
        raise argparse.ArgumentTypeError("must be between 0 and 65535")
    return value


def check_choice(args: argparse.Namespace) -> None:
    """RewardSetupError unless there is one thing that scores, with flags that are for it."""
    if (args.address is None) == (args.backend is None):
        raise RewardSetupError("choose what scores: either --backend (in this process) or --address (servers)")
    check_source(args)


def check_source(args: argparse.Namespace) -> None:
    """What would be ignored is refused: the scores, or who may see the reports, would not be as they were asked for."""
    _check_backend(args)
    servers = args.tls_ca, args.tls_cert, args.tls_key, args.tls_server_name, args.token_file
    if args.address is None and (any(servers) or args.wait != _WAIT_S):
        raise RewardSetupError(
            "--wait, --tls-ca, --tls-cert, --tls-key, --tls-server-name and --token-file are for --address"
        )


def _check_backend(args: argparse.Namespace) -> None:
    asked = ScorerOptions("", args.weights, args.radgraph, args.device, args.dtype, args.idf)
    if args.backend is None and (asked != ScorerOptions("") or args.threads is not None):
        raise RewardSetupError(
            "--weights, --radgraph, --device, --dtype, --idf and --threads are for --backend: servers have theirs"
        )
    if args.backend == "embedded" and asked != ScorerOptions(""):
        raise RewardSetupError("--weights, --radgraph, --device, --dtype and --idf mean nothing to --backend embedded")
    # The backends say the same, but only after torch and the models' libraries were imported: up to a minute.
    if args.backend in ("published", "reference"):
        if args.weights is None:
            raise RewardSetupError(f"--backend {args.backend} needs a folder of weights: --weights DIR")
        if not Path(args.weights).is_dir():
            raise RewardSetupError(no_folder(Path(args.weights)))


def scorer_options(args: argparse.Namespace) -> ScorerOptions:
    """Also sets the threads, which torch reads once, when it is loaded."""
    _check_backend(args)
    if "torch" not in sys.modules:  # a program that calls `main` may have loaded it, and keeps its threads
        set_threads(args.threads or len(os.sched_getaffinity(0)))
    return ScorerOptions(args.backend, args.weights, args.radgraph, args.device, args.dtype, args.idf)


@contextmanager
def opened_source(args: argparse.Namespace) -> Iterator[Source]:
    """What scores: servers or a backend in this process."""
    check_choice(args)
    if args.address:
        from reward_server.client import RewardClient

        with RewardClient(args.address.split(","), args.timeout, _client_security(args)) as client:
            client.wait_until_serving(args.wait)
            yield client
    else:
        from reward_server.backends import create_scorer
        from reward_server.scoring import LocalSource

        yield LocalSource(create_scorer(scorer_options(args)))


def _client_security(args: argparse.Namespace) -> ClientSecurity:
    from reward_server.security import ClientSecurity

    return ClientSecurity.from_files(
        ca=args.tls_ca,
        certificate=args.tls_cert,
        key=args.tls_key,
        token=args.token_file,
        server_name=args.tls_server_name,
    )
