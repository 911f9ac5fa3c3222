"""A tiny data set in R2Gen's layout, and a cached small rendered set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from configs.schema import DataConfig
from rrg.data import StudySet, load_studies


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> StudySet:
    """20 + 5 + 5 studies with rendered X-rays."""
    folder = tmp_path_factory.mktemp("rendered")
    return load_studies(DataConfig("rendered_openi", None, str(folder), limit_train=20, limit_val=5, limit_test=5))


@pytest.fixture
def r2gen_root(tmp_path: Path) -> Callable[[dict[str, list[Any]]], DataConfig]:
    """Writes an annotation.json, with pictures a.png (400 x 200) and b.jpg under images/, c.png beside it."""

    def write(annotation: dict[str, list[Any]]) -> DataConfig:
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        pixels = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (200, 1))
        for path in (images / "a.png", images / "b.jpg", tmp_path / "c.png"):
            PILImage.fromarray(pixels).save(path)
        content = {"train": [], "val": [], "test": []} | annotation
        (tmp_path / "annotation.json").write_text(json.dumps(content))
        return DataConfig("r2gen", str(tmp_path), str(tmp_path / "cache"))

    return write
