"""Rendered X-rays on disk: `cache_dir/rendered_openi/<renderer version>/<study id>.png`.

Files appear whole (written beside, then renamed), so a killed run leaves nothing half-written, and several processes
may fill the same folder. The version in the path keeps pictures of different renderers apart.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from PIL import Image as PILImage

from rrg.data.findings import Sign
from rrg.data.render import VERSION, render
from rrg.errors import UserError

Progress = Callable[[str, int, int], None]
_CHUNK: Final = 32
# Below this many images starting worker processes takes longer than rendering.
_IN_PROCESS: Final = 64
_TIMEOUT_S: Final = 600.0


def folder_of(cache_dir: Path) -> Path:
    """Where the present renderer's pictures lie under `cache_dir`."""
    return cache_dir.expanduser().resolve() / "rendered_openi" / VERSION


def path_of(folder: Path, study_id: str) -> Path:
    return folder / f"{study_id}.png"


def render_missing(
    folder: Path, signs_of: Mapping[str, tuple[Sign, ...]], workers: int, progress: Progress | None = None
) -> int:
    """Renders the studies of `signs_of` that have no picture in `folder`; returns how many those were.

    Few images are made here, many by `workers` spawned processes (which import numpy and Pillow, not torch).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise UserError(f"data.cache_dir: {folder} can't be used ({error}); choose another folder") from error
    missing = [(key, signs) for key, signs in signs_of.items() if f"{key}.png" not in present]
    if not missing:
        return 0
    tell = progress if progress is not None else _silent
    tell("rendering X-rays", 0, len(missing))
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    done = 0
    if workers <= 1 or len(missing) <= _IN_PROCESS:
        for chunk in chunks:
            done += _render_chunk(folder, chunk)
            tell("rendering X-rays", done, len(missing))
        return done
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        futures: list[Future[int]] = [pool.submit(_render_chunk, folder, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures, timeout=_TIMEOUT_S):
                done += future.result()
                tell("rendering X-rays", done, len(missing))
        except TimeoutError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise UserError(
                f"rendering X-rays: {done} of {len(missing)} done after {_TIMEOUT_S:.0f} s; start again to go on"
            ) from error
    return done


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def _render_chunk(folder: Path, chunk: Sequence[tuple[str, tuple[Sign, ...]]]) -> int:
    for study_id, signs in chunk:
        path = path_of(folder, study_id)
        partial = path.with_name(f".{study_id}.{os.getpid()}.part")
        with partial.open("wb") as file:
            PILImage.fromarray(render(study_id, signs)).save(file, format="PNG", compress_level=1)
        partial.replace(path)
    return len(chunk)
