"""Real X-rays with real reports, in the folder that `LMRRG_TEST_DATA` names (they may not be committed)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.schema import DataConfig
from rrg.data import load_image, load_studies

DATA = os.environ.get("LMRRG_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="LMRRG_TEST_DATA does not name the folder of real X-rays")


@pytest.mark.parametrize(("folder", "count"), [("cxr_notes", 362), ("iu_xray/r2gen_mini", 3)])
def test_every_real_study_is_read_with_its_images_and_report(folder: str, count: int) -> None:
    studies = load_studies(DataConfig(name="r2gen", root=str(Path(str(DATA)) / folder)))
    assert len(studies) == count
    assert studies.problems == []
    for study in studies:
        assert study.target
        pixels = load_image(study.images[0].path, 224)
        assert pixels.shape == (224, 224)
        assert pixels.std() > 5
