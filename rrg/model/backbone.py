"""Images for a policy: features of a frozen backbone, computed once and shared through files by every process of a
run, or pixels for a backbone that is trained.

Contract: `FeatureStore.load` gives the same stored float16 values to whoever asks, learner and rollout actors alike.
Files only ever appear complete (written beside, then renamed), so any number of processes may read while one
prepares; a second `prepare` computes only the images that no file holds yet.

Layout: `cache_dir/features/<image size>-<backbone>-<hash>/<name>.npy` [images, row] float16, memory mapped, with
`<name>.json`, the list of image keys in the same order. A row is what `rrg.model.pixels.PatchLevels` makes patches of
(of EfficientNet-lite0 at 224 pixels 165 KiB, where its patches would take 533). A key changes with the image file, the
hash with the backbone's weights and config.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from configs.schema import DataConfig, ModelConfig
from rrg.data.imagecache import ImageCache
from rrg.data.study import Image, Study
from rrg.errors import UserError
from rrg.model.features import VIEW_CODES, FeatureBatch, ImageBatch, PatchFeatures, PixelBatch, collate_features
from rrg.model.vision import BackboneSpec, VisionBackbone

Progress = Callable[[str, int, int], None]
Array = npt.NDArray[np.float16]

_BATCH = 16


class ImageStore(Protocol):
    """What gives studies' images to a policy; cheap to make, safe to make in every process."""

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""

    @property
    def channels(self) -> int:
        """Width of a patch's features."""

    def prepare(self, studies: Sequence[Study], progress: Progress | None = None) -> None:
        """Computes and stores what is missing; `progress` is told (what, images done, images in all)."""

    def load_batch(self, studies: Sequence[Study]) -> ImageBatch:
        """The images of studies; raises `UserError` for a study without one, or a file that can't be read."""


def make_store(cfg_data: DataConfig, cfg_model: ModelConfig) -> ImageStore:
    """Stored features of a frozen backbone, or pixels for one that is trained."""
    kind = FeatureStore if cfg_model.backbone.train == "frozen" else PixelStore
    return kind(cfg_data, cfg_model)


def image_size_of(cfg_data: DataConfig, cfg_model: ModelConfig) -> int:
    """`data.image_size`, or the size that the backbone was made for (pixels).

    Raises `UserError` for a size that the backbone can't be used with. Images are squares that hold the whole picture
    (`rrg.data.images.load_image`), not the centre that a backbone's own processor would crop.
    """
    return BackboneSpec.of(cfg_model.backbone.path, cfg_data.image_size).levels.image_size


class PixelStore:
    """Pixels from the image cache, for a backbone that is trained."""

    def __init__(self, cfg_data: DataConfig, cfg_model: ModelConfig) -> None:
        levels = BackboneSpec.of(cfg_model.backbone.path, cfg_data.image_size).levels
        self.grid = levels.grid
        self.channels = levels.channels
        self._images = ImageCache(Path(cfg_data.cache_dir), levels.image_size)
        self._threads = cfg_data.workers

    def prepare(self, studies: Sequence[Study], progress: Progress | None = None) -> None:
        """Decodes and stores the images that are missing. Raises `UserError` for the first that can't be read."""
        done = self._images.prepare((image.path for s in studies for image in s.images), self._threads, progress)
        if done.failed:
            raise UserError(done.failed[0][1])

    def load_batch(self, studies: Sequence[Study]) -> PixelBatch:
        counts = torch.tensor([len(_images_of(study)) for study in studies])
        mask = torch.arange(int(counts.max())) < counts[:, None]
        images = self._images.get_many([image.path for study in studies for image in study.images])
        pixels = torch.zeros(*mask.shape, *images.shape[1:], dtype=torch.uint8)
        pixels[mask] = torch.from_numpy(images)
        views = torch.zeros(mask.shape, dtype=torch.long)
        views[mask] = torch.tensor([VIEW_CODES[image.view] for study in studies for image in study.images])
        return PixelBatch(pixels, views, mask)


class FeatureStore:
    """Features of a frozen backbone; it is loaded when a feature is missing, and files are mapped when first read."""

    def __init__(self, cfg_data: DataConfig, cfg_model: ModelConfig) -> None:
        self._spec = BackboneSpec.of(cfg_model.backbone.path, cfg_data.image_size)
        self.grid = self._spec.levels.grid
        self.channels = self._spec.levels.channels
        self._images = ImageCache(Path(cfg_data.cache_dir), self._spec.levels.image_size)
        self._threads = cfg_data.workers
        tag = f"{self._spec.levels.image_size}-{self._spec.fingerprint()}"
        self._folder = Path(cfg_data.cache_dir) / "features" / tag
        self._rows: dict[str, tuple[Array, int]] = {}
        self._read: set[str] = set()
        self._backbone: VisionBackbone | None = None

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
        rows = np.stack([self._row(image) for image in _images_of(study)])
        values = self._spec.levels.expand(torch.from_numpy(rows)).float().flatten(0, 1)
        views = [VIEW_CODES[image.view] for image in study.images]
        return PatchFeatures(values, torch.tensor(views).repeat_interleave(self.grid**2))

    def load_batch(self, studies: Sequence[Study]) -> FeatureBatch:
        return collate_features([self.load(study) for study in studies])

    def _row(self, image: Image) -> Array:
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
        shape = (len(missing), self._spec.levels.row)
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
        self._load_backbone()
        starts = range(0, len(images), _BATCH)
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            batches = pool.map(lambda start: self._compute(images[start : start + _BATCH]), starts)
            yield from zip(starts, batches, strict=True)

    @torch.inference_mode()
    def _compute(self, images: Sequence[Image]) -> Array:
        pixels = self._images.get_many([image.path for image in images])
        rows = self._load_backbone().rows(torch.from_numpy(pixels))
        if not bool((rows.abs() <= torch.finfo(torch.float16).max).all()):
            raise UserError(
                f"{images[0].path} or one of the next {len(images) - 1} images: the backbone's features are no numbers "
                "that float16 can hold; set model.backbone.train=full or choose another model.backbone.path"
            )
        values: Array = rows.numpy().astype(np.float16)
        return values

    def _load_backbone(self) -> VisionBackbone:
        if self._backbone is None:
            self._backbone = VisionBackbone(self._spec)
        return self._backbone


def _images_of(study: Study) -> tuple[Image, ...]:
    if not study.images:
        raise UserError(f"study {study.id} ({study.source}) has no image")
    return study.images


def _key(image: Image) -> str:
    """Identifies an image file's content without reading it. Raises `UserError` where the file is missing."""
    try:
        status = image.path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{image.path}: image is missing; restore the file or drop the study") from error
    return f"{image.path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
