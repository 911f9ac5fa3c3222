"""Backbone features: real weights on small real files, stored once and the same for everybody."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from configs.schema import DataConfig, ModelConfig
from rrg.data.study import Image, Report, Study
from rrg.errors import UserError
from rrg.model.backbone import FeatureStore

SIZE = 64


def make_study(folder: Path, name: str, views: int = 1) -> Study:
    images = []
    for view in ("frontal", "lateral")[:views]:
        pixels = np.random.default_rng(len(name) + len(view)).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        path = folder / f"{name}-{view}.png"
        PILImage.fromarray(pixels).save(path)
        images.append(Image(path, view))  # type: ignore[arg-type]  # a literal from the tuple above
    return Study(name, "train", tuple(images), Report(findings="clear ."), "test")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(DataConfig(name="r2gen", cache_dir=str(tmp_path / "cache"), image_size=SIZE), ModelConfig())


def stored_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.npy"))


def test_another_process_reads_what_one_prepared(store: FeatureStore, tmp_path: Path) -> None:
    studies = [make_study(tmp_path, "a"), make_study(tmp_path, "bc", views=2)]
    store.prepare(studies)
    data = DataConfig(name="r2gen", cache_dir=str(tmp_path / "cache"), image_size=SIZE)
    other = FeatureStore(data, ModelConfig())
    for study in studies:
        assert torch.equal(other.load(study).values, store.load(study).values)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_second_prepare_computes_only_what_is_new(store: FeatureStore, tmp_path: Path) -> None:
    first, second = make_study(tmp_path, "a"), make_study(tmp_path, "bc")
    store.prepare([first])
    before = stored_files(tmp_path)
    seen: list[tuple[str, int, int]] = []
    store.prepare([first, second], lambda *step: seen.append(step))
    assert seen == [("features", 1, 1)]
    assert len(stored_files(tmp_path)) == len(before) + 1
    store.prepare([first, second], lambda *step: seen.append(step))
    assert len(seen) == 1


class KilledError(Exception):
    """Ends a `prepare` from outside."""


def test_a_killed_prepare_goes_on_behind_its_last_shard(tmp_path: Path) -> None:
    """A shard of one batch, 16 images; killed in the third of four."""
    studies = [make_study(tmp_path, "s" * number) for number in range(1, 51)]
    data = DataConfig(name="r2gen", cache_dir=str(tmp_path / "cache"), image_size=SIZE, workers=1)

    def kill(what: str, done: int, total: int) -> None:
        assert (what, total) == ("features", 50)
        if done > 32:
            raise KilledError

    with pytest.raises(KilledError):
        FeatureStore(data, ModelConfig(), shard_bytes=1).prepare(studies, kill)
    complete = stored_files(tmp_path)
    assert [len(np.load(file)) for file in complete] == [16, 16]
    written = [file.stat().st_mtime_ns for file in complete]
    seen: list[tuple[str, int, int]] = []
    store = FeatureStore(data, ModelConfig(), shard_bytes=1)
    store.prepare(studies, lambda *step: seen.append(step))
    assert seen == [("features", 16, 18), ("features", 18, 18)]
    assert [file.stat().st_mtime_ns for file in complete] == written
    assert sorted(len(np.load(file)) for file in stored_files(tmp_path)) == [2, 16, 16, 16]
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    # The same rows as those of one file for all of them, as it was written before there were shards.
    whole = FeatureStore(dataclasses.replace(data, cache_dir=str(tmp_path / "whole" / "cache")), ModelConfig())
    whole.prepare(studies)
    assert len(stored_files(tmp_path / "whole")) == 1
    assert all(torch.equal(store.load(study).values, whole.load(study).values) for study in studies)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path, "bc", views=2)
    needed = 2 * 2 * (4 * 4 * 112 + 2 * 2 * 1280)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    words = rf"data\.cache_dir: .* 2 images need {needed:,} bytes, {needed - 1:,} are free .*limit_train.*train=full"
    with pytest.raises(UserError, match=words):
        store.prepare([study])
    assert stored_files(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    store.prepare([study])
    assert len(stored_files(tmp_path)) == 1


def test_a_missing_feature_is_computed_and_equals_the_stored_one(store: FeatureStore, tmp_path: Path) -> None:
    study = make_study(tmp_path, "a")
    computed = store.load(study).values
    store.prepare([study])
    assert torch.allclose(store.load(study).values, computed, rtol=2e-3, atol=2e-2)


def test_a_changed_image_is_computed_again(store: FeatureStore, tmp_path: Path) -> None:
    study = make_study(tmp_path, "a")
    store.prepare([study])
    before = store.load(study).values
    path = study.images[0].path
    PILImage.fromarray(np.full((SIZE, SIZE), 200, dtype=np.uint8)).save(path)
    os.utime(path, ns=(0, 0))
    assert not torch.allclose(store.load(study).values, before, atol=0.5)


def test_views_follow_one_another_and_are_marked(store: FeatureStore, tmp_path: Path) -> None:
    study = make_study(tmp_path, "bc", views=2)
    both = store.load(study)
    frontal = store.load(dataclasses.replace(study, images=study.images[:1]))
    patches = store.grid**2
    assert both.values.shape == (2 * patches, store.channels)
    assert both.views.tolist() == [0] * patches + [1] * patches
    assert torch.allclose(both.values[:patches], frontal.values, rtol=2e-3, atol=2e-2)


def test_a_missing_image_file_is_named(store: FeatureStore, tmp_path: Path) -> None:
    study = make_study(tmp_path, "a")
    study.images[0].path.unlink()
    with pytest.raises(UserError, match=r"a-frontal\.png: image is missing"):
        store.load(study)


@pytest.mark.parametrize("size", [100, 16])
def test_an_image_size_that_the_backbone_cannot_divide_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_size"):
        FeatureStore(DataConfig(name="r2gen", cache_dir=str(tmp_path), image_size=size), ModelConfig())


def test_without_an_image_size_it_is_the_backbones(tmp_path: Path) -> None:
    data = DataConfig(name="r2gen", cache_dir=str(tmp_path / "cache"))
    study = make_study(tmp_path, "a")
    store = FeatureStore(data, ModelConfig())
    store.prepare([study])
    assert store.load(study).values.shape == (14 * 14, 112 + 1280)
    # Coarse features are stored once, not once for each of the four patches that share them.
    (file,) = stored_files(tmp_path)
    assert np.load(file).shape == (1, 14 * 14 * 112 + 7 * 7 * 1280)
