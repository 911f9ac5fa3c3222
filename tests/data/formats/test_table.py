"""People's own tables: CSV and JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrg.data.formats import table
from rrg.data.formats.source import Source
from rrg.data.study import Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.iu_fixture import picture, write_csv

ROW: dict[str, Any] = {
    "id": "s1",
    "split": "train",
    "image_path": ["a.png", "sub/b.png"],
    "view": ["LL", "PA"],
    "findings": " Heart is large, lungs\nclear. ",
    "impression": "Big heart.",
    "patient": "p1",
}


def write_jsonl(root: Path, *rows: Any) -> Path:
    picture(root / "a.png")
    picture(root / "images" / "sub" / "b.png")
    path = root / "studies.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def write_table(root: Path, *rows: dict[str, Any]) -> Path:
    write_jsonl(root).unlink()
    flat = [{k: ";".join(v) if isinstance(v, list) else str(v) for k, v in row.items()} for row in rows]
    return write_csv(root / "studies.csv", list(flat[0]), [[row.get(k, "") for k in flat[0]] for row in flat])


def jsonl(root: Path, log: ProblemLog | None = None) -> list[Study]:
    return list(table.read_jsonl(Source(root), log or ProblemLog(strict=True)))


def csv(root: Path, log: ProblemLog | None = None) -> list[Study]:
    return list(table.read_csv(Source(root), log or ProblemLog(strict=True)))


def test_a_row_is_a_study_in_both_formats(tmp_path: Path) -> None:
    (by_line,) = jsonl(write_jsonl(tmp_path, ROW))
    (by_row,) = csv(write_table(tmp_path, ROW))
    for study in (by_line, by_row):
        assert (study.id, study.split, study.patient) == ("s1", "train", "p1")
        assert study.report.findings == "Heart is large, lungs\nclear."
        assert study.report.indication == ""
        assert [(image.path.name, image.view) for image in study.images] == [
            ("b.png", "frontal"),
            ("a.png", "lateral"),
        ]


def test_only_id_split_image_and_report_are_needed(tmp_path: Path) -> None:
    least = {"id": 7, "split": "test", "image_path": "a.png", "impression": "Normal."}
    (by_line,) = jsonl(write_jsonl(tmp_path, least))
    (by_row,) = csv(write_table(tmp_path, least))
    assert by_line.id == by_row.id == "7"
    assert by_line.images[0].view == "frontal"
    assert by_line.patient is by_row.patient is None


def test_the_root_is_the_file_or_a_folder_with_only_that_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold exactly one \*\.jsonl \(found: none\)"):
        jsonl(tmp_path)
    write_jsonl(tmp_path, ROW)
    assert len(jsonl(tmp_path)) == 1


def test_an_unknown_column_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown column finding; the known ones are id, split, image_path"):
        jsonl(write_jsonl(tmp_path, ROW | {"finding": "Text."}))
    with pytest.raises(UserError, match="unknown column finding"):
        csv(write_table(tmp_path, ROW | {"finding": "Text."}))


def test_a_wrong_header_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ("id", "findings"), [("1", "Text.")])
    with pytest.raises(UserError, match=r"a\.csv: the header lacks split, image_path; it has id, findings"):
        csv(path)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,split,image_path,findings\n1,train,a.png,caf\xe9\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.csv is not UTF-8"):
        csv(tmp_path)
    with pytest.raises(UserError, match=r"a\.jsonl is not UTF-8"):
        jsonl(tmp_path)


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        (ROW | {"id": " "}, "id", "missing"),
        (ROW | {"split": "dev"}, "split", "'dev' is none of train, val, test"),
        (ROW | {"findings": "", "impression": ""}, "findings", "missing or empty"),
        (ROW | {"view": ["PA"]}, "view", "1 given, one an image is needed"),
        (ROW | {"view": ["PA", "sideways"]}, "view", "'sideways' is neither frontal nor lateral"),
        (ROW | {"image_path": "", "view": ""}, "image_path", "is missing"),
        (ROW | {"image_path": ["a.png", "gone.png"]}, "image_path", "gone.png is missing"),
        (ROW | {"image_path": ["a.png", "../b.png"]}, "image_path", "points outside of"),
    ],
)
def test_a_bad_row_is_listed_with_line_field_and_reason(
    tmp_path: Path, bad: dict[str, Any], field: str, reason: str
) -> None:
    log = ProblemLog()
    good = ROW | {"findings": "One line."}
    assert len(jsonl(write_jsonl(tmp_path, good, bad), log)) == 1
    assert len(csv(write_table(tmp_path, good, bad | {"findings": str(bad["findings"]).strip()[:5]}), log)) == 1
    assert len(log.problems) == 2
    for problem, name in zip(log.problems, ("studies.jsonl:2", "studies.csv:3"), strict=True):
        assert name in problem.file
        assert problem.field == field
        assert reason in problem.reason


def test_a_line_that_is_not_json_is_listed(tmp_path: Path) -> None:
    log = ProblemLog()
    assert len(jsonl(write_jsonl(tmp_path, "{broken", "", ["list"], ROW), log)) == 1
    assert [problem.file.rsplit(":", 1)[1] for problem in log.problems] == ["1", "3"]
    assert "not JSON" in log.problems[0].reason
    assert "studies.jsonl:1: not JSON" in str(log.problems[0])  # and no word of a field
