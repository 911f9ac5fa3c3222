"""Predictions files of every kind are read alike, and what is wrong with one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.evaluation.predictions import Columns, Prediction, aligned, read_predictions
from rrg.errors import UserError

ROWS = [Prediction("a", "Heart, large.\nClear.", "Heart normal."), Prediction("b", "Clear.", "")]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_tables_and_rexrank_give_the_same_rows(tmp_path: Path) -> None:
    rows = [vars(row) for row in ROWS]
    cells = '"Heart, large.\nClear.",Heart normal.,a\nClear.,,b\n'
    rexrank = {
        row.id: {"section_findings": row.reference, "section_impression": "x", "model_prediction": row.hypothesis}
        for row in ROWS
    }
    files = [
        written(tmp_path / "p.jsonl", lines(rows) + "\n"),
        written(tmp_path / "p.csv", f"\ufeffreference,hypothesis,id\n{cells}"),
        written(tmp_path / "q.json", json.dumps(rexrank)),
    ]
    assert [read_predictions(path) for path in files] == [ROWS] * 3


def test_a_table_without_ids_and_with_other_column_names_is_numbered(tmp_path: Path) -> None:
    path = written(tmp_path / "p.tsv", "truth\toutput\nClear.\tLarge.\nLarge.\tClear.\n")
    rows = read_predictions(path, Columns("truth", "output"))
    assert rows == [Prediction("2", "Clear.", "Large."), Prediction("3", "Large.", "Clear.")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", lines([{"id": 1, "reference": "x", "hypothesis": "y"}] * 2), "1 ids occur more than once.*'1'"),
        ("p.jsonl", lines([{"id": 1, "reference": "x", "text": "y"}]), "line 1: no column 'hypothesis'.*--columns"),
        ("p.jsonl", lines([{"id": 1, "reference": "x", "hypothesis": None}]), "line 1: hypothesis must be text"),
        ("p.jsonl", '{"id": 1\n', "line 1: not JSON"),
        ("p.jsonl", "[1]\n", "line 1: must be an object"),
        ("p.csv", "id,reference\n1,x\n", "no column 'hypothesis'; it has id, reference"),
        ("p.csv", "id,reference,hypothesis\n", "has no rows"),
        ("p.txt", "x", "end in .jsonl"),
        ("p.json", "[]", "object"),
    ],
)
def test_a_bad_file_is_told_with_its_place(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_predictions(written(tmp_path / name, text))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl is missing"):
        read_predictions(tmp_path / "none.jsonl")


def test_a_baseline_is_brought_to_the_same_order() -> None:
    other = [Prediction("b", "clear .", "x"), Prediction("a", "Heart large. Clear", "y")]
    assert aligned(ROWS, other, ("p", "q")) == other[::-1]


def test_a_baseline_of_other_studies_or_references_is_refused() -> None:
    with pytest.raises(UserError, match="q lacks 1 of the ids of p, the first is 'b'"):
        aligned(ROWS, ROWS[:1], ("p", "q"))
    with pytest.raises(UserError, match="p lacks 1 of the ids of q, the first is 'b'"):
        aligned(ROWS[:1], ROWS, ("p", "q"))
    with pytest.raises(UserError, match="1 studies have different references in p and q, the first is 'b'"):
        aligned(ROWS, [ROWS[0], Prediction("b", "Large.", "")], ("p", "q"))
