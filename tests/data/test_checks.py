"""The check of a data set: what it counts, and what it calls wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from rrg.data.checks import check_studies
from rrg.data.study import Image, Report, Split, Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study in order, of two images."""
    for name in ("a.png", "b.png"):
        PILImage.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / name)
    images = (Image(tmp_path / "a.png", "frontal"), Image(tmp_path / "b.png", "lateral"))
    return Study("s1", "train", images, Report("The lungs are clear."), "test", patient="p1")


def test_studies_in_order_are_counted_by_split_and_view(study: Study) -> None:
    other = replace(study, id="s2", split="test", images=study.images[:1], patient="p2", report=Report("word " * 15))
    report = check_studies([study, other], ProblemLog())
    assert report.ok
    assert {name: count.studies for name, count in report.splits.items()} == {"train": 1, "val": 0, "test": 1}
    assert report.splits["train"].images == {"frontal": 1, "lateral": 1}
    assert report.splits["test"].images == {"frontal": 1}
    assert report.patients == 2
    assert {least: count for least, count in report.words.items() if count} == {1: 1, 10: 1}


def test_missing_and_corrupt_images_are_told_apart(study: Study, tmp_path: Path) -> None:
    study.images[0].path.unlink()
    study.images[1].path.write_bytes(study.images[1].path.read_bytes()[:40])
    report = check_studies([study], ProblemLog(), workers=2)
    assert list(report.missing_files) == [str(tmp_path / "a.png")]
    assert list(report.corrupt_files) == [str(tmp_path / "b.png")]
    assert not report.ok


def test_without_decoding_only_headers_and_existence_are_looked_at(study: Study, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    assert check_studies([study], ProblemLog(), decode=False).ok
    assert not check_studies([study], ProblemLog(), decode=True).ok
    (tmp_path / "a.png").write_bytes(b"no image")
    assert not check_studies([study], ProblemLog(), decode=False).ok


def test_duplicate_ids_and_patients_in_two_splits_are_wrong(study: Study) -> None:
    twice = check_studies([study, study], ProblemLog())
    assert twice.duplicate_ids == {"s1": 2}
    assert not twice.ok
    split: Split = "test"
    crossing = check_studies([study, replace(study, id="s2", split=split)], ProblemLog())
    assert crossing.patients_in_two_splits == {"p1": ("train", "test")}
    assert not crossing.ok


def test_empty_reports_are_listed_and_not_wrong(study: Study) -> None:
    report = check_studies([study, replace(study, id="s2", report=Report("", "Normal."))], ProblemLog())
    assert report.empty_reports == ("s2",)
    assert report.words[0] == 1
    assert report.ok


def test_what_the_reader_left_out_and_what_stopped_it_are_problems(study: Study) -> None:
    log = ProblemLog()

    def reader() -> Iterator[Study]:
        log.add("a.csv", "line 2", "no image")
        log.skip("another view")
        yield study
        raise UserError("b.csv is truncated")

    report = check_studies(reader(), log)
    assert [str(problem) for problem in report.problems] == [
        "a.csv: line 2: no image",
        "reading stopped: b.csv is truncated",
    ]
    assert report.skipped == {"another view": 1}
    assert report.studies == 1
    assert not report.ok


def test_a_set_of_no_study_is_wrong() -> None:
    assert not check_studies([], ProblemLog()).ok


def test_the_report_becomes_json_without_report_texts(study: Study) -> None:
    log = ProblemLog()
    log.add("a.csv", "id", "empty")
    written = json.dumps(check_studies([study], log).to_json())
    read = json.loads(written)
    assert read["ok"] is False
    assert read["problems"] == [{"file": "a.csv", "field": "id", "reason": "empty", "missing_file": None}]
    assert read["splits"]["train"]["studies"] == 1
    assert read["words"]["1"] == 1
    assert "lungs" not in written


def test_studies_are_taken_as_they_come_and_not_kept(study: Study) -> None:
    alive = 0

    class Counted(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def endless() -> Iterator[Study]:
        nonlocal alive
        for number in range(2000):
            alive += 1
            assert alive < 300
            yield replace(study, id=f"s{number}", report=Report(Counted("Clear.")))

    assert check_studies(endless(), ProblemLog(), decode=False).studies == 2000
