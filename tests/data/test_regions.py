"""The regions and the file of their descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rrg.data.regions import REGIONS, load_descriptions
from rrg.errors import UserError


def write(folder: Path, texts: object) -> str:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(texts))
    return str(file)


def test_all_regions_are_described() -> None:
    descriptions = load_descriptions()
    assert tuple(descriptions) == REGIONS
    assert len(set(descriptions.values())) == len(REGIONS) == 29


def test_an_edited_file_is_taken_in_the_order_of_the_regions(tmp_path: Path) -> None:
    texts = {region: f"where the {region} is" for region in reversed(REGIONS)}
    assert list(load_descriptions(write(tmp_path, texts)).items()) == [(name, texts[name]) for name in REGIONS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spine": None}, "spine has no description"),
        ({"left lung": 3}, "left lung has no description"),
        ({"left kidney": "a filter"}, "left kidney: no region of ours"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = write(tmp_path, {**load_descriptions(), **change})
    with pytest.raises(UserError, match=message) as caught:
        load_descriptions(file)
    assert file in str(caught.value)
    assert "model.region_descriptions" in str(caught.value)


def test_a_missing_region_is_refused_by_name(tmp_path: Path) -> None:
    texts = {name: text for name, text in load_descriptions().items() if name != "carina"}
    with pytest.raises(UserError, match="carina is missing"):
        load_descriptions(write(tmp_path, texts))


@pytest.mark.parametrize("text", ["- left lung\n", "left lung: [", ""])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_descriptions(str(file))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml can't be read"):
        load_descriptions(str(tmp_path / "nowhere.yaml"))
