"""Reads predictions files: pairs of a reference report and a generated one, by study id.

Contract: JSON lines `{id, reference, hypothesis}`, a table (.csv, .tsv) with two text columns, or ReXrank's JSON
(.json). Anything wrong with a file is a `UserError` that names the file and the line or study and quotes no report.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from rrg.data.formats.rexrank import read_predictions as read_rexrank
from rrg.data.formats.source import names, open_csv, read_text
from rrg.data.sections import clean
from rrg.errors import UserError

SECTIONS: Final = ("findings", "impression", "report")
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Prediction:
    """One study: its report, and what a system wrote."""

    id: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Columns:
    """Names of the two texts; the id is `id`, or where a file has none, the number of the row."""

    reference: str = "reference"
    hypothesis: str = "hypothesis"


def read_predictions(path: Path, columns: Columns = Columns(), section: str = "findings") -> list[Prediction]:
    """All rows in the order of the file; the format goes by the file's name. Raises UserError for any bad row."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        rows = _rexrank(path, section)
    elif suffix in _DELIMITERS:
        rows = list(_table(path, _DELIMITERS[suffix], columns))
    elif suffix in (".jsonl", ".ndjson"):
        rows = list(_json_lines(path, columns))
    else:
        raise UserError(f"{path}: predictions end in .jsonl (id, reference, hypothesis), .csv, .tsv or .json (ReXrank)")
    if not rows:
        raise UserError(f"{path} has no rows")
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {len(twice)} ids occur more than once, the first is {twice[0]!r}; keep one row each")
    return rows


def aligned(rows: Sequence[Prediction], other: Sequence[Prediction], names: tuple[str, str]) -> list[Prediction]:
    """`other` in the order of `rows`; `names` are the files'.

    Raises UserError where they are not of the same studies, or give a study different references.
    """
    by_id = {row.id: row for row in other}
    known = {row.id for row in rows}
    for ids, has, lacks in ((known - set(by_id), *names), (set(by_id) - known, *reversed(names))):
        if ids:
            raise UserError(
                f"{lacks} lacks {len(ids)} of the ids of {has}, the first is {min(ids)!r}: two systems are compared on "
                "the same studies; bring both files to the same ids"
            )
    differing = [row.id for row in rows if clean(row.reference) != clean(by_id[row.id].reference)]
    if differing:
        raise UserError(
            f"{len(differing)} studies have different references in {names[0]} and {names[1]}, the first is "
            f"{differing[0]!r}"
        )
    return [by_id[row.id] for row in rows]


def _json_lines(path: Path, columns: Columns) -> Iterator[Prediction]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(fields, dict):
            raise UserError(f"{place}: must be an object with id, {columns.reference} and {columns.hypothesis}")
        yield _row(fields, columns, place, number)


def _table(path: Path, delimiter: str, columns: Columns) -> Iterator[Prediction]:
    for line, fields in open_csv(path, (), delimiter):
        yield _row(cast(Mapping[str, Any], fields), columns, f"{path}, line {line}", line)


def _row(fields: Mapping[str, Any], columns: Columns, place: str, number: int) -> Prediction:
    for name in (columns.reference, columns.hypothesis):
        if name not in fields:
            raise UserError(
                f"{place}: no column {name!r}; it has {names(fields)}; name yours with --columns REFERENCE HYPOTHESIS"
            )
        if not isinstance(fields[name], str):
            raise UserError(f"{place}: {name} must be text")
    study_id = fields.get("id", number)
    if not isinstance(study_id, str | int) or study_id == "":
        raise UserError(f"{place}: id must be text or a number")
    return Prediction(str(study_id), fields[columns.reference], fields[columns.hypothesis])


def _rexrank(path: Path, section: str) -> list[Prediction]:
    if section == "impression":
        raise UserError(f"{path}: ReXrank's file is read with --section findings or report")
    found = read_rexrank(path, "findings" if section == "findings" else "report")
    return [Prediction(row.id, row.reference, row.hypothesis) for row in found]
