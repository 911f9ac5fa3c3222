"""Fills the image cache of a data set: by threads here, or by Ray Data on all nodes of a cluster.

Contract: whoever decodes, one process writes, and an image that can't be read is reported and never fatal. With Ray
the nodes see the images under the same paths as the driver (a shared file system) and have `rrg` installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rrg.data.imagecache import ImageCache, Prepared, Progress, batches, encode_file

_BATCH: Final = 64


def prepare_images(
    cache: ImageCache, paths: Iterable[Path], workers: int, ray_address: str | None, progress: Progress | None = None
) -> Prepared:
    """Stores what is missing of `paths`. `ray_address`: a cluster's, "auto", or "local" for a Ray of this machine."""
    if ray_address is None:
        return cache.prepare(paths, workers, progress)
    return _prepare_with_ray(cache, paths, workers, ray_address, progress)


def _prepare_with_ray(
    cache: ImageCache, paths: Iterable[Path], workers: int, address: str, progress: Progress | None
) -> Prepared:
    """Ray Data streams: blocks of PNGs come to the driver as fast as it stores them, and wait where they were made."""
    import ray  # Takes seconds to import, and only this path needs it.
    import ray.data

    chosen = list(dict.fromkeys(path.resolve() for path in paths))
    missing, failed = cache.missing(chosen)
    keys = {str(path): key for path, key in missing}
    stored = done = 0
    started = not ray.is_initialized()
    if started:
        size = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **size)
    try:
        if keys:
            ray.data.DataContext.get_current().enable_progress_bars = False
            decoded = ray.data.from_items([{"path": path} for path in keys]).map_batches(
                decode_batch, batch_size=_BATCH, fn_kwargs={"size": cache.size}
            )
            for rows in batches(decoded.iter_rows(), 4 * _BATCH):
                good = [(keys[row["path"]], bytes(row["png"])) for row in rows if not row["reason"]]
                failed += [(Path(row["path"]), row["reason"]) for row in rows if row["reason"]]
                cache.store(good)
                stored, done = stored + len(good), done + len(rows)
                if progress is not None:
                    progress("images", done, len(missing))
    finally:
        if started:
            ray.shutdown()
    return Prepared(stored, len(chosen) - stored - len(failed), tuple(failed))


def decode_batch(batch: dict[str, npt.NDArray[Any]], size: int) -> dict[str, npt.NDArray[Any]]:
    """Columns path, png (empty where the file can't be read) and reason of a batch of paths."""
    entries = [encode_file(Path(path), size) for path in batch["path"]]
    return {
        "path": batch["path"],
        "png": np.array([png or b"" for png, _ in entries], dtype=object),
        "reason": np.array([reason for _, reason in entries], dtype=object),
    }
