"""Checkpoints of a run: written aside, made durable, renamed into place, announced, and only then pruned.

Contract: `<dir>/step_N/` is complete whenever it exists under that name (its `state.json` is the last file written
before the rename), `<dir>/latest` names the newest one, and a crash at any point leaves the one before usable.
A checkpoint holds `deepspeed/` (weights and optimizer of every rank), `policy/` (safetensors, free of the world
size) and `state.json`. No random state: every rank seeds its generator from (seed, phase, step, rank).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.schema import Config
from rrg.errors import UserError

LOGGER = logging.getLogger(__name__)
FORMAT = 1

Phase = Literal["regions", "policy", "rl"]


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    `step` counts the finished steps of the phase's schedule (warm start: of both stages together), `weight_version`
    is the last published one, `config_hash` that of the settings which shape the numbers.
    """

    phase: Phase
    step: int
    weight_version: int
    world_size: int
    config_hash: str
    format: int = FORMAT


def config_hash(config: Config) -> str:
    """A hash of all settings that can change a number of training (not: where and how it runs)."""
    shaping: dict[str, Any] = {
        "data": {k: v for k, v in dataclasses.asdict(config.data).items() if k not in _PLACE_OF_DATA},
        "model": dataclasses.asdict(config.model),
        "reward": {k: v for k, v in dataclasses.asdict(config.reward).items() if k in _SHAPE_OF_REWARD},
        "sft": dataclasses.asdict(config.learner.sft),
        "rl": {k: v for k, v in dataclasses.asdict(config.learner.rl).items() if k not in _LENGTH_OF_RUN},
        "rollout": [config.rollout.samples_per_study, config.rollout.temperature, config.rollout.max_new_tokens],
        "seed": config.seed,
    }
    # Younger settings count only where they are not at their default: runs from before them can still be resumed.
    for name, default in _YOUNGER_DATA.items():
        if shaping["data"].get(name) == default:
            del shaping["data"][name]
    if config.data.imagenome is not None:
        shaping["imagenome"] = True
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]


_PLACE_OF_DATA = ("cache_dir", "root", "reports", "imagenome", "workers")
_YOUNGER_DATA = {"views": "all", "without_findings": "skip", "target": "findings"}
_SHAPE_OF_REWARD = (
    "backend", "radgraph", "dtype", "idf", "composite", "clip", "component_weights",
    "repetition_weight", "length_weight", "positive_f1_weight",
)  # fmt: skip
# A run may be made longer or saved more often without becoming another run.
_LENGTH_OF_RUN = ("steps", "checkpoint_every", "keep_checkpoints")


def write_checkpoint(folder: Path, state: RunState, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write checkpoint `<folder>/step_<N>` of `state`; `write(path)` fills it. Returns its final path.

    N counts on from the warm start into RL, so that names sort by age: `name_of`. Keeps the newest `keep`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / name_of(state)
    aside = final.with_suffix(".tmp")
    for stale in (aside, final):
        if stale.exists():
            shutil.rmtree(stale)
    aside.mkdir()
    write(aside)
    (aside / "state.json").write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n")
    _sync_tree(aside)
    aside.rename(final)
    _sync(folder)
    _announce(folder, final.name)
    _prune(folder, keep, newest=final.name)
    return final


def name_of(state: RunState) -> str:
    """`step_0_000123` in the warm start, `step_1_000123` in RL: the names sort by age."""
    return f"step_{int(state.phase == 'rl')}_{state.step:06d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None. An incomplete or unreadable one is passed over with a warning."""
    if not folder.is_dir():
        return None
    announced = folder / "latest"
    names = sorted((path.name for path in folder.glob("step_*") if path.suffix != ".tmp"), reverse=True)
    if announced.is_file() and (first := announced.read_text().strip()) in names:
        names.remove(first)
        names.insert(0, first)
    for name in names:
        try:
            read_state(folder / name)
        except UserError as error:
            LOGGER.warning("checkpoint passed over: %s", error)
            continue
        return folder / name
    return None


def read_state(checkpoint: Path) -> RunState:
    """The state of a checkpoint. Raises UserError where it is incomplete, damaged or of another format."""
    missing = [name for name in ("state.json", "deepspeed", "policy") if not (checkpoint / name).exists()]
    if missing:
        raise UserError(f"{checkpoint} is not a complete checkpoint: {', '.join(missing)} is missing")
    try:
        fields: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        state = RunState(**fields)
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{checkpoint}/state.json is damaged: {error}") from error
    if state.format != FORMAT:
        raise UserError(f"{checkpoint} has format {state.format}, this version reads {FORMAT}")
    return state


def _announce(folder: Path, name: str) -> None:
    aside = folder / "latest.tmp"
    aside.write_text(name + "\n")
    _sync(aside)
    aside.rename(folder / "latest")
    _sync(folder)


def _prune(folder: Path, keep: int, *, newest: str) -> None:
    old = sorted(path for path in folder.glob("step_*") if path.suffix != ".tmp" and path.name != newest)
    for path in old[: max(0, len(old) - (keep - 1))]:
        shutil.rmtree(path)


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
