"""`python -m configs.reference`: every field of the configuration as a Markdown page, read from `configs.schema`.

Contract: `page()` has a table for each dataclass, a row for each field, or for each few that a comment explains
together: name, type, default, and the comment above it. Raises ValueError for a field without a comment: there is no
field without words. `docs/reference/config.md` is this page; a test compares them (`make reference` writes it).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from configs import schema
from configs.load import GROUPS

_HEAD: Final = """# Every field of the configuration

Made from `configs/schema.py` by `make reference`. On the command line a field is `GROUP.FIELD=VALUE`
(`learner.rl.steps=40`), a group's file `GROUP=NAME` (`model=smollm2`); a new entry of a dictionary, such as
`reward.component_weights`, takes a `+` in front. `python -m learner.main dry_run=true ...` prints all of it,
resolved and checked. Defaults are the dataclasses'; the files in `configs/` choose other values for some jobs.
"""


@dataclass(frozen=True)
class _Field:
    name: str
    type: str
    default: str


def page() -> str:
    """The whole page, ending with a new line."""
    source = inspect.getsource(schema)
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    paths = dict(_paths("", classes["Config"], classes))
    lines = source.splitlines()
    sections = (_section(path, classes[name], lines, classes) for path, name in paths.items())
    return "\n".join([_HEAD, *sections])


def _paths(prefix: str, node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[tuple[str, str]]:
    """Where each dataclass stands in a config ("learner.rl.kl"), parents first."""
    yield prefix, node.name
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind = ast.unparse(statement.annotation)
            if kind in classes:
                yield from _paths(f"{prefix}.{statement.target.id}".lstrip("."), classes[kind], classes)


def _section(path: str, node: ast.ClassDef, lines: list[str], classes: dict[str, ast.ClassDef]) -> str:
    rows = [f"## `{path}`" if path else "## The whole job", ""]
    if path in GROUPS:
        rows += [f"Choose with `{path}=NAME`; the names are the files in `configs/{path}/`.", ""]
    rows += ["| field | type | default | meaning |", "|---|---|---|---|"]
    explained = list(_explained(node, lines))
    for words, those in explained:
        fields = [one for one in those if one.type not in classes]
        if not fields:
            continue
        names, types, defaults = (
            "<br>".join(f"`{cell}`".replace(" | None`", "` or `null`") if cell else "" for cell in column)
            for column in zip(*((one.name, one.type, one.default) for one in fields), strict=True)
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (names, types, defaults, words)) + " |")
    nested = [f"{path}.{one.name}".lstrip(".") for _, fields in explained for one in fields if one.type in classes]
    if nested:
        rows += ["", "Below: " + ", ".join(f"[`{name}`](#{name.replace('.', '')})" for name in nested) + "."]
    return "\n".join([*rows, ""])


def _explained(node: ast.ClassDef, lines: list[str]) -> Iterator[tuple[str, list[_Field]]]:
    """Each comment of a dataclass with the fields that follow it, up to the next comment."""
    words: list[str] = []
    fields: list[_Field] = []
    statements = {one.lineno: one for one in node.body if isinstance(one, ast.AnnAssign)}
    for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
        text = lines[number - 1].strip()
        if text.startswith("#"):
            if fields:
                yield " ".join(words), fields
                words, fields = [], []
            words.append(text.removeprefix("#").strip())
        elif number in statements:
            if not words:
                raise ValueError(f"configs/schema.py:{number}: a field without a comment above it")
            fields.append(_field(statements[number]))
    if fields:
        yield " ".join(words), fields


def _field(statement: ast.AnnAssign) -> _Field:
    assert statement.value is not None, "OmegaConf's structured configs give every field a value"
    value = statement.value
    if isinstance(value, ast.Call):  # field(default_factory=...)
        factory = value.keywords[0].value
        value = factory.body if isinstance(factory, ast.Lambda) else factory
    default = ast.unparse(value).replace("'", '"')
    kind = ast.unparse(statement.annotation)
    yaml = {"dict": "{}", "None": "null", "True": "true", "False": "false", "MISSING": ""}
    return _Field(ast.unparse(statement.target), kind, yaml.get(default, default))


if __name__ == "__main__":
    print(page(), end="")
