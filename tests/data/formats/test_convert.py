"""Round trips between the formats, and how files are put in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rrg.data.convert import TARGETS, Images, convert
from rrg.data.formats import kaggle, openi, r2gen, rexrank, table
from rrg.data.formats.source import Source
from rrg.data.study import Box, Image, Report, Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.iu_fixture import kaggle_root, openi_root, picture

DATA = os.environ.get("LMRRG_TEST_DATA")
READERS = {"r2gen": r2gen.read, "rexrank": rexrank.read, "jsonl": table.read_jsonl, "csv": table.read_csv}


def essence(study: Study) -> tuple[object, ...]:
    """What every format keeps."""
    pictures = [(image.path.resolve().read_bytes(), image.view) for image in study.images]
    return study.id, study.split, study.report, study.patient, pictures


def read(target: str, root: Path) -> list[Study]:
    return list(READERS[target](Source(root), ProblemLog(strict=True)))


def study(folder: Path, study_id: str = "s1", **changes: object) -> Study:
    images = (Image(picture(folder / "a.PNG", (400, 200)), "frontal"), Image(picture(folder / "b.jpg"), "lateral"))
    report = Report('Heart, "big";\nlungs clear – über.', "1. Big heart.", "Cough", "None.")
    return replace(Study(study_id, "val", images, report, "test", patient="p1"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("images", ["link", "copy"])
def test_what_is_written_is_read_back(tmp_path: Path, target: str, images: Images) -> None:
    studies = [study(tmp_path / "old"), study(tmp_path / "old", "s2", split="test", report=Report("", "Normal."))]
    assert convert(studies, target, tmp_path / "new" / "set", images) == 2
    assert [essence(s) for s in read(target, tmp_path / "new" / "set")] == [essence(s) for s in studies]


@pytest.mark.parametrize("target", TARGETS)
def test_openi_and_kaggle_become_every_format(tmp_path: Path, target: str) -> None:
    by_xml = list(openi.read(Source(openi_root(tmp_path / "xml")), ProblemLog()))
    by_csv = list(kaggle.read(Source(kaggle_root(tmp_path)), ProblemLog()))
    for name, studies in (("x", by_xml), ("y", by_csv)):
        convert(iter(studies), target, tmp_path / name)
        assert [essence(s) for s in read(target, tmp_path / name)] == [essence(s) for s in studies]


def test_one_format_after_the_other_comes_back_to_the_same_file(tmp_path: Path) -> None:
    studies: list[Study] = [study(tmp_path / "old"), study(tmp_path / "old", "s2", patient=None)]
    for step, target in enumerate((*TARGETS, "r2gen")):
        convert(studies, target, tmp_path / str(step))
        studies = read(target, tmp_path / str(step))
    first, last = (tmp_path / name / "annotation.json" for name in ("0", "4"))
    assert first.read_bytes() == last.read_bytes()


def test_boxes_come_back_from_r2gen(tmp_path: Path) -> None:
    boxes = {"left lung": Box(0.5, 0.25, 1.0, 0.75)}
    convert([study(tmp_path / "old", boxes=boxes)], "r2gen", tmp_path / "new")
    assert read("r2gen", tmp_path / "new")[0].boxes == boxes


def test_images_are_linked_copied_or_left_where_they_are(tmp_path: Path) -> None:
    old = study(tmp_path / "old")
    for images in ("link", "copy", "none"):
        convert([old], "r2gen", tmp_path / images, images)
    assert (tmp_path / "link/images/s1/0.png").is_symlink()
    assert not (tmp_path / "copy/images/s1/1.jpg").is_symlink()
    assert not (tmp_path / "none/images").exists()
    texts = {name: (tmp_path / name / "annotation.json").read_text() for name in ("link", "copy", "none")}
    assert len(set(texts.values())) == 1
    assert json.loads(texts["none"])["val"][0]["image_path"] == ["s1/0.png", "s1/1.jpg"]


@pytest.mark.parametrize("study_id", ["../../up", "/etc/x", "a/b", "..", "a\0b"])
def test_an_id_never_leads_out_of_the_folder(tmp_path: Path, study_id: str) -> None:
    convert([study(tmp_path / "old", study_id)], "jsonl", tmp_path / "new")
    (back,) = read("jsonl", tmp_path / "new")
    assert back.id == study_id
    assert back.images[0].path.parent.parent == tmp_path / "new" / "images"


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert convert([study(tmp_path / "old")], "csv", tmp_path / "new") == 1
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        convert([study(tmp_path / "old")], "csv", tmp_path / "new")


def test_nothing_is_left_behind_when_reading_fails(tmp_path: Path) -> None:
    def broken() -> Iterator[Study]:
        yield study(tmp_path / "old")
        raise UserError("bad record")

    with pytest.raises(UserError, match="bad record"):
        convert(broken(), "jsonl", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_unknown_format_and_an_id_that_comes_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to dicom: one of r2gen, rexrank, jsonl, csv"):
        convert([], "dicom", tmp_path / "new")
    with pytest.raises(UserError, match="--images move: one of link, copy, none"):
        convert([], "csv", tmp_path / "new", "move")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"'s1'.*twice"):
        convert([study(tmp_path / "old")] * 2, "csv", tmp_path / "new")


@pytest.mark.skipif(DATA is None, reason="LMRRG_TEST_DATA does not name the folder of real X-rays")
@pytest.mark.parametrize("target", TARGETS)
def test_the_real_x_rays_survive_a_conversion(tmp_path: Path, target: str) -> None:
    studies = list(r2gen.read(Source(Path(str(DATA)) / "cxr_notes"), ProblemLog(strict=True)))
    assert convert(studies, target, tmp_path / "new") == 362
    back = read(target, tmp_path / "new")
    assert [essence(s) for s in back] == [essence(s) for s in studies]
    if target == "r2gen":
        for old, new in zip(studies, back, strict=True):
            assert old.boxes is not None
            assert new.boxes is not None
            for region, box in old.boxes.items():
                assert vars(new.boxes[region]) == pytest.approx(vars(box), abs=1e-5)
