"""Rendered X-rays on disk: `cache_dir/rendered_openi/<renderer version>/<study id>.png`.

Files appear whole (written beside, then renamed), so a killed run leaves nothing half-written, and several processes
may fill the same folder. The version in the path keeps pictures of different renderers apart.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from PIL import Image as PILImage

from rrg.data.findings import Sign
from rrg.data.render import VERSION, render
from rrg.errors import UserError

Progress = Callable[[str, int, int], None]
Job = tuple[str, tuple[Sign, ...]]
_WHAT: Final = "rendering X-rays"
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

    Few images are made here, many by `workers` processes (`renderworker`), which import numpy and Pillow
    but not torch. Raises `UserError` if the folder can't be used, or a process fails or hangs.
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
    tell(_WHAT, 0, len(missing))
    if workers <= 1 or len(missing) <= _IN_PROCESS:
        chunks, make = _chunks(missing, 32), render_chunk
    else:
        chunks, make = _chunks(missing, min(128, -(-len(missing) // workers))), _render_elsewhere
    done = 0
    # Threads: in-process rendering uses one, the others only wait for their subprocess.
    with ThreadPoolExecutor(workers if make is _render_elsewhere else 1) as pool:
        futures = [pool.submit(make, folder, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                done += future.result()
                tell(_WHAT, done, len(missing))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _chunks(jobs: Sequence[Job], size: int) -> list[Sequence[Job]]:
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def _render_elsewhere(folder: Path, chunk: Sequence[Job]) -> int:
    """`render_chunk` in a process of its own."""
    command = [sys.executable, "-m", "rrg.data.renderworker", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # One core a worker: Pillow and numpy start no threads for pictures of this size.
    try:
        subprocess.run(
            command, input=pickle.dumps(list(chunk)), env=environment, timeout=_TIMEOUT_S, check=True,
            capture_output=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{_WHAT}: {len(chunk)} pictures weren't done after {_TIMEOUT_S:.0f} s; start again to go on"
        ) from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        raise UserError(f"{_WHAT} into {folder} failed: {reason[0]}") from error
    return len(chunk)


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def render_chunk(folder: Path, chunk: Sequence[Job]) -> int:
    """Renders and stores each (study id, signs); returns how many."""
    for study_id, signs in chunk:
        path = path_of(folder, study_id)
        partial = path.with_name(f".{study_id}.{os.getpid()}.part")
        with partial.open("wb") as file:
            PILImage.fromarray(render(study_id, signs)).save(file, format="PNG", compress_level=1)
        partial.replace(path)
    return len(chunk)
