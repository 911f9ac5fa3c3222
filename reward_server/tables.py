"""Rows of pairs in files, and rows of scores out of them: JSON lines, CSV, TSV, two text files.

Contract: streams, never holds a whole file. A bad row is a RewardSetupError that names the file, the line and the
field, and quotes no report. Every row has an `id`: its own, or else the number of its line. Files are UTF-8, with or
without a byte order mark.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

from reward_server.errors import RewardSetupError

Fields = Mapping[str, Any]
_LONGEST_CELL = 64 * 2**20
_JSON_LINES = (".jsonl", ".ndjson", ".json", "")  # no ending: /dev/fd/3, or a name of one's own


@dataclass(frozen=True)
class Row:
    """One pair: `fields` are what the output keeps of the input, the `id` first. `problem`: why it has no reports."""

    fields: Fields
    reference: str
    hypothesis: str
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns or fields hold what; `id` may be absent from a file."""

    reference: str = "reference"
    hypothesis: str = "hypothesis"
    id: str = "id"

    def row(self, fields: dict[str, Any], place: str, line: int) -> Row:
        """The pair in the fields of a line; `place` names the line in errors."""
        kept = {name: value for name, value in fields.items() if name not in (self.reference, self.hypothesis, self.id)}
        kept = {"id": fields.get(self.id, line), **kept}
        for name in (self.reference, self.hypothesis):
            if name not in fields:
                return Row(kept, "", "", f"{place}: the field `{name}` is missing; the line has {_names(fields)}")
            if not isinstance(fields[name], str):
                return Row(kept, "", "", f"{place}: the field `{name}` must be a string, not {_kind(fields[name])}")
        return Row(kept, fields[self.reference], fields[self.hypothesis])

    def check_first(self, fields: Sequence[str], place: str) -> None:
        """RewardSetupError if the columns or fields that a file begins with are not those that were named."""
        for flag, name in (("--reference-column", self.reference), ("--hypothesis-column", self.hypothesis)):
            if name not in fields:
                raise RewardSetupError(f"{place}: no column `{name}`; it has {_names(fields)}: name yours with {flag}")


class Rows:
    """Iterates over the rows of one file or of two; `fraction` says how much of the (first) file has been read."""

    def __init__(self, rows: Iterator[Row], source: TextIO) -> None:
        self._rows, self._source = rows, source
        self._size = 0 if source is sys.stdin else Path(source.name).stat().st_size

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1, to a few kilobytes; None where the size is not known (a pipe)."""
        return min(1.0, self._source.buffer.tell() / self._size) if self._size else None


@contextmanager
def open_pairs(path: str, columns: Columns) -> Iterator[Rows]:
    """Rows of JSON lines, or of a table with a header if the name ends in .csv or .tsv; `-` is JSON lines on stdin.

    Waits for the first row: RewardSetupError if it is bad, or there is none.
    """
    delimiter = {".csv": ",", ".tsv": "\t"}.get(Path(path).suffix.lower())
    with _source(path) as source:
        rows = _read_table(source, path, delimiter, columns) if delimiter else _read_json_lines(source, path, columns)
        yield Rows(_begun(rows, path), source)


@contextmanager
def open_texts(references: str, hypotheses: str) -> Iterator[Rows]:
    """Rows of two text files with a report on each line, like `open_pairs`; an empty line is an empty report."""
    with _opened(references, "r") as first, _opened(hypotheses, "r") as second:
        yield Rows(_begun(_read_texts(first, second, references, hypotheses), references), first)


def _begun(rows: Iterator[Row], name: str) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise RewardSetupError(f"{name}: no pairs in it: give a file with a reference and a hypothesis at least")
    return chain([first], rows)


def _read_json_lines(source: TextIO, name: str, columns: Columns) -> Iterator[Row]:
    started = False
    for number, line in _lines(source, name):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise RewardSetupError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(fields, dict):
            raise RewardSetupError(f"{place}: must be an object with `{columns.reference}` and `{columns.hypothesis}`")
        if not started:
            columns.check_first(list(fields), place)
        started = True
        yield columns.row(fields, place, number)


def _read_table(source: TextIO, name: str, delimiter: str, columns: Columns) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line for _, line in _lines(source, name)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_header(header, name, columns)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise RewardSetupError(
                    f"{name}, line {reader.line_num}: {len(cells)} cells, the header has {len(header)}"
                )
            fields = dict(zip(header, cells, strict=True))
            yield columns.row(fields, f"{name}, line {reader.line_num}", reader.line_num)
    except csv.Error as error:
        raise RewardSetupError(f"{name}, line {reader.line_num}: not a table ({error})") from error


def _check_header(header: Sequence[str], name: str, columns: Columns) -> None:
    columns.check_first(header, f"{name}, line 1")
    twice = {column for column in header if header.count(column) > 1}
    if twice:
        raise RewardSetupError(f"{name}, line 1: {_names(sorted(twice))} stands twice in the header")


def _read_texts(first: TextIO, second: TextIO, references: str, hypotheses: str) -> Iterator[Row]:
    others = _lines(second, hypotheses)
    number = 0
    for number, line in _lines(first, references):
        _, other = next(others, (0, None))
        if other is None:
            raise RewardSetupError(f"{hypotheses} ends after line {number - 1}, {references} does not: not pairs")
        yield Row({"id": number}, line.rstrip("\r\n"), other.rstrip("\r\n"))
    if next(others, None) is not None:
        raise RewardSetupError(f"{references} ends after line {number}, {hypotheses} does not: not pairs")


def _lines(source: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, ends kept; RewardSetupError where the file is not UTF-8."""
    number = 0
    try:
        for number, line in enumerate(source, 1):
            yield number, line
    except UnicodeDecodeError as error:
        raise RewardSetupError(f"{name}, after line {number}: not UTF-8 text; convert it first") from error


