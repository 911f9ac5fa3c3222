"""The automatic stops of RL: pure judgements of what a run has recorded so far.

Contract: every check takes rows of `metrics.jsonl` (so a resumed run judges as one that was never interrupted) and
answers with a reason, or None. A check never changes the training; `learner.reinforce` ends the run with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.schema import StopConfig
from learner.tracking import Row
from reward_server.scorer import Description

Fingerprint = dict[str, object]


@dataclass(frozen=True)
class Stop:
    """Why a run is stopped. `sound`: the last step is worth saving (it is not where a number is not finite, or scores
    are missing that may still be had)."""

    reason: str
    sound: bool = True


def judge_steps(steps: Sequence[Row], settings: StopConfig) -> Stop | None:
    """Whether the run is to stop after the last of its RL steps, all of which are given in order."""
    last = steps[-1]
    broken = [name for name, value in last.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        return Stop(f"{', '.join(broken)}: not a finite number", sound=False)
    # The gap of tokens by the step's own weights: that of older ones tells how far the policy has moved since.
    limits = (
        ("kl_k3", settings.max_kl, "the policy has left the warm start", "max_kl"),
        ("logprob_gap_fresh_mean", settings.max_logprob_gap, "learner and rollout engine disagree", "max_logprob_gap"),
    )
    for name, limit, meaning, field in limits:
        if limit is not None and last.get(name, 0.0) > limit:
            return Stop(f"{name} is {last[name]:.4g}: {meaning} (learner.rl.stop.{field}={limit:g})")
    for reason in (_failed(steps, settings), _collapse(steps, settings.window, settings.collapse)):
        if reason is not None:
            return Stop(reason)
    return None


def _failed(steps: Sequence[Row], settings: StopConfig) -> str | None:
    """Steps go by without teaching anything where the scores stay away."""
    limit, recent = settings.max_failed, steps[-settings.max_failed_steps :]
    if limit is None or len(recent) < settings.max_failed_steps:
        return None
    shares = [step.get("failed", 0.0) / max(1.0, step.get("samples", 0.0)) for step in recent]
    if min(shares) <= limit:
        return None
    return (
        f"{shares[-1]:.0%} of the samples failed, and too many in each of the last {len(recent)} steps: are the reward "
        "servers away or too slow (reward.timeout_s, reward.num_workers)? The rollout actors' logs say why "
        f"(learner.rl.stop.max_failed={limit:g}, .max_failed_steps)"
    )


def _collapse(steps: Sequence[Row], window: int, limit: float | None) -> str | None:
    """Compares the means of the first and the last `window` steps, in deviations of the first ones' samples."""
    scored = [step for step in steps if "reward_mean" in step]  # a step of which every sample failed has none
    if limit is None or len(scored) < 2 * window:
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
    """Whether one of `settings.measures` has declined at each of the last `patience` validations of RL.

    A measure has declined where the upper end of its paired interval against the warm start lies below 0.
    """
    patience = settings.patience
    later = _of_rl(validations)
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


def judge_record(steps: Sequence[Row], validations: Sequence[Row], settings: StopConfig) -> Stop | None:
    """Whether what a resumed run has recorded is a reason not to go on. Servers that were away may be back."""
    settings = replace(settings, max_failed=None)
    return (judge_steps(steps, settings) if steps else None) or judge_validations(validations, settings)


def is_best(validations: Sequence[Row], measure: str) -> bool:
    """Whether the last validation has the highest `measure` of those of RL; that of step 0 is the warm start's."""
    later = _of_rl(validations)
    values = [row[measure] for row in later if measure in row]
    return bool(later) and measure in later[-1] and values[-1] > max(values[:-1], default=-math.inf)


def _of_rl(validations: Sequence[Row]) -> list[Row]:
    return [row for row in validations if row["step"] > 0]


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
