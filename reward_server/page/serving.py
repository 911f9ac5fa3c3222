"""Serves a page to this machine alone, and keeps what is uploaded to itself.

Contract: listens on 127.0.0.1 and answers to no other name, so that no other site can have a browser read it. Nothing
is loaded from, or sent to, another machine: no analytics, fonts, scripts or share links, and the browser is told so
(Content-Security-Policy). Uploads lie in a folder that only this user can read, deleted after half an hour and at the
end. Requests wait in a queue, and an answer that takes too long is given up.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from reward_server.errors import RewardSetupError

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST: Final = "127.0.0.1"
PORT: Final = 7860
TITLE: Final = "LM-RRG"
_ABOUT: Final = "Reports of chest X-rays, and what a reward sees in them. **For research, not for diagnosis.**"
_WAITING: Final = 16  # requests
_UPLOAD: Final = "64mb"  # of a file
_SWEEP_S, _KEPT_S = 300, 1800
_GRACE_S: Final = 2
_HEADERS: Final[Mapping[bytes, bytes]] = MappingProxyType(
    {
        b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'",
        b"referrer-policy": b"no-referrer",
        b"cache-control": b"no-store",
    }
)

T = TypeVar("T")


class TookTooLongError(Exception):
    """An answer was given up; the message says after how long."""


class OneThread:
    """All work of a page, one piece at a time in one thread: scorers and models are used from one alone."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, "page")

    def run(self, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """What `work` returns. Raises what it raises, and TookTooLongError: work that has not begun is given up, other
        work still ends before the next begins."""
        limit = timeout_s or self._timeout_s
        future = self._thread.submit(work)
        try:
            return future.result(limit)
        except TimeoutError as error:
            future.cancel()
            raise TookTooLongError(f"No answer after {limit:g} s: try again, with less text.") from error


@contextmanager
def page(timeout_s: float) -> Iterator[tuple[gr.Blocks, OneThread]]:
    """A page with its heading, to be filled, and the thread for its work; its uploads are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="lmrrg-page-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        import gradio as gr

        with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(_SWEEP_S, _KEPT_S)) as blocks:
            gr.Markdown(f"# {TITLE}\n{_ABOUT}")
        yield blocks, OneThread(timeout_s)


def serve_page(blocks: gr.Blocks, port: int) -> None:
    """Serves until Ctrl-C (KeyboardInterrupt) or SIGTERM (SystemExit 143); port 0 picks a free one.

    Prints the address. Raises RewardSetupError where the port is taken.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    signal.signal(signal.SIGTERM, _exit)
    with _listening(port) as listener:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        gr.mount_gradio_app(
            app,
            blocks.queue(max_size=_WAITING, api_open=False),
            path="/",
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=Path(__file__).parent / "page.css",
            footer_links=[],
            run_history=False,
            max_file_size=_UPLOAD,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
        )
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        app.add_middleware(_NothingElsewhere)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=_GRACE_S
        )
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        print(f"the page is at {address} (this machine alone; Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


class _NothingElsewhere:
    """Tells browsers to ask no other machine for anything, and to keep nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() not in _HEADERS]
                message["headers"] = [*kept, *_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, told)


def check_port(port: int) -> None:
    """Raises RewardSetupError where `serve_page` could not listen: to be told before models are loaded."""
    with _listening(port):
        pass


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise RewardSetupError(f"--port {port}: {error.strerror}; choose another, or 0 for a free one") from error
        listener.listen()
        yield listener


def _exit(number: int, frame: FrameType | None) -> Any:
    sys.exit(128 + number)
