"""Reading pairs and writing scores: formats, ids, and errors that name file, line and field."""

from __future__ import annotations

import csv
import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import RewardSetupError
from reward_server.tables import Columns, Row, ScoreWriter, check_output, open_pairs, open_scores, open_texts

SECRET = "effusion"


def read(path: Path, text: str, columns: Columns | None = None) -> list[Row]:
    path.write_text(text, encoding="utf-8", newline="")
    with open_pairs(str(path), columns or Columns()) as rows:
        return list(rows)


def test_json_lines_keep_their_other_fields_and_get_the_line_as_id(tmp_path: Path) -> None:
    text = (
        '\ufeff{"id": "a", "split": "test", "reference": "x", "hypothesis": "y"}\r\n\n'
        '{"reference": "first\\u2028second", "hypothesis": ""}'
    )
    assert read(tmp_path / "x.jsonl", text) == [
        Row({"id": "a", "split": "test"}, "x", "y"),
        Row({"id": 3}, "first\u2028second", ""),
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("x.csv", ","), ("x.TSV", "\t")])
def test_tables_are_read_by_column_with_line_breaks_in_cells(tmp_path: Path, name: str, delimiter: str) -> None:
    target = io.StringIO()
    cells = [["study", "truth", "made", "site"], ["s1", 'a "quoted",\ttext', "two\nlines", "A"], ["s2", "", "b", "B"]]
    csv.writer(target, delimiter=delimiter).writerows(cells)
    assert read(tmp_path / name, target.getvalue(), Columns("truth", "made", "study")) == [
        Row({"id": "s1", "site": "A"}, 'a "quoted",\ttext', "two\nlines"),
        Row({"id": "s2", "site": "B"}, "", "b"),
    ]


def test_a_table_without_ids_gets_the_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "x.csv", 'reference,hypothesis\na,"b\nc"\nd,e\n')
    assert [row.fields for row in rows] == [{"id": 3}, {"id": 4}]


