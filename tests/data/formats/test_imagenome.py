"""Chest ImaGenome's scene graphs: boxes on the padded square, findings and sentences by region."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from rrg.data.findings import FINDINGS
from rrg.data.formats import imagenome, mimic_cxr
from rrg.data.formats.source import Source
from rrg.data.regions import REGIONS
from rrg.data.study import Box, Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.mimic_fixture import Mimic, attribute, box, scene_graph, write_graphs

GRAPH = scene_graph(
    "d1",
    [
        box("d1", "right lung", (0, 0, 1272, 1528), (19, 0, 112, 112)),
        box("d1", "descending aorta", (0, 0, 10, 10), (0, 0, 1, 1)),
    ],
    [
        attribute(
            "d1",
            "right lung",
            {
                "Right lung opacity.": ["anatomicalfinding|yes|lung opacity", "nlp|yes|abnormal"],
                "No pneumothorax.": ["anatomicalfinding|no|pneumothorax"],
            },
        ),
        attribute("d1", "cardiac silhouette", {"Heart normal.": ["anatomicalfinding|no|enlarged cardiac silhouette"]}),
        attribute("d1", "descending aorta", {"Tortuous aorta.": ["anatomicalfinding|yes|tortuous aorta"]}),
        attribute("d1", "svc", {"Line in the svc.": ["tubesandlines|yes|picc", "texture|yes|opacity"]}),
    ],
)


def test_every_attribute_means_findings_that_we_have() -> None:
    assert {code for codes in imagenome._CODES.values() for code in codes} <= set(FINDINGS)


def test_boxes_are_fractions_of_the_padded_square_of_the_original_image() -> None:
    boxes = imagenome.parse(GRAPH, (2544, 3056)).boxes
    assert boxes == {"right lung": Box(256 / 3056, 0.0, 1528 / 3056, 0.5)}


def test_without_the_size_of_the_image_boxes_come_from_the_padded_copy() -> None:
    assert imagenome.parse(GRAPH, None).boxes == {"right lung": Box(19 / 224, 0.0, 0.5, 0.5)}


def test_both_ways_to_a_box_agree_to_a_pixel_of_the_copy() -> None:
    ours, copied = (imagenome.parse(GRAPH, size).boxes["right lung"] for size in ((2544, 3056), None))
    assert abs(ours.x0 - copied.x0) < 1 / 224


def test_boxes_are_cut_at_the_edge_and_those_without_area_left_out_and_counted() -> None:
    graph = scene_graph(
        "d1",
        [
            box("d1", "left lung", (50, -20, 150, 50), (0, 0, 1, 1)),
            box("d1", "carina", (200, 10, 240, 20), (0, 0, 1, 1)),
            box("d1", "spine", (10, 10, 10, 90), (0, 0, 1, 1)),
        ],
        [],
    )
    regions = imagenome.parse(graph, (100, 100))
    assert regions.boxes == {"left lung": Box(0.5, 0.0, 1.0, 0.5)}
    assert regions.faulty == 2


def test_boxes_survive_the_way_to_another_process() -> None:
    boxes = imagenome.parse(GRAPH, None).boxes
    assert pickle.loads(pickle.dumps(boxes)) == boxes
    assert "left lung" not in boxes
    with pytest.raises(KeyError):
        boxes["descending aorta"]


def test_findings_hold_where_a_sentence_says_yes() -> None:
    regions = imagenome.parse(GRAPH, None)
    assert set(regions.by_region) == set(REGIONS)
    assert {name: codes for name, codes in regions.by_region.items() if codes} == {
        "right lung": {"opacity"},
        "svc": {"catheter"},
    }


def test_a_finding_of_a_region_that_we_do_not_have_holds_for_the_image() -> None:
    assert imagenome.parse(GRAPH, None).findings == {"opacity", "catheter", "tortuous_aorta"}


def test_sentences_come_by_region_in_order_and_once() -> None:
    assert imagenome.parse(GRAPH, None).sentences == {
        "right lung": ("Right lung opacity.", "No pneumothorax."),
        "cardiac silhouette": ("Heart normal.",),
        "svc": ("Line in the svc.",),
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"objects": []}', '{"objects": [{"x1": 1}], "attributes": []}'])
def test_other_json_is_no_scene_graph(text: str) -> None:
    with pytest.raises(imagenome.SceneGraphError, match="is no scene graph"):
        imagenome.parse(text, None)


@pytest.fixture
def mimic(tmp_path: Path) -> Mimic:
    data = Mimic(tmp_path / "mimic")
    data.study("10000032", "50414267", "train", {"d1": "PA", "d2": "LATERAL"})
    data.study("10000032", "50000001", "train", {"e1": "AP"})
    data.write_tables()
    data.write_reports_zip()
    return data


def read(data: Mimic, graphs: Path) -> tuple[list[Study], ProblemLog]:
    log = ProblemLog()
    return list(mimic_cxr.read(Source(data.root, imagenome=graphs), log)), log


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", [".", "silver_dataset"])
def test_studies_get_the_regions_of_their_first_image(mimic: Mimic, tmp_path: Path, packed: bool, inside: str) -> None:
    write_graphs(tmp_path / "imagenome", {"d1": GRAPH}, packed)
    (study, other), log = read(mimic, tmp_path / "imagenome" / inside)
    assert study.boxes == {"right lung": Box(256 / 3056, 0.0, 1528 / 3056, 0.5)}
    assert study.region_findings is not None
    assert study.region_findings["right lung"] == {"opacity"}
    assert study.region_sentences is not None
    assert study.region_sentences["svc"] == ("Line in the svc.",)
    assert study.findings == frozenset({"opacity", "catheter", "tortuous_aorta"})
    assert other.boxes is None
    assert other.region_findings is None
    assert log.skipped == {"no scene graph (study kept, without regions)": 1}
    assert not log.problems


def test_the_zip_may_be_unpacked_where_it_lies(mimic: Mimic, tmp_path: Path) -> None:
    write_graphs(tmp_path / "imagenome", {"d1": GRAPH}, packed=True)
    packed = tmp_path / "imagenome/silver_dataset/scene_graph.zip"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(packed.with_suffix(""))
    packed.unlink()
    (study, _), _ = read(mimic, tmp_path / "imagenome")
    assert study.boxes is not None


def test_a_broken_scene_graph_is_a_problem_and_the_study_goes_without(mimic: Mimic, tmp_path: Path) -> None:
    write_graphs(tmp_path / "imagenome", {"d1": GRAPH[:-10]}, packed=False)
    studies, log = read(mimic, tmp_path / "imagenome")
    assert len(studies) == 2
    assert studies[0].boxes is None
    (problem,) = log.problems
    assert (problem.file, problem.field) == ("d1_SceneGraph.json", "study 50414267: scene graph")


def test_a_folder_without_scene_graphs_stops_the_run(mimic: Mimic, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data.imagenome=.* holds neither silver_dataset/scene_graph/"):
        read(mimic, tmp_path / "empty")
    with pytest.raises(UserError, match="holds neither"):
        read(mimic, tmp_path / "nowhere")
