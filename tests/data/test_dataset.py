"""Loading: splits, limits, fingerprints, bad records, real layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from configs.schema import DataConfig
from rrg.data import StudySet, load_image, load_studies
from rrg.data.formats import openi
from rrg.data.study import Report, Split, Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError

Write = Callable[[dict[str, list[Any]]], DataConfig]


def record(**fields: Any) -> dict[str, Any]:
    return {"id": "s1", "report": "The heart is enlarged.", "image_path": "a.png"} | fields


def test_the_official_split_has_its_official_sizes() -> None:
    splits = [split for split, _, _ in openi.split_ids()]
    assert [splits.count(name) for name in ("train", "val", "test")] == [2069, 296, 590]  # type: ignore[arg-type]
    assert len({number for _, _, number in openi.split_ids()}) == 2955


def test_limits_take_the_first_studies_of_each_split(rendered: StudySet) -> None:
    assert [len(rendered.split(name)) for name in ("train", "val", "test")] == [20, 5, 5]  # type: ignore[arg-type]
    assert rendered.split("train")[0].id == "CXR2384_IM-0942"
    assert not rendered.problems


def test_a_rendered_study_is_complete(rendered: StudySet) -> None:
    for study in rendered:
        assert study.source == "rendered_openi"
        assert study.target.endswith(" .")
        assert "xxxx" not in study.target
        assert study.boxes is not None
        assert len(study.boxes) == 29
        assert load_image(study.images[0].path, 224).shape == (224, 224)
    assert any(study.abnormal for study in rendered)
    assert any(not study.abnormal for study in rendered)


def test_the_fingerprint_tells_data_apart(rendered: StudySet) -> None:
    folder = rendered.split("train")[0].images[0].path.parents[2]
    cfg = DataConfig("rendered_openi", None, str(folder), limit_train=20, limit_val=5, limit_test=5)
    assert load_studies(cfg).fingerprint == rendered.fingerprint
    assert load_studies(replace(cfg, limit_train=19)).fingerprint != rendered.fingerprint


def test_images_are_found_under_images_or_root_and_the_second_is_lateral(r2gen_root: Write) -> None:
    studies = load_studies(r2gen_root({"train": [record(image_path=["b.jpg", "c.png"])], "test": [record(id=7)]}))
    study = studies["s1"]
    assert [image.view for image in study.images] == ["frontal", "lateral"]
    assert studies["7"].split == "test"
    assert study.target == "the heart is enlarged ."
    assert study.findings == {"cardiomegaly"}
    assert study.region_findings is not None
    assert study.region_findings["cardiac silhouette"] == {"cardiomegaly"}


def test_boxes_follow_the_padding_of_the_image(r2gen_root: Write) -> None:
    studies = load_studies(r2gen_root({"train": [record(boxes_xyxy={"left_lung": [200, 0, 400, 200], "x": [1]})]}))
    boxes = studies["s1"].boxes
    assert boxes is not None
    box = boxes["left lung"]
    assert (box.x0, box.y0, box.x1, box.y1) == (0.5, 0.25, 1.0, 0.75)
    pixels = load_image(studies["s1"].images[0].path, 100)
    assert pixels[:24].max() == 0
    assert pixels[50, 99] > 240


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (record(id=""), "id"),
        (record(report="  "), "report"),
        (record(image_path="missing.png"), "image_path"),
        (record(image_path=[]), "image_path"),
        (record(boxes_xyxy={"left_lung": [5, 5, 5, 9]}), "boxes_xyxy.left_lung"),
        ("text", "-"),
    ],
)
def test_bad_records_are_listed_with_file_field_and_reason(r2gen_root: Write, bad: Any, field: str) -> None:
    cfg = r2gen_root({"train": [record(id="good"), bad]})
    problem = load_studies(cfg).problems[0]
    assert problem.field == field
    assert "annotation.json[train][1]" in problem.file
    with pytest.raises(UserError, match=r"annotation\.json"):
        load_studies(replace(cfg, strict=True))


def test_of_two_studies_with_one_id_the_first_is_kept_and_the_other_listed(r2gen_root: Write) -> None:
    studies = load_studies(r2gen_root({"train": [record(), record(report="clear lungs")]}))
    assert len(studies) == 1
    assert [(problem.field, problem.reason) for problem in studies.problems] == [
        ("id", "occurs twice; the first is kept")
    ]
    assert "s1" in studies.problems[0].file


def test_studies_without_findings_are_left_out_and_counted_or_learn_the_impression(r2gen_root: Write) -> None:
    cfg = r2gen_root({"train": [record(), record(id="s2", report="XXXX.", impression="No change.")]})
    skipping = load_studies(cfg)
    assert [study.id for study in skipping] == ["s1"]
    assert skipping.skipped == {"no findings section (data.without_findings=skip)": 1}
    assert skipping.problems == []
    taking = load_studies(replace(cfg, without_findings="impression"))
    assert taking["s2"].target == "no change ."
    assert taking.fingerprint != skipping.fingerprint


def test_reading_stops_when_every_split_has_what_its_limit_asks_for(tmp_path: Path) -> None:
    from rrg.data.dataset import prepare

    def endless() -> Iterator[Study]:
        for number in range(1000):
            assert number < 3, "read on after the limits were reached"
            yield Study(f"s{number}", "train", (), Report("Clear."), "test")

    limits: dict[Split, int | None] = {"train": 2, "val": 0, "test": 0}
    assert len(list(prepare(endless(), limits, "skip", "findings", ProblemLog()))) == 2


def test_a_set_without_a_usable_study_is_refused_with_the_first_reason(r2gen_root: Write) -> None:
    with pytest.raises(UserError, match=r"no usable study.*missing\.png"):
        load_studies(r2gen_root({"train": [record(image_path="missing.png")]}))


def test_a_wrong_root_or_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root"):
        load_studies(DataConfig("r2gen", None, str(tmp_path)))
    with pytest.raises(UserError, match=r"annotation\.json is missing"):
        load_studies(DataConfig("r2gen", str(tmp_path), str(tmp_path)))
    with pytest.raises(UserError, match="unknown"):
        load_studies(DataConfig("nothing", None, str(tmp_path)))


def test_sixteen_bit_images_keep_their_contrast_and_broken_ones_are_named(tmp_path: Path) -> None:
    deep = np.tile(np.linspace(1000, 5000, 64).astype(np.uint16), (64, 1))
    PILImage.fromarray(deep).save(tmp_path / "deep.png")
    pixels = load_image(tmp_path / "deep.png", 64)
    assert (pixels.min(), pixels.max()) == (0, 255)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"broken\.png"):
        load_image(tmp_path / "broken.png", 64)


def test_a_broken_xml_file_is_a_value_error_with_its_reason() -> None:
    with pytest.raises(ValueError, match="well-formed"):
        openi.parse_record(b"<eCitation>")
    with pytest.raises(ValueError, match="uId"):
        openi.parse_record(b"<eCitation/>")


def test_a_sheet_shows_studies_with_the_wanted_findings(rendered: StudySet) -> None:
    from rrg.data.sheet import draw_sheet, pick

    chosen = pick(list(rendered), frozenset({"cardiomegaly"}), 2, seed=0)
    assert all("cardiomegaly" in (study.findings or ()) for study in chosen)
    sheet = draw_sheet(chosen, columns=2)
    assert sheet.size == (672, 400)
