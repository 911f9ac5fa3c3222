"""People's own data: a table with one study a row, as CSV (with a header) or JSONL (one JSON object a line).

`root` is the file, or a folder with exactly one *.csv or *.jsonl. Image paths are relative to the file's folder or to
`images/` in it. Columns (`COLUMNS`; the first three are needed, and `findings` or `impression`):

| column | meaning |
|---|---|
| `id` | any text, once |
| `split` | train, val or test |
| `image_path` | one path or several: a list in JSONL, separated by ";" in CSV |
| `view` | frontal or lateral (also PA, AP, LL), one an image as in `image_path`; without it the first image is frontal and the others lateral |
| `findings`, `impression`, `indication`, `comparison` | the sections of the report |
| `patient` | any text; `check` finds patients in two splits by it |

Another column is refused, since it is most likely a misspelt one. Rows are read one at a time.
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rrg.data.formats.fields import find_images, only_file, split_of, text_of, view_of
from rrg.data.formats.source import Source, open_csv
from rrg.data.study import Report, Study, View
from rrg.data.studyset import NO_FIELD, ProblemLog
from rrg.errors import UserError

COLUMNS: Final = (
    "id", "split", "image_path", "view", "findings", "impression", "indication", "comparison", "patient",
)  # fmt: skip
SEPARATOR: Final = ";"


def read_csv(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies of a CSV file, in its order."""
    path = only_file(source.root, "*.csv")
    for line, row in open_csv(path, COLUMNS[:3]):
        _refuse_unknown(row, path)
        record: dict[str, Any] = {**row, "image_path": _listed(row["image_path"]), "view": _listed(row.get("view", ""))}
        study = _study(path, f"{path}:{line}", record, "csv", log)
        if study is not None:
            yield study


def read_jsonl(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies of a JSONL file, in its order."""
    path = only_file(source.root, "*.jsonl")
    for line, text in _lines(path):
        where = f"{path}:{line}"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            log.add(where, NO_FIELD, f"not JSON ({error})")
            continue
        if not isinstance(record, dict):
            log.add(where, NO_FIELD, "not an object")
            continue
        _refuse_unknown(record, path)
        study = _study(path, where, record, "jsonl", log)
        if study is not None:
            yield study


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it") from error


def _listed(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(SEPARATOR)] if cell.strip() else []


def _refuse_unknown(names: Iterable[str], path: Path) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise UserError(f"{path}: unknown column {', '.join(unknown)}; the known ones are {', '.join(COLUMNS)}")


def _study(path: Path, where: str, record: Mapping[str, Any], source: str, log: ProblemLog) -> Study | None:
    study_id = record.get("id")
    if not isinstance(study_id, str | int) or not str(study_id).strip():
        log.add(where, "id", "missing")
        return None
    where = f"{where} (id {study_id})"
    split = split_of(str(record.get("split", "")))
    if split is None:
        log.add(where, "split", f"{record.get('split', '')!r} is none of train, val, test")
        return None
    report = Report(*(text_of(record, name) for name in ("findings", "impression", "indication", "comparison")))
    if not report.findings and not report.impression:
        log.add(where, "findings", "missing or empty, and so is impression")
        return None
    views = _views(where, record, log)
    if views is None:
        return None
    images = find_images((path.parent, path.parent / "images"), record.get("image_path"), views, where, log)
    if not images:
        return None
    patient = record.get("patient")
    return Study(
        id=str(study_id).strip(),
        split=split,
        images=images,
        report=report,
        source=source,
        patient=str(patient).strip() or None if isinstance(patient, str | int) else None,
    )


def _views(where: str, record: Mapping[str, Any], log: ProblemLog) -> list[View] | None:
    """The views given, [] without any; None, and a line in the log, if they don't fit the images."""
    given, paths = record.get("view"), record.get("image_path")
    if not given:
        return []
    words = given if isinstance(given, list) else [given]
    if len(words) != (len(paths) if isinstance(paths, list) else 1):
        log.add(where, "view", f"{len(words)} given, one an image is needed")
        return None
    views: list[View] = []
    for word in words:
        view = view_of(word) if isinstance(word, str) else None
        if view is None:
            log.add(where, "view", f"{word!r} is neither frontal nor lateral")
            return None
        views.append(view)
    return views
