"""What a scorer must get right before a server says that it serves."""

from __future__ import annotations

import math

from reward_server.backends import create_scorer
from reward_server.errors import RewardSetupError
from reward_server.scorer import Pair, Scorer, ScorerOptions
from reward_server.spec import COMPOSITES

_REFERENCE = "The heart is mildly enlarged. There is a small left pleural effusion. No pneumothorax."
_OTHER = "Lungs are clear."
_PAIRS: tuple[Pair, ...] = ((_REFERENCE, _REFERENCE), (_REFERENCE, _OTHER), (_REFERENCE, ""))
_TOLERANCE = 1e-6


def load_scorer(options: ScorerOptions) -> Scorer:
    """Loads a backend and checks it; RewardSetupError if a file is missing or the scores can't be right."""
    scorer = create_scorer(options)
    self_check(scorer)
    return scorer


def self_check(scorer: Scorer) -> None:
    """A copy scores best, every component is there and finite, also of a blank report, and order changes nothing.

    Raises RewardSetupError with what is wrong.
    """
    about = scorer.description
    scores = scorer.score(_PAIRS)
    for score in scores:
        for name in about.components:
            if not math.isfinite(score.get(name, math.nan)):
                raise _failed(scorer, f"the component {name} is {score.get(name)}")
    composite = COMPOSITES[about.backend]
    copy, other, blank = (score[composite] for score in scores)
    if not copy < min(other, blank):
        raise _failed(scorer, f"{composite} of a copy is {copy:.3f}, of another report {other:.3f} (lower is better)")
    for before, after in zip(reversed(scores), scorer.score(_PAIRS[::-1]), strict=True):
        if any(abs(before[name] - after[name]) > _TOLERANCE for name in about.components):
            raise _failed(scorer, "scores depend on the order of the pairs")


def _failed(scorer: Scorer, what: str) -> RewardSetupError:
    about = scorer.description
    models = ", ".join(f"{model.name} {model.sha256[:12]}" for model in about.models)
    return RewardSetupError(
        f"the self-check of the backend {about.backend} failed: {what}; check its weights: {models}"
    )
