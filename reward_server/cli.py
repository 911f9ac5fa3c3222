"""The command line: serve, score files, describe, show a page, manage weights, scale workers, the gallery of hacks.

Contract: exit status 0; 1 if some pairs have no score; 2, with one line on stderr that names the file, line, field or
flag and the way out, for an error of the user or a server that can't be reached. A command loads only what it needs.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from reward_server.errors import RewardError, RewardSetupError
from reward_server.source_cli import (
    add_backend_arguments,
    add_source_arguments,
    check_choice,
    opened_source,
    port,
    positive,
    scorer_options,
)

if TYPE_CHECKING:
    from reward_server.tables import Rows

_IN_FLIGHT = 8  # batches on their way to servers at a time


@dataclasses.dataclass(frozen=True)
class _Command:
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = _commands()
    args = _parser(commands, given[0] if given else None).parse_args(given)
    try:
        return commands[args.command].run(args)
    except (RewardError, RewardSetupError) as error:
        if args.debug:
            raise
        print(f"reward_server {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        print(f"reward_server {args.command}: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _commands() -> dict[str, _Command]:
    return {
        "serve": _Command("serve over gRPC until interrupted", _serve_arguments, _serve),
        "score": _Command("score a file of pairs", _score_arguments, _score),
        "describe": _Command("print what is computed and with which models", add_source_arguments, _describe),
        "gallery": _Command("score a fixed gallery of reward hacks", _gallery_arguments, _gallery),
        "weights": _Command("fetch or check the weights of `published`", _weights_arguments, _weights),
        "ui": _Command("compare two reports in a browser on this machine", _ui_arguments, _ui),
        "scale": _Command("set the number of reward workers of a Ray cluster", _scale_arguments, _scale),
    }


def _parser(commands: dict[str, _Command], chosen: str | None) -> argparse.ArgumentParser:
    """The arguments of the chosen command only: those of others would be imported for nothing."""
    parser = argparse.ArgumentParser(prog="python -m reward_server", description="Scores generated radiology reports.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error too")
        if name == chosen:
            command.add_arguments(subparser)
    return parser


# --- score ------------------------------------------------------------------------------------------------------------


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Output rows: the fields of the input without the reports, then every component and `reward`, or `error`. "
        "The reward is -composite (RadCliQ-v1 for `published`), unless --clip or --weight say otherwise."
    )
    parser.add_argument("--input", metavar="FILE", help="pairs: JSON lines, .csv or .tsv with a header; - for stdin")
    parser.add_argument("--references", metavar="FILE", help="instead of --input: text, a report on each line")
    parser.add_argument("--hypotheses", metavar="FILE", help="the generated reports, on the same lines")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON lines, or CSV if it ends in .csv; -")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    for name in ("reference", "hypothesis", "id"):
        parser.add_argument(
            f"--{name}-column", default=name, metavar="NAME", help="column or field of the input (default: %(default)s)"
        )
    parser.add_argument("--clip", type=float, metavar="X", help="cut the composite at X from above, as 3")
    parser.add_argument(
        "--weight",
        type=_weight,
        action="append",
        default=[],
        metavar="COMPONENT=W",
        help="another reward: the sum of W times component; may be repeated",
    )
    add_source_arguments(parser)


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not COMPONENT=NUMBER") from error


def _score(args: argparse.Namespace) -> int:
    from reward_server import tables
    from reward_server.page.meanings import MEANINGS
    from reward_server.progress import progress
    from reward_server.scoring import Summary, check_reward, plain_reward, score_rows

    inputs = [path for path in (args.input, args.references, args.hypotheses) if path]
    pairs, weights = _pairs(args), dict(args.weight)
    # What is wrong is said before a model is loaded, which takes up to a minute.
    check_choice(args)
    tables.check_output(args.output, overwrite=args.overwrite, inputs=inputs)
    if args.backend:
        check_reward(args.backend, MEANINGS[args.backend], args.clip, weights)
    with pairs as rows, progress() as shown, opened_source(args) as source:
        about = source.describe()
        cfg = plain_reward(about, clip=args.clip, weights=weights)
        with tables.open_scores(args.output, overwrite=args.overwrite) as target:
            writer = tables.ScoreWriter(target, (*about.components, "reward"), table=tables.is_table(args.output))
            summary = Summary(about, cfg)
            try:
                for batch in score_rows(rows, source, cfg, writer, in_flight=_IN_FLIGHT if args.address else 1):
                    summary.add(batch)
                    shown.show(rows, summary)
            except (RewardError, RewardSetupError) as error:
                raise type(error)(f"{error} ({summary.pairs} rows are in {args.output})") from error
    print(summary, file=sys.stderr)
    return 1 if summary.failed else 0


def _pairs(args: argparse.Namespace) -> AbstractContextManager[Rows]:
    """The rows of the input, not yet opened."""
    from reward_server import tables

    texts = args.references, args.hypotheses
    if args.input and not any(texts):
        columns = tables.Columns(args.reference_column, args.hypothesis_column, args.id_column)
        return tables.open_pairs(args.input, columns)
    if all(texts) and not args.input:
        return tables.open_texts(*texts)
    raise RewardSetupError("choose the pairs: either --input, or both --references and --hypotheses")


# --- the other commands -----------------------------------------------------------------------------------------------


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend_arguments(parser, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine need TLS")
    parser.add_argument("--port", type=port, default=50051, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--metrics-port", type=port, metavar="PORT", help="Prometheus metrics (default: none)")
    parser.add_argument("--metrics-host", default="127.0.0.1", help="address of the metrics (default: %(default)s)")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate of this server (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="key of the certificate (PEM)")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="mutual TLS: who vouches for clients (PEM)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token that clients must send")
    parser.add_argument("--max-pairs", type=positive, metavar="N", help="most pairs of a request (default: 1024)")
    parser.add_argument("--max-characters", type=positive, metavar="N", help="longest report (default: 16000)")
    parser.add_argument("--max-queue", type=positive, metavar="N", help="most pairs that wait (default: 8192)")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="(default: %(default)s)")


def _serve(args: argparse.Namespace) -> int:
    options = scorer_options(args)
    from reward_server.security import ServerSecurity
    from reward_server.server import ServeOptions, serve
    from reward_server.service import Limits

    given = {"pairs": args.max_pairs, "characters": args.max_characters, "waiting_pairs": args.max_queue}
    security = ServerSecurity.from_files(
        certificate=args.tls_cert, key=args.tls_key, client_ca=args.tls_client_ca, token=args.token_file
    )
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    monitoring = {"metrics_port": args.metrics_port, "metrics_host": args.metrics_host, "log_format": args.log_format}
    asyncio.run(serve(ServeOptions(options, args.host, args.port, limits, security, **monitoring)))
    return 0


def _describe(args: argparse.Namespace) -> int:
    with opened_source(args) as source:
        print(json.dumps(dataclasses.asdict(source.describe()), indent=2))
    return 0


def _gallery_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip", type=float, metavar="X", help="cut the composite at X from above, as 3")
    add_source_arguments(parser)


def _gallery(args: argparse.Namespace) -> int:
    from reward_server.gallery import markdown, score_gallery

    with opened_source(args) as source:
        print(markdown(source.describe(), score_gallery(source, clip=args.clip)))
    return 0


def _weights_arguments(parser: argparse.ArgumentParser) -> None:
    from reward_server.radcliq.weights_cli import add_weights_parser

    add_weights_parser(parser)


def _weights(args: argparse.Namespace) -> int:
    from reward_server.radcliq.weights_cli import weights_main

    return weights_main(args)


def _ui_arguments(parser: argparse.ArgumentParser) -> None:
    from reward_server.page.page_cli import add_ui_parser

    add_ui_parser(parser)


def _ui(args: argparse.Namespace) -> int:
    from reward_server.page.page_cli import ui_main

    return ui_main(args)


def _scale_arguments(parser: argparse.ArgumentParser) -> None:
    from reward_server.scale_cli import add_scale_parser

    add_scale_parser(parser)


def _scale(args: argparse.Namespace) -> int:
    from reward_server.scale_cli import scale_main

    return scale_main(args)
