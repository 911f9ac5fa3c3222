"""A served page as a process, and a real browser that looks at it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
_ADDRESS = re.compile(r"the page is at (http://127\.0\.0\.1:\d+) ")


class Served:
    """`url` of the page; `process` serves it, `uploads` is the folder of its uploads, `errors` its stderr."""

    def __init__(self, process: subprocess.Popen[str], url: str, temporary: Path, errors: Path) -> None:
        self.process, self.url, self._temporary, self._errors = process, url, temporary, errors

    @property
    def uploads(self) -> Path:
        [folder] = self._temporary.glob("lmrrg-page-*")
        return folder

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def listens_on(self) -> set[str]:
        """Every address that the process and its children listen on."""
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return {socket.laddr.ip for one in tree for socket in one.net_connections("inet") if socket.status == "LISTEN"}


@contextmanager
def served(module: str, *arguments: str, folder: Path, within_s: float = 240) -> Iterator[Served]:
    """Runs `python -m module arguments` in `folder` until it says where the page is; ends it by SIGTERM."""
    (temporary := folder / "tmp").mkdir()
    errors = folder / "stderr"
    root = str(Path(__file__).parents[2])
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        yield Served(process, _address(process, errors, within_s), temporary, errors)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert not [*temporary.glob("lmrrg-page-*")], "uploads outlive the page"
    finally:
        process.kill()
        process.wait(30)


def _address(process: subprocess.Popen[str], errors: Path, within_s: float) -> str:
    deadline = time.monotonic() + within_s
    assert process.stdout is not None
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([process.stdout], [], [], 1.0)[0] and (found := _ADDRESS.search(process.stdout.readline())):
            return found[1]
    raise AssertionError(f"no page: {errors.read_text()[-2000:]}")


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless; the test skips where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM} (Debian's package chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])


@contextmanager
def looked_at(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    """The page; fails if it asks another machine for anything, or a script of it fails."""
    asked: list[str] = []
    failed: list[str] = []
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(url)
    page.get_by_text("For research, not for diagnosis.").wait_for()
    yield page
    hosts = {urlsplit(one).hostname for one in asked if not one.startswith(("data:", "blob:"))}
    context.close()
    assert hosts == {"127.0.0.1"}
    assert not failed
