"""What the packages import is what pyproject.toml asks for."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = {"actors", "configs", "learner", "protos", "reward_server", "rrg"}
# Packages that several distributions share a name in, and ones of the extras.
GIVEN = {"google": "protobuf", "vllm": "vllm"}


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=! ]", requirement)[0]).lower()


def imported() -> set[str]:
    """The third-party packages that the wheel's modules import, anywhere in them."""
    names = set()
    for path in (one for room in ROOMS for one in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - ROOMS - set(sys.stdlib_module_names)


def test_every_package_that_is_imported_is_asked_for() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = {canonical(one) for group in (PROJECT["project"]["dependencies"], *extras.values()) for one in group}
    installed = packages_distributions()
    missing = {
        name
        for name in imported()
        if not asked & {canonical(one) for one in (GIVEN.get(name, name), *installed.get(name, []))}
    }
    assert not missing


def test_every_folder_of_the_rooms_is_in_the_wheel_those_of_data_too() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    parents = {path.parent.relative_to(ROOT).parts for path in files}
    found = {".".join(parts) for parts in parents if not {"__pycache__", ".mypy_cache"} & set(parts)}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
