"""Images for a policy: features of a frozen backbone, computed once and shared through files by every process of a
run, or pixels for a backbone that is trained.

Contract: `FeatureStore.load` gives the same stored float16 values to whoever asks, learner and rollout actors alike.
Features are stored in shards, files that only ever appear complete (written beside, then renamed): any number of
processes may read while one prepares, and `prepare` computes only the images that no shard holds yet, so a killed one
goes on behind its last shard. (It leaves the one that it was at as `*.tmp`, which nobody reads.)

Layout: `cache_dir/features/<image size>-<backbone>-<hash>/<name>.npy` [images, row] float16, memory mapped, with
`<name>.json`, the list of image keys in the same order. A row is what `rrg.model.pixels.PatchLevels` makes patches of
(of EfficientNet-lite0 at 224 pixels 165 KiB, where its patches would take 533; of RAD-DINO 2 MiB). A key changes with
the image file, the hash with the backbone's weights and config.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

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

_BATCH: Final = 16
# Images of a shard, and its bytes: what a killed `prepare` loses, and what may wait in memory to be written.
_SHARD_IMAGES: Final = 4096
_SHARD_BYTES: Final = 1 << 30
# Shards that are mapped at once: each holds a file open, of which a process may have 1024.
_MAPPED: Final = 128


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
    """Features of a frozen backbone; it is loaded when a feature is missing, and files are mapped when first read.
    Any threads may load at once.

    Images are squares that hold the whole picture (`rrg.data.images.load_image`), of `data.image_size` or the size that
    the backbone was made for; raises `UserError` for a size that it can't be used with. A shard has at most
    `shard_bytes`, or one batch of images.
    """

    def __init__(self, cfg_data: DataConfig, cfg_model: ModelConfig, shard_bytes: int = _SHARD_BYTES) -> None:
        self._spec = BackboneSpec.of(cfg_model.backbone.path, cfg_data.image_size)
        self.grid = self._spec.levels.grid
        self.channels = self._spec.levels.channels
        self._images = ImageCache(Path(cfg_data.cache_dir), self._spec.levels.image_size)
        self._threads = cfg_data.workers
        self._row_bytes = self._spec.levels.row * np.dtype(np.float16).itemsize
        # Whole batches: what is computed together does not depend on the shards.
        batches = min(_SHARD_IMAGES, shard_bytes // self._row_bytes) // _BATCH
        self._shard_images = max(batches, 1) * _BATCH
        tag = f"{self._spec.levels.image_size}-{self._spec.fingerprint()}"
        self._folder = Path(cfg_data.cache_dir) / "features" / tag
        self._map = lru_cache(_MAPPED)(_map_shard)
        self._rows: dict[str, tuple[Path, int]] = {}
        self._read: set[str] = set()
        self._backbone: VisionBackbone | None = None
        self._loading = threading.Lock()

    def prepare(self, studies: Sequence[Study], progress: Progress | None = None) -> None:
        """Computes and stores what is missing; `progress` is told ("features", images done, images in all).

        A Hugging Face backbone works on the GPU where torch finds one (never run: the machines of this project have
        none), EfficientNet-lite0 always on the CPU. Raises `UserError`, before anything is computed, where the disk of
        `data.cache_dir` is too small.
        """
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
            # On the CPU: a GPU of this process is planned for the policy or the engine.
            computed: Array = self._compute(self._load_backbone(), [image])[0]
            return computed
        shard, row = self._rows[key]
        values: Array = self._map(shard)[row]
        return values

    def _scan(self) -> None:
        for index in sorted(self._folder.glob("*.json")):
            if index.stem not in self._read:
                shard = index.with_suffix(".npy")
                self._rows.update((key, (shard, row)) for row, key in enumerate(json.loads(index.read_text())))
                self._read.add(index.stem)

    def _write(self, missing: Mapping[str, Image], progress: Progress | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        check_room(self._folder, len(missing) * self._row_bytes, len(missing))
        keys, done = list(missing), 0

        def counted(batches: Iterable[Array]) -> Iterator[Array]:
            nonlocal done
            for values in batches:
                yield values
                done += len(values)
                if progress is not None:
                    progress("features", done, len(keys))

        with self._computing() as compute:
            for start in range(0, len(keys), self._shard_images):
                shard = keys[start : start + self._shard_images]
                self._write_shard(shard, counted(compute([missing[key] for key in shard])))

    def _write_shard(self, keys: Sequence[str], batches: Iterable[Array]) -> None:
        """One file with the rows of `keys`, which `batches` hold in order, and its index."""
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        unfinished = self._folder / f"{name}.{os.getpid()}.tmp"
        shape = (len(keys), self._spec.levels.row)
        header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
        try:
            # Written and not mapped: where the disk is full after all, that is an error and no SIGBUS.
            with unfinished.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
                for values in batches:
                    file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._folder / f"{name}.npy")
        finally:
            unfinished.unlink(missing_ok=True)
        listed = self._folder / f"{name}.{os.getpid()}.json.tmp"
        listed.write_text(json.dumps(list(keys)))
        listed.rename(self._folder / f"{name}.json")

    @contextmanager
    def _computing(self) -> Iterator[Callable[[Sequence[Image]], Iterator[Array]]]:
        """A function that gives batches of features in order. Many threads of one torch thread each: faster than
        splitting every layer, and on a GPU the images of the next batches are decoded meanwhile."""
        on_gpu = self._spec.model is not None and torch.cuda.is_available()
        backbone = VisionBackbone(self._spec).to("cuda") if on_gpu else self._load_backbone()
        pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))

        def compute(images: Sequence[Image]) -> Iterator[Array]:
            starts = range(0, len(images), _BATCH)
            return pool.map(lambda start: self._compute(backbone, images[start : start + _BATCH]), starts)

        try:
            yield compute
        finally:
            pool.shutdown(cancel_futures=True)
            if on_gpu:
                backbone.to("cpu")
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _compute(self, backbone: VisionBackbone, images: Sequence[Image]) -> Array:
        """Rows [images, row], on the CPU wherever `backbone` is."""
        pixels = torch.from_numpy(self._images.get_many([image.path for image in images]))
        rows = backbone.rows(pixels.to(next(backbone.parameters()).device))
        if not bool((rows.abs() <= torch.finfo(torch.float16).max).all()):
            raise UserError(
                f"{images[0].path} or one of the next {len(images) - 1} images: the backbone's features are no numbers "
                "that float16 can hold; set model.backbone.train=full or choose another model.backbone.path"
            )
        values: Array = rows.cpu().numpy().astype(np.float16)
        return values

    def _load_backbone(self) -> VisionBackbone:
        with self._loading:  # several threads may miss their first image at once
            if self._backbone is None:
                self._backbone = VisionBackbone(self._spec)
            return self._backbone


def check_room(folder: Path, needed: int, images: int) -> None:
    """Raises `UserError` unless the disk of `folder` has `needed` bytes for the features of `images` images."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"data.cache_dir: the features of {images:,} images need {needed:,} bytes, {free:,} are free in {folder}; "
            "set data.cache_dir to a larger disk, use fewer studies (data.limit_train, data.limit_val, "
            "data.limit_test), or model.backbone.train=full, which trains the backbone and stores no features"
        )


def _map_shard(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r")
    return array


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