def _source(path: str) -> AbstractContextManager[TextIO]:
    if path != "-":
        return _opened(path, "r")
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    return nullcontext(sys.stdin)


def _opened(path: str, mode: Literal["r", "w", "x"]) -> TextIO:
    # Only "\n" ends a line: a report may hold other line breaks of Unicode.
    try:
        return open(path, mode, encoding="utf-8-sig" if mode == "r" else "utf-8", newline="\n")
    except OSError as error:
        raise RewardSetupError(f"{path}: {error.strerror}") from error


def _kind(value: object) -> str:
    return {type(None): "null", list: "a list", dict: "an object", bool: "true or false"}.get(type(value), "a number")


def _names(names: Iterator[str] | Sequence[str] | Fields) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


class ScoreWriter:
    """Writes rows of scores as JSON lines or CSV. Columns of CSV: those kept of the first row, `scores`, `error`."""

    def __init__(self, target: TextIO, scores: Sequence[str], *, table: bool) -> None:
        self._target = target
        self._scores = tuple(scores)
        self._table = table
        self._csv: csv.DictWriter[str] | None = None

    def write(self, row: Row, scores: Mapping[str, float] | None, error: str | None = None) -> None:
        """One row: the kept fields, then either the scores or the error."""
        for name in (*self._scores, "error"):
            if name in row.fields:
                raise RewardSetupError(
                    f"row {row.fields['id']}: its field `{name}` has the name of an output field; rename it first"
                )
        result: dict[str, Any] = {"error": error} if scores is None else {name: scores[name] for name in self._scores}
        if self._table:
            self._write_cells({**row.fields, **result})
        else:
            self._target.write(json.dumps({**row.fields, **result}) + "\n")

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._target.flush()

    def _write_cells(self, cells: Mapping[str, Any]) -> None:
        if self._csv is None:
            kept = [name for name in cells if name not in (*self._scores, "error")]
            self._csv = csv.DictWriter(self._target, [*kept, *self._scores, "error"], lineterminator="\n")
            self._csv.writeheader()
        unknown = [name for name in cells if name not in self._csv.fieldnames]
        if unknown:
            raise RewardSetupError(
                f"row {cells['id']}: the first row had no field {_names(unknown)}, so the CSV has no column for it; "
                "write JSON lines"
            )
        self._csv.writerow(cells)


def check_output(path: str, *, overwrite: bool, inputs: Sequence[str]) -> None:
    """RewardSetupError if scores can't be written there: of another format, no folder, one of the inputs, or a file
    that exists without `overwrite`."""
    output = Path(path)
    if path == "-":
        if overwrite:
            raise RewardSetupError("--overwrite is for a file, and --output - is stdout: leave it out")
        return
    if not is_table(path) and output.suffix.lower() not in _JSON_LINES:
        raise RewardSetupError(
            f"--output {path}: scores are JSON lines (.jsonl, .ndjson, .json) or a table (.csv), not {output.suffix}"
        )
    if not output.parent.is_dir():
        raise RewardSetupError(f"--output {path}: there is no folder {output.parent}: make it, or choose another")
    if output.is_dir():
        raise RewardSetupError(f"--output {path} is a folder: name a file in it")
    if not output.exists():
        return
    if any(Path(name).exists() and output.samefile(name) for name in inputs):
        raise RewardSetupError(f"--output {path} is the input: choose another")
    if not overwrite:
        raise RewardSetupError(f"--output {path} exists: choose another, or add --overwrite")


def is_table(path: str) -> bool:
    """Whether scores of that name are CSV, and not JSON lines."""
    return Path(path).suffix.lower() == ".csv"


@contextmanager
def open_scores(path: str, *, overwrite: bool) -> Iterator[TextIO]:
    """The output, after `check_output`; `-` is stdout."""
    if path == "-":
        yield sys.stdout
        return
    with _opened(path, "w" if overwrite else "x") as target:
        yield target
