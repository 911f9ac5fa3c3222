"""The automatic stops of RL: pure judgements of what a run has recorded so far.

Contract: every check takes rows of `metrics.jsonl` (so a resumed run judges as one that was never interrupted) and
answers with a reason, or None. A check never changes the training; `learner.reinforce` ends the run with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import StopConfig
from learner.tracking import Row
from reward_server.scorer import Description

Fingerprint = dict[str, object]


@dataclass(frozen=True)
class Stop:
    """Why a run is stopped. `sound`: the weights are worth saving (they are not where a number is not finite)."""

    reason: str
    sound: bool = True


def judge_steps(steps: Sequence[Row], settings: StopConfig) -> Stop | None:
    """Whether the run is to stop after the last of its RL steps, all of which are given in order."""
    last = steps[-1]
    broken = [name for name, value in last.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        return Stop(f"{', '.join(broken)}: not a finite number", sound=False)
    # Of reports by older weights the gap tells how far the policy has moved since; the actors' canary compares theirs.
    max_gap = None if last.get("staleness_max", 0.0) > 0.0 else settings.max_logprob_gap
    limits = (
        ("kl_k3", settings.max_kl, "the policy has left the warm start", "max_kl"),
        ("logprob_gap_mean", max_gap, "learner and rollout engine disagree", "max_logprob_gap"),
    )
    for name, limit, meaning, field in limits:
        if limit is not None and last.get(name, 0.0) > limit:
            return Stop(f"{name} is {last[name]:.4g}: {meaning} (learner.rl.stop.{field}={limit:g})")
    reason = None if settings.collapse is None else _collapse(steps, settings.window, settings.collapse)
    return None if reason is None else Stop(reason)


def _collapse(steps: Sequence[Row], window: int, limit: float) -> str | None:
    """Compares the means of the first and the last `window` steps, in deviations of the first ones' samples."""
    scored = [step for step in steps if "reward_mean" in step]  # a step of which every sample failed has none
    if len(scored) < 2 * window:
        return None
    means, spreads = (np.array([step[name] for step in scored[:window]]) for name in ("reward_mean", "reward_std"))
    # The variance of all samples of the window: within its steps, and between them.
    spread = math.sqrt(np.mean(spreads**2) + means.var())
    first, last = float(means.mean()), float(np.mean([step["reward_mean"] for step in scored[-window:]]))
    if last >= first - limit * spread:
        return None
    return (
        f"the reward has collapsed: mean of the last {window} steps {last:.3f}, of the first ones {first:.3f} with a "
        f"deviation of {spread:.3f} (learner.rl.stop.collapse={limit:g})"
    )


def judge_validations(validations: Sequence[Row], settings: StopConfig) -> Stop | None:
    """Whether one of `settings.measures` has declined at each of the last `patience` validations after the first.

    A measure has declined where the upper end of its paired interval against the warm start lies below 0.
    """
    patience = settings.patience
    later = validations[1:]
    if patience is None or len(later) < patience:
        return None
    for name in settings.measures:
        recent = [row.get(f"{name}_change_high", 0.0) for row in later[-patience:]]
        if all(high < 0 for high in recent):
            return Stop(
                f"{name} of the validation studies lies below the warm start's, interval included, {patience} times in "
                f"a row; last by {later[-1][f'{name}_change']:.3f} (learner.rl.stop.patience, .measures)"
            )
    return None


def is_best(validations: Sequence[Row], measure: str) -> bool:
    """Whether the last validation has the highest `measure` of those after the first, which is the warm start's."""
    values = [row[measure] for row in validations[1:] if measure in row]
    return measure in validations[-1] and len(validations) > 1 and values[-1] > max(values[:-1], default=-math.inf)


def fingerprint(description: Description) -> Fingerprint:
    """What must stay the same of a reward for its scores to be comparable, as JSON holds it."""
    return {
        "backend": description.backend,
        "definition": description.definition,
        "formula": description.formula,
        "models": {model.name: model.sha256 for model in description.models},
    }


def judge_reward(before: Fingerprint, now: Fingerprint) -> Stop | None:
    """Whether the reward servers compute something else than at the beginning."""
    changed = [f"{name}: {before[name]} before, {now[name]} now" for name in before if before[name] != now[name]]
    return Stop(f"the reward servers' {'; '.join(changed)}") if changed else None
