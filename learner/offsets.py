"""Rewards relative to the best constant report: what each training study would give for it, to be subtracted.

Contract: offsets change how rewards of different studies compare (baselines over the batch, value heads); advantages
within a study's own reports do not notice them, and `configs.check_rl` refuses the two together. They are kept in the
run directory: a resumed run goes on with the same numbers. Study ids and numbers only, no report text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from configs.schema import Config
from learner.evaluation.controls import best_constant
from learner.evaluation.measures import PAIRS_AT_ONCE, Scorer
from learner.files import write_whole
from reward_server.spec import reward_from_components
from rrg.data import StudySet

Progress = Callable[[str, int, int], None]


def reward_offsets(
    cfg: Config, run_dir: Path, studies: StudySet, score: Scorer, progress: Progress
) -> dict[str, float]:
    """The reward of the best constant report for every training study, by id."""
    path = run_dir / "reward_offsets.json"
    if path.exists():
        kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    train = studies.split("train")
    reward = partial(reward_from_components, cfg=cfg.reward)
    constant = best_constant(train, train[:1], score, reward, cfg.evaluation, cfg.seed)[0]
    offsets: dict[str, float] = {}
    for first in range(0, len(train), PAIRS_AT_ONCE):
        part = train[first : first + PAIRS_AT_ONCE]
        scores = score([(study.target, constant) for study in part])
        offsets |= {study.id: reward(components) for study, components in zip(part, scores, strict=True)}
        progress("training studies", len(offsets), len(train))
    write_whole(path, json.dumps(offsets, indent=0) + "\n")
    return offsets
