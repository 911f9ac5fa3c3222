"""Finished trajectories that nothing has been learnt from yet, in a checkpoint.

Contract: `write_inflight` and `read_inflight` are each other's inverse, to the bit, for trajectories without evidence
(training ones have none). Two files: `inflight.npz` (numbers of every token) and `inflight.json` (the rest, report
texts included, as in the run's samples). Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.trajectory import Trajectory

_ARRAYS = {"token_ids": np.int32, "logprobs": np.float32, "versions": np.int32}
_FIELDS = [one.name for one in dataclasses.fields(Trajectory) if one.name not in (*_ARRAYS, "evidence")]


def write_inflight(folder: Path, batches: Mapping[int, Sequence[Trajectory]]) -> None:
    """Writes the trajectories of every RL step in `batches`."""
    every = [(step, trajectory) for step in sorted(batches) for trajectory in batches[step]]
    assert all(trajectory.evidence is None for _, trajectory in every), "evidence is of evaluations"
    arrays = {
        name: np.concatenate([np.zeros(0, kind), *(getattr(trajectory, name) for _, trajectory in every)])
        for name, kind in _ARRAYS.items()
    }
    lengths = np.array([len(trajectory.token_ids) for _, trajectory in every], np.int64)
    np.savez(folder / "inflight.npz", **arrays, lengths=lengths)
    rows = [{"step": step} | {name: getattr(one, name) for name in _FIELDS} for step, one in every]
    (folder / "inflight.json").write_text(json.dumps(rows), encoding="utf-8")


def read_inflight(folder: Path) -> dict[int, list[Trajectory]]:
    """What `write_inflight` wrote."""
    rows = json.loads((folder / "inflight.json").read_text(encoding="utf-8"))
    with np.load(folder / "inflight.npz", allow_pickle=False) as arrays:
        ends = np.cumsum(arrays["lengths"])[:-1]
        parts = {name: np.split(arrays[name], ends) for name in _ARRAYS}
    batches: dict[int, list[Trajectory]] = {}
    for index, row in enumerate(rows):
        numbers: dict[str, Any] = {name: parts[name][index] for name in _ARRAYS}
        batches.setdefault(row.pop("step"), []).append(Trajectory(**row, **numbers))
    return batches
