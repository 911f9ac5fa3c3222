"""The page of two reports, as people use it: in a real browser."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from reward_server.backends import embedded, published
from reward_server.page.meanings import MEANINGS
from reward_server.scorer import Scorer
from reward_server.spec import RADCLIQ_V0, RADCLIQ_V1
from tests.reward_server.conftest import RunningServer
from tests.reward_server.pages import Served, browser, looked_at, served

REFERENCE = "The heart is enlarged. There is a left pleural effusion. Right basal pneumonia. No pneumothorax."
HYPOTHESIS = "The heart is normal. Right basal opacity. No pneumothorax. An old rib fracture is seen."
PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    with served("reward_server", "ui", "--backend", "embedded", "--port", "0", folder=folder) as page:
        yield page


@pytest.fixture
def page(chromium: Browser, shown: Served) -> Iterator[Page]:
    with looked_at(chromium, shown.url) as opened:
        yield opened


def compare(page: Page, reference: str, hypothesis: str) -> None:
    page.fill("#reference textarea", reference)
    page.fill("#hypothesis textarea", hypothesis)
    page.click("#compare")


def marks(page: Page, report: str) -> list[tuple[str | None, str]]:
    """(class, text without its sign) of every mark in a report."""
    found = page.locator(f"[data-report={report}] mark")
    return [(one.get_attribute("class"), one.inner_text()[:-1].strip()) for one in found.all()]


def test_the_components_on_the_page_are_those_of_the_scorer(page: Page, scorer: Scorer) -> None:
    compare(page, REFERENCE, HYPOTHESIS)
    page.wait_for_selector(".result")
    [score] = scorer.score([(REFERENCE, HYPOTHESIS)])
    for name, value in score.items():
        assert page.inner_text(f"td[data-component={name}]") == f"{value:.4f}"
    assert page.inner_text("[data-component=composite]") == f"{score['embedded']:.3f}"


def test_what_matched_was_missed_invented_or_contradicted_is_marked_in_the_text(page: Page) -> None:
    compare(page, REFERENCE, HYPOTHESIS)
    page.wait_for_selector(".result")
    assert marks(page, "reference") == [
        ("contradicted", "enlarged"),
        ("missed", "pleural effusion"),
        ("partly", "pneumonia"),
        ("matched", "pneumothorax"),
    ]
    assert marks(page, "hypothesis") == [
        ("contradicted", "normal"),
        ("partly", "opacity"),
        ("matched", "pneumothorax"),
        ("invented", "rib fracture"),
    ]
    assert "left effusion" in page.inner_text(".graph >> nth=0")
    assert "located at" in page.inner_text(".graph >> nth=0")


def test_the_page_says_what_it_is_for_and_that_embedded_is_not_radcliq(page: Page) -> None:
    text = page.inner_text("body")
    assert page.title() == "LM-RRG"
    assert "For research, not for diagnosis." in text
    assert "embedded (embedded-v1)" in text
    assert "Not RadCliQ" in text


def test_typed_markup_and_templates_are_text(page: Page) -> None:
    typed = "<img src=x onerror=\"document.title='hacked'\"> ${1+1} {{value}} </div> edema"
    compare(page, typed, typed)
    page.wait_for_selector(".result")
    assert page.locator("[data-report=reference]").inner_text().startswith(typed.removesuffix("edema"))
    assert page.title() == "LM-RRG"


def test_bad_input_is_a_message_in_the_place_of_the_result(page: Page) -> None:
    compare(page, " \n", HYPOTHESIS)
    assert "The reference is empty" in page.inner_text(".problem")
    compare(page, REFERENCE, "y" * 16_001)
    page.wait_for_selector(".problem:has-text('16001 characters; the most are 16000')")
    compare(page, REFERENCE, "")
    page.wait_for_selector(".result")


def test_an_example_fills_both_reports(page: Page) -> None:
    page.get_by_text("sides swapped").click()
    page.wait_for_function("document.querySelector('#hypothesis textarea').value.includes('right pleural effusion')")
    assert "left pleural effusion" in page.input_value("#reference textarea")


def test_the_page_fits_a_phone(chromium: Browser, shown: Served) -> None:
    with looked_at(chromium, shown.url, **PHONE) as page:
        compare(page, REFERENCE, HYPOTHESIS)
        page.wait_for_selector(".result")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_it_is_heard_on_this_machine_alone_and_by_no_other_name(shown: Served) -> None:
    assert shown.listens_on() == {"127.0.0.1"}
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(shown.url).port, timeout=10)
    connection.request("GET", "/", headers={"Host": "rebound.example"})
    assert connection.getresponse().status == 400
    connection.close()


def test_no_typed_text_is_logged_or_written(page: Page, shown: Served) -> None:
    compare(page, "Seldomword effusion.", "Seldomword edema.")
    page.wait_for_selector("[data-report=reference]:has-text('Seldomword')")
    folder = shown.uploads.parents[1]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files  # stderr, at least
    assert not [path for path in files if b"eldomword" in path.read_bytes()]
    assert shown.uploads.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in folder.iterdir()) == ["stderr", "tmp"]


def test_a_server_elsewhere_can_score(chromium: Browser, server: RunningServer, scorer: Scorer, tmp_path: Path) -> None:
    arguments = ("ui", "--address", server.address, "--port", "0")
    with (
        served("reward_server", *arguments, folder=tmp_path) as shown,
        looked_at(chromium, shown.url) as page,
    ):
        compare(page, REFERENCE, HYPOTHESIS)
        page.wait_for_selector(".result")
        [score] = scorer.score([(REFERENCE, HYPOTHESIS)])
        assert page.inner_text("td[data-component=graph_f1]") == f"{score['graph_f1']:.4f}"


def test_a_taken_port_is_named_with_the_way_out_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        code = (
            "import sys; from reward_server.cli import main; status = main(sys.argv[1:]);"
            "print(status, {'torch', 'gradio'} & set(sys.modules))"
        )
        command = [sys.executable, "-c", code, "ui", "--backend", "embedded", "--port", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2 set()\n"
    assert f"--port {number}: Address already in use; choose another, or 0 for a free one" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_range_of_a_component_holds_what_blank_and_unrelated_text_have() -> None:
    spans = {name: meaning.span for name, meaning in MEANINGS["published"].items()}
    assert spans["bertscore"] == "up to 1; about 0 for unrelated text, -5.55 for a blank"
    for formula, name in ((RADCLIQ_V1, "radcliq_v1"), (RADCLIQ_V0, "radcliq_v0")):
        best, real, blank = map(float, re.findall(r"-?[0-9.]+", spans[name]))
        assert formula(1, 1, 1, 1) == pytest.approx(best, abs=0.05)
        assert formula(0, -0.3, 0, 0) == pytest.approx(real, abs=0.5)
        assert formula(0, -5.55, 0.7, 0) == pytest.approx(blank, abs=1)


def test_every_component_of_every_backend_has_its_meaning() -> None:
    assert set(MEANINGS["embedded"]) == set(embedded.COMPONENTS)
    assert set(MEANINGS["published"]) == set(MEANINGS["reference"]) == set(published.COMPONENTS)
