"""The page of a policy, as people use it: a real policy, a real engine, a real browser."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from actors.ui import main
from configs.schema import Config, PromptConfig
from rrg.data import StudySet
from tests.actors.conftest import make_run
from tests.reward_server.pages import Served, browser, looked_at, served


@pytest.fixture(scope="module")
def run_dir(run_config: Config, studies: StudySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prompt has no indication."""
    model = dataclasses.replace(run_config.model, prompt=PromptConfig(context=[]))
    config = dataclasses.replace(run_config, model=model)
    return make_run(tmp_path_factory.mktemp("runs") / "run", config, studies)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    arguments = ("--checkpoint", str(run_dir), "--backend", "embedded", "--port", "0")
    with served("actors.ui", *arguments, folder=tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture
def page(chromium: Browser, shown: Served) -> Iterator[Page]:
    with looked_at(chromium, shown.url) as opened:
        yield opened


def write_report(page: Page, *files: Path) -> None:
    page.set_input_files("#xrays input[type=file]", files)
    for file in files:
        page.wait_for_selector(f"#xrays :text('{file.stem}')")
    page.click("#write")


@pytest.mark.parametrize("name", ["a.png", "c.dcm"])
def test_an_uploaded_xray_gives_the_report_that_the_command_gives(
    page: Page, run_dir: Path, xrays: Path, name: str
) -> None:
    write_report(page, xrays / name)
    page.wait_for_selector(".seen")
    report = page.inner_text(".written")
    assert report
    command = [sys.executable, "-m", "actors.generate", "--checkpoint", str(run_dir), str(xrays / name)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    assert " ".join(printed.split()).startswith(" ".join(report.removesuffix(CUT).split()))


CUT = " (cut: the longest report that the policy's run allowed)"


def test_every_significant_region_has_a_box_of_its_sentences_colour(page: Page, xrays: Path) -> None:
    write_report(page, xrays / "a.png")
    page.wait_for_selector(".seen")
    boxes = [box.get_attribute("stroke") for box in page.locator(".seen rect").all()]
    regions = [one.get_attribute("style") for one in page.locator(".seen li").all()]
    assert boxes
    assert regions == [f"--region: {colour}" for colour in boxes]
    assert "frontal: a.png" in page.inner_text(".seen figcaption")


def test_what_cannot_be_reported_is_a_message_by_the_uploaded_name(page: Page, shown: Served, tmp_path: Path) -> None:
    page.click("#write")
    assert "No X-ray yet" in page.inner_text(".problem")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    write_report(page, tmp_path / "broken.png")
    page.wait_for_selector(".problem:has-text('broken.png')")
    assert page.inner_text(".problem") == "broken.png: is not a PNG, JPEG or DICOM image"


def test_the_page_says_that_the_policy_knows_rendered_xrays_alone(page: Page) -> None:
    about = page.locator(".backend").first.inner_text()
    assert about.endswith(", trained on rendered X-rays: what it writes of a real one means nothing.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_that_the_prompt_has_no_indication_can_be_read_in_both_schemes(
    chromium: Browser, shown: Served, scheme: str
) -> None:
    with looked_at(chromium, shown.url, color_scheme=scheme) as page:
        told = page.get_by_text("This policy's prompt has no indication.")
        text = luminance(told.evaluate("one => getComputedStyle(one).color"))
        behind = luminance(told.evaluate("one => getComputedStyle(one.closest('.block')).backgroundColor"))
    assert (max(text, behind) + 0.05) / (min(text, behind) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_two_reports_are_compared_in_the_other_tab(page: Page) -> None:
    page.get_by_role("tab", name="Two reports").click()
    page.fill("#reference textarea", "No edema.")
    page.fill("#hypothesis textarea", "No edema.")
    page.click("#compare")
    page.wait_for_selector("td[data-component=graph_f1]:has-text('1.0000')")


def test_the_page_of_a_policy_is_heard_on_this_machine_alone(shown: Served) -> None:
    assert shown.listens_on() == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "none: there is no such folder"),
        (["--backend", "embedded", "--threads", "2"], "--threads: the policy's engine sets the threads"),
        (["--token-file", "t"], "are for --address"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(tmp_path / "none"), *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert reason in told
    assert told.count("\n") == 1
