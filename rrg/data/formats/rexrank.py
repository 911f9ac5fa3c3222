"""ReXrank's JSON: test sets in, predictions out.

Source: github.com/rajpurkarlab/ReXrank, `data/READMD.md`, `data/*/ReXRank_*.json`, `example_files/evaluation_script.md`.
A file is one object, {study id: record}. `root` is the file, or a folder with exactly one *.json.

| field | study |
|---|---|
| the key | id |
| `image_path` (list) | images, under the folder of the file or its `images/`, `files/`, `PNG/` (IU, MIMIC, CheXpert Plus). A leading "/" is dropped: ReXrank glues the path to its image root |
| `frontal_lateral` (one an image) | views: Frontal / Lateral, or "postero-anterior", "left lateral" (MIMIC); where it says nothing, `key_image_path` is the frontal one |
| `section_findings`, `section_impression` | findings, impression, verbatim; NaN (as pandas writes it) is no text |
| `context` "Age:77.0.Gender:F.Indication: ..Comparison: .." | indication, comparison; "nan" is no text; age and sex are not used |
| `split` | split, "test" where it is missing (CheXpert Plus) |
| `subject_id`, else "patient64620" in the key, else the number in an IU-Xray id | patient |

`report` repeats the two sections, `key_image_path` is one of `image_path`. Predictions are the same file with
`model_prediction` in each record.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from rrg.data.formats.fields import find_images, number_of, only_file, split_of, text_of, view_of
from rrg.data.formats.source import Source, read_text
from rrg.data.study import Report, Study, View
from rrg.data.studyset import NO_FIELD, ProblemLog
from rrg.errors import UserError

_INDICATION: Final = re.compile(r"Indication:(.*?)(?=Comparison:|</context>|\Z)", re.DOTALL)
_COMPARISON: Final = re.compile(r"Comparison:(.*?)(?=</context>|\Z)", re.DOTALL)
_FINDINGS: Final = re.compile(r"\A\s*Findings:(.*?)(?=Impression:|\Z)", re.DOTALL | re.IGNORECASE)
_FOLDERS: Final = ("images", "files", "PNG", ".")


class Prediction(NamedTuple):
    """One study of a predictions file."""

    id: str
    reference: str
    hypothesis: str


def read(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies in the order of the file."""
    path = only_file(source.root, "*.json")
    content, twice = _load(path)
    for name in twice:
        log.add(f"{path}[{name}]", "id", "occurs twice; the first is kept")
    for study_id, record in content.items():
        study = _study(path, study_id, record, log)
        if study is not None:
            yield study


def write_predictions(path: Path, studies_json: Path, predictions: Mapping[str, str]) -> None:
    """`studies_json` with each study's text as `model_prediction`, as ReXrank's scorer wants it.

    Raises `UserError` where studies and predictions don't pair up one to one.
    """
    content, _ = _load(studies_json)
    _pair_up(set(content), set(predictions), studies_json)
    for study_id, record in content.items():
        if not isinstance(record, dict):
            raise UserError(f"{studies_json}[{study_id}]: not an object")
    records = {study_id: {**record, "model_prediction": predictions[study_id]} for study_id, record in content.items()}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(records, indent=4), encoding="utf-8")
    os.replace(part, path)


def read_predictions(path: Path, section: Literal["findings", "report"] = "findings") -> list[Prediction]:
    """(id, reference, hypothesis) of each study of a predictions file.

    "report" is what ReXrank's scorer compares: "Findings: .. Impression: .." ("None" for a missing section) with the
    prediction as it is. "findings" compares `section_findings` (may be "") with the text after "Findings:" and before
    "Impression:" of the prediction, or all of it where it has no "Findings:".
    """
    rows = []
    content, twice = _load(path)
    if twice:
        raise UserError(f"{path}: {twice[0]!r} occurs twice")
    for study_id, record in content.items():
        if not isinstance(record, dict) or not isinstance(record.get("model_prediction"), str):
            raise UserError(f"{path}[{study_id}]: model_prediction is missing or no text")
        findings, impression = text_of(record, "section_findings"), text_of(record, "section_impression")
        hypothesis = record["model_prediction"].strip()
        if section == "report":
            findings = f"Findings: {findings or None} Impression: {impression or None}"
        elif match := _FINDINGS.search(hypothesis):
            hypothesis = match.group(1).strip()
        rows.append(Prediction(study_id, findings, hypothesis))
    return rows


def context_sections(context: str) -> tuple[str, str]:
    """(indication, comparison) of ReXrank's `context`."""
    found = (_INDICATION.search(context), _COMPARISON.search(context))
    texts = [match.group(1).strip() if match else "" for match in found]
    indication, comparison = ("" if text == "nan" else text for text in texts)
    return indication, comparison


def _load(path: Path) -> tuple[dict[str, Any], list[str]]:
    """({study id: record}, the keys that occur twice, which plain JSON parsing would hide); the first ones count."""
    twice: list[str] = []

    def first_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                twice.append(name)
            content.setdefault(name, value)
        return content

    try:
        content = json.loads(read_text(path), object_pairs_hook=first_of)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be an object of ReXrank's records by study id")
    return content, twice


def _pair_up(studies: set[str], predicted: set[str], path: Path) -> None:
    for names, what in ((studies - predicted, "have no prediction"), (predicted - studies, f"are not in {path}")):
        if names:
            raise UserError(f"{len(names)} studies {what}, the first is {min(names)!r}")


def _study(path: Path, study_id: str, record: Any, log: ProblemLog) -> Study | None:
    where = f"{path}[{study_id}]"
    if not isinstance(record, dict):
        log.add(where, NO_FIELD, "not an object")
        return None
    findings, impression = text_of(record, "section_findings"), text_of(record, "section_impression")
    if not findings and not impression:
        log.add(where, "section_findings", "missing or empty, and so is section_impression")
        return None
    split = split_of(str(record.get("split", "test")))
    if split is None:
        log.add(where, "split", f"{record['split']!r} is none of train, val, test")
        return None
    names = record.get("image_path")
    if isinstance(names, list):
        names = [name.removeprefix("/") if isinstance(name, str) else name for name in names]
    roots = tuple(path.parent / folder for folder in _FOLDERS)
    images = find_images(roots, names, _views(record), where, log)
    if not images:
        return None
    return Study(
        id=study_id,
        split=split,
        images=images,
        report=Report(findings, impression, *context_sections(text_of(record, "context"))),
        source="rexrank",
        patient=_patient(study_id, record),
    )


def _views(record: Mapping[str, Any]) -> list[View | None]:
    names, given, key = record.get("image_path"), record.get("frontal_lateral"), record.get("key_image_path")
    words = given if isinstance(given, list) else []
    views: list[View | None] = []
    for index, name in enumerate(names if isinstance(names, list) else []):
        word = words[index] if index < len(words) else None
        by_key: View | None = None if key is None else "frontal" if name == key else "lateral"
        views.append((view_of(word) if isinstance(word, str) else None) or by_key)
    return views


def _patient(study_id: str, record: Mapping[str, Any]) -> str | None:
    if isinstance(record.get("subject_id"), str | int):
        return str(record["subject_id"])
    match = re.match(r"(patient\d+)_", study_id)
    number = number_of(study_id)
    return match.group(1) if match else None if number is None else f"CXR{number}"
