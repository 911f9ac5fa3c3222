"""The site: it builds strictly, reads offline, and has every page of docs/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What makes a browser fetch something, as opposed to a link that a reader follows.
_FETCHING = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("use", "href")}


class _Fetched(HTMLParser):
    """Collects the addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if value and (tag, name) in _FETCHING]


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    return subprocess.run([*command, "--site-dir", str(site)], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    done = build(ROOT, built)
    assert done.returncode == 0, done.stderr
    return built


def test_every_page_of_the_docs_is_built_and_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        address = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / address).is_file(), address
        assert f'href="{address}"' in home or address == "index.html", f"{address} is not in the nav"


def test_no_page_fetches_anything_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = _Fetched()
        parser.feed(page.read_text())
        outside = [one for one in parser.addresses if re.match(r"(https?:)?//", one)]
        assert not outside, f"{page.relative_to(site)}: {outside}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text()), style.name


def test_no_page_offers_a_search_that_would_be_dead_without_a_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert 'data-md-component="search' not in page.read_text(), page.relative_to(site)


def test_pages_that_include_a_file_name_it_for_readers_of_the_repository() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        for name in re.findall(r'^--8<-- "(.*)"$', text, re.MULTILINE):
            (target,) = re.findall(r'<a href="([^"]*)">', text)
            assert (page.parent / target).resolve() == ROOT / name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[no such heading](data.md#nowhere)", "nowhere"),
        ('--8<-- "GONE.md"', "GONE.md"),
    ],
)
def test_a_broken_link_an_anchor_or_a_missing_snippet_fails_the_build(
    text: str, complaint: str, tmp_path: Path
) -> None:
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs/index.md").open("a") as page:
        page.write(f"\n\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stderr + done.stdout


def test_the_readme_and_the_contributors_page_name_files_that_are_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
