"""The commands of README and docs: what they name exists, and jobs compose. None is run here."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import compose_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = ROOT / "docs/reference/commands.md"


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments after `python -m` of every line in the page's blocks of shell commands."""
    text = page.read_text()
    blocks = re.findall(r"^ *```(?:console)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^    python -m .*\n)+", text, re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for match in re.finditer(r"(?:^|[ (])python -m (.+)", line.split("$ cat")[0]):
            yield shlex.split(match[1].split("'")[0].split(" &")[0], comments=True)


ALL = sorted({tuple(arguments) for page in PAGES for arguments in commands(page)})


def test_the_pages_have_commands() -> None:
    assert len(ALL) > 60
    assert ("learner.main", "+exp=smollm2") in ALL


@pytest.mark.parametrize("module", sorted({module for module, *_ in ALL}))
def test_a_module_that_the_docs_run_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("overrides", [rest for module, *rest in ALL if module == "learner.main"], ids=" ".join)
def test_a_job_of_the_docs_composes_and_passes_the_check(overrides: list[str]) -> None:
    given = [one for one in overrides if one != "..."]
    if not any(one.startswith("reward.weights=") for one in given):
        given.append("reward.weights=DIR")
    if not any(one.startswith("data.root=") for one in given):
        given.append("data.root=DIR")
    compose_config(given)


@pytest.mark.parametrize(
    "arguments", [one for one in ALL if one[0].split(".")[0] != "benchmarks" and one[0] != "learner.main"], ids=" ".join
)
def test_a_flag_that_the_docs_use_is_one_of_its_command(arguments: tuple[str, ...]) -> None:
    sections = dict(re.findall(r"^## `python -m (.+?)`\n(.*?)(?=^## |\Z)", MADE.read_text(), re.MULTILINE | re.DOTALL))
    for length in (3, 2, 1):
        if (name := " ".join(arguments[:length])) in sections:
            break
    else:
        pytest.fail(f"docs/commands.py does not ask for the help of {arguments[0]}")
    for flag in (one.split("=")[0] for one in arguments if one.startswith("--")):
        assert re.search(rf"{flag}\b", sections[name]), f"python -m {name} has no {flag}"