def test_two_texts_are_paired_by_line_and_an_empty_line_is_an_empty_report(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("one\r\n\nthree \x0b\u2028 more", newline="")
    (tmp_path / "h.txt").write_text("eins\nzwei\n\n", newline="")
    with open_texts(str(tmp_path / "r.txt"), str(tmp_path / "h.txt")) as rows:
        assert list(rows) == [
            Row({"id": 1}, "one", "eins"),
            Row({"id": 2}, "", "zwei"),
            Row({"id": 3}, "three \x0b\u2028 more", ""),
        ]


@pytest.mark.parametrize(("short", "long"), [("r.txt", "h.txt"), ("h.txt", "r.txt")])
def test_texts_of_different_length_are_an_error_that_names_both(tmp_path: Path, short: str, long: str) -> None:
    (tmp_path / short).write_text("a\n")
    (tmp_path / long).write_text("a\nb\n")
    with (
        open_texts(str(tmp_path / "r.txt"), str(tmp_path / "h.txt")) as rows,
        pytest.raises(RewardSetupError, match=f"{short} ends after line 1, .*{long} does not"),
    ):
        list(rows)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.jsonl", f"{{{SECRET}", "line 2: not JSON"),
        ("x.jsonl", f'["{SECRET}"]', "line 2: must be an object with `reference` and `hypothesis`"),
        ("y.jsonl", f'{{"reference": "{SECRET}", "other": 1}}', "line 1: no column .hypothesis.; .*--hypothesis"),
        ("x.csv", f"reference,hypothesis\n{SECRET},b,c", "line 2: 3 cells, the header has 2"),
        ("x.csv", f"reference,hypothesis\n{SECRET}", "line 2: 1 cells, the header has 2"),
        ("x.csv", f'reference,hypothesis\n{SECRET},"a', "line 2: not a table"),
        ("x.csv", "truth,hypothesis\na,b", "no column `reference`; it has `truth`, `hypothesis`: .*--reference-col"),
        ("x.csv", "reference,hypothesis,x,x\na,b,c,d", "line 1: `x` stands twice"),
        ("x.csv", "", "line 1: no column `reference`; it has nothing"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_line_and_field_without_its_text(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    first = "" if name in ("x.csv", "y.jsonl") else '{"reference": "a", "hypothesis": "b"}\n'
    with pytest.raises(RewardSetupError, match=reason) as caught:
        read(tmp_path / name, first + text)
    assert str(tmp_path / name) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{{"reference": "{SECRET}", "other": 1}}', "line 2: the field `hypothesis` is missing; the line has"),
        (f'{{"reference": ["{SECRET}"], "hypothesis": ""}}', "`reference` must be a string, not a list"),
        ('{"reference": "", "hypothesis": null}', "`hypothesis` must be a string, not null"),
        ('{"reference": "", "hypothesis": NaN}', "`hypothesis` must be a string, not a number"),
    ],
)
def test_a_line_without_its_reports_is_a_row_with_a_problem(tmp_path: Path, text: str, reason: str) -> None:
    good = '{"reference": "a", "hypothesis": "b"}\n'
    rows = read(tmp_path / "x.jsonl", good + text + "\n" + good)
    assert [row.fields["id"] for row in rows] == [1, 2, 3]
    assert [row.problem is None for row in rows] == [True, False, True]
    assert reason in str(rows[1].problem)
    assert SECRET not in str(rows[1].problem)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RewardSetupError, match=r"none.jsonl: No such file"),
        open_pairs(str(tmp_path / "none.jsonl"), Columns()),
    ):
        pass  # fmt: skip
    (tmp_path / "latin.jsonl").write_bytes(b'{"reference": "a", "hypothesis": "b"}\n\xe9\n')
    with (
        pytest.raises(RewardSetupError, match=r"latin.jsonl, after line \d: not UTF-8"),
        open_pairs(str(tmp_path / "latin.jsonl"), Columns()) as rows,
    ):
        list(rows)


@pytest.mark.parametrize(("name", "text"), [("x.jsonl", ""), ("x.jsonl", "\n \n"), ("x.csv", "reference,hypothesis\n")])
def test_a_file_without_pairs_is_an_error_that_names_it(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(RewardSetupError, match=f"{name}: no pairs in it"):
        read(tmp_path / name, text)


def test_texts_without_a_line_are_an_error_that_names_the_references(tmp_path: Path) -> None:
    for name in ("r.txt", "h.txt"):
        (tmp_path / name).touch()
    with (
        pytest.raises(RewardSetupError, match=r"r\.txt: no pairs in it"),
        open_texts(str(tmp_path / "r.txt"), str(tmp_path / "h.txt")),
    ):
        pass  # fmt: skip


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    line = json.dumps({"reference": "a" * 100, "hypothesis": "b" * 100}) + "\n"
    (tmp_path / "x.jsonl").write_text(line * 5000 + "bad")
    with open_pairs(str(tmp_path / "x.jsonl"), Columns()) as rows:
        fractions = [rows.fraction for _ in islice(rows, 5000)]
    assert fractions[0] is not None
    assert fractions[0] < 0.05
    assert fractions == sorted(fractions)  # type: ignore[type-var]
    assert fractions[-1] == 1


def write(*rows: tuple[dict[str, Any], dict[str, float] | str], table: bool) -> str:
    target = io.StringIO()
    writer = ScoreWriter(target, ("bleu2", "reward"), table=table)
    for fields, result in rows:
        row = Row(fields, "", "")
        writer.write(row, None, result) if isinstance(result, str) else writer.write(row, result)
    return target.getvalue()


def test_scores_and_errors_are_written_as_json_lines_or_csv() -> None:
    rows = ({"id": 1, "x": None}, {"reward": 0.1, "bleu2": 1 / 3}), ({"id": 2, "x": "a,b"}, "too long")
    assert [json.loads(line) for line in write(*rows, table=False).splitlines()] == [
        {"id": 1, "x": None, "bleu2": 1 / 3, "reward": 0.1},
        {"id": 2, "x": "a,b", "error": "too long"},
    ]
    assert list(csv.reader(io.StringIO(write(*rows, table=True)))) == [
        ["id", "x", "bleu2", "reward", "error"],
        ["1", "", str(1 / 3), "0.1", ""],
        ["2", "a,b", "", "", "too long"],
    ]
    assert write(({"id": "\ud800"}, "e"), table=False) == '{"id": "\\ud800", "error": "e"}\n'


def test_a_field_that_an_output_would_hide_is_an_error() -> None:
    with pytest.raises(RewardSetupError, match="row 7: its field `reward` has the name of an output field"):
        write(({"id": 7, "reward": 1}, "e"), table=False)
    with pytest.raises(RewardSetupError, match="row 8: the first row had no field `site`"):
        write(({"id": 7}, "e"), ({"id": 8, "site": "A"}, "e"), table=True)


def test_an_output_is_replaced_only_if_asked_and_never_if_it_is_the_input(tmp_path: Path) -> None:
    path = str(tmp_path / "x.jsonl")
    check_output(path, overwrite=False, inputs=[path])
    for text in ("one", "two"):
        check_output(path, overwrite=True, inputs=["missing"])
        with open_scores(path, overwrite=True) as target:
            target.write(text)
        assert (tmp_path / "x.jsonl").read_text() == text
    with pytest.raises(RewardSetupError, match=r"x.jsonl exists: choose another, or add --overwrite"):
        check_output(path, overwrite=False, inputs=["missing"])
    with pytest.raises(RewardSetupError, match=r"x.jsonl is the input"):
        check_output(path, overwrite=True, inputs=[str(tmp_path / "." / "x.jsonl")])
    with pytest.raises(RewardSetupError, match="No such file or directory"), open_scores("/none/x", overwrite=False):
        pass


@pytest.mark.parametrize("name", ["x.jsonl", "x.NDJSON", "x.json", "x", "x.csv", "-"])
def test_scores_can_be_json_lines_or_csv(tmp_path: Path, name: str) -> None:
    check_output(name if name == "-" else str(tmp_path / name), overwrite=False, inputs=[])


@pytest.mark.parametrize("name", ["x.xlsx", "x.tsv", "x.parquet", "x.csv.gz"])
def test_scores_of_no_other_format_are_promised(tmp_path: Path, name: str) -> None:
    with pytest.raises(RewardSetupError, match=f"{name}: scores are JSON lines .*{Path(name).suffix}$"):
        check_output(str(tmp_path / name), overwrite=False, inputs=[])


def test_an_output_that_cannot_be_a_file_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(RewardSetupError, match=f"--output .*: there is no folder {tmp_path}/none: make it"):
        check_output(str(tmp_path / "none" / "x.jsonl"), overwrite=True, inputs=[])
    with pytest.raises(RewardSetupError, match=f"--output {tmp_path} is a folder"):
        check_output(str(tmp_path), overwrite=True, inputs=[])
    with pytest.raises(RewardSetupError, match="--overwrite is for a file"):
        check_output("-", overwrite=True, inputs=[])
