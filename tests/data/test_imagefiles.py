"""Studies made of bare image files: which files belong together, and which view each one shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from rrg.data.imagefiles import studies_of_folder, study_of_files
from rrg.errors import UserError
from tests.data.test_dicom import RAMP, write


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(path)
    return path


def views(*paths: Path) -> dict[str, str]:
    return {image.path.name: image.view for image in study_of_files(paths, "s").images}


def test_the_first_image_is_frontal_and_the_others_lateral_where_nothing_tells(tmp_path: Path) -> None:
    assert views(picture(tmp_path / "1.png"), picture(tmp_path / "2.jpg")) == {"1.png": "frontal", "2.jpg": "lateral"}


def test_the_last_word_of_a_name_tells_the_view_and_frontal_images_come_first(tmp_path: Path) -> None:
    shown = views(picture(tmp_path / "a_lateral.png"), picture(tmp_path / "b-PA.png"))
    assert list(shown.items()) == [("b-PA.png", "frontal"), ("a_lateral.png", "lateral")]


def test_a_dicom_header_tells_the_view_whatever_the_name_says(tmp_path: Path) -> None:
    assert views(write(tmp_path / "frontal.dcm", RAMP, ViewPosition="LL")) == {"frontal.dcm": "lateral"}
    assert views(write(tmp_path / "x_lateral.dcm", RAMP)) == {"x_lateral.dcm": "lateral"}


def test_views_that_are_given_count_and_must_be_as_many_as_the_images(tmp_path: Path) -> None:
    path = picture(tmp_path / "a_lateral.png")
    assert study_of_files([path], "s", views=["frontal"]).images[0].view == "frontal"
    with pytest.raises(UserError, match="2 views for 1 images"):
        study_of_files([path], "s", views=["frontal", "lateral"])


def test_what_is_told_of_the_study_is_cleaned_as_training_texts_are(tmp_path: Path) -> None:
    study = study_of_files([picture(tmp_path / "a.png")], "s", indication="Chest pain; R/O XXXX pneumonia.")
    assert study.report.indication == "chest pain . r o pneumonia ."
    assert study.target == ""


def test_in_a_folder_each_image_is_a_study_and_each_sub_folder_with_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpeg", "p1/front.png", "p1/side_lateral.png", "p2/s1/1.png", ".hidden/1.png"):
        picture(tmp_path / name)
    write(tmp_path / "IM0001", RAMP)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image either")
    studies, others = studies_of_folder(tmp_path)
    assert {study.id: len(study.images) for study in studies} == {
        "IM0001": 1, "a.jpeg": 1, "b.png": 1, "p1": 2, "p2/s1": 1,
    }  # fmt: skip
    assert others == 2


def test_a_folder_without_an_image_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        studies_of_folder(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        study_of_files([tmp_path / "x.png"], "s")
    with pytest.raises(UserError, match="is a folder"):
        study_of_files([tmp_path], "s")


def test_a_dicom_file_named_by_its_uid_and_a_linked_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "1.2.840.113619.2.55.3", RAMP)
    picture(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    studies, others = studies_of_folder(tmp_path / "in")
    assert [study.id for study in studies] == ["1.2.840.113619.2.55.3", "linked"]
    assert others == 0


def test_a_link_to_a_folder_around_itself_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match="a link to a folder around itself"):
        studies_of_folder(tmp_path)
