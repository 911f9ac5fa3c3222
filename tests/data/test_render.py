"""Rendered X-rays: deterministic, findings where the codes say, boxes inside of the picture."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rrg.data import rendercache
from rrg.data.findings import FINDINGS, signs_from_mesh
from rrg.data.regions import REGIONS
from rrg.data.render import VERSION, boxes_of, render
from rrg.data.study import Box

CODES = {
    "cardiomegaly": "Cardiomegaly",
    "opacity": "Opacity/lung/base/left",
    "consolidation": "Consolidation/lung/upper lobe/right",
    "atelectasis": "Pulmonary Atelectasis/base/right",
    "effusion": "Pleural Effusion/left/moderate",
    "blunted_angle": "Costophrenic Angle/right/blunted",
    "nodule": "Nodule/lung/upper lobe/left",
    "granuloma": "Calcified Granuloma/lung/upper lobe/right",
    "calcified_nodes": "Calcinosis/lung/hilum/lymph nodes/right",
    "interstitial": "Markings/lung/interstitial",
    "edema": "Pulmonary Edema",
    "congestion": "Pulmonary Congestion",
    "hyperinflation": "Lung/hyperdistention",
    "hypoinflation": "Lung/hypoinflation",
    "emphysema": "Emphysema",
    "pneumothorax": "Pneumothorax/left/moderate",
    "elevated_diaphragm": "Diaphragm/right/elevated",
    "flattened_diaphragm": "Diaphragm/bilateral/flattened",
    "tortuous_aorta": "Aorta/tortuous",
    "aortic_calcification": "Atherosclerosis/aorta",
    "enlarged_hilum": "Pulmonary Artery/enlarged",
    "wide_mediastinum": "Mediastinum/prominent",
    "scoliosis": "Scoliosis/thoracic vertebrae/right",
    "degenerative_spine": "Thoracic Vertebrae/degenerative",
    "vertebral_deformity": "Deformity/thoracic vertebrae",
    "fracture": "Fractures, Bone/ribs/left",
    "scarring": "Cicatrix/lung/apex/right",
    "pleural_thickening": "Thickening/pleura/left",
    "hiatal_hernia": "Hernia, Hiatal/large",
    "catheter": "Catheters, Indwelling/right",
    "pacemaker": "Implanted Medical Device/left",
    "tube": "Tube, Inserted/trachea",
    "surgical_material": "Surgical Instruments/mediastinum",
    "spinal_hardware": "Spinal Fusion",
    "foreign_body": "Foreign Bodies/thorax/left",
    "subcutaneous_emphysema": "Subcutaneous Emphysema/thorax/right",
}
# Geometry moves these; the rest changes the picture in its own regions.
MOVES_GEOMETRY = {
    "cardiomegaly", "hyperinflation", "hypoinflation", "elevated_diaphragm", "flattened_diaphragm", "tortuous_aorta",
    "wide_mediastinum", "scoliosis",
}  # fmt: skip


def drawn(code: str, study: str = "CXR1") -> npt.NDArray[np.int16]:
    return render(study, signs_from_mesh([code])).astype(np.int16)


def crop(pixels: npt.NDArray[np.int16], box: Box) -> npt.NDArray[np.int16]:
    size = len(pixels)
    return pixels[int(box.y0 * size) : int(box.y1 * size) + 1, int(box.x0 * size) : int(box.x1 * size) + 1]


def test_every_finding_has_an_example_here() -> None:
    assert set(CODES) == set(FINDINGS)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_picture_visibly(finding: str) -> None:
    signs = signs_from_mesh([CODES[finding]])
    assert {sign.finding for sign in signs} == {finding}
    change = np.abs(drawn(CODES[finding]) - drawn("normal"))
    assert (change > 20).sum() >= 12


@pytest.mark.parametrize("finding", sorted(set(FINDINGS) - MOVES_GEOMETRY - {"subcutaneous_emphysema"}))
def test_a_finding_is_drawn_in_the_regions_that_its_code_names(finding: str) -> None:
    signs = signs_from_mesh([CODES[finding]])
    change = np.abs(drawn(CODES[finding]) - drawn("normal"))
    boxes = boxes_of("CXR1", signs)
    inside = np.zeros(change.shape, bool)
    for region in signs[0].regions:
        crop(inside, boxes[region])[:] = True
    # Ports and generators lie outside of the regions where their lines end.
    least = {"catheter": 0.3, "pacemaker": 0.15}.get(finding, 0.75)
    assert change[inside].sum() > least * change[change > 12].sum()


def test_left_and_right_are_the_patients() -> None:
    left = np.abs(drawn("Pleural Effusion/left/moderate") - drawn("normal"))
    right = np.abs(drawn("Pleural Effusion/right/moderate") - drawn("normal"))
    assert left[:, 112:].sum() > 20 * left[:, :112].sum()
    assert right[:, :112].sum() > 20 * right[:, 112:].sum()


def test_severity_is_drawn_to_scale() -> None:
    changes = [np.abs(drawn(f"Pleural Effusion/left/{word}") - drawn("normal")).sum() for word in ("small", "large")]
    assert changes[1] > 3 * changes[0]
    widths = [
        box.x1 - box.x0
        for box in (boxes_of("CXR1", signs_from_mesh([code]))["cardiac silhouette"] for code in
                    ("normal", "Cardiomegaly/mild", "Cardiomegaly/severe"))
    ]  # fmt: skip
    assert widths[0] + 0.03 < widths[1] < widths[2] - 0.03


def test_the_heart_fills_its_box() -> None:
    pixels, box = drawn("normal"), boxes_of("CXR1", ())["cardiac silhouette"]
    lung = boxes_of("CXR1", ())["left mid lung zone"]
    assert np.median(crop(pixels, box)) > np.median(crop(pixels, lung)) + 40


def test_all_29_boxes_lie_inside_of_the_picture() -> None:
    for code in CODES.values():
        boxes = boxes_of("CXR7", signs_from_mesh([code]))
        assert set(boxes) == set(REGIONS)
        assert all(0 <= b.x0 < b.x1 <= 1 and 0 <= b.y0 < b.y1 <= 1 for b in boxes.values())


def test_patients_differ_and_the_same_patient_does_not() -> None:
    assert np.abs(drawn("normal", "CXR1") - drawn("normal", "CXR2")).mean() > 3
    assert np.array_equal(drawn("normal"), drawn("normal"))


def test_another_process_draws_the_same_pixels(tmp_path: Path) -> None:
    jobs = {f"CXR{i}": signs_from_mesh([code]) for i, code in enumerate((*CODES.values(), *CODES.values()))}
    rendered = rendercache.render_missing(rendercache.folder_of(tmp_path), jobs, workers=2)
    assert rendered == len(jobs) > 64
    from rrg.data.images import load_image

    for study_id in ("CXR0", "CXR40"):
        path = rendercache.path_of(rendercache.folder_of(tmp_path), study_id)
        assert VERSION in path.parts
        assert np.array_equal(load_image(path, 224), render(study_id, jobs[study_id]))
    assert rendercache.render_missing(rendercache.folder_of(tmp_path), jobs, workers=2) == 0
    assert not list(tmp_path.rglob("*.part"))


def test_rendering_does_not_import_torch() -> None:
    code = "import rrg.data, rrg.data.renderworker, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_forty_pictures_a_second_on_one_core() -> None:
    signs = [signs_from_mesh([code]) for code in CODES.values()]
    render("warm", signs[0])
    start = time.process_time()
    for index, sign in enumerate(signs):
        render(f"CXR{index}", sign)
    # 60 a second on the reference machine; CPU time is still inflated when neighbours share the core.
    assert len(signs) / (time.process_time() - start) > 25
