"""Who imports whom: the map of CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Besides a room itself and `configs.schema`, which all may read.
MAY_IMPORT = {
    "rrg/data": set(),
    "rrg/model": {"rrg.data"},
    "reward_server": {"protos"},
    "actors": {"rrg", "reward_server", "configs"},
    "learner": {"rrg", "actors", "reward_server", "configs"},
    "configs": {"rrg.errors"},
    "protos": set(),
}
OURS = {"rrg", "reward_server", "actors", "learner", "configs", "protos", "benchmarks", "tests"}
# The modules at the root of `rrg` (errors, progress, what commands share) are common ground of its two rooms.
COMMON = {"configs.schema", *(f"rrg.{path.stem}" for path in (ROOT / "rrg").glob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_the_map_allows(room: str) -> None:
    common = COMMON if room.startswith("rrg") else {"configs.schema"}
    allowed = {room.replace("/", "."), *MAY_IMPORT[room], *common}
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    strange = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if name.split(".")[0] in OURS and not any(within(name, one) for one in allowed)
    ]
    assert not strange
