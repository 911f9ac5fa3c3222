"""Pages in Debian's Chromium, headless; anything that a page asks of a network fails the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, ViewportSize, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def opened(path: Path, width: int = 1200) -> Iterator[Page]:
    """The page at `path`. At its end: it has asked for nothing but itself, and its console is silent."""
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    asked: list[str] = []
    said: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport=ViewportSize(width=width, height=800))
        page.route(lambda url: not url.startswith("data:") and url != path.as_uri(), refuse)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert asked == []
    assert said == []


def fits(page: Page) -> bool:
    """Whether the page is no wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))
