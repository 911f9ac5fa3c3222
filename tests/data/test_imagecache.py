"""The image cache gives the very pixels of the files, survives kills, and reports what it can't store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image as PILImage

from rrg.data import imagecache
from rrg.data.imagecache import ImageCache
from rrg.data.images import load_image
from rrg.data.prepare import prepare_images
from rrg.errors import UserError


def pictures(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.{'png' if number % 2 else 'jpg'}" for number in range(count)]
    for path in paths:
        PILImage.fromarray(rng.integers(0, 256, (90, 120)).astype(np.uint8)).save(path)
    return paths


def test_cached_pixels_equal_those_of_the_file(tmp_path: Path) -> None:
    paths, cache = pictures(tmp_path / "images", 7), ImageCache(tmp_path, 64)
    told: list[tuple[str, int, int]] = []
    done = cache.prepare(paths, workers=2, progress=lambda *progress: told.append(progress))
    assert (done.stored, done.present, done.failed) == (7, 0, ())
    assert told[-1] == ("images", 7, 7)
    assert len(cache) == 7
    expected = np.stack([load_image(path, 64) for path in paths])
    assert np.array_equal(cache.get_many(paths), expected)
    assert np.array_equal(cache.get(paths[3]), expected[3])


def test_stored_images_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, cache = pictures(tmp_path / "images", 3), ImageCache(tmp_path, 64)
    cache.prepare(paths)
    monkeypatch.setattr(imagecache, "load_image", None)
    assert cache.get_many(paths).shape == (3, 64, 64)
    again = ImageCache(tmp_path, 64).prepare(paths)
    assert (again.stored, again.present) == (0, 3)


def test_what_is_not_stored_comes_from_the_file(tmp_path: Path) -> None:
    paths, cache = pictures(tmp_path / "images", 3), ImageCache(tmp_path, 64)
    assert np.array_equal(cache.get(paths[0]), load_image(paths[0], 64))
    assert not cache.folder.exists()
    cache.prepare(paths[:1])
    assert np.array_equal(cache.get_many(paths)[2], load_image(paths[2], 64))


def test_a_changed_file_and_another_size_are_new_images(tmp_path: Path) -> None:
    (path,), cache = pictures(tmp_path / "images", 1), ImageCache(tmp_path, 64)
    cache.prepare([path])
    PILImage.fromarray(np.full((50, 50), 200, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert cache.get(path).min() > 190
    assert cache.prepare([path]).stored == 1
    assert ImageCache(tmp_path, 32).get(path).shape == (32, 32)


def test_images_that_cannot_be_read_are_reported_and_not_stored(tmp_path: Path) -> None:
    paths, cache = pictures(tmp_path / "images", 2), ImageCache(tmp_path, 64)
    (tmp_path / "bad.jpg").write_bytes(paths[0].read_bytes()[:300])
    bad = [tmp_path / "bad.jpg", tmp_path / "gone.jpg"]
    done = cache.prepare([*bad, *paths])
    assert (done.stored, done.present) == (2, 0)
    assert {path: "missing" in reason for path, reason in done.failed} == {bad[0]: False, bad[1]: True}
    assert len(cache) == 2
    for path in bad:
        with pytest.raises(UserError, match=path.name):
            cache.get(path)


def test_the_container_grows_past_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagecache, "_GIB", 1 << 20)
    cache, value = ImageCache(tmp_path, 64), os.urandom(100_000)
    for number in range(8):
        cache.store([(b"%d-%d" % (number, index), value) for index in range(20)])
    assert len(cache) == 160
    assert cache.read([b"7-19", b"none"]) == [value, None]


def test_threads_and_two_caches_of_one_folder_share_it(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "images", 20)
    caches = [ImageCache(tmp_path, 64), ImageCache(tmp_path, 64)]
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(cache.prepare, paths) for cache in caches]
        reading = [pool.submit(caches[number % 2].get, path) for number, path in enumerate(paths * 5)]
        assert all(np.array_equal(future.result(), load_image(path, 64))
                   for future, path in zip(reading, paths * 5, strict=True))  # fmt: skip
        assert all(not future.result().failed for future in writing)
    assert len(caches[0]) == 20


_WRITER = """
import itertools, os, sys
from pathlib import Path
from rrg.data.imagecache import ImageCache
cache = ImageCache(Path(sys.argv[1]), 64)
for number in itertools.count():
    cache.store([(b"%d-%d" % (number, index), os.urandom(3000)) for index in range(50)])
"""


def test_a_killed_writer_leaves_whole_batches_and_readers_never_wait(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 64)
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(cache) < 500 and time.monotonic() < deadline:
            assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    count = len(cache)
    assert count >= 500
    assert count % 50 == 0
    keys = [b"%d-%d" % (number, index) for number in range(count // 50) for index in range(50)]
    assert all(value is not None and len(value) == 3000 for value in cache.read(keys))
    cache.store([(b"new", b"value")])
    assert cache.read([b"new"]) == [b"value"]


def test_a_damaged_container_is_named_with_the_way_out(tmp_path: Path) -> None:
    (path,), cache = pictures(tmp_path / "images", 1), ImageCache(tmp_path, 64)
    cache.prepare([path])
    (cache.folder / "data.mdb").write_bytes(b"rubbish" * 2000)
    with pytest.raises(UserError, match=r"64\.lmdb.*delete this folder"):
        cache.get(path)


def test_the_container_is_plain_lmdb(tmp_path: Path) -> None:
    paths, cache = pictures(tmp_path / "images", 2), ImageCache(tmp_path, 64)
    cache.prepare(paths)
    with lmdb.open(str(cache.folder), readonly=True) as environment, environment.begin() as transaction:
        assert all(value.startswith(b"\x89PNG") for _, value in transaction.cursor())


@pytest.mark.slow
def test_ray_stores_the_same_pixels_and_reports_the_same_failures(tmp_path: Path) -> None:
    paths, cache = pictures(tmp_path / "images", 150), ImageCache(tmp_path, 64)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    done = prepare_images(cache, [*paths, tmp_path / "bad.jpg"], workers=2, ray_address="local")
    assert (done.stored, [path.name for path, _ in done.failed]) == (150, ["bad.jpg"])
    assert np.array_equal(cache.get_many(paths), np.stack([load_image(path, 64) for path in paths]))
    again = prepare_images(cache, paths, workers=2, ray_address="local")
    assert (again.stored, again.present) == (0, 150)
