"""Backbone features of X-rays, computed once and shared through files by every process of a run.

Contract: `FeatureStore.load` gives the same stored float16 values to whoever asks, learner and rollout actors alike.
Files only ever appear complete (written beside, then renamed), so any number of processes may read while one
prepares; a second `prepare` computes only the images that no file holds yet.

Layout: `cache_dir/features/<backbone>-<image size>-<hash>/<name>.npy` [images, patches, channels] float16, memory
mapped, with `<name>.json`, the list of image keys in the same order. A key changes with the image file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from configs.schema import DataConfig, ModelConfig
from rrg.data.imagecache import ImageCache
from rrg.data.study import Image, Study
from rrg.errors import UserError
from rrg.model import efficientnet
from rrg.model.features import VIEW_CODES, FeatureBatch, PatchFeatures, collate_features

Progress = Callable[[str, int, int], None]
Array = npt.NDArray[np.float16]

BACKBONES = ("efficientnet_lite0",)
_BATCH = 16


def patch_grid(image_size: int) -> int:
    """Patches along one side of an image. Raises `UserError` for a size that the backbone can't divide."""
    if image_size % (2 * efficientnet.PATCH):
        raise UserError(f"data.image_size={image_size} must be a multiple of {2 * efficientnet.PATCH} pixels")
    return image_size // efficientnet.PATCH


def patch_channels(backbone: str) -> int:
    """Width of a patch's features. Raises `UserError` for an unknown backbone."""
    if backbone not in BACKBONES:
        raise UserError(f"model.backbone={backbone!r} is unknown; one of {', '.join(BACKBONES)}")
    return efficientnet.CHANNELS


class FeatureStore:
    """Cheap to make: the network is loaded when a feature is missing, and files are mapped when first read."""

    def __init__(self, cfg_data: DataConfig, cfg_model: ModelConfig) -> None:
        self.grid = patch_grid(cfg_data.image_size)
        self.channels = patch_channels(cfg_model.backbone)
        self._image_size = cfg_data.image_size
        self._images = ImageCache(Path(cfg_data.cache_dir), cfg_data.image_size)
        self._threads = cfg_data.workers
        tag = f"{cfg_model.backbone}-{cfg_data.image_size}-{efficientnet.fingerprint(cfg_data.image_size)}"
        self._folder = Path(cfg_data.cache_dir) / "features" / tag
        self._rows: dict[str, tuple[Array, int]] = {}
        self._read: set[str] = set()
        self._network: efficientnet.EfficientNetLite0 | None = None

    def prepare(self, studies: Sequence[Study], progress: Progress | None = None) -> None:
        """Computes and stores what is missing; `progress` is told ("features", images done, images in all)."""
        self._scan()
        images = {_key(image): image for study in studies for image in study.images}
        missing = {key: image for key, image in images.items() if key not in self._rows}
        if missing:
            self._write(missing, progress)
            self._scan()

    def load(self, study: Study) -> PatchFeatures:
        """The patches of all of a study's images; an image that nobody prepared is computed on the fly."""
        if not study.images:
            raise UserError(f"study {study.id} ({study.source}) has no image")
        values = np.concatenate([self._features(image) for image in study.images])
        views = [VIEW_CODES[image.view] for image in study.images]
        return PatchFeatures(torch.from_numpy(values).float(), torch.tensor(views).repeat_interleave(self.grid**2))

    def load_batch(self, studies: Sequence[Study]) -> FeatureBatch:
        return collate_features([self.load(study) for study in studies])

    def _features(self, image: Image) -> Array:
        key = _key(image)
        if key not in self._rows:
            self._scan()
        if key not in self._rows:
            computed: Array = self._compute([image])[0]
            return computed
        array, row = self._rows[key]
        values: Array = array[row]
        return values

    def _scan(self) -> None:
        for index in sorted(self._folder.glob("*.json")):
            if index.stem not in self._read:
                array: Array = np.load(index.with_suffix(".npy"), mmap_mode="r")
                self._rows.update((key, (array, row)) for row, key in enumerate(json.loads(index.read_text())))
                self._read.add(index.stem)

    def _write(self, missing: dict[str, Image], progress: Progress | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("\n".join(missing).encode()).hexdigest()[:16]
        unfinished = self._folder / f"{name}.{os.getpid()}.tmp"
        shape = (len(missing), self.grid**2, self.channels)
        try:
            array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]  # numpy's stubs lack it
                unfinished, mode="w+", dtype=np.float16, shape=shape
            )
            for start, values in self._compute_all(list(missing.values())):
                array[start : start + len(values)] = values
                if progress is not None:
                    progress("features", start + len(values), len(missing))
            array.flush()
            unfinished.rename(self._folder / f"{name}.npy")
        finally:
            unfinished.unlink(missing_ok=True)
        listed = self._folder / f"{name}.{os.getpid()}.json.tmp"
        listed.write_text(json.dumps(list(missing)))
        listed.rename(self._folder / f"{name}.json")

    def _compute_all(self, images: Sequence[Image]) -> Iterator[tuple[int, Array]]:
        """Batches of features in order. Many threads of one torch thread each: faster than splitting every layer."""
        self._load_network()
        starts = range(0, len(images), _BATCH)
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            batches = pool.map(lambda start: self._compute(images[start : start + _BATCH]), starts)
            yield from zip(starts, batches, strict=True)

    def _compute(self, images: Sequence[Image]) -> Array:
        pixels = self._images.get_many([image.path for image in images])
        values: Array = self._load_network().patches(torch.from_numpy(pixels)).numpy().astype(np.float16)
        return values

    def _load_network(self) -> efficientnet.EfficientNetLite0:
        if self._network is None:
            self._network = efficientnet.EfficientNetLite0(self._image_size)
        return self._network


def _key(image: Image) -> str:
    """Identifies an image file's content without reading it. Raises `UserError` where the file is missing."""
    try:
        status = image.path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{image.path}: image is missing; restore the file or drop the study") from error
    return f"{image.path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
