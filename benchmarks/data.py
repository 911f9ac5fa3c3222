"""Speed of the image cache beside decoding the original files, and the memory of a pass over a whole data set.

`python -m benchmarks.data --images 200`: one process, one thread, one core; originals are made-up X-rays (rendered,
enlarged, with noise) as JPEGs of 2544 x 3056 pixels, a usual size of MIMIC-CXR-JPG. `--size` is the model's.
`python -m benchmarks.data --pass 370000`: so many images of 64 pixels are stored, and a fresh process reads and decodes
all of them in random order.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from rrg.data.imagecache import ImageCache, batches, decode, encode
from rrg.data.images import load_image
from rrg.data.render import render

_WIDTH, _HEIGHT = 2544, 3056
_BATCH = 16
_VIEWS = 2


def originals(folder: Path, count: int) -> list[Path]:
    """`count` such JPEGs in a new folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4, (_HEIGHT, _WIDTH)).astype(np.float32)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        large = PILImage.fromarray(render(f"CXR{number}", ())).resize((_WIDTH, _HEIGHT), PILImage.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(large) + np.roll(noise, number * 97), 0, 255).astype(np.uint8)
        PILImage.fromarray(pixels).save(path, quality=95)
    return paths


def _speed(folder: Path, count: int, size: int) -> None:
    paths = originals(folder / "originals", count)
    cache = ImageCache(folder, size)
    start = time.perf_counter()
    prepared = cache.prepare(paths, workers=len(os.sched_getaffinity(0)))
    print(f"prepare: {prepared.stored / (time.perf_counter() - start):.0f} images/s on all cores")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for path in paths:
        load_image(path, size)
    rates = []
    for name, rounds in (("original files", 1), ("cache", 5)):
        start, used = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            for batch in batches(paths, _BATCH):
                _ = [load_image(path, size) for path in batch] if name != "cache" else cache.get_many(batch)
        wall, cpu = time.perf_counter() - start, time.process_time() - used
        images = rounds * len(paths)
        rates.append(images / cpu)
        print(
            f"{name}: {images / cpu:.0f} images/s of one core's time ({images / wall:.0f} by the clock), "
            f"{images / cpu / _VIEWS:.0f} studies/s of {_VIEWS} images"
        )
    equal = all(np.array_equal(cache.get(path), load_image(path, size)) for path in paths)
    megabytes = [sum(path.stat().st_size for path in group) / 1e6 / count for group in (paths, [_data(cache)])]
    print(f"cache / original files: {rates[1] / rates[0]:.1f}x; same pixels: {equal}")
    print(f"MB an image: {megabytes[0]:.3f} original, {megabytes[1]:.3f} cached; {size} pixels")


def _data(cache: ImageCache) -> Path:
    return cache.folder / "data.mdb"


def _fill(cache: ImageCache, count: int) -> None:
    values = [encode(np.asarray(PILImage.fromarray(render(f"CXR{n}", ())).resize((64, 64)))) for n in range(50)]
    for numbers in batches(range(count), 4096):
        cache.store([(b"%020d" % number, values[number % 50]) for number in numbers])


def _pass(folder: Path, count: int) -> None:
    cache = ImageCache(folder, 64)
    start = time.perf_counter()
    _fill(cache, count)
    print(f"{count} images stored in {time.perf_counter() - start:.0f} s, {_data(cache).stat().st_size / 1e9:.2f} GB")
    subprocess.run([sys.executable, "-m", "benchmarks.data", "--read", str(folder), "--pass", str(count)], check=True)


def _read(folder: Path, count: int) -> None:
    cache = ImageCache(folder, 64)
    order = list(range(count))
    random.Random(0).shuffle(order)
    start, total = time.perf_counter(), 0
    for numbers in batches(order, _BATCH):
        for value in cache.read([b"%020d" % number for number in numbers]):
            if value is None:
                raise SystemExit("an image is missing from the cache")
            total += decode(value).shape == (64, 64)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"pass over {total} images: {seconds:.0f} s, {total / seconds:.0f} images/s, peak memory {peak:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, help="original files to make and to read")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pass", dest="count", type=int, help="images of the pass")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        _read(args.read, args.count)
        return
    if not args.images and not args.count:
        parser.error("give --images N or --pass N")
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            _speed(Path(folder) / "speed", args.images, args.size)
        if args.count:
            _pass(Path(folder) / "pass", args.count)


if __name__ == "__main__":
    main()
