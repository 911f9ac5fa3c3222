"""`python -m reward_server ui`: the page of two reports."""

from __future__ import annotations

import argparse

from reward_server.source_cli import add_source_arguments, check_choice, opened_source, port

TIMEOUT_S = 60.0
"""How long a page waits for an answer."""


def add_ui_parser(parser: argparse.ArgumentParser) -> None:
    from reward_server.page.serving import PORT

    parser.epilog = "The page listens on 127.0.0.1 alone and loads nothing from a network. For the model: actors.ui."
    parser.add_argument("--port", type=port, default=PORT, help="0 picks a free one (default: %(default)s)")
    add_source_arguments(parser)
    parser.set_defaults(timeout=TIMEOUT_S)


def ui_main(args: argparse.Namespace) -> int:
    from reward_server.page.serving import check_port, page, serve_page

    check_choice(args)
    check_port(args.port)
    with opened_source(args) as source, page(args.timeout) as (blocks, thread):
        from reward_server.page.compare import Comparison, compare_tab

        with blocks:
            compare_tab(Comparison(source, thread))
        serve_page(blocks, args.port)
    return 0
