"""Checkpoints of a run: written aside, made durable, renamed into place, announced, and only then pruned.

Contract: `<dir>/step_N/` is complete whenever it exists under that name (it is renamed when all is written),
`<dir>/latest` names the newest one, and a crash or a full disk at any point leaves the one before usable.
`<dir>/best` names the one of the best validation so far, which is kept whatever its age.
A checkpoint holds `deepspeed/` (weights and optimizer of every rank), `policy/` (safetensors, free of the world
size), in RL `inflight.*` (`learner.inflight`), `state.json`, and `SHA256SUMS` of all of them, as `sha256sum -c` reads
it. No random state: every rank seeds its generator from (seed, phase, step, rank).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.schema import Config
from rrg.errors import ProcessError, UserError

LOGGER = logging.getLogger(__name__)
FORMAT = 3
_SUMS = "SHA256SUMS"
# A process that fails to write to a disk with less room than that has most likely filled it.
_FULL_MIB = 64

Phase = Literal["regions", "policy", "rl"]


class FormatError(UserError):
    """A checkpoint of another version of this program."""


@dataclass(frozen=True)
class Best:
    """The best validation so far: of the RL step `step`, and so of the checkpoint of that step."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    `step` counts the finished steps of the phase's schedule (warm start: of both stages together), `weight_version`
    is the last published one, `config_hash` that of the settings which shape the numbers, `kl_coef` the coefficient
    of the next step.
    """

    phase: Phase
    step: int
    weight_version: int
    world_size: int
    config_hash: str
    kl_coef: float
    best: Best | None = None
    format: int = FORMAT


def config_hash(config: Config) -> str:
    """A hash of all settings that can change a number of training (not: where and how it runs)."""
    learner, rollout = config.learner, config.rollout
    shaping: dict[str, Any] = {
        "data": _without(config.data, "cache_dir", "root", "reports", "imagenome", "workers"),
        "imagenome": config.data.imagenome is not None,
        "model": dataclasses.asdict(config.model),
        "reward": {k: v for k, v in dataclasses.asdict(config.reward).items() if k in _SHAPE_OF_REWARD},
        "optimizer": [learner.grad_clip, *learner.betas],
        "sft": _without(learner.sft, "checkpoint_every"),
        # A run may be made longer, watched or saved more often without becoming another run.
        "rl": _without(
            learner.rl,
            *("steps", "checkpoint_every", "keep_checkpoints", "keep_best"),
            *("evaluate_every", "evaluate_studies", "stop"),
        ),
        "rollout": [rollout.samples_per_study, rollout.temperature, rollout.max_new_tokens, rollout.max_staleness],
        "seed": config.seed,
    }
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]


_SHAPE_OF_REWARD = (
    "backend", "radgraph", "dtype", "idf", "composite", "clip", "component_weights", "relative_to_constant",
    "repetition_weight", "length_weight", "positive_f1_weight",
)  # fmt: skip


def _without(settings: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in names}


def write_checkpoint(folder: Path, state: RunState, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write checkpoint `<folder>/step_<N>` of `state`; `write(path)` fills it. Returns its final path.

    N counts on from the warm start into RL, so that names sort by age: `name_of`. Kept are the newest `keep`, and the
    best.

    Raises:
        UserError: it could not be written; the message says what to do. The one before stays, as it does where `write`
            raises ProcessError.
    """
    final = folder / name_of(state.phase, state.step)
    aside, before = final.with_suffix(".tmp"), final.with_suffix(".old.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (aside, before):
            if stale.exists():
                shutil.rmtree(stale)
        aside.mkdir()
        write(aside)
        (aside / "state.json").write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n")
        (aside / _SUMS).write_text("".join(f"{sha256}  {name}\n" for name, sha256 in _sums(aside).items()))
        _sync_tree(aside)
    except (OSError, ProcessError) as error:
        free_mib = shutil.disk_usage(folder.parent).free >> 20
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, ProcessError) and free_mib >= _FULL_MIB:
            raise
        raise UserError(
            f"the checkpoint {final} could not be written: {error}. Its disk had {free_mib} MiB left; the checkpoint "
            f"before stays: if the disk is full make room, then go on with resume={folder.parent}"
        ) from error
    if final.exists():  # of the same step: the new one takes its place only when it is whole
        final.rename(before)
    aside.rename(final)
    _sync(folder)
    _announce(folder, "latest", final.name)
    best = None if state.best is None else name_of("rl", state.best.step)
    if best is not None:
        _announce(folder, "best", best)
    _prune(folder, keep, newest=final.name, best=best)
    shutil.rmtree(before, ignore_errors=True)
    return final


def name_of(phase: Phase, step: int) -> str:
    """`step_0_000123` in the warm start, `step_1_000123` in RL: the names sort by age."""
    return f"step_{int(phase == 'rl')}_{step:06d}"


def latest_checkpoint(folder: Path, *, verify: bool = False) -> Path | None:
    """The newest complete checkpoint, or None. An incomplete or unreadable one is passed over with a warning, with
    `verify` one that was damaged in any file too (which means to read them all).

    Raises FormatError where the newest is of another version of this program.
    """
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
            if verify:
                _verify(folder / name)
        except FormatError:
            raise
        except (UserError, OSError) as error:
            LOGGER.warning("checkpoint passed over, the one before is taken: %s", error)
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
        if fields["format"] != FORMAT:
            raise FormatError(
                f"{checkpoint} has format {fields['format']}, this version reads {FORMAT}: go on with the version that "
                "wrote it, or begin a new run at its weights with start=RUN_DIRECTORY"
            )
        best = fields.pop("best")
        return RunState(**fields, best=None if best is None else Best(**best))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}/state.json is damaged: {error}") from error


def _sums(root: Path) -> dict[str, str]:
    """SHA-256 of every file below `root` by its path there."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != _SUMS)
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run
        return dict(zip((str(path.relative_to(root)) for path in paths), threads.map(_sha256, paths), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(checkpoint: Path) -> None:
    """Raises UserError where a file is not what was written: torch and safetensors load flipped bits without a word."""
    if not (checkpoint / _SUMS).is_file():
        raise UserError(f"{checkpoint} is not a complete checkpoint: {_SUMS} is missing")
    lines = (checkpoint / _SUMS).read_text(errors="replace").splitlines()
    wanted = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    found = _sums(checkpoint)
    damaged = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if damaged:
        raise UserError(f"{checkpoint} is damaged: {', '.join(damaged)} not as in {_SUMS}")


def _announce(folder: Path, what: str, name: str) -> None:
    aside = folder / f"{what}.tmp"
    aside.write_text(name + "\n")
    _sync(aside)
    aside.rename(folder / what)
    _sync(folder)


def _prune(folder: Path, keep: int, *, newest: str, best: str | None) -> None:
    kept = (newest, best)
    others = sorted(path for path in folder.glob("step_*") if path.suffix != ".tmp" and path.name not in kept)
    # Later ones are of a run that went back behind them: since they were damaged, say.
    later = [path for path in others if path.name > newest]
    old = others[: len(others) - len(later)]
    for path in [*later, *old[: max(0, len(old) - (keep - 1))]]:
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
